"""Interval of the area under a ROC curve."""

from __future__ import annotations

from scipy.optimize import brentq
from scipy.special import ndtri


def auroc_interval(auroc: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of an AUROC over images: all values from which the AUROC is at most 1.96
    standard errors away.

    The standard error is that of Hanley and McNeil (1982) at the value itself, so that an AUROC of
    1 has an interval too. It is theirs for exponential scores, of which one side spreads more; the
    AUROC does not say which side that is, and the larger of the two standard errors is taken. With
    few images on one side alone the interval is too wide for scores of equal spread."""
    few, many = sorted((positives - 1, negatives - 1))

    def excess(value: float) -> float:
        parts = sorted(((1 - value) / (2 - value), value / (1 + value)))
        spread = 1 + few * parts[0] + many * parts[1]
        return float(
            (value - auroc) ** 2
            - float(ndtri(0.975)) ** 2 * value * (1 - value) * spread / (positives * negatives)
        )

    # At an AUROC of 0 or 1 its own standard error is 0, and the root is beside it.
    inner = min(max(auroc, 1e-9), 1 - 1e-9)
    low = 0.0 if auroc <= 0 else float(brentq(excess, 0.0, inner))
    return low, 1.0 if auroc >= 1 else float(brentq(excess, inner, 1.0))
