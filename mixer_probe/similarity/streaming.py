"""`StreamingCKA`: linear CKA of all pairs of layers of two networks in one pass, without any Gram
matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.validate import checked
from mixer_probe.similarity.alignment import ratio
from mixer_probe.similarity.allpairs import Settings
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, Estimator
from mixer_probe.similarity.inference import SAMPLE, infer
from mixer_probe.similarity.inputs import Features, as_matrix, batch_size, centred
from mixer_probe.similarity.matrix import SimilarityMatrix, plain_matrix
from mixer_probe.similarity.moments import Moments

Batch = Mapping[str, Features]
Widths = dict[str, int]


@checked(MeasureError)
@dataclass(eq=False)
class StreamingCKA(Accumulator):
    """Accumulates linear CKA of all pairs of layers; memory is O(d^2) in the summed channels, for
    any number of images.

    >>> c = StreamingCKA()
    >>> c.update({"blocks.0": X}, {"layer1.0": Y})   # once a batch
    >>> c.merge(other)                               # of another process
    >>> matrix = c.compute()

    All in float64, on the device of the first batch (on the CPU for devices without float64).
    Exact: the values equal `cka` on all images at once to rounding, however they were split, and
    whatever the mean of the features is. A layer with NaN or infinity makes only its own cells NaN.
    Update and merge change nothing when they raise.

    The features of `keep` images (by default 2,048), drawn at random among all by `seed`, are kept
    for null and interval; 0: none of both. As long as no more images have come, these features are
    all there is, and the values are those of their Gram matrices; with `hold` False moments are
    taken from the first batch on."""

    keep: int | None = None
    seed: int = 0
    _: KW_ONLY
    hold: bool = True
    _widths: tuple[Widths, Widths] = state_field(lambda: ({}, {}))
    _moments: Moments | None = state_field(None)
    _sample: Sample = state_field(None)

    def __post_init__(self) -> None:
        self._sample = Sample(SAMPLE if self.keep is None else self.keep, self.seed)

    @property
    def n(self) -> int:
        """Images so far."""
        return self._sample.n if self._moments is None else self._moments.n

    def update(self, a: Batch, b: Batch) -> None:
        """Add a batch: features [n, channels] by layer name, of both networks and for the same
        images.

        Raises MeasureError if the layers of the batch hold different numbers of images, or if
        layers or channels differ from those of the first batch."""
        parts = _matrices(a), _matrices(b)
        n = batch_size(*parts)
        if n == 0:
            return
        found = _widths(parts[0]), _widths(parts[1])
        if not self.n:
            self._widths = found
        for expected, here in zip(self._widths, found, strict=True):
            _check_layers(expected, here)
        # The layers of a side next to each other, in the order of the first batch.
        device = self._sample.device or next(iter(parts[0].values())).device
        layers = [
            [side[name].to(device) for name in widths] for side, widths in zip(parts, self._widths)
        ]
        x, y = (torch.cat(side, dim=1) for side in layers)
        if self._moments is None and not (self.hold and self.n + n <= self._sample.keep):
            # More than are held, which become the beginning of the moments.
            self._moments = (
                self._sample.moments(self._widths)
                if self._sample.n
                else Moments.about_mean(*self._widths, x, y)
            )
        kinds = {str(X.dtype).removeprefix("torch.") for X in (*a.values(), *b.values())}
        self._sample.add(
            x, y, torch.float32 if kinds <= {"float32", "float16", "bfloat16"} else torch.float64
        )
        if self._moments is not None:
            self._moments.add(x, y)

    def merge(self, other: StreamingCKA) -> None:
        """Add what `other` has accumulated, as if its batches had come here; `other` stays as it
        is.

        Raises MeasureError if the layers, their order or their channels differ."""
        if not other.n:
            return
        if not self.n:
            self._widths = other._widths
        for mine, others in zip(self._widths, other._widths, strict=True):
            _check_layers(mine, others)
            if list(mine) != list(others):
                raise MeasureError("the two accumulators hold the same layers in different order")
        if other._moments is not None or not (self.hold and self.n + other.n <= self._sample.keep):
            more = other._moments or other._sample.moments(self._widths)
            if self._moments is None:
                held = self._sample.n
                self._moments = self._sample.moments(self._widths) if held else more.empty()
            self._moments.merge(more)
        elif self._moments is not None:
            self._moments.merge(other._sample.moments(self._widths))
        self._sample.merge(other._sample)

    @checked(MeasureError)
    def compute(
        self,
        estimator: Estimator = "unbiased",
        permutations: int = 100,
        resamples: int = 100,
        seed: int | None = None,
    ) -> SimilarityMatrix:
        """CKA of every pair of layers over all images so far, with null and interval as `compare`
        gives them; more may follow.

        The layers of the result carry name, order and channels only, models and images are None:
        put in what is known with `dataclasses.replace`. Raises MeasureError for fewer than 4
        images."""
        if self.n < MINIMUM_IMAGES:
            raise MeasureError(
                f"{self.n} images are too few: similarity needs at least {MINIMUM_IMAGES}"
            )
        seed = self.seed if seed is None else seed
        moments = self._moments
        values = None if moments is None else ratio(*moments.hsic(estimator)).cpu().numpy()
        null, interval = None, None
        if self._sample.keep and (values is None or permutations or resamples):
            sides = self._sample.layers(self._widths)
            draw = partial(
                infer,
                settings=Settings(estimator, "linear", 0.5),
                permutations=permutations,
                resamples=resamples,
            )
            traces = None if moments is None else moments.traces
            values, null, interval = draw(values, *sides, self.n, seed=seed, find_traces=traces)
        assert values is not None
        method = "gram" if moments is None else "moments"
        return plain_matrix(values, self._widths, estimator, self.n, null, interval, method, seed)


@dataclass(eq=False)
class Sample:
    """Features of up to `keep` images drawn uniformly from a stream; two samples of separate
    streams merge to one of both.

    Every image gets a random key, and those with the smallest keys stay."""

    keep: int
    seed: int
    _keys: Annotated[np.ndarray, "image"] = state_field(partial(np.zeros, 0))
    _rows: Annotated[tuple[Tensor, Tensor] | None, "side", "image", "feature"] = state_field(None)

    def __post_init__(self) -> None:
        # Has place for `keep` images; `_rows` is its beginning.
        self._memory: tuple[Tensor, Tensor] | None = None

    @property
    def n(self) -> int:
        """Images kept."""
        return len(self._keys)

    @property
    def device(self) -> torch.device | None:
        """Where they are kept; None before the first."""
        return None if self._rows is None else self._rows[0].device

    def moments(self, widths: tuple[Widths, Widths]) -> Moments:
        """Moments of the images kept."""
        assert self._rows is not None
        x, y = self._rows
        moments = Moments.about_mean(*widths, x[:ROWS].double(), y[:ROWS].double())
        for part in slices(self.n, ROWS):
            # Copies, since the moments move them to their origin.
            moments.add(x[part].to(torch.float64, copy=True), y[part].to(torch.float64, copy=True))
        return moments

    def add(self, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> None:
        """Offer the images of a batch, features [n, DA] and [n, DB], which `dtype` holds
        exactly."""
        self._make_room(x, y, dtype)
        if self.keep:
            self._offer(random_keys(x, y, self.seed), x, y)

    def merge(self, other: Sample) -> None:
        """Offer the images of another sample."""
        if self.keep and other._rows is not None:
            self._make_room(*other._rows, other._rows[0].dtype)
            self._offer(other._keys, *other._rows)

    def _make_room(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> None:
        """Memory for images of these layers, in a type that holds `dtype` too."""
        kept = self._rows or (x[:0], y[:0])
        if self._rows is not None:
            dtype = torch.promote_types(dtype, self._rows[0].dtype)
        if self._memory is None or self._memory[0].dtype is not dtype:
            # Memory that no image is written to is never taken.
            left, right = (rows.new_empty(self.keep, rows.shape[1], dtype=dtype) for rows in kept)
            left[: self.n], right[: self.n] = kept
            self._memory, self._rows = (left, right), (left[: self.n], right[: self.n])

    def _offer(self, keys: np.ndarray, x: Tensor, y: Tensor) -> None:
        assert self._memory is not None
        left, right = self._memory
        used = self.n
        room = self.keep - used
        for rows, batch in zip(self._memory, (x, y), strict=True):
            rows[used : used + len(batch[:room])] = batch[:room].to(rows)
        self._keys = np.concatenate([self._keys, keys[:room]])
        self._rows = left[: self.n], right[: self.n]
        # The rest with smaller keys takes the places of those with the largest.
        keys, x, y = keys[room:], x[room:], y[room:]
        if not len(keys):
            return
        stay = np.sort(np.argsort(np.concatenate([self._keys, keys]), kind="stable")[: self.keep])
        new = stay[stay >= len(self._keys)] - len(self._keys)
        free = np.setdiff1d(np.arange(len(self._keys)), stay)
        self._keys[free] = keys[new]
        for rows, batch in zip(self._memory, (x, y), strict=True):
            rows[torch.from_numpy(free)] = batch[torch.from_numpy(new)].to(rows)

    def layers(self, widths: tuple[Widths, Widths]) -> tuple[list[Tensor], list[Tensor]]:
        """The layers of both sides, centred, in main memory."""
        assert self._rows is not None
        sides: Any = zip(self._rows, widths, strict=True)
        left, right = (
            [centred(part.cpu().double()) for part in rows.split(list(w.values()), 1)]
            for rows, w in sides
        )
        return left, right


def random_keys(x: Tensor, y: Tensor, seed: int) -> np.ndarray:
    """A number in [0, 1) per image, drawn by all its features: the same in any batch and any
    process."""
    rows = torch.cat([x.cpu(), y.cpu()], dim=1).contiguous().numpy()
    key = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
    draws = b"".join(hashlib.blake2b(row.data, digest_size=8, key=key).digest() for row in rows)
    return (np.frombuffer(draws, dtype=np.uint64) >> np.uint64(11)) / 2.0**53


def _matrices(batch: Batch) -> dict[str, Tensor]:
    if not batch:
        raise MeasureError("no layers to compare")
    return {name: as_matrix(X, f"layer '{name}'") for name, X in batch.items()}


def _widths(parts: Mapping[str, Tensor]) -> Widths:
    return {name: part.shape[1] for name, part in parts.items()}


def _check_layers(expected: Widths, found: Widths) -> None:
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise MeasureError(
                f"layer '{name}' has {found.get(name, 'no')} channels here and "
                f"{expected.get(name, 'no')} before: the layers of all batches must be the same"
            )
