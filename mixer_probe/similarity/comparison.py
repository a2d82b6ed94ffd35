"""`compare`: all layers of one network against all layers of another, from their representations."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch

from mixer_probe.errors import MeasureError, MixerProbeWarning
from mixer_probe.similarity.alignment import Method, check_options
from mixer_probe.similarity.allpairs import Settings, choose, cka_by_grams, cka_by_moments
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, Estimator, Kernel, check_choice
from mixer_probe.similarity.inputs import LayerFeatures, RepresentationsLike
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.nulls import check_permutations, draw_pairings, null_of

Measure = Literal["cka"]


def compare(
    reps_a: RepresentationsLike,
    reps_b: RepresentationsLike,
    measure: Measure = "cka",
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    permutations: int = 100,
    seed: int = 0,
    bandwidth: float = 0.5,
    method: Method = "auto",
) -> SimilarityMatrix:
    """Similarity of every layer of `reps_a` with every layer of `reps_b`, and its null.

    Values are those of `cka`. The null comes from `permutations` random pairings of the images, the same in
    all cells and none of an image with itself; 0 for none. Up to n - 1 of them come at the price of one, but
    beyond 8,757 images, where Gram matrices no longer fit, each costs as much as the values. A layer that is
    constant or holds NaN or infinity gives NaN in its cells, and a warning.

    Raises MeasureError if the two do not hold the same images in the same order, for fewer than 4 images, for
    layers with positions (reduce="none"), for fewer than 19 permutations, and for unknown choices."""
    check_choice("measure", measure, Measure)
    check_options(estimator, kernel, bandwidth, method)
    check_permutations(permutations)
    check_same_images(reps_a, reps_b)
    a, b = LayerFeatures(reps_a), LayerFeatures(reps_b)
    n = len(reps_a.ids)
    used = choose(method, kernel, n, (a.channels, b.channels), permutations)
    engine = cka_by_grams if used == "gram" else cka_by_moments
    choices = Settings(estimator, kernel, bandwidth)
    drawn = draw_pairings(n, permutations, seed)
    values = torch.cat([engine(a, b, pairings, choices) for pairings in drawn]).numpy()
    warn_undefined(values[0], a, b)
    return SimilarityMatrix(
        values=values[0],
        layers_a=reps_a.layers,
        layers_b=reps_b.layers,
        model_a=reps_a.model,
        model_b=reps_b.model,
        images=reps_a.images,
        measure=measure,
        estimator=estimator,
        kernel=kernel,
        n=n,
        p_a=tuple(a.widths[layer.name] for layer in reps_a.layers),
        p_b=tuple(b.widths[layer.name] for layer in reps_b.layers),
        null=null_of(values[1:]),
        method=used,
        reduce=reps_a.reduce if reps_a.reduce == reps_b.reduce else f"{reps_a.reduce} and {reps_b.reduce}",
        seed=seed,
        bandwidth=bandwidth if kernel == "rbf" else None,
    )


def check_same_images(reps_a: RepresentationsLike, reps_b: RepresentationsLike) -> None:
    """Raise MeasureError unless both hold the same images in the same order, 4 or more, and a layer."""
    ids_a, ids_b = reps_a.ids, reps_b.ids
    if len(ids_a) != len(ids_b):
        raise MeasureError(f"{len(ids_a)} images against {len(ids_b)}: compare the same images")
    different = [i for i, (x, y) in enumerate(zip(ids_a, ids_b, strict=True)) if x != y]
    if different:
        first = different[0]
        raise MeasureError(
            f"{len(different)} of {len(ids_a)} image ids differ, the first at position {first}: "
            f"'{ids_a[first]}' against '{ids_b[first]}'; compare the same images in the same order"
        )
    if len(ids_a) < MINIMUM_IMAGES:
        raise MeasureError(f"{len(ids_a)} images are too few: similarity needs at least {MINIMUM_IMAGES}")
    if not reps_a.layers or not reps_b.layers:
        raise MeasureError("there is no layer to compare")


def warn_undefined(values: np.ndarray, a: LayerFeatures, b: LayerFeatures) -> None:
    """Warn of cells that are NaN, with the layers that make them so."""
    cells = int(np.isnan(values).sum())
    if not cells:
        return
    names = ", ".join(a.undefined | b.undefined)
    reason = f"constant, NaN or infinite features in {names}" if names else "all images are equally similar"
    warnings.warn(f"{cells} of {values.size} similarities are NaN: {reason}", MixerProbeWarning, stacklevel=3)
