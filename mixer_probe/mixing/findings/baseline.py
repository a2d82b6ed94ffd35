"""What training changed: estimates of a network against those of its untrained baseline."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_probe.stats.claims import LEVEL
from mixer_probe.stats.differences import difference_p


def changed(own: Any, baseline: Any) -> np.ndarray:
    """Which estimates (`value`, `low`, `high`) are not those of the baseline: by the p-value of
    their difference times their number (Bonferroni)."""
    p = difference_p(baseline.value, baseline.low, baseline.high, own.value, own.low, own.high)
    found: np.ndarray = p * max(int(np.isfinite(p).sum()), 1) <= LEVEL
    return found


def not_zero(estimates: Any) -> np.ndarray:
    """Which estimates are not zero: by their p-value times their number (Bonferroni)."""
    zero = np.zeros_like(estimates.value)
    p = difference_p(zero, zero, zero, estimates.value, estimates.low, estimates.high)
    found: np.ndarray = p * max(int(np.isfinite(p).sum()), 1) <= LEVEL
    return found
