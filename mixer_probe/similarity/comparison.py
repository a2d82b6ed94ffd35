"""`compare`: all layers of one network against all layers of another, from their representations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypedDict, Unpack, overload

import numpy as np

from mixer_probe.core.errors import MeasureError, UndefinedSimilarityWarning
from mixer_probe.core.fingerprint import check_same_images
from mixer_probe.core.validate import check_grid, checked
from mixer_probe.similarity.alignment import Method, check_options
from mixer_probe.similarity.allpairs import Settings
from mixer_probe.similarity.bymeasure import tables_of
from mixer_probe.similarity.components import WithoutTopComponents
from mixer_probe.similarity.engines import by_minibatches, choose, values_by
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, Estimator, Kernel
from mixer_probe.similarity.inference import SAMPLE, infer
from mixer_probe.similarity.inputs import LayerFeatures, RepresentationsLike
from mixer_probe.similarity.intervals import Interval, check_resamples, draw_groups, group_interval, no_interval
from mixer_probe.similarity.matrix import NO_ROOM, SimilarityMatrix
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.nulls import Null, Traces, draw_pairings, null_of
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
    reps_a: RepresentationsLike, reps_b: RepresentationsLike, measure: Several, **options: Unpack[Options]
) -> tuple[SimilarityMatrix, ...]: ...
@overload
def compare(
    reps_a: RepresentationsLike, reps_b: RepresentationsLike, measure: str = "cka", **options: Unpack[Options]
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

    `measure` is a name in `similarity.MEASURES`, several of them, or "all", which gives a tuple with one matrix each.
    `estimator`, `kernel`, `bandwidth` and `method` are those of CKA. `method` "auto" takes Gram matrices, moments or, where
    neither fits into memory, the sums over minibatches of Nguyen et al. 2021; the result says which.

    The null comes from `permutations` random pairings of the images, the same in all cells; 0 for none. The 95 % interval comes
    from leaving out images: for CKA each in turn, for other measures each of `resamples` random groups; 0 for none, and none for
    fewer than 20 images (CKA) or 50 (other measures). Beyond 2,048 images those of CKA come from a random sample of as many and
    are moved to all images (see `inference.infer`), and the values still are those of all images.

    Layers with positions (reduce="none") are compared flattened, position by position; `grid` averages them over the
    cells of a common grid first, such as 7 or (7, 7), so that networks with different grids meet on one. `without_top_pc`
    leaves out that many leading principal components of each layer.

    A layer that is constant or holds NaN or infinity gives NaN in its cells, and so do fewer images than a measure
    needs, each with an UndefinedSimilarityWarning. Raises MeasureError if the two do not hold the same images in the same
    order, for sizes that no form fits (with what would), fewer than 19 permutations or 20 resamples, and unknown choices."""
    chosen = [find_measure(name) for name in _names(measure)]
    plan = _Plan(Settings(estimator, kernel, bandwidth), permutations, resamples, seed, method, without_top_pc)
    plan.check()
    check_same_images(reps_a, reps_b)
    if not reps_a.layers or not reps_b.layers:
        raise MeasureError("no layers to compare")
    a, b = (LayerFeatures(reps, as_grid(grid)) for reps in (reps_a, reps_b))
    if without_top_pc:
        for side in (a, b):
            side.project = WithoutTopComponents(LayerFeatures(side.reps, side.grid), without_top_pc)
    matrices = tuple(_matrix(m, plan, a, b) for m in chosen)
    return matrices[0] if isinstance(measure, str) and measure != "all" else matrices


def _names(measure: str | Sequence[str]) -> Sequence[str]:
    if measure == "all":
        return tuple(MEASURES)
    return (measure,) if isinstance(measure, str) else measure


def as_grid(grid: Grid | None) -> tuple[int, int] | None:
    """A grid as (rows, columns). Raises MeasureError for sizes below 1."""
    return None if grid is None else check_grid(grid, MeasureError)


@dataclass(frozen=True)
class _Plan:
    """What decides the numbers besides representations and measure."""

    settings: Settings
    permutations: int
    resamples: int
    seed: int
    method: Method
    without_top_pc: int

    def check(self) -> None:
        check_options(self.settings.kernel, self.settings.bandwidth, self.method)
        check_permutations(self.permutations)
        check_resamples(self.resamples)


@dataclass(frozen=True)
class _Numbers:
    """What the matrix of one measure holds."""

    values: np.ndarray
    null: Null | None
    interval: Interval | None
    method: str


def _matrix(measure: Measure, plan: _Plan, a: LayerFeatures, b: LayerFeatures) -> SimilarityMatrix:
    is_cka = measure.name in ("cka", "cka_rbf")
    settings = replace(plan.settings, kernel="rbf") if measure.name == "cka_rbf" else plan.settings
    if a.n < measure.minimum_images:
        found = _Numbers(np.full((len(a), len(b)), np.nan), None, None, "none")
    elif is_cka:
        found = _cka(replace(plan, settings=settings), a, b)
    else:
        found = _by_measure(measure, plan, a, b)
    warn_undefined(measure, found.values, a, b)
    _warn_uncalibrated(measure, found.null, a.n)
    reduces = dict.fromkeys((a.reps.reduce, b.reps.reduce))
    return SimilarityMatrix(
        values=found.values,
        layers_a=a.reps.layers,
        layers_b=b.reps.layers,
        model_a=a.reps.model,
        model_b=b.reps.model,
        images=a.reps.images,
        measure="cka" if is_cka else measure.name,
        estimator=settings.estimator if is_cka else "",
        kernel=settings.kernel if is_cka else "",
        n=a.n,
        p_a=a.features,
        p_b=b.features,
        null=found.null,
        method=found.method,
        reduce=" and ".join(reduces),
        seed=plan.seed,
        bandwidth=settings.bandwidth if is_cka and settings.kernel == "rbf" else None,
        interval=found.interval,
        without_top_pc=plan.without_top_pc,
        grid=a.grid,
    )


def _cka(plan: _Plan, a: LayerFeatures, b: LayerFeatures) -> _Numbers:
    draws = plan.permutations + plan.resamples > 0
    method = choose(plan.method, plan.settings, a, b, draws and a.n <= SAMPLE)
    if method == "minibatch":
        matrix = by_minibatches(a, b, plan.permutations, plan.seed).compute(plan.resamples)
        return _Numbers(matrix.values, matrix.null, matrix.interval, method)
    draw = partial(infer, n=a.n, settings=plan.settings, permutations=plan.permutations, resamples=plan.resamples, seed=plan.seed)
    if method == "gram" and draws and a.n <= SAMPLE:
        return _Numbers(*draw(None, a, b, find_traces=_no_traces), method)
    found, traces = values_by(method, a, b, plan.settings)
    values = found.numpy()
    if not draws:
        return _Numbers(values, None, None, method)
    left, right = a, b
    if a.n > SAMPLE:
        rows = np.sort(np.random.default_rng(plan.seed).permutation(a.n)[:SAMPLE])
        left, right = a.take(rows), b.take(rows)
    return _Numbers(*draw(values, left, right, find_traces=traces), method)


def _no_traces() -> tuple[Traces, Traces]:
    raise AssertionError("the traces are those of the images at hand")


def _by_measure(measure: Measure, plan: _Plan, a: LayerFeatures, b: LayerFeatures) -> _Numbers:
    groups = 0 if measure.no_interval else plan.resamples
    left = draw_groups(a.n, groups, plan.seed, measure.minimum_images)
    tables = tables_of(measure, a, b, draw_pairings(a.n, plan.permutations, plan.seed), left)
    values, drawn = tables.values.numpy(), tables.null.numpy()
    null = null_of(drawn, measure.direction)
    limit = np.full_like(values, np.nan) if null is None else null.quantile95
    without, limits = tables.without.numpy(), (measure.lowest, measure.highest)
    interval = group_interval(values, without, drawn, limit, measure.direction, limits, measure.scale)
    if measure.no_interval and plan.resamples:
        interval = no_interval(values.shape, measure.no_interval)
    return _Numbers(values, null, interval, "pairs")


def _warn_uncalibrated(measure: Measure, null: Null | None, n: int) -> None:
    """Warn once of cells whose null reaches the best value, so that no calibrated value is defined."""
    cells = 0 if null is None else int((np.abs(measure.best - null.mean) <= NO_ROOM).sum())
    if cells and null is not None:
        text = (
            f"{cells} of {null.mean.size} calibrated values ({measure.label}) are NaN: shuffled images are as similar as equal "
            f"ones, as with more features than the {n} images; take more images or fewer features"
        )
        warnings.warn(text, UndefinedSimilarityWarning, stacklevel=4)


def warn_undefined(measure: Measure, values: np.ndarray, a: LayerFeatures, b: LayerFeatures) -> None:
    """Warn of cells that are NaN, with the layers that make them so."""
    cells = int(np.isnan(values).sum())
    if not cells:
        return
    names = ", ".join(a.undefined | b.undefined)
    reason = f"constant, NaN or infinite features in {names}" if names else "all images are equally similar"
    if a.n < max(MINIMUM_IMAGES, measure.minimum_images):
        reason = f"{a.n} images are too few, it needs at least {measure.minimum_images}"
    text = f"{cells} of {values.size} similarities ({measure.label}) are NaN: {reason}"
    warnings.warn(text, UndefinedSimilarityWarning, stacklevel=5)
