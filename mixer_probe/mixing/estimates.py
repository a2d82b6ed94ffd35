"""Means over images with standard errors and 95 % intervals, as parts of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mixer_probe.core.result import storable
from mixer_probe.stats import mean_interval


@storable
@dataclass(frozen=True)
class Estimates:
    """Means over images, with their standard errors and the bounds of their intervals; NaN where
    there is none, as of a branch that a block does not have."""

    value: Annotated[np.ndarray, "..."]
    se: Annotated[np.ndarray, "..."]
    low: Annotated[np.ndarray, "..."]
    high: Annotated[np.ndarray, "..."]


def estimate(values: np.ndarray) -> Estimates:
    """Mean over the last axis (images) of `values`, its standard error, and its interval by
    `mean_interval`; NaN values are left out.

    Of fewer than two values, and of equal ones, there is neither standard error nor interval
    (NaN)."""
    x = np.asarray(values, dtype=np.float64)
    mean, low, high = mean_interval(x)
    there = np.isfinite(x)
    n = there.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        away = np.where(there, x - mean[..., None], 0)
        se = np.where(np.isfinite(low), np.sqrt(np.square(away).sum(-1) / (n - 1) / n), np.nan)
    return Estimates(mean, se, low, high)
