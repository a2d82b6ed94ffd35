"""What differs between a trained network and its untrained baseline, of a few layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
