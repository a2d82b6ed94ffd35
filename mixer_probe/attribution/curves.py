"""Deletion and insertion (Petsiuk, Das and Saenko 2018), patch by patch of the network's own grid.

Deletion replaces patches by a baseline, the most important first, and measures how the softmax
probability of the target falls; insertion starts from a baseline and restores them. A curve is
summarised by the area under it over the fraction of patches from 0 to 1: low is good for deletion,
high for insertion. Removing any patches changes an image, so that only the difference to random
orders shows that an attribution is informative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.attribution.attributions import Attribution, batches_of
from mixer_probe.attribution.baselines import make_baseline
from mixer_probe.attribution.maps import cells
from mixer_probe.attribution.network import attribution_mode, gather_target_logits, logits_of
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import mean_interval

MODES = ("deletion", "insertion")


@dataclass(frozen=True)
class PerturbationCurves(Result):
    """Probability of the target under deletion and insertion, for methods and for `random_orders`
    random orders of patches.

    `fractions` [step] of patches run from 0 to 1; `deletion` and `insertion` are [method, image,
    step], `random_deletion` and `random_insertion` [order, image, step]. Intervals are over
    images."""

    title: ClassVar[str] = "Deletion and insertion"

    model: ModelRecord
    images: ImagesRecord
    methods: Annotated[tuple[str, ...], "method"]
    ids: Annotated[tuple[str, ...], "image"]
    targets: Annotated[np.ndarray, "image"]
    grid: tuple[int, int]
    fractions: Annotated[np.ndarray, "step"]
    deletion: Annotated[np.ndarray, "method", "image", "step"]
    insertion: Annotated[np.ndarray, "method", "image", "step"]
    random_deletion: Annotated[np.ndarray, "order", "image", "step"]
    random_insertion: Annotated[np.ndarray, "order", "image", "step"]
    deletion_baseline: str
    insertion_baseline: str
    random_orders: int
    seed: int = 0

    def area(self, mode: str) -> np.ndarray:
        """Area under every curve of "deletion" or "insertion": [method, image]."""
        areas: np.ndarray = np.trapezoid(getattr(self, mode), self.fractions, axis=-1)
        return areas

    def random_area(self, mode: str) -> np.ndarray:
        """Area under the curve of a random order, mean over orders: [image]."""
        mean: np.ndarray = self.area(f"random_{mode}").mean(0)
        return mean

    def gain(self, mode: str) -> np.ndarray:
        """How much better than random orders of the same image, positive is better in both modes:
        [method, image]."""
        gain: np.ndarray = (self.random_area(mode) - self.area(mode)) * (
            1 if mode == "deletion" else -1
        )
        return gain

    def to_frame(self) -> pd.DataFrame:
        """One row per mode and method, the random order last: mean area with its interval over
        images, and `gain` over random orders of the same images with its interval."""
        rows = []
        for mode in MODES:
            random = self.random_area(mode)
            areas = [*self.area(mode), random]
            gains = [*self.gain(mode), random - random]
            for name, area, gain in zip((*self.methods, "random order"), areas, gains, strict=True):
                columns = ("area", "low", "high", "gain", "gain_low", "gain_high")
                estimates = map(float, (*mean_interval(area), *mean_interval(gain)))
                rows.append(
                    {"model": self.model.name, "mode": mode, "method": name}
                    | dict(zip(columns, estimates, strict=True))
                    | {"n_images": len(self.ids), "patches": self.grid[0] * self.grid[1]}
                )
        return pd.DataFrame(rows)


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
    """Deletion and insertion curves of attributions of this model and these images.

    Patches of `grid` (None for the network's own) are ordered by the sum of the map over them;
    ties, such as the zeros of Grad-CAM, in random order. At most `steps` forward passes per image
    and curve.

    Raises MeasureError for attributions of another model, other images or several targets of one
    image."""
    source = as_source(images)
    check_attributions(model, source, attributions)
    grid = grid or attributions[0].grid
    counts = np.unique(np.round(np.linspace(0, grid[0] * grid[1], steps + 1)).astype(int))
    where = torch.from_numpy(cells(model.input.size[1:], grid)).to(model.device)
    deleted, inserted = (
        make_baseline(deletion_baseline, model.input),
        make_baseline(insertion_baseline, model.input),
    )
    # Rank of every patch in the order of removal, 0 first: [method + order, image, patch].
    generator = np.random.default_rng(seed)
    scores = np.stack([a.pooled(grid).reshape(len(a.ids), -1) for a in attributions])
    ties = generator.random(scores.shape)
    by_score = np.lexsort((ties, -scores), axis=-1).argsort(-1)
    at_random = generator.random((random_orders, *scores.shape[1:])).argsort(-1)
    ranks, targets = np.concatenate([by_score, at_random]), attributions[0].targets
    found: dict[str, list[np.ndarray]] = {mode: [] for mode in MODES}
    for start, x in batches_of(model, source, batch_size, "deletion and insertion"):
        rows = slice(start, start + len(x))
        rank, wanted = (torch.from_numpy(a).to(x.device) for a in (ranks[:, rows], targets[rows]))
        with attribution_mode(model), torch.no_grad():
            patches = (rank, where, counts.tolist(), batch_size)
            found["deletion"].append(_curves(model, x, deleted.of(x), wanted, *patches))
            found["insertion"].append(_curves(model, inserted.of(x), x, wanted, *patches))
    curves: Mapping[str, np.ndarray] = {
        mode: np.concatenate(parts, 1) for mode, parts in found.items()
    }
    m = len(attributions)
    return PerturbationCurves(
        model=model.record,
        images=source.record,
        methods=tuple(a.method for a in attributions),
        ids=tuple(source.ids),
        targets=targets,
        grid=grid,
        fractions=counts / counts[-1],
        deletion=curves["deletion"][:m],
        insertion=curves["insertion"][:m],
        random_deletion=curves["deletion"][m:],
        random_insertion=curves["insertion"][m:],
        deletion_baseline=deleted.text,
        insertion_baseline=inserted.text,
        random_orders=random_orders,
        seed=seed,
    )


def _curves(
    model: Model,
    before: Tensor,
    after: Tensor,
    targets: Tensor,
    rank: Tensor,
    where: Tensor,
    counts: Sequence[int],
    chunk: int,
) -> np.ndarray:
    """Probabilities [order, image, step] of the targets from images `before` to `after`, which
    replaces patches in the order of `rank` [order, image, patch], `counts` [step] of them in all;
    `where` [H, W] is the patch of every pixel."""
    orders, n, _ = rank.shape
    found = np.empty((orders, n, len(counts)))
    # Neither no patch nor all patches depend on the order.
    found[..., 0], found[..., -1] = (
        _probabilities(model, images, targets, chunk) for images in (before, after)
    )
    for step, count in enumerate(counts[1:-1], 1):
        changed = (rank < count)[:, :, where]
        mixed = torch.where(changed[:, :, None], after, before).flatten(0, 1)
        found[:, :, step] = _probabilities(model, mixed, targets.repeat(orders), chunk).reshape(
            orders, n
        )
    return found


def _probabilities(model: Model, x: Tensor, targets: Tensor, chunk: int) -> np.ndarray:
    """Softmax probability of the target of every image [B]."""
    parts = zip(torch.split(x, chunk), torch.split(targets, chunk), strict=True)
    found = [gather_target_logits(logits_of(model, a).double().softmax(1), t) for a, t in parts]
    probabilities: np.ndarray = torch.cat(found).cpu().numpy()
    return probabilities


def check_attributions(
    model: Model, source: ImageSource, attributions: Sequence[Attribution]
) -> None:
    """Raise MeasureError unless all attributions are of this model, these images and the same
    targets."""
    if not attributions:
        raise MeasureError("give at least one attribution")
    for a in attributions:
        if a.model.fingerprint != model.fingerprint:
            raise MeasureError(
                f"the {a.method} maps are of {a.model.name}, whose weights, settings or "
                f"preprocessing differ from those of {model.name}; compute them with this network "
                "in its current state"
            )
        if a.images.fingerprint != source.record.fingerprint:
            raise MeasureError(
                f"the {a.method} maps were computed on other images or labels than the "
                f"{len(source)} images given"
            )
        if not np.array_equal(a.targets, attributions[0].targets):
            raise MeasureError(
                "the attributions have different target classes for the same image; compute them "
                "with the same target="
            )
