"""`StreamingCKA`: linear CKA of all pairs of layers of two networks in one pass, without any Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mixer_probe.errors import MeasureError
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.alignment import ratio
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, Estimator, check_choice
from mixer_probe.similarity.inputs import Features, as_matrix
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.moments import Moments, Side

Batch = Mapping[str, Features]
Widths = dict[str, int]


class StreamingCKA:
    """Accumulates linear CKA of all pairs of layers; memory is O(d^2) in the summed channels, for any number
    of images.

    >>> c = StreamingCKA()
    >>> c.update({"blocks.0": X}, {"layer1.0": Y})   # once a batch
    >>> c.merge(other)                               # of another process
    >>> matrix = c.compute()

    All in float64, on the device of the first batch (on the CPU for devices without float64). Exact: the
    values equal `cka` on all images at once to rounding, however they were split, and whatever the mean of
    the features is. A layer with NaN or infinity makes only its own cells NaN. Update and merge change
    nothing when they raise."""

    def __init__(self) -> None:
        self._widths: tuple[Widths, Widths] = ({}, {})
        self._moments: Moments | None = None

    @property
    def n(self) -> int:
        """Images so far."""
        return 0 if self._moments is None else self._moments.n

    def update(self, a: Batch, b: Batch) -> None:
        """Add a batch: features [n, channels] by layer name, of both networks and for the same images.

        Raises MeasureError if the layers of the batch hold different numbers of images, or if layers or
        channels differ from those of the first batch."""
        parts_a, parts_b = _matrices(a), _matrices(b)
        counts = {len(part) for part in (*parts_a.values(), *parts_b.values())}
        if len(counts) != 1:
            raise MeasureError(f"the layers of one batch hold different numbers of images: {sorted(counts)}")
        if counts == {0}:
            return
        if self._moments is None:
            self._widths = _widths(parts_a), _widths(parts_b)
            self._moments = Moments.start(_first_side(parts_a), _first_side(parts_b))
        device = self._moments.a.shift.device
        x, y = (_laid_out(w, p, device) for w, p in zip(self._widths, (parts_a, parts_b), strict=True))
        self._moments.add(x, y)

    def merge(self, other: StreamingCKA) -> None:
        """Add what `other` has seen, as if its batches had come here; `other` stays as it is.

        Raises MeasureError if the layers, their order or their channels differ."""
        if other._moments is None:
            return
        if self._moments is None:
            self._widths = other._widths
            sides = other._moments.a, other._moments.b
            self._moments = Moments.start(*(Side.start(side.widths, side.shift) for side in sides))
        for mine, others in zip(self._widths, other._widths, strict=True):
            _check_layers(mine, others)
            if list(mine) != list(others):
                raise MeasureError("the two accumulators hold the same layers in different order")
        self._moments.merge(other._moments)

    def compute(self, estimator: Estimator = "unbiased") -> SimilarityMatrix:
        """CKA of every pair of layers over all images so far; more may follow.

        The layers of the result carry name, order and channels only, models and images are None, and there is
        no null (moments keep no rows to shuffle): put in what is known with `dataclasses.replace`. Raises
        MeasureError for fewer than 4 images."""
        check_choice("estimator", estimator, Estimator)
        if self._moments is None or self.n < MINIMUM_IMAGES:
            raise MeasureError(f"{self.n} images are too few: similarity needs at least {MINIMUM_IMAGES}")
        return SimilarityMatrix(
            values=ratio(*self._moments.hsic(estimator)).cpu().numpy(),
            layers_a=_plain_layers(self._widths[0]),
            layers_b=_plain_layers(self._widths[1]),
            model_a=None,
            model_b=None,
            images=None,
            measure="cka",
            estimator=estimator,
            kernel="linear",
            n=self.n,
            p_a=tuple(self._widths[0].values()),
            p_b=tuple(self._widths[1].values()),
            null=None,
            method="moments",
            reduce="",
            seed=0,
        )


def _matrices(batch: Batch) -> dict[str, Tensor]:
    if not batch:
        raise MeasureError("there is no layer to compare")
    return {name: as_matrix(X, f"layer '{name}'") for name, X in batch.items()}


def _widths(parts: Mapping[str, Tensor]) -> Widths:
    return {name: part.shape[1] for name, part in parts.items()}


def _first_side(parts: Mapping[str, Tensor]) -> Side:
    device = next(iter(parts.values())).device
    shift = torch.cat([part.mean(0).to(device) for part in parts.values()])
    return Side.start(list(_widths(parts).values()), shift)


def _laid_out(widths: Widths, parts: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The layers of a batch side by side in the order of `widths`: [n, D]."""
    _check_layers(widths, _widths(parts))
    return torch.cat([parts[name].to(device) for name in widths], dim=1)


def _check_layers(expected: Widths, found: Widths) -> None:
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise MeasureError(
                f"layer '{name}' has {found.get(name, 'no')} channels here and {expected.get(name, 'no')} "
                "before: the layers of all batches must be the same"
            )


def _plain_layers(widths: Widths) -> tuple[Layer, ...]:
    last = max(1, len(widths) - 1)
    items = enumerate(widths.items())
    return tuple(Layer(name, "other", i / last, None, width, 0, 0, order=i) for i, (name, width) in items)
