"""Deletion and insertion (Petsiuk, Das and Saenko 2018), patch by patch of the network's own grid.

Deletion replaces patches by a baseline, the most important first, and watches the softmax probability of the target fall;
insertion starts from a baseline and puts them back. The number of a curve is the area under it over the share of patches from 0
to 1: low is good for deletion, high for insertion. Removing any patches at all changes an image, so that only the difference to
random orders says whether an attribution knows more than nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.attribution.attributions import Attribution, batches_of
from mixer_probe.attribution.baselines import Baseline, make_baseline
from mixer_probe.attribution.maps import cells
from mixer_probe.attribution.network import chosen, explaining, logits_of
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import mean_interval

GAMES = ("deletion", "insertion")


@dataclass(frozen=True)
class PerturbationCurves(Result):
    """Probability of the target along both games, for methods and for `random_orders` random orders of patches.

    `fractions` [step] are shares of patches from 0 to 1; `deletion` and `insertion` are [method, image, step], `random_deletion`
    and `random_insertion` [order, image, step]. Intervals resample images."""

    title: ClassVar[str] = "Deletion and insertion"

    model: ModelRecord
    images: ImagesRecord
    methods: tuple[str, ...]
    ids: tuple[str, ...]
    targets: np.ndarray
    grid: tuple[int, int]
    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray
    deletion_baseline: str
    insertion_baseline: str
    random_orders: int
    seed: int = 0

    def area(self, game: str) -> np.ndarray:
        """Area under every curve of "deletion" or "insertion": [method, image]."""
        return self._area(getattr(self, game))

    def random_area(self, game: str) -> np.ndarray:
        """The same for random orders, averaged over them: [image]."""
        mean: np.ndarray = self._area(getattr(self, f"random_{game}")).mean(0)
        return mean

    def _area(self, curves: np.ndarray) -> np.ndarray:
        areas: np.ndarray = np.trapezoid(curves, self.fractions, axis=-1)
        return areas

    def to_frame(self) -> pd.DataFrame:
        """One row a game and method, the random order last: mean area with its interval over images, and how much better than
        random orders of the same images (`gain`, positive is better in both games) with its interval."""
        rows = [row for game in GAMES for row in self._rows(game)]
        return pd.DataFrame(rows)

    def _rows(self, game: str) -> Iterator[dict[str, object]]:
        null = self.random_area(game)
        for name, areas in zip((*self.methods, "random order"), (*self.area(game), null), strict=True):
            mean, low, high = mean_interval(areas)
            gain = (null - areas) * (1 if game == "deletion" else -1)
            better, gain_low, gain_high = mean_interval(gain)
            yield {
                "model": self.model.name,
                "game": game,
                "method": name,
                "area": float(mean),
                "low": float(low),
                "high": float(high),
                "gain": float(better),
                "gain_low": float(gain_low),
                "gain_high": float(gain_high),
                "n_images": len(self.ids),
                "patches": self.grid[0] * self.grid[1],
            }


@checked(MeasureError)
def perturbation_curves(
    model: Model,
    images: ImageSource | Tensor,
    attributions: Sequence[Attribution],
    *,
    steps: int = 32,
    random_orders: int = 8,
    grid: tuple[int, int] | None = None,
    deletion_baseline: str | Tensor = "grey",
    insertion_baseline: str | Tensor = "blur",
    batch_size: int = 64,
    seed: int = 0,
) -> PerturbationCurves:
    """Deletion and insertion curves of attributions that were made of this model and these images.

    Patches of `grid` (None for the network's own) are ordered by the sum of the map over them; equal ones, such as the zeros of
    Grad-CAM, in random order. At most `steps` forward passes an image and curve.

    Raises MeasureError for attributions of another model, other images or several targets of one image."""
    source = as_source(images)
    check_attributions(model, source, attributions)
    grid = grid or attributions[0].grid
    counts = np.unique(np.round(np.linspace(0, grid[0] * grid[1], steps + 1)).astype(int))
    game = _Game(
        model,
        torch.from_numpy(counts).to(model.device),
        torch.from_numpy(cells(model.input.size[1:], grid)).to(model.device),
        {"deletion": make_baseline(deletion_baseline, model.input), "insertion": make_baseline(insertion_baseline, model.input)},
        batch_size,
    )
    ranks = _ranks(attributions, grid, random_orders, seed)
    targets = attributions[0].targets
    curves = [
        game.play(x, ranks[:, start : start + len(x)], targets[start:])
        for start, x in batches_of(model, source, batch_size, "deletion and insertion")
    ]
    both = {name: np.concatenate([c[i] for c in curves], 1) for i, name in enumerate(GAMES)}
    m = len(attributions)
    return PerturbationCurves(
        model=model.record,
        images=source.record,
        methods=tuple(a.method for a in attributions),
        ids=tuple(source.ids),
        targets=targets,
        grid=grid,
        fractions=counts / counts[-1],
        deletion=both["deletion"][:m],
        insertion=both["insertion"][:m],
        random_deletion=both["deletion"][m:],
        random_insertion=both["insertion"][m:],
        deletion_baseline=game.baselines["deletion"].text,
        insertion_baseline=game.baselines["insertion"].text,
        random_orders=random_orders,
        seed=seed,
    )


def check_attributions(model: Model, source: ImageSource, attributions: Sequence[Attribution]) -> None:
    """Raise MeasureError unless all attributions are of this model, these images and the same targets."""
    if not attributions:
        raise MeasureError("give at least one attribution")
    for a in attributions:
        if a.model.fingerprint != model.fingerprint:
            raise MeasureError(
                f"the {a.method} maps are of {a.model.name}, whose weights, settings or preprocessing differ from those of "
                f"{model.name}; compute them with this network in its current state"
            )
        if a.images.fingerprint != source.record.fingerprint:
            raise MeasureError(f"the {a.method} maps were computed on other images or labels than the {len(source)} images given")
        if not np.array_equal(a.targets, attributions[0].targets):
            raise MeasureError(
                "the attributions have different target classes for the same image; compute them with the same target="
            )


def _ranks(attributions: Sequence[Attribution], grid: tuple[int, int], orders: int, seed: int) -> np.ndarray:
    """Place of every patch in the order of removal, 0 first: [method + order, image, patch]."""
    generator = np.random.default_rng(seed)
    scores = np.stack([a.pooled(grid).reshape(len(a.ids), -1) for a in attributions])
    ties = generator.random(scores.shape)
    given = np.lexsort((ties, -scores), axis=-1).argsort(-1)
    random = generator.random((orders, *scores.shape[1:])).argsort(-1)
    ranks: np.ndarray = np.concatenate([given, random])
    return ranks


@dataclass(frozen=True)
class _Game:
    model: Model
    counts: Tensor
    cells: Tensor
    baselines: dict[str, Baseline]
    chunk: int

    def play(self, x: Tensor, ranks: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
        """Probabilities [order, image, step] of deletion and of insertion."""
        rank = torch.from_numpy(ranks).to(x.device)
        wanted = torch.from_numpy(targets[: len(x)]).to(x.device)
        with explaining(self.model), torch.no_grad():
            gone, start = (self.baselines[name].of(x) for name in GAMES)
            return [self._curves(x, gone, rank, wanted), self._curves(start, x, rank, wanted)]

    def _curves(self, before: Tensor, after: Tensor, rank: Tensor, targets: Tensor) -> np.ndarray:
        """Probabilities on the way from `before` to `after`, in the order of `rank` [order, image, patch]."""
        orders, n, _ = rank.shape
        found = np.empty((orders, n, len(self.counts)))
        # No order is needed for nothing and for everything.
        found[..., 0], found[..., -1] = (self._probabilities(images, targets) for images in (before, after))
        for s, count in enumerate(self.counts[1:-1], 1):
            changed = (rank < count)[:, :, self.cells]
            mixed = torch.where(changed[:, :, None], after, before).flatten(0, 1)
            found[:, :, s] = self._probabilities(mixed, targets.repeat(orders)).reshape(orders, n)
        return found

    def _probabilities(self, x: Tensor, targets: Tensor) -> np.ndarray:
        parts = zip(torch.split(x, self.chunk), torch.split(targets, self.chunk), strict=True)
        found = [chosen(logits_of(self.model, a).double().softmax(1), t) for a, t in parts]
        probabilities: np.ndarray = torch.cat(found).cpu().numpy()
        return probabilities
