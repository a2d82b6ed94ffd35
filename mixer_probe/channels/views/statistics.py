"""Activation statistics of channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelStatistics
from mixer_probe.channels.figures import channel_depth
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import images_text, name_of, percent, untrained_warning


def channel_section(results: Sequence[ChannelStatistics]) -> list[Section]:
    """Activation statistics of channels."""
    picture = Picture(
        partial(channel_depth, results),
        f"Statistics of channels after each block over {images_text(results[0].images)} and all "
        "positions (without prefix tokens).",
        "Standard deviation: the line is the median channel, the band extends to the largest "
        "channel; a wide band means that a few channels carry most of the variance. A layer fully "
        "suppressed by a ReLU has 100 % of its values at or below zero; dead channels are "
        "constant. Kurtosis: a normal distribution has an excess kurtosis of 0. Largest "
        "activation: massive above the dashed line. Effective dimensionality: participation ratio "
        "of the covariance, 100 % if all directions have equal variance.",
        "Standard deviation, signs, dead channels, kurtosis, largest activations and effective "
        "dimensionality against depth",
        name="channels",
    )
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    formats = {
        "depth": "{:.2f}",
        **dict.fromkeys(
            ("median_std", "largest_std", "fraction_zero", "fraction_nonpositive"), "{:.3g}"
        ),
    }
    caption = (
        "Channels by layer. fraction columns: fractions of all values, averaged over channels."
    )
    sentences = []
    for r in results:
        dead, total = sum(int(d.sum()) for d in r.dead), sum(layer.channels for layer in r.layers)
        text = (
            f"{name_of(r.model)}: {dead} of {total} channels are constant over {r.n} images; after "
            f"the last block {percent(float(r.fraction_zero[-1].mean()))} of all values are "
            "exactly zero"
        )
        if r.largest_ratio:
            peaks = [np.nan_to_num(ratio).max() for ratio in r.largest_ratio]
            i, massive = int(np.argmax(peaks)), sum(int(m.sum()) for m in r.massive)
            text += (
                f"; the largest activation is {peaks[i]:.3g} times the median of its layer, after "
                f"{r.layers[i].name} ({massive} channels exceed {r.massive_ratio:g} times)"
            )
        sentences.append(f"{text}.")
    content = (picture, Table(caption, frame, formats, folded=True))
    warning = untrained_warning(r.model for r in results)
    return [
        Section("channels", "Activation statistics of channels", tuple(sentences), content, warning)
    ]
