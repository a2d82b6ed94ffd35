"""Infidelity and maximal sensitivity (Yeh et al. 2019), by captum.metrics.

Infidelity: patches are replaced by the baseline at random, and the sum of the map over them is
compared with the drop in the logit. Maps have no common unit, so that the best scale of each map is
factored out (captum's `normalize`), and the squared error is divided by the mean squared drop: 0
for a map whose sums predict every drop, 1 for one that predicts none. Where every removal costs
about the same, a map without any structure predicts most of it: the uniform map is given beside the
others. Sensitivity: largest |map(x + noise) - map(x)| / |map(x)| over noise that is uniform within
+-radius of the normalised input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, ClassVar

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
from mixer_probe.attribution.network import attribution_mode, logits_of
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import seeded
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import mean_interval, permutation_p

_PERMUTATIONS = 999


@dataclass(frozen=True)
class Faithfulness(Result):
    """Infidelity and sensitivity [method, image] of several methods on one network; NaN where a map
    is zero everywhere.

    `uniform_infidelity` [image] is that of the map that is the same everywhere, under the same
    removals."""

    title: ClassVar[str] = "Infidelity and sensitivity"

    model: ModelRecord
    images: ImagesRecord
    methods: Annotated[tuple[str, ...], "method"]
    ids: Annotated[tuple[str, ...], "image"]
    grid: tuple[int, int]
    baseline: str
    infidelity: Annotated[np.ndarray, "method", "image"]
    uniform_infidelity: Annotated[np.ndarray, "image"]
    sensitivity: Annotated[np.ndarray, "method", "image"]
    samples: int
    removed: float
    radius: float
    seed: int = 0

    def sensitivity_p(self) -> float:
        """Permutation p-value of the range over methods of geometric mean sensitivities, under
        methods exchanged image by image; NaN without images whose sensitivities are known for all
        methods that have any."""
        known = np.isfinite(self.sensitivity).any(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.sensitivity[known])
        logs = logs[:, np.isfinite(logs).all(0)]
        order = np.random.default_rng(self.seed).random((_PERMUTATIONS, *logs.shape)).argsort(1)
        permuted = np.take_along_axis(logs[None], order, 1)
        return (
            float(permutation_p(np.ptp(logs.mean(-1)), np.ptp(permuted.mean(-1), axis=1)))
            if logs.size
            else np.nan
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per measure and method, and the uniform map: mean over images with its 95 %
        interval."""
        entries = [
            *(("infidelity", *row) for row in zip(self.methods, self.infidelity, strict=True)),
            ("infidelity", "uniform map", self.uniform_infidelity),
            *(("sensitivity", *row) for row in zip(self.methods, self.sensitivity, strict=True)),
        ]
        rows = []
        for measure, method, values in entries:
            mean, low, high = (float(v) for v in mean_interval(values))
            row = {
                "model": self.model.name,
                "measure": measure,
                "method": method,
                "mean": mean,
                "low": low,
                "high": high,
            }
            rows.append({**row, "n_images": int(np.isfinite(values).sum())})
        return pd.DataFrame(rows)


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
    """Infidelity and sensitivity of attributions of this model and these images.

    Infidelity is over `samples` random removals of a fraction `removed` of the patches of `grid`
    (None for the network's own), sensitivity over `sensitivity_samples` draws of noise, whose maps
    are computed with the attributions' own settings; `sensitivity_samples=0` leaves it out (NaN),
    and `sensitivity_of` names the only methods that have it, since it costs as many maps again as
    there are samples.

    Raises MeasureError as `perturbation_curves` does."""
    source = as_source(images)
    check_attributions(model, source, attributions)
    base = make_baseline(baseline, model.input)
    grid = grid or attributions[0].grid
    removal = _Removal(base, torch.from_numpy(cells(model.input.size[1:], grid)), removed)
    perturbed = [
        a.method in (sensitivity_of or [a.method]) and sensitivity_samples > 0 for a in attributions
    ]
    explain = [
        explainer(model, a, batch_size) if p else None
        for a, p in zip(attributions, perturbed, strict=True)
    ]
    scores, sensitivities = list[np.ndarray](), list[np.ndarray]()
    for start, x in batches_of(model, source, batch_size, "infidelity and sensitivity"):
        targets = torch.from_numpy(attributions[0].targets[start : start + len(x)]).to(x.device)
        with attribution_mode(model), seeded(seed + start, x.device):
            maps = [torch.from_numpy(a.maps[start : start + len(x)]).to(x) for a in attributions]
            scores.append(
                _infidelities(
                    model,
                    removal,
                    x,
                    (*maps, torch.ones_like(maps[0])),
                    targets,
                    samples,
                    seed + start,
                )
            )
            changes = [torch.full((len(x),), torch.nan, dtype=torch.float64)] * len(maps)
            for k, one in enumerate(explain):
                if one is not None:
                    changes[k] = _sensitivity(one, maps[k], x, targets, radius, sensitivity_samples)
            sensitivities.append(torch.stack([change.cpu() for change in changes]).numpy())
    infidelities = np.concatenate(scores, 1)
    return Faithfulness(
        model=model.record,
        images=source.record,
        methods=tuple(a.method for a in attributions),
        ids=tuple(source.ids),
        grid=grid,
        baseline=base.text,
        infidelity=infidelities[:-1],
        uniform_infidelity=infidelities[-1],
        sensitivity=np.concatenate(sensitivities, 1),
        samples=samples,
        removed=removed,
        radius=radius,
        seed=seed,
    )


@dataclass(frozen=True)
class _Removal:
    """captum's perturbation: (mask of what is removed, images without it). Every patch is removed
    with probability `fraction`."""

    baseline: Baseline
    cells: Tensor
    fraction: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = int(self.cells.max()) + 1
        removed = torch.rand(len(x), patches, device=x.device) < self.fraction
        mask = removed[:, self.cells.to(x.device)][:, None].expand_as(x)
        return mask.to(x), torch.where(mask, self.baseline.of(x), x)


def _infidelities(
    model: Model,
    removal: _Removal,
    x: Tensor,
    maps: Sequence[Tensor],
    targets: Tensor,
    samples: int,
    seed: int,
) -> np.ndarray:
    """Unexplained fraction of the squared drops [map, B], of the same removals for every map."""
    # The map belongs to all colours of a pixel together.
    spread = [(one[:, None] / x.shape[1]).expand_as(x) for one in maps]
    known: list[Tensor] = []

    def scores(attributions: Tensor, normalize: bool) -> Tensor:
        """captum's infidelity; the logits are computed once, since every map has the same images in
        the same order."""
        calls = count()

        def logits(images: Tensor) -> Tensor:
            call = next(calls)
            if call == len(known):
                known.append(logits_of(model, images).double())
            return known[call]

        with seeded(seed, x.device):
            found: Tensor = infidelity(
                logits,
                removal,
                x,
                attributions.double(),
                target=targets,
                n_perturb_samples=samples,
                max_examples_per_batch=_rows(len(x), samples),
                normalize=normalize,
            )
        return found

    drops = scores(torch.zeros_like(spread[0]), False)
    found = torch.stack([scores(one, True) / drops for one in spread])
    found[torch.stack([_empty(one) for one in maps])] = torch.nan
    result: np.ndarray = found.cpu().numpy()
    return result


def _sensitivity(
    explain: Callable[[Tensor, Tensor], Explained],
    maps: Tensor,
    x: Tensor,
    targets: Tensor,
    radius: float,
    samples: int,
) -> Tensor:
    """Largest relative change of the map of every image [B] over `samples` draws of noise within
    `radius`."""

    def explanation(images: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor]:
        # captum hands over tuples, and would take a bare tensor apart along its images; it does not
        # repeat a single target.
        given = images[0] if isinstance(images, tuple) else images
        with torch.enable_grad():
            return (explain(given.detach(), target.expand(len(given))).maps[:, None].contiguous(),)

    found: Tensor = sensitivity_max(
        explanation,
        x,
        perturb_radius=radius,
        n_perturb_samples=samples,
        max_examples_per_batch=_rows(len(x), samples),
        target=targets,
    )
    found = found.double()
    found[_empty(maps)] = torch.nan
    return found


def _rows(n: int, samples: int) -> int:
    """How many perturbed images captum passes at once: at least all of one draw, at most all there
    are."""
    return min(max(2 * n, 64), n * samples)


def _empty(maps: Tensor) -> Tensor:
    """Which maps are zero everywhere [B]."""
    return ~maps.flatten(1).any(1)
