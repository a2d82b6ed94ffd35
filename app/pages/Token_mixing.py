"""Token mixing: the spatial patterns to which the hidden units of a Mixer's token MLPs respond."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import numpy as np
import pandas as pd
import streamlit as st
from mixer_probe_app import calls, charts, data, mixing_charts, show, url_state
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin
from mixer_probe_app.store import cached, model

from mixer_probe.channels import top_unit_images, unit_activations, unit_layers
from mixer_probe.channels.unit_images import UNIT_LAYERS
from mixer_probe.core.words import join
from mixer_probe.weights import TokenMixing
from mixer_probe.weights.findings import unit_sentences

PAGE = "Token mixing"
QUESTION = (
    "Which patches does each token-mixing unit read, and how does this change with depth? A unit "
    "is a row of the first token-mixing layer of a block, drawn over the patch grid. Click a unit "
    "to open its page."
)
UNIT = "tm-unit"
# Units of a block that are drawn at first, and pixels of a picture.
MANY, _WIDTH = 128, 128
_RANKINGS = {
    "rms": ("all channels (rms)", "the root mean square of these outputs"),
    "peak": ("maximum over channels (peak)", "the largest of these outputs"),
}
_ORDERS = {
    "pairs": (
        "Opposite-phase pairs",
        "Opposite-phase pairs are adjacent: each unit is next to the most opposite unpaired one, "
        "smooth pairs first",
    ),
    "frequency": ("Frequency", "Smooth units come first"),
    "localisation": ("Localisation", "Local units come first"),
    "norm": ("Norm", "Units with a large norm come first"),
}


def main() -> None:
    """The units of a block, the page of one of them, and all blocks by depth. What takes long comes
    last, wherever it stands."""
    networks = calls.loaded(begin(PAGE, QUESTION))
    mixers = [name for name, network in networks.items() if network.family == "mixer"]
    others = [plain(shown(name)) for name in networks if name not in mixers]
    results = {
        name: r
        for name in mixers
        for r in calls.measured(PAGE, [name], "token-mixing units", "token_mixing")
    }
    if results:
        with guarded():
            explore(results)
    if others:
        text = (
            "has no token-mixing weights: it mixes"
            if len(others) == 1
            else "have no token-mixing weights: they mix"
        )
        st.info(
            f"{join(others)} {text} positions by attention or convolution. To see units, select a "
            "Mixer, gMixer, ResMLP or gMLP in the sidebar, for instance `zoo:mixer-s0` or "
            "`resmlp_12_224`.",
            icon=":material/info:",
        )


def explore(results: dict[str, TokenMixing]) -> None:
    """The parts of the page, in the order in which they are computed."""
    left, right = st.columns([2, 3])
    name = url_state.choose(
        left.selectbox, "Network", "tm-network", list(results), format_func=shown
    )
    found = results[name]
    first = "1 is the first block after the stem."
    block = (
        url_state.choose(
            right.select_slider, "Block", "tm-block", range(1, len(found.blocks) + 1), help=first
        )
        - 1
    )
    units, page, depth = st.container(), st.container(), st.container()
    where = (name, found.model.fingerprint, block)
    if st.session_state.setdefault("tm-unit is of", where) != where:
        # Unit 5 of another block has nothing to do with unit 5 of this one.
        st.session_state["tm-unit is of"] = where
        url_state.put(UNIT, None)
    with page:
        title = st.container()
        left, right = st.columns([1, 3], vertical_alignment="bottom")
        smoothest = int(found.order(block, by="frequency")[0])
        unit = url_state.number(left, "Unit", UNIT, 0, len(found.units(block)) - 1, smoothest)
        opposite = int(found.partner(block)[unit])
        go = {
            "on_click": url_state.put,
            "args": (UNIT, str(opposite)),
            "icon": ":material/contrast:",
        }
        right.button(f"Go to opposite-phase unit {opposite}", **go)
        title.header(plain(f"Unit {unit} of {found.blocks[block]} of {shown(name)}"))
    with units, guarded():
        show_block(name, found, block, unit)
    with page, guarded():
        show_unit(name, found, block, unit)
        images = st.container()
    with depth, guarded():
        st.header("Depth curves")
        all_results = calls.measured(
            PAGE, list(results), "token-mixing units", "token_mixing", baselines=True
        )
        show_depth(all_results)
        texts = st.container()
    with images, guarded():
        st.subheader("Images that activate the unit most")
        show_images(name, found, block, unit)
    with texts, guarded():
        show.findings(all_results)
        show.folded_table(
            "Values by block", pd.concat([r.summary() for r in all_results], ignore_index=True)
        )


def show_block(name: str, found: TokenMixing, block: int, unit: int) -> None:
    """The units as small maps and as points; a click on either chooses one."""
    st.header(f"Units of {plain(found.blocks[block])}")
    maps, opposite = found.units(block), int(found.partner(block)[unit])
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    by = url_state.choose(row.segmented_control, "Sorted by", "tm-sort", _ORDERS)
    shared = url_state.toggle(
        row, "Shared colour scale", "tm-scale", help="Off: each unit has its own colour scale."
    )
    more = {"disabled": len(maps) <= MANY, "help": f"Off: the first {MANY} in this order."}
    order = found.order(block, by=by)[
        : None if url_state.toggle(row, "All units", "tm-all", **more) else MANY
    ]
    frame = found.to_frame()
    frame = frame[frame["block"] == found.blocks[block]].reset_index(drop=True)
    scale = float(np.abs(maps).max()) if shared else None
    key = ("tiles", found.model.name, found.model.fingerprint, block, shared)
    pictures = cached(
        "pictures",
        key,
        "Drawing",
        lambda: mixing_charts.urls(maps, scale),
        queue="draw",
        on_disk=False,
    )
    framed = {
        i: mixing_charts.urls(maps[[i]], scale, mixing_charts.FRAMES[role])[0]
        for i, role in ((opposite, "opposite"), (unit, "chosen"))
    }
    label = f"{found.blocks[block]} {name}"

    def clicks(chart: str) -> dict[str, Any]:
        # A chart per unit chosen: the same unit can then be clicked again after another was chosen
        # by its number.
        key = f"{chart} {label} {unit}"
        return {
            "key": key,
            "selection_mode": mixing_charts.CLICK,
            "on_select": partial(take_click, key, len(maps)),
        }

    drawn = mixing_charts.tiles(
        frame, order, [framed.get(int(i), pictures[int(i)]) for i in order], by == "pairs"
    )
    show.chart(drawn, f"units {label}", frame.iloc[order], **clicks("tiles"))
    which = (
        f"The first {len(order)} of {len(maps)} units"
        if len(order) < len(maps)
        else f"All {len(maps)} units"
    )
    st.caption(
        f"{which}. Red is positive weight, blue negative, white zero. {_ORDERS[by][1]}, row by "
        "row. The orange frame marks the unit shown below, the green one its opposite-phase unit. "
        "Hover over a unit for its values, click it for details."
    )
    show.chart(
        mixing_charts.scatter(found, block, frame, unit),
        f"frequency and spread {label}",
        frame,
        **clicks("scatter"),
    )
    st.caption(
        "Each point is a unit: click one to open its page, drag and scroll to zoom. Smooth units "
        "are at the left, local ones at the bottom; brighter ones have a more negative cosine with "
        "their opposite-phase unit. Units near the cross have no spatial structure."
    )


def take_click(key: str, count: int) -> None:
    """Open the unit that was clicked, for callbacks."""
    unit = int(charts.picked(key, mixing_charts.CLICK).get("unit", -1))
    if 0 <= unit < count:
        url_state.put(UNIT, str(unit))


def show_unit(name: str, found: TokenMixing, block: int, unit: int) -> None:
    """A unit beside its opposite and its other weights, with every number of it."""
    one = found.measures(block)
    opposite = int(one.partner[unit])
    maps = {f"Unit {unit}": one.maps[unit], f"Opposite-phase unit {opposite}": one.maps[opposite]}
    both = max(float(np.abs(values).max()) for values in maps.values())
    drawn = [mixing_charts.weights_map(values, title, both) for title, values in maps.items()]
    for side, title in (("gate", "Gate weights"), ("write", "Write weights")):
        if side in found.sides:
            maps[title] = found.units(block, side)[unit]
            drawn.append(
                mixing_charts.weights_map(maps[title], title, float(np.abs(maps[title]).max()))
            )
    with st.container(horizontal=True, gap="small"):
        for chart in drawn:
            # Otherwise axes and legend take their room from the map, which is then no square.
            st.altair_chart(chart.properties(autosize={"type": "pad"}), width="content")
    png, svg = (
        partial(show.saved_chart, mixing_charts.beside(drawn), kind) for kind in ("png", "svg")
    )
    show.downloads(
        f"unit {unit} {found.blocks[block]} {name}", mixing_charts.patches(maps), png=png, svg=svg
    )
    rows, columns = found.grid
    what = (
        "The map shows the weights with which the unit reads the patches, the same in every "
        "channel."
    )
    if found.units_are_tokens:
        what = (
            f"Unit {unit} is the output token in row {unit // columns + 1}, column "
            f"{unit % columns + 1}. Its map shows the weights with which it reads all tokens."
        )
    st.caption(
        plain(
            f"{what} Red patches have positive weight, blue ones negative weight. The unit and its "
            f"opposite-phase unit share one colour scale. The grid has {rows}×{columns} patches of "
            f"{found.patch[0]:g}×{found.patch[1]:g} px."
        )
    )
    angle = one.orientation[unit]
    metrics = {
        "Frequency (cycles/token)": (
            f"{one.frequency[unit]:.3f}",
            "Power centroid of the map without its mean.",
        ),
        "Spread (px)": (
            f"{one.spread[unit]:.1f}",
            "Around the centre of mass of the squared weights.",
        ),
        "Orientation (°)": (
            "none" if np.isnan(angle) else f"{angle:.0f}",
            "0: vertical stripes, 90: horizontal stripes.",
        ),
        "Cosine with opposite-phase unit": (
            f"{one.partner_cosine[unit]:.3f}",
            "-1: the same map with all signs flipped.",
        ),
    }
    for column, (label, (value, about)) in zip(
        st.columns(len(metrics)), metrics.items(), strict=True
    ):
        column.metric(label, value, help=about)
    show.bullets(unit_sentences(found, block, unit))


def show_images(name: str, found: TokenMixing, block: int, unit: int) -> None:
    """The images that activate the unit most, its inputs there, and its outputs by channel."""
    network, layers = model(name), unit_layers(found, block)
    over: Any = url_state.choose(st.segmented_control, "Rank images by", "tm-by", _RANKINGS)
    images = data.images()
    key = (calls.key_of(network), calls.key_of_images(images), layers, over)
    title = f"Units of {found.blocks[block]} of {name} over {len(images)} images"
    rank_images = partial(
        top_unit_images, network, images, layers[1], over=over, batch_size=calls.BATCH
    )
    top = cached("top images", key, title, rank_images)
    index, channel = top.index[unit], top.channel[unit]
    activations = partial(
        unit_activations, network, images, layers, unit, index, channel, batch_size=calls.BATCH
    )
    one = cached("unit activations", (*key, unit), f"Unit {unit} over its top images", activations)
    st.caption(
        plain(
            f"The {'output token' if found.units_are_tokens else 'hidden unit'} reads every "
            "channel of the network with the same map and has one output per channel and no "
            f"position in the image. Shown is its output {UNIT_LAYERS[found.form].about} "
            f"({layers[1]}). Images are ranked by {_RANKINGS[over][1]}, over {top.n} images of "
            f"{images.name}."
        )
    )
    rank = np.arange(len(index))
    table = pd.DataFrame(
        {
            "rank": rank + 1,
            "image": np.array(images.ids)[index],
            "class": [data.class_of(images, int(i)) for i in index],
            "value": top.values[unit],
            "channel": channel,
            "value in that channel": one.outputs[rank, channel],
        }
    )
    with st.container(horizontal=True, gap="small"):
        for i, row in zip(rank, table.to_dict("records"), strict=True):
            picture = one.pictures[i]
            zoom = max(1, _WIDTH // max(picture.shape[:2]))
            label = f"{row['class']} · " if row["class"] else ""
            with st.container(width=_WIDTH, gap="small"):
                st.image(picture.repeat(zoom, 0).repeat(zoom, 1), width=_WIDTH)
                st.image(mixing_charts.urls(one.inputs[i : i + 1])[0], width=_WIDTH)
                st.caption(plain(f"{label}{row['value']:.2f}, channel {row['channel']}"))
    st.caption(
        "Top: the image. Bottom: the input of token mixing in the channel with the largest unit "
        "output (red above zero, blue below, each on its own scale). The more it resembles the "
        "unit's map, the larger the output."
    )
    strongest = one.strongest_channels()
    outputs = pd.DataFrame(
        one.outputs[:, strongest].astype(float), columns=pd.Index(strongest, name="channel")
    )
    outputs = outputs.set_index(pd.MultiIndex.from_frame(table[["rank", "image", "class"]]))
    values = outputs.stack().rename("value").reset_index()
    show.chart(
        mixing_charts.output_map(values),
        f"channels of unit {unit} {found.blocks[block]} {name}",
        values,
    )
    st.caption(
        f"Unit output in each channel of these images, for the {len(strongest)} of "
        f"{one.outputs.shape[1]} channels with the largest output. Hover over a cell for its value."
    )
    show.folded_table(f"Top images of unit {unit}", table)


def show_depth(results: list[TokenMixing]) -> None:
    """One measure of all units against relative depth."""
    measure = url_state.choose(st.segmented_control, "Measure", "tm-measure", mixing_charts.DEPTHS)
    frame = mixing_charts.depth_frame(results, measure)
    names = " ".join(dict.fromkeys(frame["network"]))
    show.chart(
        mixing_charts.depth_curves(frame, measure), f"units by depth {measure} {names}", frame
    )
    null = (
        f"the weights of each unit are shuffled over the patches ({results[0].shuffles} times per "
        "block)"
    )
    if measure in ("pairing", "cosine"):
        null = (
            "each unit keeps its amplitude spectrum and gets random phases "
            f"({results[0].surrogates} times per block)"
        )
    st.caption(
        f"Dotted lines are untrained baselines, dashed lines the null: {null}. Hover over a block "
        "for its values."
    )


with guarded():
    main()
