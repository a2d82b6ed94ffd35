"""Channels: the images and classes to which single channels respond, found by class or by any
statistic."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import numpy as np
import pandas as pd
import streamlit as st
from mixer_probe_app import calls, channels, data, url_state
from mixer_probe_app import channel_charts as charts
from mixer_probe_app.channels import ChannelQuery, ChannelRef
from mixer_probe_app.charts import picked, table
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin
from mixer_probe_app.show import chart, downloads, figure
from mixer_probe_app.store import cached, model

from mixer_probe.capture import Representations
from mixer_probe.channels import ChannelPartners, ChannelStatistics, ClassSelectivity, with_partners
from mixer_probe.channels.figures import channel_page
from mixer_probe.channels.findings import best_channel_finding
from mixer_probe.channels.listing import SELECTIVITY, TITLES, drawable, list_channels, sort_channels
from mixer_probe.channels.selectivity import LEVEL
from mixer_probe.images import Images
from mixer_probe.models import Model

QUESTION = (
    "What does a single channel respond to? Select a class to find the channel most selective for "
    "it, or sort and filter by any statistic. Open a channel to see its top images, its activation "
    "maps, and its best-matching channel in another network."
)
ONLY_RUNS = (
    "A stored run contains channel means, but no network to compute activation maps. Select its "
    "network in the sidebar as well; the run can be compared with it, and its depth curve is shown "
    "below."
)
_GALLERY = (12, 24)
_COLUMNS = 3
_TABLE, _SCATTER = "table of channels", "scatter of channels"
_SHOWN_ROWS = "channels in the table"


def main() -> None:
    names = begin("Channels", QUESTION)
    if not names:
        return
    images = data.images()
    missing = channels.missing_labels(images)
    runs = [name for name in names if name.startswith(RUN)]
    networks = list(calls.loaded([name for name in names if name not in runs]))
    if networks:
        with guarded():
            show_network(networks, [*networks, *runs], images, missing)
    elif runs:
        st.info(ONLY_RUNS, icon=":material/arrow_back:")
    with guarded():
        if not missing and (networks or runs):
            show_depth(
                [*networks, *runs],
                images,
                str(st.session_state.get(f"widget {channels.CLASS}") or ""),
            )
    st.caption(plain(images.credit))


def show_network(networks: list[str], names: list[str], images: Images, missing: str) -> None:
    """The list of channels of one network, and the one that is open."""
    network, layer = channels.choose_layer(networks)
    selectivity = None if missing else channels.selectivity(network, images, layer or None)
    query = channels.choose_list(network, layer, selectivity)
    if missing:
        st.info(plain(missing), icon=":material/label_off:")
    statistics = channels.statistics(network, images, query.layers)
    every = sort_channels(
        list_channels(statistics, selectivity, query.class_name), query.sort, query.reverse
    )
    if selectivity is not None:
        names_of_layers = [layer.name for layer in statistics.layers]
        if (
            best := best_channel_finding(selectivity, query.class_name, names_of_layers)
        ) is not None:
            message, icon = (
                (st.success, "military_tech") if best.verdict == "found" else (st.info, "info")
            )
            message(plain(best.sentence), icon=f":material/{icon}:")
    frame = channels.searched(every, query.text)
    if frame.empty:
        st.info(
            f"No channel of {len(every):,} fits the search. Change it, or empty the box.",
            icon=":material/search_off:",
        )
    else:
        with guarded():
            show_gallery(query, frame, images)
        with guarded():
            show_all(query, frame, selectivity is not None)
    now, _first = channels.opened(query, frame)
    st.header(
        plain(f"Channel {now.channel} of {now.layer} of {shown(now.network)}"),
        divider="grey",
        anchor="channel",
    )
    by = channels.choose_channel(query, frame)
    page, below = st.container(), st.container()
    match = None
    # First, since the page of the channel names its best match.
    with below, guarded():
        match = show_match(
            now, [name for name in names if name != network], images, query.class_name
        )
    with page, guarded():
        show_channel(now, by, images, statistics, selectivity, match)


# -- the list --------------------------------------------------------------------------------------


def show_gallery(query: ChannelQuery, frame: pd.DataFrame, images: Images) -> None:
    """The first channels of the list, each with its 6 top images; a click on the name opens its
    page."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.subheader("Top images")
    rows = frame.head(url_state.choose(right.segmented_control, "Channels", "ch-many", _GALLERY))
    by_class = query.sort in SELECTIVITY or query.sort == "class"
    wanted, labels = [], []
    for row in rows.to_dict("records"):
        lower = bool((query.class_name or by_class) and row.get("auroc", 1.0) < 0.5)
        wanted.append((str(row["layer"]), int(row["channel"]), lower))
        value, label = row[query.sort], f"{row['layer']} · {row['channel']}"
        if by_class and np.isfinite(row.get("auroc", np.nan)):
            label += (
                " · "
                f"{'lower for ' if row['auroc'] < 0.5 else ''}{query.class_name or row['class']} "
                f"{row['auroc']:.2f}"
            )
        elif query.sort != "channel":
            label += f" · {value if isinstance(value, (str, bool, np.bool_)) else f'{value:.3g}'}"
        labels.append(label)
    run = channels.run_of(query.network, images, query.layer or None)
    found = strips(model(query.network), images, run, wanted)
    for start in range(0, len(found), _COLUMNS):
        for place, label, strip in zip(
            st.columns(_COLUMNS), labels[start:], found[start:], strict=False
        ):
            with place.container(gap=None):
                call = {"on_click": channels.open_channel, "args": (strip.layer, strip.channel)}
                about = "Lowest means first" if strip.lowest else None
                st.button(
                    plain(label),
                    key=f"open {strip.layer} {strip.channel}",
                    type="tertiary",
                    help=about,
                    **call,
                )
                st.image(strip.png, width="stretch")
    lowest = (
        " Where activations are lower for the class, the images with the lowest mean are shown."
    )
    st.caption(
        "Each row holds the 6 images with the highest mean of the channel over positions, in "
        f"descending order.{lowest if any(w[2] for w in wanted) else ''} Click a name to open the "
        "channel below."
    )
    pairs = list(zip(labels, found, strict=True))
    table = [
        {
            "layer": s.layer,
            "channel": s.channel,
            "end": _end(s),
            "rank": i + 1,
            "image": name,
            "mean": value,
        }
        for s in found
        for i, (name, value) in enumerate(zip(s.ids, s.values, strict=True))
    ]
    name = f"gallery {query.network} {query.layer or 'all blocks'} {query.class_name} {query.sort}"
    png, svg = partial(charts.gallery_png, pairs), partial(charts.gallery_svg, pairs)
    downloads(name, pd.DataFrame(table), png=png, svg=svg)


def _end(strip: charts.Strip) -> str:
    return "lowest" if strip.lowest else "highest"


def strips(
    network: Model, images: Images, run: Representations, wanted: Sequence[charts.End]
) -> list[charts.Strip]:
    """The images at some ends of channels, drawn once."""
    key = (
        "strips",
        run.model.name,
        run.model.fingerprint,
        images.record.fingerprint,
        tuple(wanted),
    )
    make = lambda: charts.strips(network, images, run, wanted)  # noqa: E731
    return cached("pictures", key, "Drawing", make, queue="draw", on_disk=False)


def show_all(query: ChannelQuery, frame: pd.DataFrame, labelled: bool) -> None:
    """All channels of the list as a scatter plot and as a table; a click opens one."""
    st.subheader("All channels")
    left, right, _ = st.columns([2, 2, 2])
    options = drawable(labelled)
    x = url_state.choose(
        left.selectbox, "x axis", "ch-x", options, "std", format_func=TITLES.__getitem__
    )
    usual = "auroc" if labelled else "kurtosis"
    y = url_state.choose(
        right.selectbox, "y axis", "ch-y", options, usual, format_func=TITLES.__getitem__
    )
    now, _first = channels.opened(query, frame)
    drawn = charts.scatter(frame, x, y, (now.layer, now.channel))
    name = f"channels {query.network} {query.layer or 'all blocks'} {query.class_name}"
    chart(drawn, name, frame, key=_SCATTER, on_select=take_point, selection_mode=charts.PICK)
    cut = (
        f" The first {charts.MOST_POINTS:,} of {len(frame):,} are shown."
        if len(frame) > charts.MOST_POINTS
        else ""
    )
    st.caption(
        "Each point is a channel; the large one is open below. Click a point to open its page, "
        f"drag to pan, Shift + scroll to zoom.{cut}"
    )
    with st.expander(f"Table of {len(frame):,} channels"):
        st.session_state[_SHOWN_ROWS] = list(
            zip(frame["layer"].astype(str), frame["channel"].astype(int))
        )
        select = {"key": _TABLE, "on_select": take_row, "selection_mode": "single-row"}
        order = [
            "layer",
            "channel",
            *(name for name in TITLES if name in frame and name not in ("layer", "channel")),
        ]
        st.dataframe(
            frame[order].rename(columns=TITLES), hide_index=True, width="stretch", **select
        )
        st.caption("Click a column header to sort, or the box beside a row to open the channel.")


def take_point() -> None:
    """Open the channel of the point that was clicked, for callbacks."""
    point = picked(_SCATTER, charts.PICK)
    if point:
        channels.open_channel(str(point["layer"]), int(point["channel"]))


def take_row() -> None:
    """Open the channel of the row that was chosen, for callbacks."""
    rows, known = (
        st.session_state[_TABLE]["selection"]["rows"],
        st.session_state.get(_SHOWN_ROWS, []),
    )
    if rows and rows[0] < len(known):
        channels.open_channel(*known[rows[0]])


# -- one channel -----------------------------------------------------------------------------------


def show_channel(
    ref: ChannelRef,
    by: str,
    images: Images,
    statistics: ChannelStatistics,
    selectivity: ClassSelectivity | None,
    match: ChannelPartners | None,
) -> None:
    """The page of the channel that is open: its images at both ends, its activation maps, its
    numbers, its classes."""
    page = channels.page_of(ref, images, by, statistics, selectivity)
    full = with_partners(page, [match]) if match is not None else page
    figure(
        lambda: channel_page(full),
        ("page", calls.key_of_results([page]), by, full.partners),
        f"channel {ref.network} {ref.layer} {ref.channel} {by}",
        "Top: images with the highest activation, each with its class and its value. The box is "
        "the grid cell of the maximum; below are that patch and the activation map (bright: high; "
        "one scale for all). Last row: images with the lowest activation. The receptive field of a "
        "cell is larger than its box.",
        page.to_frame(),
    )
    if (
        selectivity is None
        or not np.isfinite(selectivity.auroc[selectivity.index(ref.layer)][ref.channel]).any()
    ):
        return
    frame = selectivity.class_frame(ref.layer, ref.channel)
    st.subheader("AUROC per class")
    chart(charts.class_bars(frame), f"classes {ref.network} {ref.layer} {ref.channel}", frame)
    cut = (
        f" The {charts.MOST_CLASSES} classes furthest from chance are shown."
        if len(frame) > charts.MOST_CLASSES
        else ""
    )
    st.caption(
        "AUROC: probability that an image of the class has a higher activation than an image of "
        f"another class (0.5: chance). Lines are 95 % intervals over {selectivity.n} images. Grey: "
        f"null range, which no channel of the layer leaves in 95 % of {selectivity.permutations} "
        f"label permutations.{cut}"
    )


def show_match(
    ref: ChannelRef, others: Sequence[str], images: Images, class_name: str
) -> ChannelPartners | None:
    """The channel of another network that responds to the same images: numbers, images at both
    ends, and all images."""
    st.header("Best-matching channel in another network", divider="grey")
    if not others:
        st.info(
            "Select a second network in the sidebar to see its best-matching channel.",
            icon=":material/arrow_back:",
        )
        return None
    left, right = st.columns(2)
    other = url_state.choose(
        left.selectbox, "Best match in", channels.PARTNER, others, format_func=shown
    )
    layers, usual = channels.match_layers(ref, other, images)
    about = "Default: the block of the most similar relative depth."
    layer = url_state.choose(
        right.selectbox, "Layer", channels.PARTNER_LAYER, layers, usual, help=about
    )
    found = channels.matches(ref, images, other, layer)
    c = ref.channel
    number, r = int(found.partner[c, 0]), float(found.correlation[c, 0])
    if number < 0:
        constant = (
            "This channel, or all of that layer, is constant over these images, so no match is "
            "defined."
        )
        st.info(constant, icon=":material/info:")
        return found
    verdict = "significant" if found.p_value[c] <= LEVEL else "not significant"
    st.markdown(
        (
            f"Channel {number} of {plain(found.layer_b.name)} of {plain(shown(other))} is the best "
            f"match: **r = {r:.2f}** over {found.n} images, {verdict}. Null: under image "
            f"permutations, the largest |r| is below {found.threshold[c]:.2f} in 95 % of cases. "
            f"The match is {'' if found.mutual[c] else 'not '}mutual."
        )
        + (" A negative r means that one is high where the other is low." if r < 0 else "")
    )
    there = ChannelRef(other, found.layer_b.name, number)
    left, right = st.columns(2, gap="medium")
    # The ends of the match are swapped where r is negative: what stands beside each other belongs
    # together.
    for place, one, swapped in ((left, ref, False), (right, there, r < 0)):
        with place:
            if one.network.startswith(RUN):
                st.caption("A stored run has no network, so its input images are not available.")
                continue
            st.markdown(f"**{plain(shown(one.network))} · {plain(one.layer)} · {one.channel}**")
            run = channels.run_of(one.network, images, one.layer)
            ends = [(one.layer, one.channel, lowest) for lowest in (swapped, not swapped)]
            for strip in strips(model(one.network), images, run, ends):
                st.image(strip.png, caption=f"{_end(strip)} means", width="stretch")
            if one is there:
                call = {"on_click": channels.open_match, "args": (there, ref)}
                st.button(
                    "Open its page", icon=":material/open_in_new:", key="open the partner", **call
                )
    a, b = (
        channels.run_of(ref.network, images, ref.layer),
        channels.run_of(other, images, found.layer_b.name),
    )
    frame = charts.pair_frame(found, c, a, b)
    x, y = (
        f"mean of channel {c} of {ref.layer}",
        f"mean of channel {number} of {found.layer_b.name}",
    )
    drawn = charts.pair_chart(frame, x, y, class_name if "class" in frame else "")
    chart(drawn, f"partner {ref.network} {ref.layer} {c} {other} {found.layer_b.name}", frame)
    st.caption("Each point is an image. Hover for its name and class.")
    return found


# -- depth -----------------------------------------------------------------------------------------


def show_depth(names: Sequence[str], images: Images, wanted: str) -> None:
    """Selectivity by depth of all networks chosen, beside untrained baselines where wanted."""
    st.header("Selectivity by depth", divider="grey")
    left, middle, right = st.columns([2, 2, 3], vertical_alignment="bottom")
    about = "Analyses all blocks of every selected network."
    if not url_state.toggle(left, "Compare networks", "ch-depth", help=about):
        st.caption("Turn on to see class selectivity by depth in every selected network.")
        return
    about = "The same architectures with untrained weights."
    baselines = url_state.toggle(middle, "Untrained baseline", "ch-depth-random", help=about)
    column = url_state.choose(right.selectbox, "y axis", "ch-depth-y", charts.DEPTH)
    found = []
    for name in names:
        with guarded():
            found.append(channels.selectivity(name, images))
            if baselines and not name.startswith(RUN) and model(name).weights.trained:
                found.append(channels.selectivity(name, images, untrained=True))
    if not found:
        return
    frame = table(found, lambda result: result.best_channels(wanted))
    chart(charts.depth_chart(frame, column), f"selectivity by depth {' '.join(names)}", frame)
    of = f" for {plain(wanted)}" if wanted and column == "best" else ""
    st.caption(
        f"{charts.DEPTH[column]}{of} by block, n = {len(images)} images. An AUROC below 0.5 counts "
        "as 1 minus it, since lower activations can be selective as well. Dotted: untrained "
        "baseline. The maximum over channels is also high by chance; compare it with the baseline."
    )


with guarded():
    main()
