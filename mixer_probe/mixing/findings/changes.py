"""What training changed: numbers of a network against those of its untrained baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mixer_probe.models.layer import Layer
from mixer_probe.stats.claims import LEVEL
from mixer_probe.stats.differences import difference_interval, difference_p

Change = tuple[str, float, float, float]


def significant_changes(
    names: Sequence[str], trained: np.ndarray, untrained: np.ndarray
) -> list[Change]:
    """The layers whose number changes, with the difference trained - untrained and its 95 % bounds,
    from value and bounds [3, layer] of each: by the p-value of the difference times the number of
    layers (Bonferroni)."""
    numbers = *untrained, *trained
    p = difference_p(*numbers) * len(names)
    differences = (trained[0] - untrained[0]).tolist()
    bounds = difference_interval(*numbers).tolist()
    return [
        (name, value, low, high)
        for name, value, (low, high), one in zip(names, differences, bounds, p, strict=True)
        if one <= LEVEL
    ]


def in_both(
    layers: Sequence[Layer],
    places: Sequence[int],
    others: Sequence[Layer],
    known: Callable[[int], bool],
) -> tuple[list[int], list[int]]:
    """The `places` among the layers of a network that its baseline has too, with the place in
    `others` of each, where that is `known`."""
    names = {layer.name: k for k, layer in enumerate(others)}
    own = [k for k in places if layers[k].name in names and known(names[layers[k].name])]
    return own, [names[layers[k].name] for k in own]


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
