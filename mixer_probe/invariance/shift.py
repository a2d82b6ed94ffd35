"""Similarity of representations of undistorted and distorted images, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from mixer_probe.capture import extract
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import Distortion, distort
from mixer_probe.invariance.predictions import Source
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity import compare
from mixer_probe.stats import mean_interval

_PARTS = (
    "cka",
    "cka_low",
    "cka_high",
    "cka_null",
    "cosine",
    "cosine_low",
    "cosine_high",
    "cosine_null",
)


@dataclass(frozen=True)
class RepresentationShift(Result):
    """Similarity of the representations of undistorted and distorted images: arrays [distortion,
    layer].

    `cka` is unbiased linear CKA over all images: whether the similarity structure of the images is
    unchanged, up to rotation and scale. `cosine` is the mean over images of the cosine between an
    image's undistorted and distorted activations, each minus the layer's mean over undistorted
    images: whether each image is represented as before. [`cka_low`, `cka_high`] is the 95 %
    interval over images, `cka_null` the 95th percentile of random pairings of undistorted and
    distorted images; [`cosine_low`, `cosine_high`] is the 95 % interval of that mean, `cosine_null`
    the mean cosine of an image with other images distorted. Activations are means over positions.
    NaN where a layer is constant."""

    title: ClassVar[str] = "Shift of representations"
    frame = Frame(
        "distortion layer",
        """model=model.name model.trained distortion=distortions.label distortions.kind
        distortions.strength layer=layers.name layers.depth cka cka_low cka_high cka_null cosine
        cosine_low cosine_high cosine_null n""",
    )

    model: ModelRecord
    images: ImagesRecord
    distortions: Annotated[tuple[Distortion, ...], "distortion"]
    layers: Annotated[tuple[Layer, ...], "layer"]
    cka: Annotated[np.ndarray, "distortion", "layer"]
    cka_low: Annotated[np.ndarray, "distortion", "layer"]
    cka_high: Annotated[np.ndarray, "distortion", "layer"]
    cka_null: Annotated[np.ndarray, "distortion", "layer"]
    cosine: Annotated[np.ndarray, "distortion", "layer"]
    cosine_low: Annotated[np.ndarray, "distortion", "layer"]
    cosine_high: Annotated[np.ndarray, "distortion", "layer"]
    cosine_null: Annotated[np.ndarray, "distortion", "layer"]
    n: int
    permutations: int
    resamples: int
    seed: int


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
    """CKA and cosine similarity per layer between mean activations of undistorted and distorted
    images; needs no labels.

    `permutations` random pairings give the null of CKA (0 for none, else at least 19), and leaving
    out each image its interval, unless `resamples` is 0. Raises MeasureError for no distortion at
    all, and as `extract` and `compare` do."""
    if not distortions:
        raise MeasureError("no distortion was given; give PatchShuffle(4), LowPass(4.0), ...")
    plain = extract(model, images, layers, batch_size=batch_size)
    rows = []
    for distortion in distortions:
        moved = extract(model, distort(images, distortion), layers, batch_size=batch_size)
        row = []
        for name in plain:
            # Layer by layer, since no other pair of layers is needed.
            m = compare(
                plain.only(name),
                moved.only(name),
                permutations=permutations,
                resamples=resamples,
                seed=seed,
            )
            low, high = (
                (np.nan, np.nan)
                if m.interval is None
                else (m.interval.low[0, 0], m.interval.high[0, 0])
            )
            null = np.nan if m.null is None else m.null.quantile95[0, 0]
            row.append(
                [
                    float(v)
                    for v in (
                        m.values[0, 0],
                        low,
                        high,
                        null,
                        *mean_cosine(plain[name], moved[name]),
                    )
                ]
            )
        rows.append(np.array(row).T)
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


def mean_cosine(plain: np.ndarray, moved: np.ndarray) -> tuple[float, float, float, float]:
    """Mean over images of the cosine of `plain` and `moved` [image, channel], both minus the mean
    of `plain`; its 95 % interval; and the mean over all pairs of different images.

    Images whose activations equal the mean exactly have no direction and are left out; NaN if none
    is left."""
    # Centred float64 activations over their norms.
    centre = plain.astype(np.float64).mean(axis=0)
    centred = [part.astype(np.float64) - centre for part in (plain, moved)]
    norms = [np.linalg.norm(part, axis=1, keepdims=True) for part in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (
            np.where(norm > 0, part / norm, np.nan)
            for part, norm in zip(centred, norms, strict=True)
        )
    cosines = (x * y).sum(axis=1)
    known = np.isfinite(cosines)
    n = int(known.sum())
    if n < 2:
        return np.nan, np.nan, np.nan, np.nan
    mean, low, high = mean_interval(cosines[known], limits=(-1, 1))
    others = (x[known].sum(axis=0) @ y[known].sum(axis=0) - cosines[known].sum()) / (n * (n - 1))
    return float(mean), float(low), float(high), float(others)
