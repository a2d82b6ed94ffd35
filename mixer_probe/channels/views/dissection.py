"""Network dissection: channels that detect annotated concepts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

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
    "peak": "images: one is active if any position is above the threshold",
    "fill": "pixels; an attribute covers the whole image",
}


def dissection_section(results: Sequence[Dissection]) -> list[Section]:
    """Concept detectors among channels."""
    own = studied(r.model for r in results)
    ordered = [*(r for r in results if r.model in own), *(r for r in results if r.model not in own)]
    twins = {base_name(r.model.name): r for r in ordered if r.model not in own}
    sentences = tuple(_sentence(r, twins.get(r.model.name)) for r in ordered if r.model in own)
    content = (_depth_picture(ordered), _concept_picture(ordered), _layer_table(ordered), _concept_table(ordered))
    warning = untrained_warning(r.model for r in results)
    return [Section("dissection", "Concept detectors (network dissection)", sentences, content, warning)]


def dissected_section(results: Sequence[DissectedChannel]) -> list[Section]:
    """Single channels against their concepts."""
    pictures = tuple(_channel_picture(r) for r in results)
    sentences = tuple(_channel_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("dissected-channels", "Example images of concept detectors", sentences, pictures, warning)]


def _depth_picture(results: Sequence[Dissection]) -> Picture:
    first = results[0]
    null = (
        f" in 95 % of {first.permutations} permutations of the masks over images: by chance, one layer in twenty has any such "
        "channel. Permutations preserve the size and the typical location of concepts."
        if first.permutations
        else "; no permutations were computed."
    )
    return Picture(
        partial(dissection_depth, results),
        f"Channels that detect a concept of {first.source}, over {images_text(first.images)}. Unit of comparison: "
        f"{_BY[first.by]}.",
        f"A channel is active above its own {percent(first.quantile)} quantile. It is a detector if its overlap with some "
        f"concept (IoU, relative to what the best channel reaches for that concept by chance) is above that of any channel "
        f"and concept of the layer{null} On the right, 1 is the level that the best channel reaches by chance.",
        "Fraction of detectors, number of concepts with a detector and the best overlap against relative depth",
        name="dissection-depth",
    )


def _concept_picture(results: Sequence[Dissection]) -> Picture:
    return Picture(
        partial(dissection_concepts, results),
        "Number of detectors per concept over all layers, and highest overlap of any channel with the concept.",
        "A channel counts only for the concept with its largest relative overlap. Filled markers are significant, corrected for "
        "the channels of the layer. IoU is bounded by concept size: a concept that covers a fraction s of the pixels reaches at "
        "most about (1 - quantile) / s with a channel that is active on fewer pixels, so large concepts have low IoU.",
        "Bars of detectors by concept and the best overlap with each concept",
        name="dissection-concepts",
    )


def _layer_table(results: Sequence[Dissection]) -> Table:
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    formats = {"depth": "{:.2f}", **dict.fromkeys(("share_detectors", "share_above_paper", "iou_median", "iou_max"), "{:.3f}")}
    caption = "Detectors by layer. share above paper: fraction of channels with pixel IoU above 0.04, not tested against chance."
    return Table(caption, frame, {**formats, "strength_max": "{:.2f}"}, folded=True)


def _concept_table(results: Sequence[Dissection]) -> Table:
    """The best layer of each concept."""
    frame = pd.concat([r.concept_frame() for r in results], ignore_index=True).dropna(subset=["iou"])
    best = frame.loc[frame.groupby(["model", "concept"], sort=False)["iou"].idxmax()]
    formats = {"depth": "{:.2f}", **dict.fromkeys(("iou", "null95", "p_value", "share"), "{:.3f}")}
    caption = "The channel with the highest IoU for each concept; p is corrected for the channels of its layer."
    return Table(caption, best, formats, folded=True)


def _sentence(result: Dissection, twin: Dissection | None) -> str:
    left = f"; {result.left_out} images without annotation were excluded" if result.left_out else ""
    name, n = name_of(result.model), f"n = {result.n}{left}"
    summary, total = result.summary(), sum(layer.channels for layer in result.layers)
    found = int(summary["detectors"].sum())
    if not result.permutations:
        known = result.concept_frame()["iou"].dropna()
        best = "" if known.empty else f"; no IoU is above {known.max():.3f}"
        return f"{name}: no permutations were computed{best} ({n})."
    # Channels are corrected for their layer; whether any is beyond chance at all, for the layers too (Bonferroni).
    p = min((float(np.nanmin(p)) for p in result.p_value if np.isfinite(p).any()), default=1.0) * len(result.layers)
    if not found or p > LEVEL:
        few = len(result.layers) / (1 + result.permutations) > LEVEL
        why = f"; {result.permutations} permutations are too few for {len(result.layers)} layers" if few else ""
        return f"{name}: no channel of {total} significantly detects any of {len(result.concepts)} concepts ({n}{why})."
    shares = [_detectors(int(d.sum()), len(d)) for d in result.detectors]
    most = leader(shares)
    where = "" if most is None else f", most after {result.layers[most].name} ({percent(shares[most].value)})"
    counts = result.concept_frame().groupby("concept", sort=False)["detectors"].sum()
    named = join(f"{concept} ({k})" for concept, k in counts[counts > 0].nlargest(_MOST_NAMED).items())
    beside = "" if twin is None else f"; untrained baseline: {percent(_share(twin))}"
    return (
        f"{name}: {percent(found / total)} of {total} channels significantly detect a concept{beside}{where}; "
        f"{(counts > 0).sum()} of {len(result.concepts)} concepts have a detector, by number of detectors: {named} ({n})."
    )


def _detectors(count: int, channels: int) -> Number:
    return Number("detectors", count / channels, *wilson_interval(count, channels), n=channels)


def _share(result: Dissection) -> float:
    return float(result.summary()["detectors"].sum()) / sum(layer.channels for layer in result.layers)


def _channel_picture(result: DissectedChannel) -> Picture:
    where = f"channel {result.channel} of {result.layer.name} of {name_of(result.model)}"
    return Picture(
        partial(dissected_channel_pictures, result),
        f"Active region of {where} and location of {result.concept}.",
        "Images with the highest peak activation of the channel. Bright regions are above the threshold, which is the same for "
        "all images; below, the activation maps on a shared scale.",
        f"Images with the active region of {where} and the outline of {result.concept}",
        vector=False,
        name=f"dissected-{name_of(result.model)}-{result.layer.name}-{result.channel}",
    )


def _channel_sentence(result: DissectedChannel) -> str:
    chance = (
        ""
        if result.null95 != result.null95
        else f"; 95th percentile of the null of the best channel of the layer: {result.null95:.3f}"
    )
    return (
        f"{name_of(result.model)}, {result.layer.name}, channel {result.channel}: IoU {result.iou:.3f} with {result.concept} "
        f"over {result.n} images{chance}."
    )
