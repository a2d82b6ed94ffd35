"""Differences of two values that are known by their 95 % intervals alone (method of variance
estimates recovery)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import erfc
from scipy.stats import norm

LEVEL = 0.95
Z = float(norm.ppf((1 + LEVEL) / 2))


def difference_interval(
    a: Any, low_a: Any, high_a: Any, b: Any, low_b: Any, high_b: Any
) -> np.ndarray:
    """95 % intervals [n, 2] of b - a of independent values [n] from their 95 % intervals (Zou and
    Donner 2008, Statistics in Medicine 27, eq. 10)."""
    down_a, up_a, down_b, up_b = _arms(a, low_a, high_a, b, low_b, high_b)
    return np.stack([b - a - np.hypot(down_b, up_a), b - a + np.hypot(up_b, down_a)], axis=-1)


def difference_p(a: Any, low_a: Any, high_a: Any, b: Any, low_b: Any, high_b: Any) -> np.ndarray:
    """Two-sided p-values [n] of b - a = 0; below 0.05 where `difference_interval` leaves out
    zero."""
    down_a, up_a, down_b, up_b = _arms(a, low_a, high_a, b, low_b, high_b)
    difference = np.asarray(b) - a
    arm = np.where(difference > 0, np.hypot(down_b, up_a), np.hypot(up_b, down_a))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(difference == 0, 0.0, Z * np.abs(difference) / arm)
    p: np.ndarray = erfc(z / np.sqrt(2))
    return p


def _arms(
    a: Any, low_a: Any, high_a: Any, b: Any, low_b: Any, high_b: Any
) -> tuple[np.ndarray, ...]:
    """How far the bounds are from the values. An interval that leaves out its value, as quantiles
    may, has no arm there."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    arms = (a - low_a, high_a - a, b - low_b, high_b - b)
    return tuple(np.maximum(arm, 0) for arm in arms)
