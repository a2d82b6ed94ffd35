"""The model-randomisation sanity check (Adebayo et al. 2018): do maps change when the weights of
their network are randomised?

From the head towards the stem, every weight tensor is re-initialised from a normal distribution of
its own mean and standard deviation (so that no layer vanishes, as it would with an initialisation
whose head or gates are zero), and after each stage the same method attributes the same class. The
maps of a method that depends on the weights end as different from the original maps as maps of
other images are; those of a method that only finds edges do not. One re-initialised network is one
draw, and another may give the opposite result, so that there are several, and intervals are over
draws and images. Where maps of different images are similar already, as those of a method that
highlights the centre of every image, the check gives no verdict. Buffers, such as running
statistics, stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.attribution.attributions import Attribution, batches_of, explainer
from mixer_probe.attribution.curves import check_attributions
from mixer_probe.attribution.maps import pool, rank_table, spearman, ssim
from mixer_probe.attribution.network import attribution_mode
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import copied
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import FEWEST, crossed_interval, mean_interval
from mixer_probe.stats.intervals import Estimate

Verdict = Literal[
    "few images", "one draw", "similar images", "sensitive", "insensitive", "inconclusive"
]
# The excess rank correlation below which a map counts as changed by randomised weights, and the
# rank correlation above which maps of different images count as similar.
NEGLIGIBLE, _ALIKE = 0.1, 0.5


@dataclass(frozen=True)
class RandomisationCheck(Result):
    """Similarity of every image's map to the original after each stage of a cascading
    randomisation, for several draws.

    `stages` begin with "trained" (similarity 1) and then name what was re-initialised last.
    `spearman` [draw, stage, image] is the rank correlation of patch sums (of magnitudes where the
    method is signed, see `signed_spearman` for the values themselves), `ssim` [draw, stage, image]
    the structural similarity of magnitudes at input resolution. `null_spearman` [image] is the mean
    rank correlation of the trained network's map of an image with its maps of the other images."""

    title: ClassVar[str] = "Randomisation check"

    model: ModelRecord
    images: ImagesRecord
    method: str
    stages: Annotated[tuple[str, ...], "stage"]
    ids: Annotated[tuple[str, ...], "image"]
    grid: tuple[int, int]
    spearman: Annotated[np.ndarray, "draw", "stage", "image"]
    signed_spearman: Annotated[np.ndarray, "draw", "stage", "image"]
    ssim: Annotated[np.ndarray, "draw", "stage", "image"]
    null_spearman: Annotated[np.ndarray, "image"]
    seed: int = 0

    @property
    def draws(self) -> int:
        """The number of re-initialised networks."""
        return len(self.spearman)

    def mean_similarity(self, values: np.ndarray, level: float = 0.95) -> Estimate:
        """Mean over draws and images of similarities [draw, image], and its interval for other
        draws and other images. Images whose maps are constant are left out."""
        known = values[:, np.isfinite(values).all(0)]
        return crossed_interval(known, level) if known.size else (np.array(np.nan),) * 3

    def excess(self, level: float = 0.95) -> Estimate:
        """Excess rank correlation once all weights are re-initialised, over that of maps of
        different images: mean over draws and images with its interval."""
        return self.mean_similarity(self.spearman[:, -1] - pseudo_values(self.null_spearman), level)

    def between_images(self) -> Estimate:
        """Mean rank correlation of the trained network's maps of different images, with its
        interval."""
        return mean_interval(pseudo_values(self.null_spearman))

    @property
    def verdict(self) -> Verdict:
        """The verdict of the check: "sensitive" to the weights if the excess rank correlation over
        maps of different images is shown to be small (two one-sided tests at 5 %, of which the
        upper decides), "insensitive" if it is above zero, else "inconclusive".

        There is none for too few images or one draw, and where maps of different images are
        similar: such maps do not depend on the image, and are as similar to those of any
        weights."""
        if len(self.ids) < FEWEST:
            return "few images"
        if self.draws < 2:
            return "one draw"
        if np.nanmean(self.null_spearman) > _ALIKE:
            return "similar images"
        if self.excess(0.9)[2] < NEGLIGIBLE:
            return "sensitive"
        return "insensitive" if self.excess()[1] > 0 else "inconclusive"

    def to_frame(self) -> pd.DataFrame:
        """One row per stage: mean over draws and images with the 95 % interval of each similarity,
        and the null."""
        rows = []
        for i, stage in enumerate(self.stages):
            row: dict[str, object] = {
                "model": self.model.name,
                "method": self.method,
                "stage": i,
                "randomised": stage,
            }
            found = {
                name: self.mean_similarity(getattr(self, name)[:, i])
                for name in ("spearman", "signed_spearman", "ssim")
            }
            for name, (mean, low, high) in {
                **found,
                "null_spearman": self.between_images(),
            }.items():
                row |= {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
            rows.append({**row, "n_images": len(self.ids), "draws": self.draws})
        return pd.DataFrame(rows)


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
    """The check for one attribution of this model and these images, on copies of the network:
    `draws` of them, each with other weights. The cascade has as many `steps`, None for one per
    block. Ranks are of the sums over the patches of `grid` (None for the network's own).

    Raises MeasureError for draws or steps below 1, and as `perturbation_curves` does."""
    source = as_source(images)
    check_attributions(model, source, [attribution])
    grid = grid or attribution.grid
    found, stages = [], list[str]()
    for draw in range(draws):
        copy = replace(model, module=copied(model.module))
        stages, rows = ["trained"], [_similarities(attribution.maps, attribution.maps, grid)]
        for stage in _cascade(copy, seed * draws + draw, steps):
            explain, maps = explainer(copy, attribution, batch_size), []
            for start, x in batches_of(
                copy, source, batch_size, f"randomised {attribution.method}"
            ):
                targets = torch.from_numpy(attribution.targets[start : start + len(x)]).to(x.device)
                with attribution_mode(copy):
                    maps.append(explain(x, targets).maps.detach().float().cpu().numpy())
            stages.append(stage)
            rows.append(_similarities(attribution.maps, np.concatenate(maps), grid))
        found.append(rows)
    rank, signed, similar = np.moveaxis(np.array(found), 2, 0)
    sums = pool(np.abs(attribution.maps), grid).reshape(len(attribution.maps), -1)
    return RandomisationCheck(
        model=model.record,
        images=source.record,
        method=attribution.method,
        stages=tuple(stages),
        ids=tuple(source.ids),
        grid=grid,
        spearman=rank,
        signed_spearman=signed,
        ssim=similar,
        null_spearman=other_images(sums, sums),
        seed=seed,
    )


def _similarities(a: np.ndarray, b: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[3, image]: rank correlation of magnitudes and of values, and structural similarity, of the
    maps of every image."""
    sums = [
        [pool(one, grid).reshape(len(one), -1) for one in pair]
        for pair in ((np.abs(a), np.abs(b)), (a, b))
    ]
    return np.stack([*(spearman(x, y) for x, y in sums), ssim(a, b)])


def _cascade(model: Model, seed: int, steps: int | None) -> Iterator[str]:
    """Re-initialises one stage after the other; yields the name of the last part of each when it is
    done."""
    generator = torch.Generator().manual_seed(seed)
    left = dict(model.module.named_parameters())
    blocks = [block.path for block in reversed(model.structure.blocks)]
    paths = [
        *(layer.name for kind in ("head", "norm") for layer in model.layers if layer.kind == kind),
        *blocks,
        "",
    ]
    for part in np.array_split(np.array(paths), min(steps or len(paths), len(paths))):
        own = dict.fromkeys(
            name for path in part for name in left if not path or name.startswith(f"{path}.")
        )
        for parameter in map(left.pop, own):
            if parameter.numel() > 1 and parameter.is_floating_point():
                with torch.no_grad():
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.copy_(parameter.mean() + parameter.std() * noise)
        if own:
            yield str(part[-1]) or "stem and the rest"


def other_images(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[image]: mean rank correlation of row i of `a` [image, patch] with all other rows of `b`; NaN
    for a single image."""
    table = rank_table(a, b)
    np.fill_diagonal(table, np.nan)
    counts = np.isfinite(table).sum(1)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.nansum(table, 1) / counts
    return means


def pseudo_values(by_image: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values [image] of the mean over all pairs of images, from the mean
    `by_image` over the pairs of each.

    An image is in its own mean and in that of every other image: without it the mean over all pairs
    is (n mean - 2 mean_i) / (n - 2), so that its standard error is twice that of a mean of n
    independent values (Hoeffding 1948). The pseudo-values have the same mean and the right spread.
    NaN stays, and so do values of fewer than three images."""
    n = int(np.isfinite(by_image).sum())
    if n < 3:
        return by_image
    mean = np.nanmean(by_image)
    found: np.ndarray = mean + 2 * (n - 1) / (n - 2) * (by_image - mean)
    return found
