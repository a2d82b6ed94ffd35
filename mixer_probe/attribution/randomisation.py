"""The model-randomisation sanity check (Adebayo et al. 2018): does a map notice that its network has forgotten everything?

From the head towards the stem, every weight tensor is drawn anew from a normal distribution of its own mean and standard
deviation (so that no layer falls silent, as it would with an initialisation whose head or gates are zero), and after each stage
the same method explains the same class. A method that reads the network's weights ends as unlike its own map as maps of other
images are; one that only finds edges does not. Buffers, such as running statistics, stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mixer_probe.attribution.attributions import Attribution, batches_of
from mixer_probe.attribution.curves import check_attributions
from mixer_probe.attribution.maps import centred_ranks, pool, spearman, ssim
from mixer_probe.attribution.network import explaining
from mixer_probe.attribution.robustness import explainer_of
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.validate import checked
from mixer_probe.errors import MeasureError
from mixer_probe.models.model import Model
from mixer_probe.models.switches import copied
from mixer_probe.results import ImagesRecord, ModelRecord, Result
from mixer_probe.stats import mean_interval


@dataclass(frozen=True)
class RandomisationCheck(Result):
    """Likeness of every image's map to itself after each stage of a cascading randomisation.

    `stages` begin with "trained" (likeness 1) and then name what was drawn anew last. `spearman` [stage, image] is the rank
    correlation of patch sums (of magnitudes where the method is signed, see `signed_spearman` for the values themselves), `ssim`
    [stage, image] the structural similarity of magnitudes at input resolution. `null_spearman` [image] is the mean rank
    correlation of the trained network's map of an image with its maps of the other images."""

    title: ClassVar[str] = "Randomisation check"

    model: ModelRecord
    images: ImagesRecord
    method: str
    stages: tuple[str, ...]
    ids: tuple[str, ...]
    grid: tuple[int, int]
    spearman: np.ndarray
    signed_spearman: np.ndarray
    ssim: np.ndarray
    null_spearman: np.ndarray
    seed: int = 0

    def to_frame(self) -> pd.DataFrame:
        """One row a stage: mean over images and 95 % interval of each likeness, and of the null."""
        return pd.DataFrame([self._row(i) for i in range(len(self.stages))])

    def _row(self, i: int) -> dict[str, object]:
        row: dict[str, object] = {"model": self.model.name, "method": self.method, "stage": i, "redrawn": self.stages[i]}
        likeness = {
            "spearman": self.spearman[i],
            "signed_spearman": self.signed_spearman[i],
            "ssim": self.ssim[i],
            "null_spearman": self.null_spearman,
        }
        for name, values in likeness.items():
            mean, low, high = (float(v) for v in mean_interval(values))
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        return {**row, "n_images": len(self.ids)}


@checked(MeasureError)
def randomisation_check(
    model: Model,
    images: ImageSource | Tensor,
    attribution: Attribution,
    *,
    grid: tuple[int, int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> RandomisationCheck:
    """The check for one attribution of this model and these images, on a copy of the network. Ranks are of the sums over the
    patches of `grid` (None for the network's own).

    Raises MeasureError as `perturbation_curves` does."""
    source = as_source(images)
    check_attributions(model, source, [attribution])
    twin = replace(model, module=copied(model.module))
    stages, maps = ["trained"], [attribution.maps]
    for stage in _cascade(twin, seed):
        stages.append(stage)
        maps.append(_maps(twin, source, attribution, batch_size))
    return _result(model, source, attribution, stages, maps, grid or attribution.grid, seed)


def _cascade(twin: Model, seed: int) -> Iterator[str]:
    """Draw one stage after the other anew; yields the name of each when it is done."""
    generator = torch.Generator().manual_seed(seed)
    left = dict(twin.module.named_parameters())
    blocks = [block.path for block in reversed(twin.structure.blocks)]
    ends = [layer.name for kind in ("head", "norm") for layer in twin.layers if layer.kind == kind]
    for path in (*ends, *blocks, ""):
        mine = [name for name in left if not path or name.startswith(path + ".")]
        if mine:
            for name in mine:
                _redraw(left.pop(name), generator)
            yield path or "stem and the rest"


def _redraw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    if parameter.numel() < 2 or not parameter.is_floating_point():
        return
    with torch.no_grad():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(parameter.mean() + parameter.std() * noise)


def _maps(twin: Model, source: ImageSource, attribution: Attribution, batch_size: int) -> np.ndarray:
    explain = explainer_of(twin, attribution, batch_size)
    found = []
    for start, x in batches_of(twin, source, batch_size, f"randomised {attribution.method}"):
        targets = torch.from_numpy(attribution.targets[start : start + len(x)]).to(x.device)
        with explaining(twin):
            found.append(explain(x, targets).maps.detach().float().cpu().numpy())
    return np.concatenate(found)


def _result(
    model: Model,
    source: ImageSource,
    a: Attribution,
    stages: list[str],
    maps: list[np.ndarray],
    grid: tuple[int, int],
    seed: int,
) -> RandomisationCheck:
    pooled = np.stack([pool(m, grid).reshape(len(m), -1) for m in maps])
    sizes = np.stack([pool(np.abs(m), grid).reshape(len(m), -1) for m in maps])
    return RandomisationCheck(
        model=model.record,
        images=source.record,
        method=a.method,
        stages=tuple(stages),
        ids=tuple(source.ids),
        grid=grid,
        spearman=spearman(sizes[:1], sizes),
        signed_spearman=spearman(pooled[:1], pooled),
        ssim=np.stack([ssim(maps[0], m) for m in maps]),
        null_spearman=other_images(sizes[0], sizes[0]),
        seed=seed,
    )


def other_images(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[image]: mean rank correlation of row i of `a` [image, patch] with all other rows of `b`; NaN for a single image."""
    table = rank_table(a, b)
    np.fill_diagonal(table, np.nan)
    counts = np.isfinite(table).sum(1)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.nansum(table, 1) / counts
    return means


def rank_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlations [image of a, image of b] of rows [image, patch]."""
    x, y = (centred_ranks(v) for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
    table: np.ndarray = x @ y.T
    return table
