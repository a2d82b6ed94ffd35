"""`compare`: all layers of one network against all layers of another, from their
representations."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

import numpy as np

from mixer_probe.core.errors import MeasureError, UndefinedSimilarityWarning
from mixer_probe.core.fingerprint import check_same_images
from mixer_probe.core.validate import check_grid, checked
from mixer_probe.similarity.alignment import CKA_NAMES, Method, check_options
from mixer_probe.similarity.allpairs import Settings
from mixer_probe.similarity.components import WithoutTopComponents
from mixer_probe.similarity.engine import Numbers, Plan, numbers_of
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, Estimator, Kernel
from mixer_probe.similarity.inputs import LayerFeatures, RepresentationsLike
from mixer_probe.similarity.intervals import check_resamples
from mixer_probe.similarity.matrix import NO_ROOM, SimilarityMatrix
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.registry import MEASURES, find_measure
from mixer_probe.stats import check_permutations

Grid = int | tuple[int, int]
Several = Literal["all"] | list[str] | tuple[str, ...]


class Options(TypedDict, total=False):
    """The keywords of `compare`."""

    estimator: Estimator
    kernel: Kernel
    permutations: int
    seed: int
    bandwidth: float
    method: Method
    resamples: int
    without_top_pc: int
    grid: Grid | None


@overload
def compare(  # type: ignore[overload-overlap]
    reps_a: RepresentationsLike,
    reps_b: RepresentationsLike,
    measure: Several,
    **options: Unpack[Options],
) -> tuple[SimilarityMatrix, ...]: ...
@overload
def compare(
    reps_a: RepresentationsLike,
    reps_b: RepresentationsLike,
    measure: str = "cka",
    **options: Unpack[Options],
) -> SimilarityMatrix: ...
@checked(MeasureError)
def compare(
    reps_a: RepresentationsLike,
    reps_b: RepresentationsLike,
    measure: str | Several = "cka",
    *,
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    permutations: int = 100,
    seed: int = 0,
    bandwidth: float = 0.5,
    method: Method = "auto",
    resamples: int = 20,
    without_top_pc: int = 0,
    grid: Grid | None = None,
) -> SimilarityMatrix | tuple[SimilarityMatrix, ...]:
    """Similarity of every layer of `reps_a` with every layer of `reps_b`, with null and interval.

    `measure` is a name in `similarity.MEASURES`, several of them, or "all", which gives a tuple
    with one matrix each. `estimator`, `kernel`, `bandwidth` and `method` are those of CKA. `method`
    "auto" takes Gram matrices, moments or, where neither fits into memory, the sums over
    minibatches of Nguyen et al. 2021; the result says which.

    The null comes from `permutations` random pairings of the images, the same in all cells; 0 for
    none. The 95 % interval comes from leaving out images: for CKA each in turn, for other measures
    each of `resamples` random groups; 0 for none, and none for fewer than 20 images (CKA) or 50
    (other measures). Beyond 2,048 images those of linear CKA come from a random sample of as many
    and are moved to all images (see `inference.infer`), and the values still are those of all
    images. Other measures, and CKA with kernel "rbf" and method "auto", are then computed on the
    sample alone, which `seed` draws: their memory would grow with the images. `n` of the result is
    the number used.

    Layers with positions (reduce="none") are compared flattened, position by position; `grid`
    averages them over the cells of a common grid first, such as 7 or (7, 7), so that networks with
    different grids meet on one. `without_top_pc` leaves out that many leading principal components
    of each layer.

    A layer that is constant or holds NaN or infinity gives NaN in its cells, and so do fewer images
    than a measure needs, each with an UndefinedSimilarityWarning. Raises MeasureError if the two do
    not hold the same images in the same order, for sizes that no form fits (with what would), fewer
    than 19 permutations or 20 resamples, and unknown choices."""
    several = measure == "all" or not isinstance(measure, str)
    names = MEASURES if measure == "all" else [measure] if isinstance(measure, str) else measure
    chosen = [find_measure(name) for name in names]
    check_options(kernel, bandwidth, method)
    check_permutations(permutations)
    check_resamples(resamples)
    check_same_images(reps_a, reps_b)
    if not reps_a.layers or not reps_b.layers:
        raise MeasureError("no layers to compare")
    a, b = (LayerFeatures(reps, as_grid(grid)) for reps in (reps_a, reps_b))
    if without_top_pc:
        for side in (a, b):
            side.project = WithoutTopComponents(LayerFeatures(side.reps, side.grid), without_top_pc)
    plan = Plan(Settings(estimator, kernel, bandwidth), permutations, resamples, seed, method)
    matrices = []
    for m in chosen:
        is_cka = m.name in CKA_NAMES
        settings = replace(plan.settings, kernel="rbf") if m.name == "cka_rbf" else plan.settings
        found = numbers_of(m, replace(plan, settings=settings), a, b)
        _warn_of_nan(m, found, a, b)
        matrix = SimilarityMatrix(
            values=found.values,
            layers_a=a.reps.layers,
            layers_b=b.reps.layers,
            model_a=a.reps.model,
            model_b=b.reps.model,
            images=a.reps.images,
            measure="cka" if is_cka else m.name,
            estimator=settings.estimator if is_cka else "",
            kernel=settings.kernel if is_cka else "",
            n=found.n,
            p_a=a.features,
            p_b=b.features,
            null=found.null,
            method=found.method,
            reduce=" and ".join(dict.fromkeys((a.reps.reduce, b.reps.reduce))),
            seed=seed,
            bandwidth=bandwidth if is_cka and settings.kernel == "rbf" else None,
            interval=found.interval,
            grid=a.grid,
            without_top_pc=without_top_pc,
        )
        matrices.append(matrix)
    return tuple(matrices) if several else matrices[0]


def as_grid(grid: Grid | None) -> tuple[int, int] | None:
    """A grid as (rows, columns). Raises MeasureError for sizes below 1."""
    return None if grid is None else check_grid(grid, MeasureError)


def _warn_of_nan(measure: Measure, found: Numbers, a: LayerFeatures, b: LayerFeatures) -> None:
    """Warn of values that are NaN, with the layers that make them so, and of calibrated values that
    are."""
    cells = int(np.isnan(found.values).sum())
    if cells:
        names = ", ".join(a.undefined | b.undefined)
        reason = (
            f"constant, NaN or infinite features in {names}"
            if names
            else "all images are equally similar"
        )
        if a.n < max(MINIMUM_IMAGES, measure.minimum_images):
            reason = f"{a.n} images are too few, it needs at least {measure.minimum_images}"
        text = f"{cells} of {found.values.size} similarities ({measure.label}) are NaN: {reason}"
        warnings.warn(text, UndefinedSimilarityWarning, stacklevel=4)
    # Where the null reaches the best value, no calibrated value is defined.
    cells = (
        0 if found.null is None else int((np.abs(measure.best - found.null.mean) <= NO_ROOM).sum())
    )
    if cells:
        text = (
            f"{cells} of {found.values.size} calibrated values ({measure.label}) are NaN: shuffled "
            "images are as similar as equal ones, as with more features than the "
            f"{found.n} images; take more images or fewer features"
        )
        warnings.warn(text, UndefinedSimilarityWarning, stacklevel=4)
