"""The parts of the page Channels, from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from mixer_probe.capture import Representations
from mixer_probe.channels import ChannelPartners, ChannelStatistics, ClassSelectivity, with_partners
from mixer_probe.channels.figures import channel_page
from mixer_probe.channels.selectivity import LEVEL
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.images import Images
from mixer_probe.models import Model
from mixer_probe.stats import auroc_interval
from mixer_probe_app import channel_charts as charts
from mixer_probe_app import channel_controls as controls
from mixer_probe_app import channel_views as views
from mixer_probe_app import held
from mixer_probe_app.channel_controls import Asked
from mixer_probe_app.channel_table import SELECTIVITY, TITLES, chance, drawable, shown_table
from mixer_probe_app.channel_views import Place
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.show import chart, downloads, figure
from mixer_probe_app.store import made, model

_GALLERY = (12, 24)
_COLUMNS = 3
_TABLE, _SCATTER = "table of channels", "scatter of channels"


# -- what the list says ------------------------------------------------------------------------------------------------------


def say_best(asked: Asked, frame: pd.DataFrame, told: ClassSelectivity) -> None:
    """Which channel tells the class best, and how far beyond chance that is."""
    known = frame.dropna(subset=["selectivity"])
    if known.empty:
        return
    best = known.loc[known["selectivity"].idxmax()]
    name = asked.wanted or str(best["class"])
    i, channel, k = told.index(best["layer"]), int(best["channel"]), told.class_names.index(name)
    auroc, m = float(best["auroc"]), int(told.counts[k])
    low, high = auroc_interval(auroc, m, told.n - m)
    how = "" if auroc >= 0.5 else ", with lower activations (AUROC below 0.5)"
    where = f"hannel {channel} of {plain(best['layer'])}"
    numbers = (
        f"AUROC {auroc:.2f} [{low:.2f}, {high:.2f}], d′ {best['dprime']:.2f}, n = {told.n} images, {m} of them {plain(name)}. "
        f"{_by_chance(told, i, channel, k)}"
    )
    if overall_p(told, i, channel, k) > LEVEL:
        none = f"**No channel is significantly selective for {plain(name)}**"
        st.info(f"{none}; the AUROC furthest from 1/2 is that of c{where}: {numbers}", icon=":material/info:")
        return
    firing = "" if auroc >= 0.5 else _best_firing(asked, known)
    best_text = f"**C{where} is the most selective for {plain(name)}{how}**"
    st.success(f"{best_text}: {numbers}{firing}", icon=":material/military_tech:")


def _best_firing(asked: Asked, known: pd.DataFrame) -> str:
    """Of those that fire for the class wanted, the best."""
    if not asked.wanted or not (known["auroc"] > 0.5).any():
        return ""
    best = known.loc[known["auroc"].idxmax()]
    where, value = f"channel {best['channel']} of {plain(best['layer'])}", best["auroc"]
    return f" Of the channels with higher activation for it, {where} has the largest AUROC, {value:.2f}."


def overall_p(told: ClassSelectivity, i: int, channel: int, k: int) -> float:
    """p-value of how far a channel of layer `i` tells class `k`, against the largest of all classes, channels and layers."""
    share = abs(float(told.auroc[i][channel, k]) - 0.5) / float(chance(told, i)[channel, k])
    return told.overall_p(share * float(told.threshold[i]))


def _by_chance(told: ClassSelectivity, i: int, channel: int, k: int) -> str:
    band = float(chance(told, i)[channel, k])
    text = (
        f"Null: under label permutations, no channel of {plain(told.layers[i].name)} is above "
        f"{0.5 + band:.2f} (or below {0.5 - band:.2f}) in 95 % of permutations"
    )
    if told.preferred[i][channel] != k:
        return f"{text}."
    p = float(told.p_value[i][channel])
    sign = "≤" if p <= 1 / (told.permutations + 1) + 1e-12 else "="
    return f"{text}; p {sign} {p:.3f} after max-T correction over the classes and channels of the layer."


# -- gallery -----------------------------------------------------------------------------------------------------------------


def gallery(asked: Asked, frame: pd.DataFrame, images: Images) -> None:
    """The first channels of the list, each with its 6 top images; a click on the name opens its page."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.subheader("Top images")
    many = held.segments(right, "Channels", "ch-many", _GALLERY)
    rows = frame.head(many)
    wanted = [(str(r.layer), int(r.channel), _silenced(asked, r)) for r in rows.itertuples()]
    network, run = model(asked.network), views.run_of(asked.network, images, asked.layer or None)
    found = _strips(network, images, run, wanted)
    labels = [_label(asked, row) for _, row in rows.iterrows()]
    for start in range(0, len(found), _COLUMNS):
        for place, label, strip in zip(st.columns(_COLUMNS), labels[start:], found[start:], strict=False):
            _tile(place, label, strip)
    end = (
        " Where activations are lower for the class, the images with the lowest mean are shown."
        if any(w[2] for w in wanted)
        else ""
    )
    st.caption(
        "Each row holds the 6 images with the highest mean of the channel over positions, in descending order."
        + end
        + " Click a "
        "name to open the channel below."
    )
    pairs = list(zip(labels, found, strict=True))
    name = f"gallery {asked.network} {asked.of} {asked.wanted} {asked.sort}"
    downloads(name, _gallery_frame(found), png=partial(charts.gallery_png, pairs), svg=partial(charts.gallery_svg, pairs))


def _silenced(asked: Asked, row: object) -> bool:
    by_class = asked.wanted or asked.sort in SELECTIVITY or asked.sort == "class"
    return bool(by_class and getattr(row, "auroc", 1.0) < 0.5)


def _label(asked: Asked, row: pd.Series) -> str:
    place = f"{row['layer']} · {row['channel']}"
    if "auroc" in row and (asked.sort in SELECTIVITY or asked.sort == "class") and np.isfinite(row["auroc"]):
        lower = "" if row["auroc"] >= 0.5 else "lower for "
        return f"{place} · {lower}{asked.wanted or row['class']} {row['auroc']:.2f}"
    value = row[asked.sort]
    return (
        place if asked.sort == "channel" else f"{place} · {value if isinstance(value, (str, bool, np.bool_)) else f'{value:.3g}'}"
    )


def _tile(place: st.delta_generator.DeltaGenerator, label: str, strip: charts.Strip) -> None:
    with place.container(gap=None):
        st.button(
            plain(label),
            key=f"open {strip.layer} {strip.channel}",
            type="tertiary",
            on_click=controls.open_channel,
            args=(strip.layer, strip.channel),
            help="Lowest means first" if strip.lowest else None,
        )
        st.image(strip.png, width="stretch")


def _gallery_frame(found: Sequence[charts.Strip]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "layer": s.layer,
                "channel": s.channel,
                "end": "lowest" if s.lowest else "highest",
                "rank": i + 1,
                "image": name,
                "mean": v,
            }
            for s in found
            for i, (name, v) in enumerate(zip(s.ids, s.values, strict=True))
        ]
    )


# -- all channels ------------------------------------------------------------------------------------------------------------


def everything(asked: Asked, frame: pd.DataFrame, labelled: bool) -> None:
    """All channels of the list as a scatter and as a table; a click opens one."""
    st.subheader("All channels")
    left, right, _ = st.columns([2, 2, 2])
    columns = drawable(labelled)
    x = held.select(left, "x axis", "ch-x", columns, "std", format_func=TITLES.__getitem__)
    y = held.select(right, "y axis", "ch-y", columns, "auroc" if labelled else "kurtosis", format_func=TITLES.__getitem__)
    now = controls.opened(asked, frame)
    drawn = charts.scatter(frame, x, y, (now.layer, now.channel))
    name = f"channels {asked.network} {asked.of} {asked.wanted}"
    chart(drawn, name, frame, key=_SCATTER, on_select=_picked_in_scatter, selection_mode=charts.PICK)
    cut = f" The first {charts.MOST_POINTS:,} of {len(frame):,} are shown." if len(frame) > charts.MOST_POINTS else ""
    st.caption(
        "Each point is a channel; the large one is open below. Click a point to open its page, drag to pan, Shift + scroll to "
        "zoom." + cut
    )
    with st.expander(f"Table of {len(frame):,} channels"):
        rows = [(str(r.layer), int(r.channel)) for r in frame.itertuples()]
        st.session_state["channels in the table"] = rows
        st.dataframe(
            shown_table(frame),
            hide_index=True,
            width="stretch",
            key=_TABLE,
            on_select=_picked_in_table,
            selection_mode="single-row",
        )
        st.caption("Click a column header to sort, or the box beside a row to open the channel.")


def _picked_in_scatter() -> None:
    picked = st.session_state[_SCATTER]["selection"].get(charts.PICK) or []
    if picked:
        controls.open_channel(str(picked[0]["layer"]), int(picked[0]["channel"]))


def _picked_in_table() -> None:
    picked = st.session_state[_TABLE]["selection"]["rows"]
    rows = st.session_state.get("channels in the table", [])
    if picked and picked[0] < len(rows):
        controls.open_channel(*rows[picked[0]])


# -- one channel -------------------------------------------------------------------------------------------------------------


def channel(
    place: Place,
    by: str,
    images: Images,
    found: ChannelStatistics,
    told: ClassSelectivity | None,
    similar: ChannelPartners | None,
) -> None:
    """The page of the channel that is open: its images at both ends, where it fires, its numbers, its classes."""
    page = views.page_of(place, images, by, found, told)
    full = with_partners(page, [similar]) if similar is not None else page
    figure(
        lambda: channel_page(full),
        views.page_key(place, images, by, found, told, full.partners),
        f"channel {place.network} {place.layer} {place.channel} {by}",
        "Top: images with the highest activation, each with its class and its value. The box is the grid cell of the maximum; "
        "below are that patch and the activation map (bright: high; one scale for all). Last row: images with the lowest "
        "activation. The receptive field of a cell is larger than its box.",
        page.to_frame(),
    )
    if told is not None and np.isfinite(told.auroc[told.index(place.layer)][place.channel]).any():
        _classes(place, told)


def _classes(place: Place, told: ClassSelectivity) -> None:
    frame = charts.class_frame(told, place.layer, place.channel)
    st.subheader("AUROC per class")
    chart(charts.class_bars(frame), f"classes {place.network} {place.layer} {place.channel}", frame)
    cut = f" The {charts.MOST_CLASSES} classes furthest from chance are shown." if len(frame) > charts.MOST_CLASSES else ""
    st.caption(
        "AUROC: probability that an image of the class has a higher activation than an image of another class (0.5: chance). "
        f"Lines are 95 % intervals over {told.n} images. Grey: null range, which no channel of the layer leaves in 95 % of "
        f"{told.permutations} label permutations." + cut
    )


# -- partners ----------------------------------------------------------------------------------------------------------------


def similar_to(place: Place, names: Sequence[str], images: Images) -> ChannelPartners | None:
    """The partners that the section below shows, for the label of the channel; None before they are measured."""
    try:
        other, layer = controls.partner_said(place, names, images)
        return views.known_partners(place, images, other, layer) if other else None
    except MixerProbeError:
        return None


def partner(place: Place, names: Sequence[str], images: Images, wanted: str) -> ChannelPartners | None:
    """The channel of another network that answers to the same images."""
    st.header("Best-matching channel in another network", divider="grey")
    if len(names) < 2:
        st.info("Select a second network in the sidebar to see its best-matching channel.", icon=":material/arrow_back:")
        return None
    other, layer = controls.partner_boxes(place, names, images)
    found = views.partners(place, images, other, layer)
    if found.partner[place.channel, 0] < 0:
        st.info(
            "This channel, or all of that layer, is constant over these images, so no match is defined.", icon=":material/info:"
        )
        return found
    _say_partner(place, other, found)
    _both_strips(place, other, found, images)
    _answers(place, other, found, images, wanted)
    return found


def _say_partner(place: Place, other: str, found: ChannelPartners) -> None:
    c = place.channel
    number, r = int(found.partner[c, 0]), float(found.correlation[c, 0])
    verdict = "significant" if found.p_value[c] <= LEVEL else "not significant"
    both = "The match is mutual." if found.mutual[c] else "The match is not mutual."
    st.markdown(
        f"Channel {number} of {plain(found.layer_b.name)} of {plain(shown(other))} is the best match: **r = {r:.2f}** over "
        f"{found.n} images, {verdict}. Null: under image permutations, the largest |r| is below {found.threshold[c]:.2f} in 95 % "
        f"of cases. {both}" + (" A negative r means that one is high where the other is low." if r < 0 else "")
    )


def _both_strips(place: Place, other: str, found: ChannelPartners, images: Images) -> None:
    """Both ends of both channels, those of the partner turned where r is negative: what stands beside each other belongs
    together."""
    there = Place(other, found.layer_b.name, int(found.partner[place.channel, 0]))
    turned = bool(found.correlation[place.channel, 0] < 0)
    left, right = st.columns(2, gap="medium")
    with left:
        _ends(place, images, False)
    with right:
        if other.startswith(RUN):
            st.caption("A stored run has no network, so its input images are not available.")
            return
        _ends(there, images, turned)
        opens = {"on_click": controls.open_elsewhere, "args": (there, place)}
        st.button("Open its page", icon=":material/open_in_new:", key="open the partner", **opens)


def _ends(place: Place, images: Images, turned: bool) -> None:
    st.markdown(f"**{plain(shown(place.network))} · {plain(place.layer)} · {place.channel}**")
    network, run = model(place.network), views.run_of(place.network, images, place.layer)
    wanted = [(place.layer, place.channel, lowest) for lowest in (turned, not turned)]
    for strip in _strips(network, images, run, wanted):
        st.image(strip.png, caption=f"{'lowest' if strip.lowest else 'highest'} means", width="stretch")


def _strips(network: Model, images: Images, run: Representations, wanted: Sequence[charts.End]) -> list[charts.Strip]:
    key = ("strips", run.model.name, run.model.fingerprint, images.record.fingerprint, tuple(wanted))
    return made("pictures", key, "Drawing", lambda: charts.strips(network, images, run, wanted), lane="draw", keep=False)


def _answers(place: Place, other: str, found: ChannelPartners, images: Images, wanted: str) -> None:
    a, b = views.run_of(place.network, images, place.layer), views.run_of(other, images, found.layer_b.name)
    frame = charts.answers(found, place.channel, a, b)
    number = int(found.partner[place.channel, 0])
    x, y = f"mean of channel {place.channel} of {place.layer}", f"mean of channel {number} of {found.layer_b.name}"
    drawn = charts.answers_chart(frame, x, y, wanted if "class" in frame else "")
    chart(drawn, f"partner {place.network} {place.layer} {place.channel} {other} {found.layer_b.name}", frame)
    st.caption("Each point is an image. Hover for its name and class.")


# -- depth -------------------------------------------------------------------------------------------------------------------


def depth(names: Sequence[str], images: Images, wanted: str) -> None:
    """Selectivity by depth of all networks chosen, beside random weights where wanted."""
    st.header("Selectivity by depth", divider="grey")
    left, middle, right = st.columns([2, 2, 3], vertical_alignment="bottom")
    if not held.toggle(left, "Compare networks", "ch-depth", help="Analyses all blocks of every selected network."):
        st.caption("Turn on to see class selectivity by depth in every selected network.")
        return
    twins = held.toggle(middle, "Untrained baseline", "ch-depth-random", help="The same architectures with untrained weights.")
    column = held.select(right, "y axis", "ch-depth-y", list(charts.DEPTH), format_func=charts.DEPTH.__getitem__)
    found = []
    for name in names:
        with guarded():
            found += _by_depth(name, images, twins)
    if not found:
        return
    frame = charts.depth_frame(found, wanted)
    chart(charts.depth_chart(frame, column), f"selectivity by depth {' '.join(names)}", frame)
    of = f" for {plain(wanted)}" if wanted and column == "best" else ""
    st.caption(
        f"{charts.DEPTH[column]}{of} by block, n = {len(images)} images. An AUROC below 0.5 counts as 1 minus it, since lower "
        "activations can be selective as well. Dashed: untrained baseline. The maximum over channels is also high by chance; "
        "compare it with the baseline."
    )


def _by_depth(name: str, images: Images, twins: bool) -> list[tuple[str, ClassSelectivity]]:
    label = charts.network_name(name) if not name.startswith(RUN) else shown(name)
    found = [(label, views.selectivity(name, images))]
    twin = views.twin_selectivity(name, images) if twins else None
    return [*found, (label, twin)] if twin is not None else found
