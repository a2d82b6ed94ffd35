"""Infidelity and maximal sensitivity (Yeh et al. 2019), by captum.metrics.

Infidelity: patches are replaced by the baseline at random, and the sum of the map over them is compared with the fall of the
logit. Maps have no common unit, so that the best scale of each map is taken out (captum's `normalize`), and the squared error is
divided by the mean squared fall: 0 is a map whose sums tell every fall, 1 is one that tells nothing. Where every removal costs
about the same, a map without any structure tells most of it: the uniform map is given beside the others.
Sensitivity: largest |map(x + noise) - map(x)| / |map(x)| over noise that is uniform within +-radius of the normalised input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from mixer_probe.attribution.attributions import Attribution, batches_of, explainer
from mixer_probe.attribution.baselines import Baseline, make_baseline
from mixer_probe.attribution.curves import check_attributions
from mixer_probe.attribution.maps import cells
from mixer_probe.attribution.methods import Explained
from mixer_probe.attribution.network import explaining, logits_of
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import seeded
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import mean_interval


@dataclass(frozen=True)
class Faithfulness(Result):
    """Infidelity and sensitivity [method, image] of several methods on one network; NaN where a map is zero everywhere.

    `uniform_infidelity` [image] is that of the map that is the same everywhere, under the same removals."""

    title: ClassVar[str] = "Infidelity and sensitivity"

    model: ModelRecord
    images: ImagesRecord
    methods: tuple[str, ...]
    ids: tuple[str, ...]
    grid: tuple[int, int]
    baseline: str
    infidelity: np.ndarray
    uniform_infidelity: np.ndarray
    sensitivity: np.ndarray
    samples: int
    removed: float
    radius: float
    seed: int = 0

    def to_frame(self) -> pd.DataFrame:
        """One row a measure and method, and the uniform map: mean over images with its 95 % interval."""
        uniform = ("infidelity", "uniform map", self.uniform_infidelity)
        given = [
            (measure, name, values)
            for measure in ("infidelity", "sensitivity")
            for name, values in zip(self.methods, getattr(self, measure), strict=True)
        ]
        return pd.DataFrame(list(self._rows([*given[: len(self.methods)], uniform, *given[len(self.methods) :]])))

    def _rows(self, entries: Sequence[tuple[str, str, np.ndarray]]) -> Iterator[dict[str, object]]:
        for measure, name, values in entries:
            mean, low, high = (float(v) for v in mean_interval(values))
            yield {
                "model": self.model.name,
                "measure": measure,
                "method": name,
                "mean": mean,
                "low": low,
                "high": high,
                "n_images": int(np.isfinite(values).sum()),
            }


@checked(MeasureError)
def faithfulness(
    model: Model,
    images: ImageSource | Tensor,
    attributions: Sequence[Attribution],
    *,
    grid: tuple[int, int] | None = None,
    samples: int = 64,
    removed: float = 0.3,
    baseline: str | Tensor = "grey",
    radius: float = 0.02,
    sensitivity_samples: int = 8,
    sensitivity_of: Sequence[str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Faithfulness:
    """Infidelity over `samples` random removals of a share `removed` of the patches of `grid` (None for the network's own), and
    sensitivity over `sensitivity_samples` draws of noise, of attributions of this model and these images. Maps are made again,
    with their own settings, for the noisy images; `sensitivity_samples=0` leaves that out (NaN), and `sensitivity_of` names the
    only methods that have it, since it takes as many maps again as there are samples.

    Raises MeasureError as `perturbation_curves` does."""
    source = as_source(images)
    check_attributions(model, source, attributions)
    base = make_baseline(baseline, model.input)
    grid = grid or attributions[0].grid
    removal = _Removal(base, torch.from_numpy(cells(model.input.size[1:], grid)), removed)
    disturbed = [a.method in (sensitivity_of or [a.method]) and sensitivity_samples > 0 for a in attributions]
    explain = [explainer_of(model, a, batch_size) if d else None for a, d in zip(attributions, disturbed, strict=True)]
    scores: list[np.ndarray] = []
    changes: list[np.ndarray] = []
    for start, x in batches_of(model, source, batch_size, "infidelity and sensitivity"):
        targets = torch.from_numpy(attributions[0].targets[start : start + len(x)]).to(x.device)
        with explaining(model), seeded(seed + start, x.device):
            maps = [torch.from_numpy(a.maps[start : start + len(x)]).to(x) for a in attributions]
            scores.append(_infidelities(model, removal, x, (*maps, torch.ones_like(maps[0])), targets, samples, seed + start))
            changes.append(_changes(explain, maps, x, targets, radius, sensitivity_samples))
    told = np.concatenate(scores, 1)
    return Faithfulness(
        model=model.record,
        images=source.record,
        methods=tuple(a.method for a in attributions),
        ids=tuple(source.ids),
        grid=grid,
        baseline=base.text,
        infidelity=told[:-1],
        uniform_infidelity=told[-1],
        sensitivity=np.concatenate(changes, 1),
        samples=samples,
        removed=removed,
        radius=radius,
        seed=seed,
    )


def explainer_of(model: Model, a: Attribution, batch_size: int) -> Callable[[Tensor, Tensor], Explained]:
    """The method of an attribution, with its settings, as a function for any copy of its network."""
    layer = a.layer.name if a.layer else None
    return explainer(
        model, a.method, layer=layer, baseline=baseline_of(a), batch_size=batch_size, seed=a.seed, **dict(a.settings)
    )


def baseline_of(a: Attribution) -> str | Tensor:
    """What to give as baseline= for the same attribution again."""
    return a.baseline_name if a.baseline_image is None else torch.from_numpy(a.baseline_image)


@dataclass(frozen=True)
class _Removal:
    """captum's perturbation: (mask of what is removed, images without it). Every patch is removed with the given chance."""

    baseline: Baseline
    cells: Tensor
    share: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = int(self.cells.max()) + 1
        gone = torch.rand(len(x), patches, device=x.device) < self.share
        mask = gone[:, self.cells.to(x.device)][:, None].expand_as(x)
        return mask.to(x), torch.where(mask, self.baseline.of(x), x)


def _infidelities(
    model: Model, removal: _Removal, x: Tensor, maps: Sequence[Tensor], targets: Tensor, samples: int, seed: int
) -> np.ndarray:
    """[map, B]: unexplained share of the squared falls, of the same removals for every map."""
    forward = _Replay(model)
    # The map belongs to all colours of a pixel together.
    spreads = [(one[:, None] / x.shape[1]).expand_as(x) for one in maps]
    options: dict[str, Any] = {"target": targets, "n_perturb_samples": samples, "max_examples_per_batch": _rows(len(x), samples)}

    def run(attributions: Tensor, normalize: bool) -> Tensor:
        forward.rewind()
        with seeded(seed, x.device):
            found: Tensor = infidelity(forward, removal, x, attributions.double(), normalize=normalize, **options)
        return found

    falls = run(torch.zeros_like(spreads[0]), False)
    shares = torch.stack([run(spread, True) / falls for spread in spreads])
    shares[torch.stack([one.flatten(1).abs().amax(1) == 0 for one in maps])] = torch.nan
    result: np.ndarray = shares.cpu().numpy()
    return result


class _Replay:
    """Logits in float64, computed once: after `rewind` the same images come again in the same order."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: list[Tensor] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def __call__(self, images: Tensor) -> Tensor:
        if self._next == len(self._known):
            self._known.append(logits_of(self._model, images).double())
        self._next += 1
        return self._known[self._next - 1]


def _rows(n: int, samples: int) -> int:
    """How many changed images captum sees at once: at least all of one draw, at most all there are."""
    return min(max(2 * n, 64), n * samples)


def _changes(
    explain: Sequence[Callable[[Tensor, Tensor], Explained] | None],
    maps: Sequence[Tensor],
    x: Tensor,
    targets: Tensor,
    radius: float,
    samples: int,
) -> np.ndarray:
    nothing = np.full(len(x), np.nan)
    pairs = zip(explain, maps, strict=True)
    return np.stack([nothing if e is None else _sensitivity(e, m, x, targets, radius, samples) for e, m in pairs])


def _sensitivity(
    explain: Callable[[Tensor, Tensor], Explained], maps: Tensor, x: Tensor, targets: Tensor, radius: float, samples: int
) -> np.ndarray:
    def explanation(images: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor]:
        # captum hands over tuples, and would take a bare tensor apart along its images.
        given = images[0] if isinstance(images, tuple) else images
        with torch.enable_grad():
            return (explain(given.detach(), target).maps[:, None].contiguous(),)

    found: Tensor = sensitivity_max(
        explanation,
        x,
        perturb_radius=radius,
        n_perturb_samples=samples,
        max_examples_per_batch=_rows(len(x), samples),
        target=targets,
    )
    found = found.double()
    found[maps.flatten(1).abs().amax(1) == 0] = torch.nan
    result: np.ndarray = found.cpu().numpy()
    return result
