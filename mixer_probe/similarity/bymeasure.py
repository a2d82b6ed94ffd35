"""Values, null and jackknife of any measure for all pairs of layers, from what the measure prepares of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.progress import task
from mixer_probe.similarity.allpairs import shifted_inner_products
from mixer_probe.similarity.inputs import LayerFeatures, is_constant
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.nulls import Pairings

# Prepared layers are kept up to the first, and one pair of them is refused beyond the second.
_BYTES = 2**31
_MOST_BYTES = 2**33
# A prepared layer and its making, in float64 values for each of its n x n or n x p entries.
_COPIES = 3

Taken = Sequence[Any | None]
Features = Sequence[Tensor | None]


@dataclass(frozen=True)
class Tables:
    """`values` [La, Lb], the same under random pairings [s, La, Lb] and without
    some of the images [g, La, Lb]."""

    values: Tensor
    null: Tensor
    without: Tensor


def tables_of(
    measure: Measure, a: LayerFeatures, b: LayerFeatures, pairings: Sequence[Pairings], left: Sequence[Tensor]
) -> Tables:
    """All numbers of a measure, with those of the images `left` [m] in each of some subsets; NaN where a layer is constant or not
    finite.

    Raises MeasureError if one pair of layers takes more than 8 GiB."""
    count = sum(len(p.shifts) for p in pairings)
    values = torch.full((count, len(a), len(b)), torch.nan, dtype=torch.float64)
    parts = torch.full((len(left), len(a), len(b)), torch.nan, dtype=torch.float64)
    size = _layers_at_a_time(measure, a, b, bool(left))
    blocks = [(rows, columns) for rows in _blocks(len(a), size) for columns in _blocks(len(b), size)]
    with task(measure.label, len(blocks) * (count + len(left))) as advance:
        for rows, columns in blocks:
            one, other = (_Side.of(measure, side, part, bool(left)) for side, part in ((a, rows), (b, columns)))
            paired = _paired if measure.matrix is None or count == 1 else _shifted
            _fill(values[:, rows, columns], paired(measure, one.prepared, other.prepared, pairings), advance)
            _fill(parts[:, rows, columns], _of_subsets(measure, one.features, other.features, left), advance)
    return Tables(values[0], values[1:], parts)


@dataclass(frozen=True)
class _Side:
    """Some layers of one side as the measure prepares them, and their features where some of them will be needed."""

    prepared: Taken
    features: Features

    @classmethod
    def of(cls, measure: Measure, layers: LayerFeatures, part: slice, keep: bool) -> _Side:
        prepared: list[Any | None] = []
        features: list[Tensor | None] = []
        for index in range(len(layers))[part]:
            X = layers.usable(index)
            prepared.append(None if X is None else measure.prepare(X))
            features.append(X if keep else None)
        return cls(prepared, features)


def _fill(into: Tensor, found: Iterator[Tensor], advance: Callable[[int], None]) -> None:
    for place, table in enumerate(found):
        into[place] = table
        advance(1)


def _paired(measure: Measure, a: Taken, b: Taken, pairings: Sequence[Pairings]) -> Iterator[Tensor]:
    for i, order in enumerate(torch.cat([p.partners() for p in pairings])):
        # The first is the true pairing.
        yield _table(measure, a, b if i == 0 else [None if Y is None else Y.take(order) for Y in b])


def _shifted(measure: Measure, left: Taken, right: Taken, pairings: Sequence[Pairings]) -> Iterator[Tensor]:
    """As `_paired` for a measure of inner products; all shifts of an order cost as much as one."""
    matrix, finish = measure.matrix, measure.finish
    assert matrix is not None
    a, b = ([None if X is None else matrix(X) for X in side] for side in (left, right))
    rows, columns = ([i for i, X in enumerate(side) if X is not None] for side in (a, b))
    for part in pairings:
        tables = torch.full((len(part.shifts), len(a), len(b)), torch.nan, dtype=torch.float64)
        if rows and columns:
            sides = [lambda i, s=side, k=kept: s[k[i]] for side, kept in ((a, rows), (b, columns))]
            found = shifted_inner_products(sides[0], sides[1], (len(rows), len(columns)), part)
            tables[:, torch.tensor(rows)[:, None], torch.tensor(columns)] = found if finish is None else finish(found)
        yield from tables


def _of_subsets(measure: Measure, left: Features, right: Features, subsets: Sequence[Tensor]) -> Iterator[Tensor]:
    for rows in subsets:
        yield _table(measure, *([_prepared(measure, X, rows) for X in side] for side in (left, right)))


def _prepared(measure: Measure, X: Tensor | None, rows: Tensor) -> Any | None:
    if X is None or is_constant(X[rows]):
        return None
    return measure.prepare(X[rows])


def _table(measure: Measure, a: Taken, b: Taken) -> Tensor:
    """The measure's table with NaN in the rows and columns of layers that are None."""
    rows, columns = ([i for i, X in enumerate(side) if X is not None] for side in (a, b))
    table = torch.full((len(a), len(b)), torch.nan, dtype=torch.float64)
    if rows and columns:
        found = measure.table([a[i] for i in rows], [b[i] for i in columns])
        table[torch.tensor(rows)[:, None], torch.tensor(columns)] = found.cpu()
    return table


def _layers_at_a_time(measure: Measure, a: LayerFeatures, b: LayerFeatures, keep: bool) -> int:
    n, widest = a.n, max(*a.channels, *b.channels)
    width = n if measure.pairwise else widest
    one = 8 * n * (_COPIES * width + widest)
    if 2 * one > _MOST_BYTES:
        raise MeasureError(
            f"{measure.label} of a pair of layers with {n} images and {widest} features takes {2 * one / 2**30:.0f} GiB: take at "
            f"most {_most_images(measure.pairwise, widest)} images, average the positions, or take linear CKA, which streams"
        )
    return max(1, _BYTES // (2 * 8 * n * (_COPIES * width + (widest if keep else 0))))


def _most_images(pairwise: bool, widest: int) -> int:
    room = _MOST_BYTES / 16
    if not pairwise:
        return int(room / ((_COPIES + 1) * widest))
    # The positive root of copies n^2 + widest n = room.
    return int((math.sqrt(widest**2 + 4 * _COPIES * room) - widest) / (2 * _COPIES))


def _blocks(count: int, size: int) -> Iterator[slice]:
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))
