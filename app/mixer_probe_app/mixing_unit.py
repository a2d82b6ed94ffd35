"""The page of one token-mixing unit: its map and its opposite, its numbers, and the images that drive it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from mixer_probe.images import Images
from mixer_probe.weights import TokenMixing
from mixer_probe_app import data, held, mixing, mixing_charts, show
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import plain

_BYS = {"rms": "all channels (rms)", "peak": "maximum over channels (peak)"}
_WIDTH = 128


def maps_and_numbers(name: str, found: TokenMixing, block: int, unit: int) -> None:
    """A unit beside its partner and what it writes back, with every number of it."""
    units = found.measures(block)
    partner = int(units.partner[unit])
    maps = {f"Unit {unit}": units.maps[unit], f"Opposite-phase unit {partner}": units.maps[partner]}
    both = max(float(np.abs(values).max()) for values in maps.values())
    charts = [mixing_charts.weights_map(values, title, both) for title, values in maps.items()]
    for side, title in (("gate", "Gate weights"), ("write", "Write weights")):
        if side in found.sides:
            maps[title] = found.units(block, side)[unit]
            charts.append(mixing_charts.weights_map(maps[title], title, float(np.abs(maps[title]).max())))
    with st.container(horizontal=True, gap="small"):
        for chart in charts:
            st.altair_chart(chart, width="content")
    png, svg = (partial(mixing_charts.saved, charts, kind) for kind in ("png", "svg"))
    show.downloads(f"unit {unit} {found.blocks[block]} {name}", mixing_charts.weights_frame(maps), png=png, svg=svg)
    st.caption(_reading(found, unit))
    _numbers(found, block, unit)


def _reading(found: TokenMixing, unit: int) -> str:
    rows, columns = found.grid
    what = (
        f"Unit {unit} is the output token in row {unit // columns + 1}, column {unit % columns + 1}. Its map shows the weights "
        "with which it reads all tokens."
        if mixing.are_tokens(found)
        else "The map shows the weights with which the unit reads the patches, the same in every channel."
    )
    return plain(
        f"{what} Red patches have positive weight, blue ones negative weight. The unit and its opposite-phase unit share one "
        f"colour scale. The grid has {rows}×{columns} patches of {found.patch[0]:g}×{found.patch[1]:g} px."
    )


def _numbers(found: TokenMixing, block: int, unit: int) -> None:
    one = found.measures(block)
    columns = st.columns(4)
    columns[0].metric(
        "Frequency (cycles/token)", f"{one.frequency[unit]:.3f}", help="Power centroid of the map without its mean."
    )
    columns[1].metric("Spread (px)", f"{one.spread[unit]:.1f}", help="Around the centre of mass of the squared weights.")
    columns[2].metric("Orientation (°)", _degrees(one.orientation[unit]), help="0: vertical stripes, 90: horizontal stripes.")
    columns[3].metric(
        "Cosine with opposite-phase unit", f"{one.partner_cosine[unit]:.3f}", help="-1: the same map with all signs flipped."
    )
    show.bullets(sentences(found, block, unit))


def _degrees(angle: float) -> str:
    return "none" if np.isnan(angle) else f"{angle:.0f}"


def sentences(found: TokenMixing, block: int, unit: int) -> list[str]:
    """What the numbers of a unit say, beside what they are by chance."""
    one = found.measures(block)
    rank = int(np.flatnonzero(mixing.ordered(found, block, "frequency") == unit)[0]) + 1
    shuffled = one.shuffled
    frequency = (
        f"Frequency: rank {rank} of {len(one.maps)} from the lowest; the mean is {one.statistics.frequency:.3f} for the block "
        f"and {np.mean(shuffled.frequency):.3f} cycles/token for units with shuffled weights. Orientation coherence is "
        f"{one.coherence[unit]:.2f} (1: one orientation; shuffled: {np.mean(shuffled.coherence):.2f})."
    )
    spread = (
        f"Localisation: {one.spread[unit]:.1f} px around row {one.centre[unit, 0]:.1f} px, column {one.centre[unit, 1]:.1f} px; "
        f"shuffled weights: {np.mean(shuffled.spread):.1f} px; uniform weights: {found.uniform_spread:.1f} px. Norm: "
        f"{one.norm[unit]:.3f}."
    )
    return [frequency, spread, _partner_sentence(found, block, unit), *_side_sentences(found, block, unit)]


def _partner_sentence(found: TokenMixing, block: int, unit: int) -> str:
    one = found.measures(block)
    partner = int(one.partner[unit])
    back = int(one.partner[partner])
    beyond = "beyond chance" if found.paired(block)[unit] else "not beyond chance"
    mutual = "the relation is mutual" if back == unit else f"the opposite-phase unit of unit {partner} is unit {back}"
    return (
        f"Opposite-phase unit: {partner}, with cosine {one.partner_cosine[unit]:.3f}, {beyond} (p = {one.partner_p[unit]:.2f} "
        f"against {found.surrogates} copies of the units with random phases; the null has mean {one.null_mean:.3f} and 5th "
        f"percentile {one.null_q05:.3f}); {mutual}."
    )


def _side_sentences(found: TokenMixing, block: int, unit: int) -> list[str]:
    texts = []
    if "write" in found.sides:
        cosine = found.cosine_with_read(block, "write")[unit]
        texts.append(
            f"Write weights: their cosine with the read weights is {cosine:+.3f} (1: the unit adds to the patches that it "
            "reads, -1: it subtracts from them)."
        )
    if "gate" in found.sides:
        cosine = found.cosine_with_read(block, "gate")[unit]
        texts.append(f"Gate weights: their cosine with the read weights is {cosine:+.3f}.")
    return texts


# -- images --------------------------------------------------------------------------------------------------------------------


def fires(name: str, found: TokenMixing, block: int, unit: int) -> None:
    """The images that drive the unit most, what it read there, and in which channels it fires."""
    if not mixing.gives(found, block):
        st.info(f"The layer that holds the unit outputs of a {plain(found.form)} is not known.")
        return
    by = held.segments(st, "Rank images by", "tm-by", list(_BYS), format_func=_BYS.__getitem__)
    images = data.images()
    top = mixing.strongest(name, found, block, images, by)
    one = mixing.firing(name, found, block, unit, images, top)
    st.caption(plain(_what_is_shown(found, block, by, top.n, images.name)))
    table = gallery_frame(images, top, one, unit)
    with st.container(horizontal=True, gap="small"):
        for i, row in table.iterrows():
            _exhibit(one, int(str(i)), row)
    st.caption(
        "Top: the image. Bottom: the input of token mixing in the channel with the largest unit output (red above zero, blue "
        "below, each on its own scale). The more it resembles the unit's map, the larger the output."
    )
    values = mixing_charts.given_frame(one.given, table["image"].to_list(), table["class"].to_list())
    show.chart(mixing_charts.given_map(values), f"channels of unit {unit} {found.blocks[block]} {name}", values)
    st.caption(
        f"Unit output in each channel of these images, for the {values['channel'].nunique()} of {one.given.shape[1]} channels "
        "with the largest output. Hover over a cell for its value."
    )
    show.folded_table(f"Top images of unit {unit}", table)


def _what_is_shown(found: TokenMixing, block: int, by: str, n: int, name: str) -> str:
    how = "the root mean square of these outputs" if by == "rms" else "the largest of these outputs"
    unit = "output token" if mixing.are_tokens(found) else "hidden unit"
    return (
        f"The {unit} reads every channel of the network with the same map and has one output per channel and no position in "
        f"the image. Shown is its output {mixing.WHAT_IT_GIVES[found.form]} ({mixing.gives(found, block)}). "
        f"Images are ranked by {how}, over {n} images of {name}."
    )


def gallery_frame(images: Images, top: mixing.Strongest, one: mixing.Firing, unit: int) -> pd.DataFrame:
    """One row an image: its name, class, what it was ranked by, and the channel where the unit gives most."""
    index = top.index[unit]
    rank = np.arange(len(index))
    return pd.DataFrame(
        {
            "rank": rank + 1,
            "image": np.array(images.ids)[index],
            "class": mixing.classes_of(images, index),
            "value": top.values[unit],
            "channel": top.channel[unit],
            "value in that channel": one.given[rank, top.channel[unit]],
        }
    )


def _exhibit(one: mixing.Firing, rank: int, row: pd.Series) -> None:
    picture = one.pictures[rank]
    zoom = max(1, _WIDTH // max(picture.shape[:2]))
    label = f"{row['class']} · " if row["class"] else ""
    with st.container(width=_WIDTH, gap="small"):
        st.image(picture.repeat(zoom, 0).repeat(zoom, 1), width=_WIDTH)
        st.image(mixing_charts.urls(one.read[rank : rank + 1])[0], width=_WIDTH)
        st.caption(plain(f"{label}{row['value']:.2f}, channel {row['channel']}"))


def title(name: str, found: TokenMixing, block: int, unit: int) -> str:
    """What the page of a unit is called."""
    return plain(f"Unit {unit} of {found.blocks[block]} of {shown(name)}")
