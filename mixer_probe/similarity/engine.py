"""The numbers of a measure for all pairs of layers: values, null and interval, in the form that
fits the sizes at hand.

Every measure can be computed from what it prepares of each layer (`by_pairs`). CKA has three
cheaper forms: Gram matrices of the images, moments of the features, and sums over minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import LARGE, MOST, RESIDENT, ROWS, at_once, check_fits, room, slices
from mixer_probe.core.progress import task
from mixer_probe.similarity.alignment import CKA_NAMES, Method, ratio
from mixer_probe.similarity.allpairs import (
    Grams,
    Settings,
    gram_bytes,
    inner_products,
    shifted_inner_products,
)
from mixer_probe.similarity.hsic import Estimator
from mixer_probe.similarity.inference import SAMPLE, infer
from mixer_probe.similarity.inputs import LayerFeatures, is_constant
from mixer_probe.similarity.intervals import Interval, draw_groups, group_interval, no_interval
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.minibatch import MinibatchCKA, batches_of
from mixer_probe.similarity.moments import Moments
from mixer_probe.similarity.nulls import Null, Pairings, Traces, draw_pairings, null_of

BATCH = 256
# A prepared layer and its preparation, in float64 values for each of its n x n or n x p entries.
_COPIES = 3


@dataclass(frozen=True)
class Plan:
    """What decides the numbers besides representations and measure."""

    settings: Settings
    permutations: int
    resamples: int
    seed: int
    method: Method


@dataclass(frozen=True)
class Numbers:
    """`values` [La, Lb] of one measure over `n` images with null and interval, and the `method`
    that gave them."""

    values: np.ndarray
    null: Null | None
    interval: Interval | None
    method: str
    n: int


def numbers_of(measure: Measure, plan: Plan, a: LayerFeatures, b: LayerFeatures) -> Numbers:
    """All numbers of a measure; NaN without null and interval for fewer images than it needs.

    What takes memory that grows with the images, which is all but linear CKA, is of a random sample
    of `SAMPLE` of more. Raises MeasureError for sizes that no form fits."""
    n, settings, sampled = a.n, plan.settings, (a, b)
    if n > SAMPLE:
        rows = np.sort(np.random.default_rng(plan.seed).permutation(n)[:SAMPLE])
        sampled = a.take(rows), b.take(rows)
        if measure.name not in CKA_NAMES or (settings.kernel == "rbf" and plan.method == "auto"):
            found = numbers_of(measure, plan, *sampled)
            called = f"random pairings of {SAMPLE} of {n} images"
            null = found.null if found.null is None else replace(found.null, method=called)
            return replace(found, null=null)
    if n < measure.minimum_images:
        return Numbers(np.full((len(a), len(b)), np.nan), None, None, "none", n)
    if measure.name not in CKA_NAMES:
        return by_pairs(measure, plan, a, b)
    draws = plan.permutations + plan.resamples > 0
    method = choose(plan.method, settings, a, b, draws and n <= SAMPLE)
    if method == "minibatch":
        matrix = by_minibatches(a, b, plan.permutations, plan.seed).compute(plan.resamples)
        return Numbers(matrix.values, matrix.null, matrix.interval, method, n)
    values: np.ndarray | None = None
    traces: tuple[Traces, Traces] | None = None
    # Gram matrices are made when they are asked for.
    left, right = Grams(a, settings), Grams(b, settings)
    if method == "moments":
        values, traces = by_moments(a, b, settings.estimator)
    elif not draws or n > SAMPLE:
        values = inner_products(left.unit, right.unit, (len(a), len(b)), n).numpy()
    if values is not None and not draws:
        return Numbers(values, None, None, method, n)
    draw = partial(
        infer,
        settings=settings,
        permutations=plan.permutations,
        resamples=plan.resamples,
        seed=plan.seed,
    )
    return Numbers(
        *draw(values, *sampled, n, find_traces=lambda: traces or (left.traces(), right.traces())),
        method,
        n,
    )


# -- forms of CKA ----------------------------------------------------------------------------------


def choose(
    method: Method, settings: Settings, a: LayerFeatures, b: LayerFeatures, sampled: bool
) -> Method:
    """The form that will do for these sizes: "gram", "moments" or "minibatch".

    Where several fit, the Gram form if null or interval need Gram matrices of all images anyway
    (`sampled`: they are drawn from all), else the cheaper one by floating-point operations. Raises
    MeasureError if the kernel or the estimator rules out all that fit, with what would."""
    n, widest = a.n, max(*a.channels, *b.channels)
    # Gram matrices of 8,757 images, and moments of layers of 16,384 features.
    gram_needs, moments_need = max(gram_bytes(n, 1), 8 * n * widest), 8 * widest**2
    gram_fits, moments_fit = gram_needs <= room(MOST), moments_need <= room(RESIDENT)
    chosen: Method = method
    if method == "auto" and settings.kernel == "rbf":
        chosen = "gram"
    elif method == "auto" and gram_fits and moments_fit:
        # Centring and transforming a Gram matrix costs about 200 operations an entry.
        pairs = (
            2 * (sum(a.channels) + sum(b.channels)) + 200 * (len(a) + len(b)) + 2 * len(a) * len(b)
        )
        own = sum(p * p for p in (*a.channels, *b.channels))
        cheaper = n * n * pairs <= 2 * n * (sum(a.channels) * sum(b.channels) + own)
        chosen = "gram" if sampled or cheaper else "moments"
    elif method == "auto":
        chosen = "gram" if gram_fits else "moments" if moments_fit else "minibatch"
    if chosen == "gram":
        most = int(min((room(MOST) / gram_bytes(1, 1)) ** 0.5, room(MOST) / (8 * widest)))
        what = f"Gram matrices of {n} images with {widest} features"
        instead = f"take at most {most} images, or linear CKA by method='moments' or 'minibatch'"
        check_fits(gram_needs, what, instead, MeasureError, MOST)
    if chosen == "moments":
        what = f"moments of layers with {widest} features"
        instead = "average positions (reduce='mean', grid=7), or take method='gram' or 'minibatch'"
        check_fits(moments_need, what, instead, MeasureError, RESIDENT)
    if chosen == "minibatch" and (settings.estimator == "biased" or settings.kernel == "rbf"):
        raise MeasureError(
            "the minibatch estimator is unbiased linear CKA only: a biased HSIC, or a kernel with "
            f"another bandwidth in every batch, sums to no estimate; for {n} images with {widest} "
            "features average the positions or take fewer images"
        )
    return chosen


def by_moments(
    a: LayerFeatures, b: LayerFeatures, estimator: Estimator
) -> tuple[np.ndarray, tuple[Traces, Traces]]:
    """CKA [La, Lb] from moments, and the traces of both sides over all images.

    Tile by tile: all layers of one side for as many of the other as the cross moments have room
    for."""
    tall = at_once(8 * sum(b.channels), LARGE)
    side = max(*a.channels, *b.channels, int((LARGE / 8) ** 0.5))
    if tall >= max(a.channels):
        tiles = [(rows, range(len(b))) for rows in _groups(a.channels, tall)]
    else:
        tiles = [
            (rows, columns)
            for rows in _groups(a.channels, side)
            for columns in _groups(b.channels, side)
        ]
    values = torch.full((len(a), len(b)), torch.nan, dtype=torch.float64)
    traces = [Traces(*torch.empty(3, len(layers), dtype=torch.float64)) for layers in (a, b)]
    with task("similarity", len(tiles) * a.n) as advance:
        for rows, columns in tiles:
            moments = _moments_of(a, b, rows, columns, advance)
            values[rows.start : rows.stop, columns.start : columns.stop] = ratio(
                *moments.hsic(estimator)
            )
            for found, part, layers in zip(traces, moments.traces(), (rows, columns), strict=True):
                for field in ("trace", "power", "diagonal"):
                    getattr(found, field)[layers.start : layers.stop] = getattr(part, field)
            # Their memory is needed by the next tile.
            del moments
    return values.numpy(), (traces[0], traces[1])


def _groups(widths: tuple[int, ...], most: int) -> Iterator[range]:
    """Consecutive layers whose widths sum to at most `most`, in groups of about equal size."""
    most = min(
        most, max(max(widths), -(-sum(widths) // -(-sum(widths) // most)) + max(widths) // 2)
    )
    start, total = 0, 0
    for i, width in enumerate(widths):
        if total + width > most and i > start:
            yield range(start, i)
            start, total = i, 0
        total += width
    yield range(start, len(widths))


def _moments_of(
    a: LayerFeatures, b: LayerFeatures, rows: range, columns: range, advance: Callable[[int], None]
) -> Moments:
    """Moments of some layers of both sides, in one pass over the images."""
    parts = [a.slices(i, ROWS) for i in rows], [b.slices(i, ROWS) for i in columns]
    moments: Moments | None = None
    for _ in range(0, a.n, ROWS):
        left, right = ([next(part) for part in side] for side in parts)
        widths = [dict(enumerate(X.shape[1] for X in side)) for side in (left, right)]
        x, y = torch.cat(left, dim=1), torch.cat(right, dim=1)
        del left, right
        moments = moments or Moments.about_mean(widths[0], widths[1], x, y)
        moments.add(x, y)
        advance(len(x))
    assert moments is not None
    return moments


def by_minibatches(
    a: LayerFeatures, b: LayerFeatures, permutations: int, seed: int, size: int = BATCH
) -> MinibatchCKA:
    """All random batches of the images."""
    accumulator = MinibatchCKA(permutations, seed)
    batches = batches_of(a.n, size, seed)
    # Random images are all over a store: those of several batches are read at once.
    together = at_once(8 * size * (sum(a.channels) + sum(b.channels)))
    with task("similarity", len(batches)) as advance:
        for part in slices(len(batches), together):
            rows = np.sort(np.concatenate(batches[part]))
            sides = [
                {layer.name: side.take(rows).raw(i) for i, layer in enumerate(side.reps.layers)}
                for side in (a, b)
            ]
            for batch in batches[part]:
                places = torch.from_numpy(np.searchsorted(rows, batch))
                left, right = ({name: X[places] for name, X in side.items()} for side in sides)
                accumulator.update(left, right)
                advance(1)
            # Not beside those of the next batches.
            del sides, left, right
    return accumulator


# -- every measure ---------------------------------------------------------------------------------


def by_pairs(measure: Measure, plan: Plan, a: LayerFeatures, b: LayerFeatures) -> Numbers:
    """The numbers of any measure, from what it prepares of each layer.

    Raises MeasureError if one pair of layers takes more than 8 GiB."""
    pairings = draw_pairings(a.n, plan.permutations, plan.seed)
    subsets = draw_groups(
        a.n, 0 if measure.no_interval else plan.resamples, plan.seed, measure.minimum_images
    )
    drawn, without = tables_of(measure, a, b, pairings, subsets)
    values, null = drawn[0], null_of(drawn[1:], measure.direction)
    if measure.no_interval and plan.resamples:
        none = no_interval(values.shape, measure.no_interval)
        return Numbers(values, null, none, "pairs", a.n)
    limit = np.full_like(values, np.nan) if null is None else null.quantile95
    limits = measure.lowest, measure.highest
    interval = group_interval(
        values, without, drawn[1:], limit, measure.direction, limits, measure.scale
    )
    return Numbers(values, null, interval, "pairs", a.n)


@dataclass(frozen=True)
class _Side:
    """Some layers as the measure prepares them, and their features where parts of them will be
    needed; None where undefined."""

    prepared: Sequence[Any | None]
    features: Sequence[Tensor | None]

    @classmethod
    def of(cls, measure: Measure, layers: LayerFeatures, part: slice, keep: bool) -> _Side:
        prepared: list[Any | None] = []
        features: list[Tensor | None] = []
        for index in range(len(layers))[part]:
            X = layers.usable(index)
            prepared.append(None if X is None else measure.prepare(X))
            features.append(X if keep else None)
        return cls(prepared, features)

    def of_images(self, measure: Measure, rows: Tensor) -> list[Any | None]:
        """The layers prepared for some of the images alone."""
        parts = (None if X is None else X[rows] for X in self.features)
        return [None if X is None or is_constant(X) else measure.prepare(X) for X in parts]


def tables_of(
    measure: Measure,
    a: LayerFeatures,
    b: LayerFeatures,
    pairings: Sequence[Pairings],
    subsets: Sequence[Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """Values [s, La, Lb] of a measure under `pairings`, the true one first, and [g, La, Lb] of
    `subsets` of the images [m] each.

    NaN where a layer is constant or not finite. Raises MeasureError if one pair of layers takes
    more than 8 GiB."""
    count = sum(len(p.shifts) for p in pairings)
    found = torch.full((count + len(subsets), len(a), len(b)), torch.nan, dtype=torch.float64)
    size = _layers_at_a_time(measure, a, b, bool(subsets))
    parts = [(rows, columns) for rows in slices(len(a), size) for columns in slices(len(b), size)]
    with task(measure.label, len(parts) * len(found)) as advance:
        for rows, columns in parts:
            left, right = (
                _Side.of(measure, side, part, bool(subsets))
                for side, part in ((a, rows), (b, columns))
            )
            paired = _under_pairings(measure, left.prepared, right.prepared, pairings)
            parts_of = (
                (left.of_images(measure, kept), right.of_images(measure, kept)) for kept in subsets
            )
            without = (_where_defined(measure.table, x, y) for x, y in parts_of)
            for place, values in enumerate(chain(paired, without)):
                found[place, rows, columns] = values
                advance(1)
    return found[:count].numpy(), found[count:].numpy()


def _under_pairings(
    measure: Measure, a: Sequence[Any | None], b: Sequence[Any | None], pairings: Sequence[Pairings]
) -> Iterator[Tensor]:
    """Values [La, Lb] under one pairing after another; where the measure has a `matrix`, all shifts
    of an order cost as much as one."""
    matrix, finish = measure.matrix, measure.finish
    if matrix is None or sum(len(p.shifts) for p in pairings) == 1:
        for place, order in enumerate(torch.cat([p.partners() for p in pairings])):
            # The first is the true pairing.
            yield _where_defined(
                measure.table,
                a,
                b if place == 0 else [None if Y is None else Y.take(order) for Y in b],
            )
        return

    def shifted(part: Pairings, x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
        found = shifted_inner_products(x.__getitem__, y.__getitem__, (len(x), len(y)), part)
        return found if finish is None else finish(found)

    left, right = ([None if X is None else matrix(X) for X in side] for side in (a, b))
    for part in pairings:
        yield from _where_defined(partial(shifted, part), left, right, len(part.shifts))


def _where_defined(
    compute: Callable[[Sequence[Any], Sequence[Any]], Tensor],
    a: Sequence[Any | None],
    b: Sequence[Any | None],
    *first: int,
) -> Tensor:
    """What `compute` gives [*first, La, Lb] for the layers that are not None, with NaN in the cells
    of the others."""
    rows, columns = ([i for i, X in enumerate(side) if X is not None] for side in (a, b))
    table = torch.full((*first, len(a), len(b)), torch.nan, dtype=torch.float64)
    if rows and columns:
        found = compute([a[i] for i in rows], [b[i] for i in columns])
        table[..., torch.tensor(rows)[:, None], torch.tensor(columns)] = found.cpu()
    return table


def _layers_at_a_time(measure: Measure, a: LayerFeatures, b: LayerFeatures, keep: bool) -> int:
    """How many prepared layers of either side fit into memory, with their features where these are
    kept."""
    n, widest = a.n, max(*a.channels, *b.channels)
    width = n if measure.pairwise else widest
    one = 8 * n * (_COPIES * width + widest)
    values = room(2 * MOST) / 16
    most = values / ((_COPIES + 1) * widest)
    if measure.pairwise:
        # The positive root of copies n^2 + widest n = values.
        most = (math.sqrt(widest**2 + 4 * _COPIES * values) - widest) / (2 * _COPIES)
    what = f"{measure.label}: two layers with {n} images and {widest} features"
    instead = f"take at most {int(most)} images, average the positions, or take linear CKA"
    check_fits(2 * one, what, instead, MeasureError, 2 * MOST)
    return at_once(2 * 8 * n * (_COPIES * width + (widest if keep else 0)), RESIDENT)
