"""Linear CKA by Gram matrices, by moments or by minibatches, and which of them fits the sizes at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.progress import task
from mixer_probe.similarity.alignment import Method, ratio
from mixer_probe.similarity.allpairs import Grams, Settings, gram_bytes, inner_products
from mixer_probe.similarity.hsic import Estimator
from mixer_probe.similarity.inputs import LayerFeatures
from mixer_probe.similarity.minibatch import MinibatchCKA, batches_of
from mixer_probe.similarity.moments import Moments, Side
from mixer_probe.similarity.nulls import Traces

# A form is refused beyond this: Gram matrices of 8,757 images, or moments of two layers of 16,384 features.
_MOST_BYTES = 2**32
_MOST_FEATURE_BYTES = 2**32
_MOST_MOMENT_BYTES = 2**31
# Cross moments of as many layers as keep to this are taken in one pass over a store.
_TILE_BYTES = 3 * 2**27
_ROWS = 1024
BATCH = 256


def choose(method: Method, settings: Settings, a: LayerFeatures, b: LayerFeatures, sampled: bool) -> Method:
    """The form that will do for these sizes: "gram", "moments" or "minibatch".

    Where several fit, the Gram form if null or interval need Gram matrices of all images anyway (`sampled`: they are
    drawn from all), else the cheaper one by floating-point operations. Raises MeasureError if the kernel or the estimator
    rules out all that fit, with what would."""
    n, widest = a.n, max(*a.channels, *b.channels)
    gram_fits = gram_bytes(n, 1) <= _MOST_BYTES and 8 * n * widest <= _MOST_FEATURE_BYTES
    moments_fit = 8 * max(a.channels) * max(b.channels) <= _MOST_MOMENT_BYTES and 8 * widest**2 <= _MOST_MOMENT_BYTES
    if method != "auto":
        _check_forced(method, settings, gram_fits, moments_fit, n, widest)
        return method
    if settings.kernel == "rbf":
        _check_forced("gram", settings, gram_fits, moments_fit, n, widest)
        return "gram"
    if gram_fits and moments_fit:
        return "gram" if sampled or _gram_cost(n, a, b) <= _moment_cost(n, a, b) else "moments"
    if gram_fits or moments_fit:
        return "gram" if gram_fits else "moments"
    _check_forced("minibatch", settings, gram_fits, moments_fit, n, widest)
    return "minibatch"


def _check_forced(method: str, settings: Settings, gram_fits: bool, moments_fit: bool, n: int, widest: int) -> None:
    if method == "gram" and not gram_fits:
        most = min(int((_MOST_BYTES / gram_bytes(1, 1)) ** 0.5), _MOST_FEATURE_BYTES // (8 * widest))
        raise MeasureError(
            f"Gram matrices of {n} images with {widest} features do not fit into 4 GiB: take at most {most} images, "
            "or the linear kernel with method='moments' or 'minibatch'"
        )
    if method == "moments" and not moments_fit:
        raise MeasureError(
            f"moments of layers with {widest} features do not fit into 2 GiB: average the positions (reduce='mean', grid=7), "
            "or take method='gram' or 'minibatch'"
        )
    if method == "minibatch" and (settings.estimator == "biased" or settings.kernel == "rbf"):
        raise MeasureError(
            "the minibatch estimator is unbiased linear CKA only: a biased HSIC, or a kernel with another bandwidth in every "
            f"batch, sums to no estimate; for {n} images with {widest} features average the positions or take fewer images"
        )


def _gram_cost(n: int, a: LayerFeatures, b: LayerFeatures) -> float:
    # Centring and transforming a Gram matrix costs about 200 operations an entry.
    return n * n * (2 * (sum(a.channels) + sum(b.channels)) + 200 * (len(a) + len(b)) + 2 * len(a) * len(b))


def _moment_cost(n: int, a: LayerFeatures, b: LayerFeatures) -> float:
    own = sum(p * p for p in (*a.channels, *b.channels))
    return 2 * n * (sum(a.channels) * sum(b.channels) + own)


def values_by(
    method: Method, a: LayerFeatures, b: LayerFeatures, settings: Settings
) -> tuple[Tensor, Callable[[], tuple[Traces, Traces]]]:
    """CKA [La, Lb] by Gram matrices or by moments, and a function that gives the traces of all images."""
    if method == "moments":
        return _by_moments(a, b, settings.estimator)
    grams = Grams(a, settings), Grams(b, settings)
    values = inner_products(grams[0].unit, grams[1].unit, (len(a), len(b)), a.n)
    return values, lambda: (grams[0].traces(), grams[1].traces())


def _by_moments(a: LayerFeatures, b: LayerFeatures, estimator: Estimator) -> tuple[Tensor, Callable[[], tuple[Traces, Traces]]]:
    """Tile by tile: all layers of one side for as many of the other as the cross moments have room for."""
    values = torch.full((len(a), len(b)), torch.nan, dtype=torch.float64)
    found: dict[tuple[str, int], tuple[Tensor, ...]] = {}
    tiles = list(_tiles(a.channels, b.channels))
    with task("similarity", len(tiles) * a.n) as advance:
        for rows, columns in tiles:
            tile, parts = _tile(a, b, rows, columns, estimator, advance)
            values[rows.start : rows.stop, columns.start : columns.stop] = tile
            for side, indices, part in zip("ab", (rows, columns), parts, strict=True):
                found |= {(side, i): (part.trace[k], part.power[k], part.diagonal[k]) for k, i in enumerate(indices)}
    sides = ([found[side, i] for i in range(count)] for side, count in (("a", len(a)), ("b", len(b))))
    both = [Traces(*(torch.stack(field) for field in zip(*side, strict=True))) for side in sides]
    return values, lambda: (both[0], both[1])


def _tile(
    a: LayerFeatures, b: LayerFeatures, rows: range, columns: range, estimator: Estimator, advance: Callable[[int], None]
) -> tuple[Tensor, tuple[Traces, Traces]]:
    """CKA and traces of some layers with others. The moments end with this call, before the next tile takes its own."""
    moments = _moments_of(a, b, rows, columns, advance)
    return ratio(*moments.hsic(estimator)), moments.traces()


def _tiles(a: tuple[int, ...], b: tuple[int, ...]) -> Iterator[tuple[range, range]]:
    room = _TILE_BYTES // 8
    tall = room // sum(b)
    if tall >= max(a):
        groups = [(rows, range(len(b))) for rows in _groups(a, tall)]
    else:
        side = max(*a, *b, int(room**0.5))
        groups = [(rows, columns) for rows in _groups(a, side) for columns in _groups(b, side)]
    yield from groups


def _groups(widths: tuple[int, ...], most: int) -> Iterator[range]:
    """Consecutive layers whose widths sum to at most `most`, in groups of about equal size."""
    most = min(most, max(max(widths), -(-sum(widths) // -(-sum(widths) // most)) + max(widths) // 2))
    start, total = 0, 0
    for i, width in enumerate(widths):
        if total + width > most and i > start:
            yield range(start, i)
            start, total = i, 0
        total += width
    yield range(start, len(widths))


def _moments_of(a: LayerFeatures, b: LayerFeatures, rows: range, columns: range, advance: Callable[[int], None]) -> Moments:
    parts = [a.slices(i, _ROWS) for i in rows], [b.slices(i, _ROWS) for i in columns]
    moments: Moments | None = None
    for _ in range(0, a.n, _ROWS):
        left, right = ([next(part) for part in side] for side in parts)
        widths = [[X.shape[1] for X in side] for side in (left, right)]
        x, y = torch.cat(left, dim=1), torch.cat(right, dim=1)
        del left, right
        if moments is None:
            moments = Moments.start(Side.start(widths[0], x.mean(0)), Side.start(widths[1], y.mean(0)))
        moments.add(x, y)
        advance(len(x))
    assert moments is not None
    return moments


def by_minibatches(a: LayerFeatures, b: LayerFeatures, permutations: int, seed: int, size: int = BATCH) -> MinibatchCKA:
    """All random batches of the images, every layer read once a batch."""
    accumulator = MinibatchCKA(permutations, seed)
    batches = batches_of(a.n, size, seed)
    with task("similarity", len(batches)) as advance:
        for rows in batches:
            sides = [{layer.name: side.take(rows).raw(i) for i, layer in enumerate(side.reps.layers)} for side in (a, b)]
            accumulator.update(sides[0], sides[1])
            advance(1)
    return accumulator
