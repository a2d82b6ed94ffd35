"""Quantiles of every channel from counts in fixed buckets of constant relative width: mergeable, on
the device, in any order.

A sketch in the manner of DDSketch (Masson, Rim and Lee 2019) with the bitwise interpolated mapping:
an octave of magnitude has 32 buckets, which are the exponent and the first five bits of the
mantissa of a float32, so that no logarithm is taken. Counts are whole numbers: any split into
batches and any order of merging gives the same sketch to the last bit.

A quantile is within `RELATIVE_ERROR` (1/64) of the order statistic of rank ceil(q n), or within
`ABSOLUTE_ERROR` (2^-24) of it where its magnitude is below that. Magnitudes above 2^16 share the
last bucket, whose value is the largest seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STEPS = 5
_LOWEST, _HIGHEST = -24, 16
# Exponent bits of a float32 are biased by 127; its mantissa has 23 bits.
_SHIFT = 23 - _STEPS
_BASE = (127 + _LOWEST) << _STEPS
# Buckets of magnitude of one sign; bucket 0 in the middle holds what is nearly zero.
SIDE = (_HIGHEST - _LOWEST) << _STEPS
BUCKETS = 2 * SIDE + 1
RELATIVE_ERROR = 2.0 ** -(_STEPS + 1)
ABSOLUTE_ERROR = 2.0**_LOWEST
# Quantiles that results keep; 0.995 is the threshold of network dissection.
LEVELS = (0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995)
_LARGEST_INT32 = 2**31 - 1


def bucket_of(values: Tensor) -> Tensor:
    """The bucket of each value, 0 to `BUCKETS` - 1 in the order of the values, int32 of the same
    shape.

    Types other than float32 are rounded to it. NaN falls into the outermost buckets."""
    bits = values.to(torch.float32).contiguous().view(torch.int32)
    magnitude = (
        bits.bitwise_and(0x7FFFFFFF).bitwise_right_shift_(_SHIFT).sub_(_BASE - 1).clamp_(0, SIDE)
    )
    sign = bits.bitwise_right_shift(31).bitwise_or_(1)
    return magnitude.mul_(sign).add_(SIDE)


def histogram(values: Tensor) -> Tensor:
    """Counts [channel, bucket], int32, of values [n, channel] with n below 2^31."""
    channels = values.shape[1]
    places = bucket_of(values)
    if channels * BUCKETS > _LARGEST_INT32:
        places = places.long()
    places += torch.arange(channels, device=values.device, dtype=places.dtype) * BUCKETS
    return (
        torch.bincount(places.reshape(-1), minlength=channels * BUCKETS)
        .to(torch.int32)
        .reshape(channels, BUCKETS)
    )


def bucket_values() -> np.ndarray:
    """The value that stands for each bucket, [bucket]: the middle between its ends."""
    steps = 1 << _STEPS
    octaves = 2.0 ** np.arange(_LOWEST, _HIGHEST)
    middles = (octaves[:, None] * (1 + (np.arange(steps) + 0.5) / steps)).ravel()
    return np.concatenate([-middles[::-1], [0.0], middles])


def quantiles_of(
    counts: np.ndarray, minimum: np.ndarray, maximum: np.ndarray, levels: tuple[float, ...] = LEVELS
) -> np.ndarray:
    """Quantiles [channel, level] from counts [channel, bucket]; nothing is beyond the extremes
    [channel], which are exact."""
    below = counts.cumsum(1, dtype=np.int64)
    found = np.stack([_at(below, level) for level in levels], axis=1)
    estimates = bucket_values()[found]
    estimates = np.where(
        found == BUCKETS - 1, maximum[:, None], np.where(found == 0, minimum[:, None], estimates)
    )
    return np.asarray(np.clip(estimates, minimum[:, None], maximum[:, None]))


def _at(below: np.ndarray, level: float) -> np.ndarray:
    """The bucket [channel] of the order statistic of rank ceil(level n)."""
    rank = np.maximum(np.ceil(level * below[:, -1]), 1)
    return np.asarray((below < rank[:, None]).sum(1))


def magnitudes(counts: np.ndarray) -> np.ndarray:
    """Counts by magnitude alone, [channel, SIDE + 1], from counts [channel, bucket]."""
    folded = counts[:, SIDE:].astype(np.int64)
    folded[:, 1:] += counts[:, :SIDE][:, ::-1]
    return folded


def median_magnitude(counts: np.ndarray) -> float:
    """The median magnitude of all values together that are not nearly zero; NaN if there are
    none."""
    folded = magnitudes(counts).sum(0)
    folded[0] = 0
    if not folded.any():
        return float("nan")
    return float(bucket_values()[SIDE + _at(folded.cumsum()[None], 0.5)[0]])


def fraction_beyond(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Share [channel] of values whose magnitude is above `threshold`, to the resolution of the
    buckets."""
    folded = magnitudes(counts)
    beyond = bucket_values()[SIDE:] > threshold
    return np.asarray(folded[:, beyond].sum(1) / folded.sum(1))
