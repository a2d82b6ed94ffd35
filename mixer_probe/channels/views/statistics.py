"""What single channels do, computed from their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelStatistics
from mixer_probe.channels.figures import channel_depth
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, name_of, percent, untrained_warning


def channel_section(results: Sequence[ChannelStatistics]) -> list[Section]:
    """What single channels do."""
    first = results[0]
    picture = Picture(
        channel_depth(results),
        f"Channels after every block over {images_text(first.images)} and all positions (prefix tokens apart).",
        "Spread: the line is the median channel's standard deviation, the band reaches to the largest channel: a wide band means "
        "a few channels carry most of the variance. A layer that a ReLU shut has 100 % of its values at or below zero; dead "
        "channels never change. Heavy tails: a normal distribution has an excess kurtosis of 0. Largest activation: above the "
        "dashed line it counts as massive. Directions in use: the participation ratio of the covariance, 100 % where all "
        "directions vary alike.",
        "Line plots of channel spread, signs, dead channels, tails, largest activations and directions in use against depth",
        name="channels",
    )
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", **dict.fromkeys(("median_std", "largest_std", "share_zero", "share_nonpositive"), "{:.3g}")}
    table = Table("Channels by layer. Shares are of all values, averaged over channels.", frame, formats, folded=True)
    sentences = tuple(_channel_sentence(r) for r in results)
    return [
        Section("channels", "What single channels do", sentences, (picture, table), untrained_warning(r.model for r in results))
    ]


def _channel_sentence(result: ChannelStatistics) -> str:
    dead = sum(int(d.sum()) for d in result.dead)
    total = sum(layer.channels for layer in result.layers)
    last = result.share_zero[-1].mean()
    return (
        f"{name_of(result.model)}: {dead} of {total} channels never change over {result.n} images; "
        f"after the last block {percent(float(last))} of all values are exactly zero{_massive_text(result)}."
    )


def _massive_text(result: ChannelStatistics) -> str:
    """The largest activation of all layers, where the results have medians."""
    if not result.largest_ratio:
        return ""
    i = int(np.argmax(peaks := [np.nan_to_num(ratio).max() for ratio in result.largest_ratio]))
    massive = sum(int(m.sum()) for m in result.massive)
    return (
        f"; the largest activation is {peaks[i]:.3g} times the median of its layer, after {result.layers[i].name} ({massive} "
        f"channels go beyond {result.massive_ratio:g} times)"
    )
