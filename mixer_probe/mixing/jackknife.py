"""Intervals over images of what is no mean: pseudo-values of a jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from mixer_probe.stats import mean_interval

# Groups of images where there are more.
GROUPS = 32
# A scale on which a number is jackknifed, so that it stays in its range, and the way back.
Scale = tuple[Callable[[Any], Any], Callable[[Any], Any]]
FRACTION: Scale = (logit, expit)
POSITIVE: Scale = (np.log, np.exp)
PLAIN: Scale = (np.positive, np.positive)
CORRELATION: Scale = (np.positive, lambda value: min(1.0, max(-1.0, value)))


def group_of(image: int, n: int, groups: int) -> int:
    """The group of one of `n` images: all of nearly the same size, in order."""
    return image * groups // n


def jackknife(
    whole: np.ndarray, without: np.ndarray, scales: Sequence[Scale]
) -> tuple[np.ndarray, ...]:
    """Value, standard error and 95 % bounds [statistic] of statistics of all images, `whole`
    [statistic], from those without each group, `without` [group, statistic].

    The value is the mean of the pseudo-values G T - (G - 1) T_-g (Tukey 1958), which has no bias of
    order 1 / n, and the interval that of a mean, with the spread about T (Efron and Stein 1981),
    which is the larger one. With fewer than two groups, and where no scale is finite, the value is
    T."""
    count, found = len(without), []
    for k, (scale, back) in enumerate(scales):
        with np.errstate(divide="ignore", invalid="ignore"):
            pseudo = count * scale(whole[k]) - (count - 1) * scale(without[:, k])
        pseudo = pseudo[np.isfinite(pseudo)]
        if len(pseudo) < 2 or np.isnan(whole[k]):
            found.append((whole[k], *[math.nan] * 3))
            continue
        value, low, high = map(float, mean_interval(pseudo))
        # The spread about the statistic itself, not about the mean: the bias is not known exactly.
        error = float(np.std(pseudo, ddof=1)) / math.sqrt(len(pseudo))
        bias = (value - float(scale(whole[k]))) / math.sqrt(len(pseudo) - 1)
        wider = math.hypot(1, bias / error) if error > 0 else math.nan
        low, high = value + wider * (low - value), value + wider * (high - value)
        slope = 1e4 * float(back(value + 5e-5) - back(value - 5e-5))
        se = math.nan if math.isnan(low) else slope * wider * error
        found.append((float(back(value)), se, float(back(low)), float(back(high))))
    return tuple(np.array(part) for part in zip(*found, strict=True))
