"""The model-randomisation sanity check (Adebayo et al. 2018): does a map notice that its network has forgotten everything?

From the head towards the stem, every weight tensor is drawn anew from a normal distribution of its own mean and standard
deviation (so that no layer falls silent, as it would with an initialisation whose head or gates are zero), and after each stage
the same method explains the same class. A method that reads the network's weights ends as unlike its own map as maps of other
images are; one that only finds edges does not. One network of random weights is one draw: another may say the opposite, so that
there are several, and intervals are for other draws and other images. Where maps of different images are alike already, as those
of a method that looks at the middle of every image, the check says nothing. Buffers, such as running statistics, stay."""

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
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import copied
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import crossed_interval, mean_interval
from mixer_probe.stats.intervals import Estimate


@dataclass(frozen=True)
class RandomisationCheck(Result):
    """Likeness of every image's map to itself after each stage of a cascading randomisation, for several draws of the weights.

    `stages` begin with "trained" (likeness 1) and then name what was drawn anew last. `spearman` [draw, stage, image] is the rank
    correlation of patch sums (of magnitudes where the method is signed, see `signed_spearman` for the values themselves), `ssim`
    [draw, stage, image] the structural similarity of magnitudes at input resolution. `null_spearman` [image] is the mean rank
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

    @property
    def draws(self) -> int:
        """How many networks of random weights there are."""
        return len(self.spearman)

    def likeness(self, values: np.ndarray, level: float = 0.95) -> Estimate:
        """Mean over draws and images of likenesses [draw, image], and its interval for other draws and other images. Images whose
        maps are constant are left out."""
        known = values[:, np.isfinite(values).all(0)]
        return crossed_interval(known, level) if known.size else (np.array(np.nan),) * 3

    def remains(self, level: float = 0.95) -> Estimate:
        """How much more alike maps are to those of the trained network, once all weights are drawn anew, than maps of different
        images are: mean over draws and images with its interval."""
        return self.likeness(self.spearman[:, -1] - pseudo_values(self.null_spearman), level)

    def between_images(self) -> Estimate:
        """Mean rank correlation of the trained network's maps of different images, with its interval."""
        return mean_interval(pseudo_values(self.null_spearman))

    def to_frame(self) -> pd.DataFrame:
        """One row a stage: mean over draws and images with the 95 % interval of each likeness, and the null."""
        return pd.DataFrame([self._row(i) for i in range(len(self.stages))])

    def _row(self, i: int) -> dict[str, object]:
        row: dict[str, object] = {"model": self.model.name, "method": self.method, "stage": i, "redrawn": self.stages[i]}
        found = {name: self.likeness(getattr(self, name)[:, i]) for name in ("spearman", "signed_spearman", "ssim")}
        for name, estimate in {**found, "null_spearman": self.between_images()}.items():
            mean, low, high = (float(v) for v in estimate)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        return {**row, "n_images": len(self.ids), "draws": self.draws}


@checked(MeasureError)
def randomisation_check(
    model: Model,
    images: ImageSource | Tensor,
    attribution: Attribution,
    *,
    draws: int = 5,
    steps: int | None = None,
    grid: tuple[int, int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> RandomisationCheck:
    """The check for one attribution of this model and these images, on copies of the network: `draws` of them, each with other
    weights. The cascade has as many `steps`, None for one a block. Ranks are of the sums over the patches of `grid` (None for the
    network's own).

    Raises MeasureError for draws or steps below 1, and as `perturbation_curves` does."""
    source = as_source(images)
    check_attributions(model, source, [attribution])
    own = grid or attribution.grid
    found, stages = [], list[str]()
    for draw in range(draws):
        twin = replace(model, module=copied(model.module))
        cascade = [
            (stage, _likeness(attribution.maps, _maps(twin, source, attribution, batch_size), own))
            for stage in _cascade(twin, seed * draws + draw, steps)
        ]
        stages = ["trained", *(stage for stage, _ in cascade)]
        found.append([_likeness(attribution.maps, attribution.maps, own), *(one for _, one in cascade)])
    spearman, signed, similar = np.moveaxis(np.array(found), 2, 0)
    sizes = pool(np.abs(attribution.maps), own).reshape(len(attribution.maps), -1)
    return RandomisationCheck(
        model=model.record,
        images=source.record,
        method=attribution.method,
        stages=tuple(stages),
        ids=tuple(source.ids),
        grid=own,
        spearman=spearman,
        signed_spearman=signed,
        ssim=similar,
        null_spearman=other_images(sizes, sizes),
        seed=seed,
    )


def _likeness(a: np.ndarray, b: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[3, image]: rank correlation of magnitudes and of values, and structural similarity, of every map with its other."""
    sums = [[pool(one, grid).reshape(len(one), -1) for one in pair] for pair in ((np.abs(a), np.abs(b)), (a, b))]
    return np.stack([*(spearman(x, y) for x, y in sums), ssim(a, b)])


def _cascade(twin: Model, seed: int, steps: int | None) -> Iterator[str]:
    """Draw one stage after the other anew; yields the name of the last part of each when it is done."""
    generator = torch.Generator().manual_seed(seed)
    left = dict(twin.module.named_parameters())
    blocks = [block.path for block in reversed(twin.structure.blocks)]
    paths = [*(layer.name for kind in ("head", "norm") for layer in twin.layers if layer.kind == kind), *blocks, ""]
    for part in np.array_split(np.array(paths), min(steps or len(paths), len(paths))):
        mine = [name for path in part for name in left if not path or name.startswith(f"{path}.")]
        for name in dict.fromkeys(mine):
            _redraw(left.pop(name), generator)
        if mine:
            yield str(part[-1]) or "stem and the rest"


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


def other_images(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[image]: mean rank correlation of row i of `a` [image, patch] with all other rows of `b`; NaN for a single image."""
    table = rank_table(a, b)
    np.fill_diagonal(table, np.nan)
    counts = np.isfinite(table).sum(1)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.nansum(table, 1) / counts
    return means


def pseudo_values(by_image: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values [image] of the mean over all pairs of images, from the mean `by_image` over the pairs of each.

    An image is in its own mean and in that of every other image: without it the mean over all pairs is
    (n mean - 2 mean_i) / (n - 2), so that its standard error is twice that of a mean of n independent values (Hoeffding 1948).
    The pseudo-values have the same mean and the right spread. NaN stays, and fewer than three images are left as they are."""
    n = int(np.isfinite(by_image).sum())
    if n < 3:
        return by_image
    mean = np.nanmean(by_image)
    found: np.ndarray = mean + 2 * (n - 1) / (n - 2) * (by_image - mean)
    return found


def rank_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlations [image of a, image of b] of rows [image, patch]."""
    x, y = (centred_ranks(v) for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
    table: np.ndarray = x @ y.T
    return table
