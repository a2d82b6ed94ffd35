"""Best-matching channels between networks, and pages of single channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelPage, ChannelPartners, Exhibit
from mixer_probe.channels.figures import channel_catalogue, channel_page, partner_depth, partner_strength
from mixer_probe.channels.selectivity import LEVEL
from mixer_probe.core.section import Picture, Section, Table, chunks
from mixer_probe.core.words import base_name, images_text, join, name_of, percent, studied, untrained_warning

# Panels of one picture, and rows of another.
_MOST_PANELS, _MOST_ROWS = 6, 16
# Dots an inch of a page: small pictures of 32 px gain nothing from more.
_PAGE_DPI = 100

Pair = tuple[str, str]


def partners_section(results: Sequence[ChannelPartners]) -> list[Section]:
    """Best-matching channels between networks."""
    own = {m.name for m in studied(m for r in results for m in (r.model_a, r.model_b))}
    pairs = _by_pair(results)
    shown = {pair: found for pair, found in pairs.items() if set(pair) <= own}
    last = [found[-1] for found in shown.values()]
    content: list[Picture | Table] = [] if max(map(len, pairs.values())) == 1 else [_depth_picture(results)]
    content += [_strength_picture(last[:_MOST_PANELS], len(last)), _partner_table(results)]
    sentences = tuple(_partner_sentence(found, _twin_of(pair, pairs)) for pair, found in shown.items())
    warning = untrained_warning(m for r in results for m in (r.model_a, r.model_b))
    return [Section("partners", "Best-matching channels between networks", sentences, tuple(content), warning)]


def _by_pair(results: Sequence[ChannelPartners]) -> dict[Pair, list[ChannelPartners]]:
    pairs: dict[Pair, list[ChannelPartners]] = {}
    for result in results:
        pairs.setdefault((result.model_a.name, result.model_b.name), []).append(result)
    return pairs


def _twin_of(pair: Pair, pairs: dict[Pair, list[ChannelPartners]]) -> list[ChannelPartners]:
    """The same two networks untrained."""
    return next(
        (found for other, found in pairs.items() if other != pair and (base_name(other[0]), base_name(other[1])) == pair), []
    )


def _depth_picture(results: Sequence[ChannelPartners]) -> Picture:
    first = results[0]
    return Picture(
        partial(partner_depth, results),
        "Best-matching channel in B (largest |r|) of every channel of A, over "
        f"{images_text(first.images)}. Each layer of A is compared with the layer of B at the most similar relative depth.",
        f"A match is above the null if its |r| exceeds the largest |r| over all channels of B in 95 % of {first.permutations} "
        "image permutations; by chance, this holds for 5 % of channels (dashed, left). With many images weak matches are above "
        "the null too, so the right panel shows |r|: median over channels, interquartile range as a band, and the 95th "
        "percentile of the permutation null as thin dashes. Dotted lines are matches between the two untrained baselines.",
        "Fraction of channels with a match above the null and strength of matches against relative depth",
        name="partners-depth",
    )


def _strength_picture(results: Sequence[ChannelPartners], pairs: int) -> Picture:
    first = results[0]
    rest = "" if len(results) == pairs else f" {len(results)} of {pairs} pairs of networks are drawn."
    return Picture(
        partial(partner_strength, results),
        f"Correlation of the channels of the last layer of A with their best-matching channels in B; n = {first.n}.{rest}",
        "Each channel of A counts once. The grey outline is the same maximum over the channels of B with permuted images.",
        "Histograms of the correlation of channels with their best matches",
        name="partners",
    )


def _partner_table(results: Sequence[ChannelPartners]) -> Table:
    frame = pd.DataFrame([_partner_row(r) for r in results])
    formats = dict.fromkeys(("above null", "above corrected", "mutual", "median |r|", "null95"), "{:.3f}") | {"depth": "{:.2f}"}
    caption = (
        "Best matches by pair of layers. above corrected: larger than the best pair of any two channels in 95 % of permutations. "
        "mutual: fraction of channels of A that are the best match of their own best match, b / (a + b - 1) for a and b "
        "independent channels; less where many channels share a few matches."
    )
    return Table(caption, frame, formats, folded=True)


def _partner_row(r: ChannelPartners) -> dict[str, object]:
    return {
        "A": name_of(r.model_a),
        "layer A": r.layer_a.name,
        "depth": r.layer_a.depth,
        "B": name_of(r.model_b),
        "layer B": r.layer_b.name,
        "channels": len(r.strength),
        "above null": r.share_above,
        "above corrected": r.share_corrected,
        "mutual": float(r.mutual.mean()),
        "median |r|": _median(r.strength),
        "null95": _median(r.threshold),
        "n": r.n,
    }


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _over(shares: Sequence[float]) -> str:
    """The range of shares over layers."""
    low, high = percent(min(shares)), percent(max(shares))
    return f"in all {len(shares)} layers" if low == high else f"{low} to {high} over {len(shares)} layers"


def _partner_sentence(found: Sequence[ChannelPartners], twin: Sequence[ChannelPartners]) -> str:
    last = found[-1]
    name = f"{name_of(last.model_a)} in {name_of(last.model_b)}"
    size = f"median |r| {_median(last.strength):.2f}"
    varying = int(np.isfinite(last.strength).sum())
    if not varying:
        return f"{name}: no channel of {last.layer_a.name} or none of {last.layer_b.name} varies: no matches (n = {last.n})."
    if not last.permutations:
        return f"{name}: {last.layer_a.name} in {last.layer_b.name}: {size}; no permutations were computed (n = {last.n})."
    constant = f" ({len(last.strength) - varying} more are constant)" if varying < len(last.strength) else ""
    shares = [r.share_above for r in found if not np.isnan(r.share_above)]
    over = f" ({_over(shares)})" if len(shares) > 1 else ""
    chance = f"{size}, 95th percentile of the null {_median(last.threshold):.2f}"
    text = (
        f"{name}: {percent(last.share_above)} of {varying} channels of {last.layer_a.name}{constant} have a match in "
        f"{last.layer_b.name} above the null{over}, 5 % by chance; {chance}"
    )
    if twin:
        text += f", untrained baselines {_median(twin[-1].strength):.2f}"
    return f"{text} (n = {last.n}, {last.permutations} permutations)."


def pages_section(results: Sequence[ChannelPage]) -> list[Section]:
    """Pages of single channels, network by network."""
    by_model: dict[str, list[ChannelPage]] = {}
    for page in results:
        by_model.setdefault(page.model.fingerprint + page.model.name, []).append(page)
    content = [item for pages in by_model.values() for item in _pages_of(pages)]
    sentences = tuple(_pages_sentence(pages) for pages in by_model.values())
    warning = untrained_warning(page.model for page in results)
    return [Section("channel-pages", "Pages of single channels", sentences, tuple(content), warning)]


def _pages_of(pages: Sequence[ChannelPage]) -> list[Picture]:
    overview = [_catalogue_picture(part, i) for i, part in enumerate(chunks(pages, _MOST_ROWS))] if len(pages) > 1 else []
    return [*overview, *(_page_picture(page, folded=len(pages) > 1) for page in pages)]


def _catalogue_picture(pages: Sequence[ChannelPage], number: int) -> Picture:
    name = name_of(pages[0].model)
    rule = f" Selection: {pages[0].rule}." if pages[0].rule else ""
    return Picture(
        partial(channel_catalogue, pages),
        f"Channels of {name} with their top and bottom images.{rule}",
        f"Images are ranked by the channel's {_by(pages[0])} over positions; the box marks the cell of its peak. "
        "Maps show the activation over the first images, on one colour scale per row. AUROC: mean over positions, for the "
        "best-separated class; p is corrected for all channels and classes of the layer. Below: the best-matching channels of "
        "other networks. These channels are extremes, not typical ones.",
        f"Top and bottom images of channels of {name}",
        vector=False,
        photo=True,
        name=f"channels-{name}" + (f"-{number + 1}" if number else ""),
    )


def _by(page: ChannelPage) -> str:
    return "mean" if page.by == "mean" else "largest activation"


def _page_picture(page: ChannelPage, folded: bool) -> Picture:
    name = f"{name_of(page.model)}, {page.layer.name}, channel {page.channel}"
    return Picture(
        partial(channel_page, page),
        f"{name}: {_page_text(page)}",
        f"The images with the highest and the lowest {_by(page)} of the channel, with its value over each; the box marks the "
        "cell of its peak, the second row shows the patch around that cell, the third the activation maps on one colour scale. "
        "Bars to the right of 1/2 are classes with higher activation, bars to the left classes with lower activation.",
        f"Page of {name}",
        vector=False,
        photo=True,
        name=f"channel-page-{name_of(page.model)}-{page.layer.name}-{page.channel}",
        folded=folded,
        dpi=_PAGE_DPI,
    )


def _page_text(page: ChannelPage) -> str:
    told = _told(page)
    if told is None:
        return f"n = {page.n}."
    best, _ = told
    p = page.selectivity_p
    null = "" if np.isnan(p) else f", corrected p = {p:.3f}"
    # Without a p-value, or with a large one, the class is only the one whose AUROC is furthest from 1/2.
    does = page.relation if p <= LEVEL else "not significantly selective for any class; AUROC furthest from 1/2 for"
    return f"{does} '{page.class_names[best]}' (AUROC {page.auroc[best]:.3f}{null}, n = {page.n})."


def _told(page: ChannelPage) -> tuple[int, bool] | None:
    """Index of the class that the channel tells best, and whether it is higher for it than for the others."""
    if not np.isfinite(page.auroc).any():
        return None
    best = int(np.nanargmax(np.abs(page.auroc - 0.5)))
    return best, bool(page.auroc[best] > 0.5)


def _pages_sentence(pages: Sequence[ChannelPage]) -> str:
    first = pages[0]
    layers = Counter(page.layer.name for page in pages)
    each = f"{max(layers.values())} of each of {len(layers)} layers" if len(layers) > 1 else f"of {first.layer.name}"
    count = f"{len(pages)} channels, {each}" if len(pages) > 1 else f"channel {first.channel} of {first.layer.name}"
    rule = f": {first.rule}" if first.rule else ""
    return f"{name_of(first.model)}: {count}{rule}.{_null_text(pages)}{_shown_text(pages)} n = {first.n}."


def _null_text(pages: Sequence[ChannelPage]) -> str:
    p = np.array([page.selectivity_p for page in pages])
    known = p[np.isfinite(p)]
    if not len(known):
        return ""
    layers = len({page.layer.name for page in pages})
    of = "their layer" if layers == 1 else f"the channels of {layers} layers"
    count = int((known * layers <= LEVEL).sum())
    return f" {count} of {len(known)} are significantly selective for a class (corrected for {of})."


def _shown_text(pages: Sequence[ChannelPage]) -> str:
    """How many of the images at the end that fits are of the class that each channel tells best."""
    found = [text for page in pages if (text := _shown(page))]
    return f" Extreme images that belong to the class of the channel: {join(found)}." if found else ""


def _shown(page: ChannelPage) -> str:
    told = _told(page)
    if told is None:
        return ""
    exhibit: Exhibit = page.top if told[1] else page.lowest
    name = page.class_names[told[0]]
    if not exhibit.classes:
        return ""
    mark = "" if told[1] else ", bottom images"
    return f"{exhibit.classes.count(name)} of {len(exhibit.classes)} in {page.layer.name} · {page.channel} ('{name}'{mark})"
