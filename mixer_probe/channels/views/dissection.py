"""Network dissection: channels that detect annotated concepts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.channels import DissectedChannel, Dissection
from mixer_probe.channels.figures import (
    dissected_channel_pictures,
    dissection_concepts,
    dissection_depth,
)
from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import (
    images_text,
    join,
    name_of,
    percent,
    studied,
    untrained_baseline,
    untrained_warning,
)
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
    ordered = sorted(results, key=lambda r: r.model not in own)
    first = ordered[0]
    null = (
        f" in 95 % of {first.permutations} permutations of the masks over images: by chance, one "
        "layer in twenty has any such channel. Permutations preserve the size and the typical "
        "location of concepts."
        if first.permutations
        else "; no permutations were computed."
    )
    depth = Picture(
        partial(dissection_depth, ordered),
        f"Channels that detect a concept of {first.source}, over {images_text(first.images)}. Unit "
        f"of comparison: {_BY[first.by]}.",
        f"A channel is active above its own {percent(first.quantile)} quantile. It is a detector "
        "if its overlap with some concept (IoU, relative to what the best channel reaches for that "
        f"concept by chance) is above that of any channel and concept of the layer{null} On the "
        "right, 1 is the level that the best channel reaches by chance.",
        "Fraction of detectors, number of concepts with a detector and the best overlap against "
        "relative depth",
        name="dissection-depth",
    )
    concepts = Picture(
        partial(dissection_concepts, ordered),
        "Number of detectors per concept over all layers, and highest overlap of any channel with "
        "the concept.",
        "A channel counts only for the concept with its largest relative overlap. Filled markers "
        "are significant, corrected for the channels of the layer. IoU is bounded by concept size: "
        "a concept that covers a fraction s of the pixels reaches at most about (1 - quantile) / s "
        "with a channel that is active on fewer pixels, so large concepts have low IoU.",
        "Bars of detectors by concept and the best overlap with each concept",
        name="dissection-concepts",
    )
    numbers = ("fraction_detectors", "fraction_above_paper", "iou_median", "iou_max")
    layers = Table(
        "Detectors by layer. fraction above paper: fraction of channels with pixel IoU above 0.04, "
        "not tested against chance.",
        pd.concat([r.summary() for r in ordered], ignore_index=True),
        {"depth": "{:.2f}", "strength_max": "{:.2f}", **dict.fromkeys(numbers, "{:.3f}")},
        folded=True,
    )
    frame = pd.concat([r.concept_frame() for r in ordered], ignore_index=True).dropna(
        subset=["iou"]
    )
    best = Table(
        "The channel with the highest IoU for each concept; p is corrected for the channels of its "
        "layer.",
        frame.loc[frame.groupby(["model", "concept"], sort=False)["iou"].idxmax()],
        {"depth": "{:.2f}", **dict.fromkeys(("iou", "null95", "p_value", "fraction"), "{:.3f}")},
        folded=True,
    )
    sentences = tuple(
        detection_sentence(r, untrained_baseline(r, results)) for r in ordered if r.model in own
    )
    warning = untrained_warning(r.model for r in results)
    content = (depth, concepts, layers, best)
    return [
        Section("dissection", "Concept detectors (network dissection)", sentences, content, warning)
    ]


def detection_sentence(result: Dissection, baseline: Dissection | None) -> str:
    """The fraction of detectors of a network, the layer and the concepts with most of them, beside
    the untrained baseline."""
    left = f"; {result.left_out} images without annotation were excluded" if result.left_out else ""
    name, n = name_of(result.model), f"n = {result.n}{left}"
    if not result.permutations:
        known = result.concept_frame()["iou"].dropna()
        best = "" if known.empty else f"; no IoU is above {known.max():.3f}"
        return f"{name}: no permutations were computed{best} ({n})."
    found, total = _counts(result)
    # Channels are corrected for their layer; whether any is significant at all, for the layers too
    # (Bonferroni).
    p = min(
        (float(np.nanmin(p)) for p in result.p_value if np.isfinite(p).any()), default=1.0
    ) * len(result.layers)
    if not found or p > LEVEL:
        few = len(result.layers) / (1 + result.permutations) > LEVEL
        why = (
            f"; {result.permutations} permutations are too few for {len(result.layers)} layers"
            if few
            else ""
        )
        return (
            f"{name}: no channel of {total} significantly detects any of {len(result.concepts)} "
            f"concepts ({n}{why})."
        )
    hits = [(int(d.sum()), len(d)) for d in result.detectors]
    fractions = [
        Number("detectors", k / channels, *wilson_interval(k, channels), n=channels)
        for k, channels in hits
    ]
    most = leader(fractions)
    where = (
        ""
        if most is None
        else f", most after {result.layers[most].name} ({percent(fractions[most].value)})"
    )
    counts = result.concept_frame().groupby("concept", sort=False)["detectors"].sum()
    named = join(
        f"{concept} ({k})" for concept, k in counts[counts > 0].nlargest(_MOST_NAMED).items()
    )
    beside = ""
    if baseline is not None:
        detectors, channels = _counts(baseline)
        beside = f"; untrained baseline: {percent(detectors / channels)}"
    return (
        f"{name}: {percent(found / total)} of {total} channels significantly detect a "
        f"concept{beside}{where}; {(counts > 0).sum()} of {len(result.concepts)} concepts have a "
        f"detector, by number of detectors: {named} ({n})."
    )


def _counts(result: Dissection) -> tuple[int, int]:
    """Detectors of all layers, and all channels."""
    return sum(int(d.sum()) for d in result.detectors), sum(
        layer.channels for layer in result.layers
    )


def dissected_section(results: Sequence[DissectedChannel]) -> list[Section]:
    """Single channels against their concepts."""
    pictures, sentences = [], []
    for r in results:
        name, where = (
            name_of(r.model),
            f"channel {r.channel} of {r.layer.name} of {name_of(r.model)}",
        )
        pictures.append(
            Picture(
                partial(dissected_channel_pictures, r),
                f"Active region of {where} and location of {r.concept}.",
                "Images with the highest peak activation of the channel. Bright regions are above "
                "the threshold, which is the same for all images; below, the activation maps on a "
                "shared scale.",
                f"Images with the active region of {where} and the outline of {r.concept}",
                vector=False,
                name=f"dissected-{name}-{r.layer.name}-{r.channel}",
            )
        )
        null = f"; 95th percentile of the null of the best channel of the layer: {r.null95:.3f}"
        sentences.append(
            f"{name}, {r.layer.name}, channel {r.channel}: IoU {r.iou:.3f} with {r.concept} over "
            f"{r.n} images{'' if np.isnan(r.null95) else null}."
        )
    warning = untrained_warning(r.model for r in results)
    title = "Example images of concept detectors"
    return [Section("dissected-channels", title, tuple(sentences), tuple(pictures), warning)]
