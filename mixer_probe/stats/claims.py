"""When a sentence may say "most" or "differs"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.stats.differences import difference_p
from mixer_probe.stats.nulls import prediction_limit

# A superlative ("clearest", "most") is printed where the null of the maximum has so many draws, or
# a closed form, and p <= LEVEL.
DRAWS, LEVEL = 999, 0.05


def beyond_baseline(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Which `values` [layer] are larger than one more layer of the untrained baseline [layer] would
    be in 95 % of cases, over all layers (prediction limit by Student's t, Bonferroni): none where
    the baseline has a single layer."""
    limit = prediction_limit(baseline[np.isfinite(baseline)], LEVEL / max(len(values), 1))
    beyond: np.ndarray = np.isfinite(values) & (values > limit)
    return beyond


def extremes_differ(numbers: Sequence[Number]) -> bool:
    """Whether the largest and the smallest of some numbers with intervals differ: by the p-value of
    their difference times the number of pairs that could have been the extremes (Bonferroni)."""
    known = [n for n in numbers if np.isfinite([n.value, n.low, n.high]).all()]
    if len(known) < 2:
        return False
    top, bottom = max(known, key=lambda n: n.value), min(known, key=lambda n: n.value)
    p = float(difference_p(bottom.value, bottom.low, bottom.high, top.value, top.low, top.high))
    return p * len(known) * (len(known) - 1) / 2 <= LEVEL


def leader(numbers: Sequence[Number], lowest: bool = False) -> int | None:
    """Index of the number that is larger than every other one (smaller where `lowest`), each by the
    p-value of their difference; None where no number is.

    Of equal numbers one is ahead of the runner-up in at most 5 % of cases, however many there are:
    no correction is due."""
    values = np.array([n.value for n in numbers], dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return None
    best = int(known[(values[known] * (-1 if lowest else 1)).argmax()])
    others = known[known != best]
    low, high = (
        np.array([getattr(n, side) for n in numbers], dtype=np.float64) for side in ("low", "high")
    )
    p = difference_p(values[others], low[others], high[others], values[best], low[best], high[best])
    return best if bool((p <= LEVEL).all()) else None
