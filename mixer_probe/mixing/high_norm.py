"""Patch tokens of large norm after every block, and where in the image they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from mixer_probe.core.result import storable
from mixer_probe.mixing.estimates import Estimates, estimate
from mixer_probe.stats import wilson_interval

# A norm is large beyond so many standard deviations (of a normal distribution of the same median
# absolute deviation), and so many medians.
DEVIATIONS, MEDIANS = 6.0, 2.0


@storable
@dataclass(frozen=True)
class HighNormTokens:
    """Patch tokens whose norm after a block is beyond a robust `cut`, per block.

    `cut` is median + 6 * 1.4826 * MAD of the norms of all images and positions, and at least twice
    the `median`. Darcet et al. (2024), "Vision Transformers Need Registers", cut DINOv2's bimodal
    norms at 150; other networks have other scales. `count` is the number of such tokens per image;
    `images` the fraction of images that have any, with Wilson's interval; `places` the fraction of
    images in which each position is one."""

    median: Annotated[np.ndarray, "block"]
    cut: Annotated[np.ndarray, "block"]
    largest: Annotated[np.ndarray, "block"]
    count: Annotated[Estimates, "block"]
    images: Annotated[np.ndarray, "block"]
    images_low: Annotated[np.ndarray, "block"]
    images_high: Annotated[np.ndarray, "block"]
    places: Annotated[tuple[np.ndarray, ...], "block", "row", "column"]


def high_norm_tokens(
    norms: Sequence[np.ndarray], grids: Sequence[tuple[int, int]]
) -> HighNormTokens:
    """The tokens of large norm, from the norms [image, position] after every block and the grids
    of the positions."""
    median = np.array([np.median(one) for one in norms], dtype=np.float64)
    spread = np.array([np.median(np.abs(one - m)) for one, m in zip(norms, median, strict=True)])
    cut = np.maximum(median + DEVIATIONS * 1.4826 * spread, MEDIANS * median)
    high = [one > c for one, c in zip(norms, cut, strict=True)]
    counts = np.array([one.sum(-1) for one in high], dtype=np.float64)
    per_image = estimate(counts)
    found, n = (counts > 0).sum(-1), counts.shape[-1]
    low, up = wilson_interval(found, n)
    return HighNormTokens(
        median=median,
        cut=cut,
        largest=np.array([one.max() for one in norms], dtype=np.float64),
        count=replace(per_image, low=np.maximum(per_image.low, 0)),
        images=found / n,
        images_low=low,
        images_high=up,
        places=tuple(
            one.mean(0).reshape(grid).astype(np.float32)
            for one, grid in zip(high, grids, strict=True)
        ),
    )
