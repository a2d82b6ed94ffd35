"""Which concepts channels mark in images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.channels import DissectedChannel, Dissection
from mixer_probe.channels.figures import dissected_channel_pictures, dissection_concepts, dissection_depth
from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import base_name, images_text, join, name_of, percent, studied, untrained_warning
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import LEVEL, leader

_MOST_NAMED = 3
_BY = {
    "pixels": "pixels of the masks as the network sees them",
    "peak": "images: one is lit if any position is above the threshold",
    "fill": "pixels, an attribute filling its image",
}


def dissection_section(results: Sequence[Dissection]) -> list[Section]:
    """Which concepts channels mark."""
    own = studied(r.model for r in results)
    ordered = [*(r for r in results if r.model in own), *(r for r in results if r.model not in own)]
    twins = {base_name(r.model.name): r for r in ordered if r.model not in own}
    sentences = tuple(_sentence(r, twins.get(r.model.name)) for r in ordered if r.model in own)
    content = (_depth_picture(ordered), _concept_picture(ordered), _layer_table(ordered), _concept_table(ordered))
    warning = untrained_warning(r.model for r in results)
    return [Section("dissection", "Which concepts channels mark", sentences, content, warning)]


def dissected_section(results: Sequence[DissectedChannel]) -> list[Section]:
    """Single channels against their concepts."""
    pictures = tuple(_channel_picture(r) for r in results)
    sentences = tuple(_channel_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("dissected-channels", "Channels and their concepts in pictures", sentences, pictures, warning)]


def _depth_picture(results: Sequence[Dissection]) -> Picture:
    first = results[0]
    null = (
        f" in 95 % of {first.permutations} random deals of the masks to the images: by chance one layer in twenty has any such "
        "channel. The deals keep how large concepts are and where in images they like to be."
        if first.permutations
        else "; no null was asked for."
    )
    return Picture(
        dissection_depth(results),
        f"How many channels mark a concept of {first.source}, over {images_text(first.images)}. Compared are {_BY[first.by]}.",
        f"A channel is lit where it is above its own {percent(first.quantile)} quantile. It is a detector if its overlap with "
        f"some concept (IoU, relative to what the best channel reaches for that concept by chance) is above that of any channel "
        f"and concept of the layer{null} On the right 1 is what the best channel reads by chance.",
        "Share of detectors, number of concepts with a detector and the best overlap against relative depth",
        name="dissection-depth",
    )


def _concept_picture(results: Sequence[Dissection]) -> Picture:
    return Picture(
        dissection_concepts(results),
        "Every concept: how many channels of all layers stand out for it, and the channel with the highest overlap.",
        "A channel counts for the one concept that it stands out for most. Full marks are above chance, corrected for the "
        "channels of the layer. An IoU is bounded by size: a concept on a share s of the pixels reaches about "
        "(1 - quantile) / s with a channel that is lit on fewer, so that large concepts read low.",
        "Bars of detectors by concept and the best overlap with each concept",
        name="dissection-concepts",
    )


def _layer_table(results: Sequence[Dissection]) -> Table:
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", **dict.fromkeys(("share_detectors", "share_above_paper", "iou_median", "iou_max"), "{:.3f}")}
    caption = "Detectors by layer. share above paper counts channels with an IoU of pixels above 0.04, no test against chance."
    return Table(caption, frame, {**formats, "strength_max": "{:.2f}"}, folded=True)


def _concept_table(results: Sequence[Dissection]) -> Table:
    """The best layer of each concept."""
    frame = pd.concat([r.concept_frame() for r in results], ignore_index=True).dropna(subset=["iou"])
    best = frame.loc[frame.groupby(["model", "concept"], sort=False)["iou"].idxmax()]
    formats = {"depth": "{:.2f}", **dict.fromkeys(("iou", "null95", "p_value", "share"), "{:.3f}")}
    caption = "The channel with the highest IoU for each concept; p is corrected for the channels of its layer."
    return Table(caption, best, formats, folded=True)


def _sentence(result: Dissection, twin: Dissection | None) -> str:
    left = f"; {result.left_out} images without an annotation were left out" if result.left_out else ""
    name, n = name_of(result.model), f"n = {result.n}{left}"
    summary, total = result.summary(), sum(layer.channels for layer in result.layers)
    found = int(summary["detectors"].sum())
    if not result.permutations:
        known = result.concept_frame()["iou"].dropna()
        best = "" if known.empty else f": no IoU is above {known.max():.3f}"
        return f"{name} was dissected without a null{best} ({n})."
    # Channels are corrected for their layer; whether any is beyond chance at all, for the layers too (Bonferroni).
    p = min((float(np.nanmin(p)) for p in result.p_value if np.isfinite(p).any()), default=1.0) * len(result.layers)
    if not found or p > LEVEL:
        few = len(result.layers) / (1 + result.permutations) > LEVEL
        why = f"; {result.permutations} permutations are too few for {len(result.layers)} layers" if few else ""
        return f"{name}: no channel of {total} marks any of {len(result.concepts)} concepts beyond chance ({n}{why})."
    shares = [_detectors(int(d.sum()), len(d)) for d in result.detectors]
    most = leader(shares)
    where = "" if most is None else f", most after {result.layers[most].name} ({percent(shares[most].value)})"
    counts = result.concept_frame().groupby("concept", sort=False)["detectors"].sum()
    named = join(f"{concept} ({k})" for concept, k in counts[counts > 0].nlargest(_MOST_NAMED).items())
    beside = "" if twin is None else f"; with random weights {percent(_share(twin))}"
    return (
        f"{name}: {percent(found / total)} of {total} channels mark a concept beyond chance{beside}{where}; "
        f"{(counts > 0).sum()} of {len(result.concepts)} concepts have a detector, by number {named} ({n})."
    )


def _detectors(count: int, channels: int) -> Number:
    return Number("detectors", count / channels, *wilson_interval(count, channels), n=channels)


def _share(result: Dissection) -> float:
    return float(result.summary()["detectors"].sum()) / sum(layer.channels for layer in result.layers)


def _channel_picture(result: DissectedChannel) -> Picture:
    where = f"channel {result.channel} of {result.layer.name} of {name_of(result.model)}"
    return Picture(
        dissected_channel_pictures(result),
        f"What {where} lights, and where {result.concept} is.",
        "Images with the strongest peak of the channel. Bright is what is above the threshold, which belongs to the channel and "
        "not to the image; below the map of activations on one scale.",
        f"Pictures lit by {where} with the outline of {result.concept}",
        vector=False,
        name=f"dissected-{name_of(result.model)}-{result.layer.name}-{result.channel}",
    )


def _channel_sentence(result: DissectedChannel) -> str:
    chance = (
        "" if result.null95 != result.null95 else f"; the best channel of the layer stays within {result.null95:.3f} by chance"
    )
    return (
        f"{name_of(result.model)}, {result.layer.name}, channel {result.channel}: IoU {result.iou:.3f} with {result.concept} "
        f"over {result.n} images{chance}."
    )
