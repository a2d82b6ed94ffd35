"""How far a distortion moves what a network represents, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from mixer_probe.capture import Representations, extract
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import Distortion, distort
from mixer_probe.invariance.predictions import Source
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity import compare
from mixer_probe.stats import mean_interval

_PARTS = ("cka", "cka_low", "cka_high", "cka_null", "cosine", "cosine_low", "cosine_high", "cosine_null")


@dataclass(frozen=True)
class RepresentationShift(Result):
    """Likeness of what layers make of plain and of distorted images: arrays [distortion, layer].

    `cka` is unbiased linear CKA, of all images at once: whether images lie to one another as they did, up to rotation and scale.
    `cosine` is the mean over images of the cosine between an image's plain and distorted activations, each without the layer's
    mean over plain images: whether an image stays where it was. [`cka_low`, `cka_high`] is the 95 % interval over
    images, `cka_null` the 95 % quantile over random pairings of plain and distorted images; [`cosine_low`, `cosine_high`] is
    the 95 % interval of that mean, `cosine_null` the mean cosine of an image with other images distorted. Activations are
    means over positions. NaN where a layer is constant."""

    title: ClassVar[str] = "Shift of representations"

    model: ModelRecord
    images: ImagesRecord
    distortions: tuple[Distortion, ...]
    layers: tuple[Layer, ...]
    cka: np.ndarray
    cka_low: np.ndarray
    cka_high: np.ndarray
    cka_null: np.ndarray
    cosine: np.ndarray
    cosine_low: np.ndarray
    cosine_high: np.ndarray
    cosine_null: np.ndarray
    n: int
    permutations: int
    resamples: int
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One row a distortion and layer."""
        return pd.DataFrame([self._row(d, i) for d in range(len(self.distortions)) for i in range(len(self.layers))])

    def _row(self, d: int, i: int) -> dict[str, object]:
        return {
            "model": self.model.name,
            "trained": self.model.trained,
            "distortion": self.distortions[d].label,
            "kind": self.distortions[d].kind,
            "strength": self.distortions[d].strength,
            "layer": self.layers[i].name,
            "depth": self.layers[i].depth,
            **{name: float(getattr(self, name)[d, i]) for name in _PARTS},
            "n": self.n,
        }


@checked(MeasureError)
def representation_shift(
    model: Model,
    images: Source,
    distortions: Sequence[Distortion],
    layers: str | Sequence[str] = "blocks",
    *,
    batch_size: int = 64,
    permutations: int = 100,
    resamples: int = 100,
    seed: int = 0,
) -> RepresentationShift:
    """CKA and cosine similarity of every layer's mean activations of plain and of distorted images; labels are not needed.

    `permutations` random pairings give the null of CKA (0 for none, else at least 19), and leaving out each image its interval,
    unless `resamples` is 0. Raises MeasureError for no distortion at all, and as `extract` and `compare` do."""
    if not distortions:
        raise MeasureError("no distortion was given; give PatchShuffle(4), LowPass(4.0), ...")
    plain = extract(model, images, layers, batch_size=batch_size)
    rows = []
    for distortion in distortions:
        moved = extract(model, distort(images, distortion), layers, batch_size=batch_size)
        rows.append(np.stack([*_cka(plain, moved, permutations, resamples, seed), *_cosines(plain, moved)]))
    table = np.stack(rows, axis=1)
    return RepresentationShift(
        model=model.record,
        images=images.record,
        distortions=tuple(distortions),
        layers=plain.layers,
        **dict(zip(_PARTS, table, strict=True)),
        n=len(images),
        permutations=permutations,
        resamples=resamples,
        seed=seed,
    )


def _cka(a: Representations, b: Representations, permutations: int, resamples: int, seed: int) -> np.ndarray:
    """Value, bounds and null of each layer [4, layer]."""
    found = [_of_layer(a, b, name, permutations, resamples, seed) for name in a]
    return np.array(found).T


def _of_layer(a: Representations, b: Representations, name: str, permutations: int, resamples: int, seed: int) -> list[float]:
    # Layer by layer: of the other pairs of layers nothing is asked.
    m = compare(a.only(name), b.only(name), permutations=permutations, resamples=resamples, seed=seed)
    low, high = (np.nan, np.nan) if m.interval is None else (m.interval.low[0, 0], m.interval.high[0, 0])
    null = np.nan if m.null is None else m.null.quantile95[0, 0]
    return [float(v) for v in (m.values[0, 0], low, high, null)]


def _cosines(a: Representations, b: Representations) -> np.ndarray:
    """Mean cosine, its bounds, and the mean cosine with other images, of each layer [4, layer]."""
    return np.array([mean_cosine(a[name], b[name]) for name in a]).T


def mean_cosine(plain: np.ndarray, moved: np.ndarray) -> tuple[float, float, float, float]:
    """Mean over images of the cosine of `plain` and `moved` [image, channel], both minus the mean of `plain`; its 95 %
    interval; and the mean over all pairs of different images.

    Images whose activations equal the mean exactly have no direction and are left out; NaN if none is left."""
    centre = plain.astype(np.float64).mean(axis=0)
    x, y = (_unit(part.astype(np.float64) - centre) for part in (plain, moved))
    cosines = (x * y).sum(axis=1)
    known = np.isfinite(cosines)
    n = int(known.sum())
    if n < 2:
        return np.nan, np.nan, np.nan, np.nan
    mean, low, high = mean_interval(cosines[known], limits=(-1, 1))
    others = (x[known].sum(axis=0) @ y[known].sum(axis=0) - cosines[known].sum()) / (n * (n - 1))
    return float(mean), float(low), float(high), float(others)


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.where(norms > 0, x / norms, np.nan)
    return found
