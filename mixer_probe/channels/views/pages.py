"""Best-matching channels between networks, and pages of single channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelPage, ChannelPartners
from mixer_probe.channels.figures import (
    channel_catalogue,
    channel_page,
    partner_depth,
    partner_strength,
)
from mixer_probe.channels.layerwise import finite_median
from mixer_probe.channels.partners import by_networks
from mixer_probe.channels.selectivity import LEVEL
from mixer_probe.core.section import Picture, Section, Table, chunks
from mixer_probe.core.words import images_text, join, name_of, percent, studied, untrained_warning

# Panels of one picture, and rows of another.
_MOST_PANELS, _MOST_ROWS = 6, 16
# Dots per inch of a page: small pictures of 32 px gain nothing from more.
_PAGE_DPI = 100
_BY = {"mean": "mean", "peak": "largest activation"}


def partners_section(results: Sequence[ChannelPartners]) -> list[Section]:
    """Best-matching channels between networks."""
    own = {m.name for m in studied(m for r in results for m in (r.model_a, r.model_b))}
    pairs, first = by_networks(results), results[0]
    shown = {pair: found for pair, found in pairs.items() if set(pair) <= own}
    last = [found[-1] for found in shown.values()][:_MOST_PANELS]
    depth = Picture(
        partial(partner_depth, results),
        "Best-matching channel in B (largest |r|) of every channel of A, over "
        f"{images_text(first.images)}. Each layer of A is compared with the layer of B at the most "
        "similar relative depth.",
        "A match is above the null if its |r| exceeds the largest |r| over all channels of B in 95 "
        f"% of {first.permutations} image permutations; by chance, this holds for 5 % of channels "
        "(dashed, left). With many images weak matches are above the null too, so the right panel "
        "shows |r|: median over channels, interquartile range as a band, and the 95th percentile "
        "of the permutation null as thin dashes. Dotted lines are matches between the two "
        "untrained baselines.",
        "Fraction of channels with a match above the null and strength of matches against relative "
        "depth",
        name="partners-depth",
    )
    rest = (
        ""
        if len(last) == len(shown)
        else f" {len(last)} of {len(shown)} pairs of networks are drawn."
    )
    strength = Picture(
        partial(partner_strength, last),
        "Correlation of the channels of the last layer of A with their best-matching channels in "
        f"B; n = {last[0].n}.{rest}",
        "Each channel of A counts once. The grey outline is the same maximum over the channels of "
        "B with permuted images.",
        "Histograms of the correlation of channels with their best matches",
        name="partners",
    )
    rows = [
        {
            "A": name_of(r.model_a),
            "layer A": r.layer_a.name,
            "depth": r.layer_a.depth,
            "B": name_of(r.model_b),
            "layer B": r.layer_b.name,
            "channels": len(r.strength),
            "above null": r.fraction_above,
            "above corrected": r.fraction_corrected,
            "mutual": float(r.mutual.mean()),
            "median |r|": finite_median(r.strength),
            "null95": finite_median(r.threshold),
            "n": r.n,
        }
        for r in results
    ]
    formats = dict.fromkeys(
        ("above null", "above corrected", "mutual", "median |r|", "null95"), "{:.3f}"
    ) | {"depth": "{:.2f}"}
    caption = (
        "Best matches by pair of layers. above corrected: larger than the best pair of any two "
        "channels in 95 % of permutations. mutual: fraction of channels of A that are the best "
        "match of their own best match, b / (a + b - 1) for a and b independent channels; less "
        "where many channels share a few matches."
    )
    content: tuple[Picture | Table, ...] = (
        strength,
        Table(caption, pd.DataFrame(rows), formats, folded=True),
    )
    if max(map(len, pairs.values())) > 1:
        content = (depth, *content)
    baselines = [pairs.get((f"{a}?untrained", f"{b}?untrained"), []) for a, b in shown]
    sentences = tuple(
        _matching_sentence(found, untrained)
        for found, untrained in zip(shown.values(), baselines, strict=True)
    )
    warning = untrained_warning(m for r in results for m in (r.model_a, r.model_b))
    return [
        Section("partners", "Best-matching channels between networks", sentences, content, warning)
    ]


def _matching_sentence(
    found: Sequence[ChannelPartners], baseline: Sequence[ChannelPartners]
) -> str:
    """The fraction of channels of a network with a best match in another, layer by layer, beside
    the untrained baselines."""
    last = found[-1]
    name = f"{name_of(last.model_a)} in {name_of(last.model_b)}"
    size = f"median |r| {finite_median(last.strength):.2f}"
    varying = int(np.isfinite(last.strength).sum())
    if not varying:
        return (
            f"{name}: no channel of {last.layer_a.name} or none of {last.layer_b.name} varies: no "
            f"matches (n = {last.n})."
        )
    if not last.permutations:
        return (
            f"{name}: {last.layer_a.name} in {last.layer_b.name}: {size}; no permutations were "
            f"computed (n = {last.n})."
        )
    constant = (
        f" ({len(last.strength) - varying} more are constant)"
        if varying < len(last.strength)
        else ""
    )
    fractions, over = [r.fraction_above for r in found if not np.isnan(r.fraction_above)], ""
    if len(fractions) > 1:
        low, high, layers = (
            percent(min(fractions)),
            percent(max(fractions)),
            f"{len(fractions)} layers",
        )
        over = f" (in all {layers})" if low == high else f" ({low} to {high} over {layers})"
    text = (
        f"{name}: {percent(last.fraction_above)} of {varying} channels of "
        f"{last.layer_a.name}{constant} have a match in {last.layer_b.name} above the null{over}, "
        f"5 % by chance; {size}, 95th percentile of the null {finite_median(last.threshold):.2f}"
    )
    if baseline:
        text += f", untrained baselines {finite_median(baseline[-1].strength):.2f}"
    return f"{text} (n = {last.n}, {last.permutations} permutations)."


def pages_section(results: Sequence[ChannelPage]) -> list[Section]:
    """Pages of single channels, network by network."""
    by_model: dict[str, list[ChannelPage]] = {}
    for page in results:
        by_model.setdefault(page.model.fingerprint + page.model.name, []).append(page)
    content: list[Picture] = []
    for pages in by_model.values():
        name, several = name_of(pages[0].model), len(pages) > 1
        rule = f" Selection: {pages[0].rule}." if pages[0].rule else ""
        for i, part in enumerate(chunks(pages, _MOST_ROWS) if several else []):
            catalogue = Picture(
                partial(channel_catalogue, part),
                f"Channels of {name} with their top and bottom images.{rule}",
                f"Images are ranked by the channel's {_BY[part[0].by]} over positions; the box "
                "marks the cell of its peak. Maps show the activation over the first images, on "
                "one colour scale per row. AUROC: mean over positions, for the best-separated "
                "class; p is corrected for all channels and classes of the layer. Below: the "
                "best-matching channels of other networks. These channels are extremes, not "
                "typical ones.",
                f"Top and bottom images of channels of {name}",
                vector=False,
                photo=True,
                name=f"channels-{name}" + (f"-{i + 1}" if i else ""),
            )
            content.append(catalogue)
        for page in pages:
            channel, response = (
                f"{name}, {page.layer.name}, channel {page.channel}",
                f"n = {page.n}.",
            )
            if (best := page.best_class) is not None:
                p = page.selectivity_p
                null = "" if np.isnan(p) else f", corrected p = {p:.3f}"
                # Without a p-value, or with a large one, the class is only the one whose AUROC is
                # furthest from 1/2.
                does = (
                    page.relation
                    if p <= LEVEL
                    else "not significantly selective for any class; AUROC furthest from 1/2 for"
                )
                response = (
                    f"{does} '{page.class_names[best]}' (AUROC {page.auroc[best]:.3f}{null}, n = "
                    f"{page.n})."
                )
            picture = Picture(
                partial(channel_page, page),
                f"{channel}: {response}",
                f"The images with the highest and the lowest {_BY[page.by]} of the channel, with "
                "its value over each; the box marks the cell of its peak, the second row shows the "
                "patch around that cell, the third the activation maps on one colour scale. Bars "
                "to the right of 1/2 are classes with higher activation, bars to the left classes "
                "with lower activation.",
                f"Page of {channel}",
                vector=False,
                photo=True,
                name=f"channel-page-{name}-{page.layer.name}-{page.channel}",
                folded=several,
                dpi=_PAGE_DPI,
            )
            content.append(picture)
    sentences = tuple(_pages_sentence(pages) for pages in by_model.values())
    warning = untrained_warning(page.model for page in results)
    return [
        Section("channel-pages", "Pages of single channels", sentences, tuple(content), warning)
    ]


def _pages_sentence(pages: Sequence[ChannelPage]) -> str:
    """The channels of a network that have a page, how many of them are selective, and the classes
    of their extreme images."""
    first = pages[0]
    layers = Counter(page.layer.name for page in pages)
    each = (
        f"{max(layers.values())} of each of {len(layers)} layers"
        if len(layers) > 1
        else f"of {first.layer.name}"
    )
    count = (
        f"{len(pages)} channels, {each}"
        if len(pages) > 1
        else f"channel {first.channel} of {first.layer.name}"
    )
    text = f"{name_of(first.model)}: {count}{f': {first.rule}' if first.rule else ''}."
    p = np.array([page.selectivity_p for page in pages])
    known = p[np.isfinite(p)]
    if len(known):
        of = "their layer" if len(layers) == 1 else f"the channels of {len(layers)} layers"
        selective = int((known * len(layers) <= LEVEL).sum())
        text += (
            f" {selective} of {len(known)} are significantly selective for a class (corrected for "
            f"{of})."
        )
    shown = []
    for page in pages:
        if (best := page.best_class) is None:
            continue
        higher, name = bool(page.auroc[best] > 0.5), page.class_names[best]
        # The end of the images that the class is at.
        classes = (page.top if higher else page.lowest).classes
        if classes:
            end = "" if higher else ", bottom images"
            shown.append(
                f"{classes.count(name)} of {len(classes)} in {page.layer.name} · {page.channel} "
                f"('{name}'{end})"
            )
    if shown:
        text += f" Extreme images that belong to the class of the channel: {join(shown)}."
    return f"{text} n = {first.n}."
