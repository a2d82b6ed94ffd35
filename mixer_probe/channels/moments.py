"""Moments, extremes, counts and covariances of channels that add up over batches, processes and
machines.

Central moments to the fourth order in float64 by the update formulas of Pébay (2008), which for the
second order are those of Chan, Golub and LeVeque (1983): moments about 0 would lose their digits
where the mean is far above the spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Annotated

import torch
from torch import Tensor

from mixer_probe.channels.quantiles import BUCKETS, histogram
from mixer_probe.core.memory import CACHE, at_once, of_device
from mixer_probe.models.layer import Layer

# Layers of more channels get no covariance unless it is asked for: it grows with the square of the
# channels.
WIDEST = 2048
_LARGEST_INT32 = 2**31 - 1
# Rows of a product in float32, before it is added up in float64.
_ROWS = 1024


@dataclass
class Central:
    """Number of values, their mean [channel] and the sums of the second to fourth powers of
    deviations from it, float64."""

    count: int
    mean: Annotated[Tensor, "channel"]
    second: Annotated[Tensor, "channel"]
    third: Annotated[Tensor, "channel"]
    fourth: Annotated[Tensor, "channel"]

    @classmethod
    def of(cls, values: Tensor) -> Central:
        """The moments of values [n, channel]."""
        wide = values.double()
        mean = wide.mean(0)
        deviation = wide - mean
        square = deviation * deviation
        third, second = (square * deviation).sum(0), square.sum(0)
        return cls(len(values), mean, second, third, square.square_().sum(0))

    def joined(self, other: Central) -> Central:
        """The moments of the values of both."""
        # Floats, because the fourth powers of counts leave the range of integers.
        a, b, n = float(self.count), float(other.count), float(self.count + other.count)
        step = other.mean - self.mean
        s = step / n
        second = self.second + other.second + step * s * (a * b)
        third = (
            self.third
            + other.third
            + step * s**2 * (a * b * (a - b))
            + 3 * s * (a * other.second - b * self.second)
        )
        fourth = (
            self.fourth
            + other.fourth
            + step * s**3 * (a * b * (a * a - a * b + b * b))
            + 6 * s**2 * (a * a * other.second + b * b * self.second)
            + 4 * s * (a * other.third - b * self.third)
        )
        return Central(self.count + other.count, self.mean + s * b, second, third, fourth)


@dataclass
class LayerMoments:
    """Moments, extremes and counts of one layer, on its device.

    `counts` is the sketch of the quantiles, `scatter` the sum of products of deviations; either may
    be absent."""

    central: Central
    minimum: Annotated[Tensor, "channel"]
    maximum: Annotated[Tensor, "channel"]
    zeros: Annotated[Tensor, "channel"]
    nonpositive: Annotated[Tensor, "channel"]
    counts: Annotated[Tensor | None, "channel", "bucket"]
    scatter: Annotated[Tensor | None, "channel", "channel"]

    def copy(self) -> LayerMoments:
        """One that can be added to without a change to this one."""
        counts, scatter = (
            None if part is None else part.clone() for part in (self.counts, self.scatter)
        )
        return LayerMoments(
            self.central, self.minimum, self.maximum, self.zeros, self.nonpositive, counts, scatter
        )

    def add(self, other: LayerMoments) -> None:
        """Add the values of `other`, on any device, in place."""
        other, count = other.to(self.minimum.device), self.central.count + other.central.count
        if self.scatter is None or other.scatter is None:
            self.scatter = None
        else:
            step, weight = (
                other.central.mean - self.central.mean,
                self.central.count * other.central.count / count,
            )
            self.scatter = self.scatter.add_(other.scatter).addr_(step, step, alpha=weight)
        if self.counts is None or other.counts is None:
            self.counts = None
        else:
            # Half the memory until a count could leave the range.
            self.counts = (self.counts.long() if count > _LARGEST_INT32 else self.counts).add_(
                other.counts
            )
        self.central = self.central.joined(other.central)
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.zeros = self.zeros + other.zeros
        self.nonpositive = self.nonpositive + other.nonpositive

    def to(self, device: torch.device) -> LayerMoments:
        """The same on another device."""
        if self.minimum.device == device:
            return self
        c = self.central
        central = Central(
            c.count, *(part.to(device) for part in (c.mean, c.second, c.third, c.fourth))
        )
        rest = (self.minimum, self.maximum, self.zeros, self.nonpositive)
        optional = (
            None if part is None else part.to(device) for part in (self.counts, self.scatter)
        )
        return LayerMoments(central, *(part.to(device) for part in rest), *optional)


def channel_moments(layer: Layer, positions: Tensor, prefix: Tensor | None) -> LayerMoments:
    """Reducer: the moments of one layer [image, position, channel] for `ChannelMoments.update`,
    without prefix tokens."""
    return measured(layer, positions, prefix)


def measured(
    _layer: Layer,
    positions: Tensor,
    _prefix: Tensor | None,
    *,
    quantiles: bool = True,
    covariance: bool | None = None,
) -> LayerMoments:
    """As `channel_moments`, with or without the sketch of the quantiles and the covariance (None:
    up to `WIDEST` channels)."""
    wanted = positions.shape[-1] <= WIDEST if covariance is None else covariance
    # Apple's GPUs have no float64.
    there = positions.cpu() if positions.device.type == "mps" else positions
    images, places, channels = there.shape
    # At least as many values as the table of counts has places, so that the table is not filled
    # again and again.
    budget = max(4 * CACHE, of_device(there.device), 2 * 8 * channels * BUCKETS)
    total: LayerMoments | None = None
    # A few images at a time: the channels of a CNN lie apart in memory and have to be copied
    # together.
    for part in torch.split(there, at_once(8 * places * channels, budget)) if images else ():
        flat = part.reshape(-1, channels)
        flat = flat if flat.dtype is torch.float64 else flat.float()
        central = reduce(
            Central.joined,
            map(Central.of, torch.split(flat, at_once(8 * channels, of_device(flat.device)))),
        )
        moments = LayerMoments(
            central,
            flat.amin(0),
            flat.amax(0),
            (flat == 0).sum(0),
            (flat <= 0).sum(0),
            histogram(flat) if quantiles else None,
            _scatter(flat, central.mean) if wanted else None,
        )
        if total is None:
            total = moments
        else:
            total.add(moments)
    assert total is not None
    return total


def _scatter(flat: Tensor, mean: Tensor) -> Tensor:
    """Sum of products of deviations from the mean [channel, channel], float64.

    Deviations of float32 values are multiplied in float32, a thousand rows at a time, and added up
    in float64."""
    centre = mean.to(flat.dtype)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=flat.device)
    for rows in torch.split(flat, _ROWS):
        deviation = rows - centre
        total += deviation.T @ deviation
    # The rounded centre is not quite the mean.
    rest = mean - centre
    return total.addr_(rest, rest, alpha=-len(flat))
