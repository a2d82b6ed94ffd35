"""The depth at which a probe reaches the middle between chance and its accuracy after the last
layer."""

from __future__ import annotations

import numpy as np

from mixer_probe.probing.layer_probes import ProbeResult
from mixer_probe.stats import mean_interval

_LEVEL = 0.95


def last_layer(result: ProbeResult) -> int:
    """Index of the last layer with an accuracy."""
    return int(np.flatnonzero(np.isfinite(result.accuracy))[-1])


def halfway(result: ProbeResult) -> int | None:
    """The first layer whose whole interval is above the middle between chance and the accuracy
    after the last layer."""
    hits = result.low > (result.chance + result.accuracy[last_layer(result)]) / 2
    return int(np.flatnonzero(hits)[0]) if hits.any() else None


def halfway_depths(result: ProbeResult) -> tuple[float, float]:
    """The least and the largest depth of `halfway_layers`, and of `halfway`."""
    known = np.flatnonzero(np.isfinite(result.accuracy))
    first, last = (int(known[i]) for i in halfway_layers(result.right[known], result.chance))
    found = halfway(result)
    depths = [result.layers[i].depth for i in (first, last, *([] if found is None else [found]))]
    return min(depths), max(depths)


def halfway_layers(right: np.ndarray, chance: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last member [...] of a 95 % confidence set of the first layer that is right on more
    images of the population than the middle between `chance` and the last layer, from right answers
    [..., L, n].

    The excess of a layer over that middle is a mean over images of right_l - right_last / 2. A
    layer stays in the set unless its own excess is significantly below 0 (2.5 %), or that of an
    earlier layer significantly above 0 (2.5 %, Bonferroni over layers): the inversion of a test of
    "this layer is the first". Depths are discrete, so that the set holds the true layer more often
    than 95 % of the time."""
    count = right.shape[-2]
    excess = right - right[..., -1:, :] / 2 - chance / 2
    limits = (-0.5 - chance / 2, 1 - chance / 2)
    # The last layer is halfway there by definition, so that one fewer can be above 0 by chance.
    low = mean_interval(excess, level=1 - (1 - _LEVEL) / max(count - 1, 1), limits=limits)[1]
    high = mean_interval(excess, level=_LEVEL, limits=limits)[2]
    above, possible = low > 0, high > 0
    above[..., -1] = possible[..., -1] = True
    last = above.argmax(axis=-1)
    return np.minimum(possible.argmax(axis=-1), last), last
