"""Means over images with standard errors and 95 % intervals, as parts of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np

from mixer_probe.core.result import storable
from mixer_probe.stats import mean_interval

E = TypeVar("E", bound=Any)


@storable
@dataclass(frozen=True)
class PerBlock:
    """A mean over images of every block, its standard error, and the bounds of its interval."""

    value: Annotated[np.ndarray, "block"]
    se: Annotated[np.ndarray, "block"]
    low: Annotated[np.ndarray, "block"]
    high: Annotated[np.ndarray, "block"]


@storable
@dataclass(frozen=True)
class PerHead:
    """As `PerBlock`, of every head of every block; NaN beyond a block's own heads."""

    value: Annotated[np.ndarray, "block", "head"]
    se: Annotated[np.ndarray, "block", "head"]
    low: Annotated[np.ndarray, "block", "head"]
    high: Annotated[np.ndarray, "block", "head"]


@storable
@dataclass(frozen=True)
class PerBranch:
    """As `PerBlock`, of every branch of every block; NaN where a block has no such branch."""

    value: Annotated[np.ndarray, "block", "branch"]
    se: Annotated[np.ndarray, "block", "branch"]
    low: Annotated[np.ndarray, "block", "branch"]
    high: Annotated[np.ndarray, "block", "branch"]


@storable
@dataclass(frozen=True)
class PerPlace:
    """As `PerBlock`, of every place in the residual stream."""

    value: Annotated[np.ndarray, "place"]
    se: Annotated[np.ndarray, "place"]
    low: Annotated[np.ndarray, "place"]
    high: Annotated[np.ndarray, "place"]


@storable
@dataclass(frozen=True)
class PerPart:
    """As `PerBlock`, of every part of a sum."""

    value: Annotated[np.ndarray, "part"]
    se: Annotated[np.ndarray, "part"]
    low: Annotated[np.ndarray, "part"]
    high: Annotated[np.ndarray, "part"]


def estimate(kind: type[E], values: np.ndarray) -> E:
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
    made: E = kind(mean, se, low, high)
    return made
