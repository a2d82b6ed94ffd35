"""The parts of the page Mixing: from where positions read, the heads of ViTs, and the principal
components of positions as colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

import mixer_probe as mp
from mixer_probe.core.words import base_name, join, short_name
from mixer_probe.mixing import SpatialMixing
from mixer_probe.mixing.cells import common_grid
from mixer_probe.models import Layer, Model
from mixer_probe_app import calls, charts, data, show, spatial_charts, url_state
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.store import cached, model

PAGE = "Mixing"
VIEWS = {
    "branch": ("Branch", "the residual branch that mixes positions, without the skip connection"),
    "block": ("Block", "the block with its skip connection"),
    "cumulative": ("Cumulative", "everything from the input image to the output of the block"),
}
MEASURES = {
    "relative_distance": ("Distance relative to uniform mixing", ".3f"),
    "distance_px": ("Mixing distance (px)", ".2f"),
    "self_mass": ("P on the position itself", ".1%"),
    "effective_positions": ("Effective positions (fraction)", ".1%"),
    "dynamic": ("Dynamic fraction", ".3f"),
    "prefix_mass": ("P from prefix tokens", ".1%"),
}
SCALES = {"own": "Per map", "root": "Per map, square root", "shared": "Shared"}
IMAGES, READING_IMAGES = (4, 8, 16, 32), (16, 32, 64, 128)
_FINE = (8, 8)
# In pixels: a picture of the components.
_PICTURE = 88
_DEPTH_HELP = "Of each network the block whose relative depth is nearest: i/L after block i of L."


def _count(place: Any, name: str, options: Sequence[int], default: int) -> int:
    most = "More images take more time and give narrower intervals."
    return url_state.choose(place.selectbox, "Images", name, options, default, width=100, help=most)


def _depth(place: Any, layers: Sequence[Sequence[Layer]], name: str) -> list[int]:
    """A slider over relative depth; per network the index of the layer nearest to it."""
    longest = max(layers, key=len)
    depths = {f"{layer.depth:.2f}": layer.depth for layer in longest}
    options = list(depths)
    said = url_state.choose(
        place.select_slider,
        "Relative depth",
        name,
        options,
        options[len(options) // 2],
        help=_DEPTH_HELP,
    )
    return [int(np.argmin([abs(x.depth - depths[said]) for x in some])) for some in layers]


# -- from where positions read ---------------------------------------------------------------------


def reading(names: Sequence[str]) -> None:
    """Maps of what every output cell reads, in all networks at the same place and relative
    depth."""
    networks = calls.loaded(names)
    if not networks:
        return
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    view = url_state.choose(row.segmented_control, "View", "mix-view", VIEWS)
    most = _count(row, "mix-images", IMAGES, IMAGES[1])
    cells = _cells(row, list(networks.values()))
    baselines = url_state.toggle(
        row,
        "Untrained baselines",
        "mix-baselines",
        help="Also measure the same architectures with re-initialised weights: twice the time.",
    )
    depth_place, maps, numbers = st.container(), st.container(), st.container()
    cumulative = view == "cumulative"
    found: list[SpatialMixing] = calls.measured(
        PAGE,
        list(networks),
        "cumulative spatial mixing" if cumulative else "spatial mixing",
        "mixing.spatial_mixing",
        baselines=baselines,
        images=lambda _network: data.images(),
        most=most,
        views=("cumulative",) if cumulative else ("branch", "block"),
        cells=cells,
    )
    if not found:
        return
    own = [r for r in found if not r.model.name.endswith("?untrained")] or found
    layers = _depth(depth_place, [r.layers for r in own], "mix-depth")
    with maps, guarded():
        show_maps(own, view, layers)
    with numbers, guarded():
        show_numbers(own, view, layers)
        show_curves(found, view)
        show.findings(found)


def _cells(place: Any, networks: Sequence[Model]) -> tuple[int, int]:
    """The grid on which all networks meet: one for all, though they may take images of different
    sizes."""
    grids = [common_grid((one.input.size[1], one.input.size[2])) for one in networks]
    usual = max(rows for rows, _ in grids), max(columns for _, columns in grids)
    options = {f"{r}×{c}": (r, c) for r, c in ([usual, _FINE] if max(usual) < 7 else [usual])}
    if len(options) < 2:
        return usual
    finer = "Output cells. Sources are twice as fine. More cells take more time."
    said = url_state.choose(
        place.selectbox, "Cells", "mix-cells", list(options), help=finer, width=110
    )
    return options[said]


def show_maps(found: Sequence[SpatialMixing], view: str, layers: Sequence[int]) -> None:
    """The maps, with the cell chosen by its numbers or by the pointer."""
    zero = [
        f"{r.layers[k].name} of {short_name(r.model.name)}"
        for r, k in zip(found, layers, strict=True)
        if r.zero[r.views.index(view), k]
    ]
    if zero:
        st.info(
            plain(
                f"The Jacobian of {join(zero)} is exactly zero: no output depends on any input, so "
                "there is no map."
            ),
            icon=":material/info:",
        )
    there = [
        (r, k) for r, k in zip(found, layers, strict=True) if not r.zero[r.views.index(view), k]
    ]
    if not there:
        return
    rows, columns = found[0].cells
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    i = url_state.number(row, "Cell row", "mix-row", 1, rows, rows // 2, width=120)
    j = url_state.number(row, "Cell column", "mix-column", 1, columns, columns // 2, width=120)
    scale = url_state.choose(row.segmented_control, "Colour scale", "mix-scale", SCALES)
    titles = [f"{_name(r)}\n{r.layers[k].name}, depth {r.layers[k].depth:.2f}" for r, k in there]
    results, chosen = [r for r, _ in there], [k for _, k in there]
    cell = (i - 1) * columns + j - 1
    drawn = spatial_charts.reading_maps(results, view, chosen, titles, cell, scale)
    parts = [
        spatial_charts.source_frame(r, view, k).assign(network=r.model.name, layer=r.layers[k].name)
        for r, k in there
    ]
    name = f"mixing {view} {' '.join(_name(r) for r in results)} {chosen[0]}"
    show.chart(drawn, name, pd.concat(parts, ignore_index=True))
    r = results[0]
    st.caption(
        plain(
            f"P is the fraction of what moves an output position that comes from each source: "
            f"squared Jacobian norms, averaged over {r.n} images, that sum to 1 per output. View: "
            f"{VIEWS[view][1]}. Above, each small map belongs to the output cell at its place. "
            "Hover over one to see it below in all networks, click to hold it, double-click to "
            "release it; or set row and column. The red frame is the output cell. Hover over a "
            "source for P and its standard error."
        )
    )


def _name(result: Any) -> str:
    return short_name(base_name(result.model.name)) + (
        "" if result.model.trained else " (untrained)"
    )


def show_numbers(found: Sequence[SpatialMixing], view: str, layers: Sequence[int]) -> None:
    """The quantities of the chosen layers, one column per network."""
    columns: dict[str, list[str]] = {"": [title for title, _ in MEASURES.values()]}
    for r, k in zip(found, layers, strict=True):
        texts = []
        for quantity, (_, digits) in MEASURES.items():
            value, low, high = r.curve(view, quantity)[:, k]
            texts.append(_text(value, low, high, digits))
        columns[f"{_name(r)}, {r.layers[k].name}"] = texts
    st.table(
        pd.DataFrame({plain(name): map(plain, texts) for name, texts in columns.items()}),
        hide_index=True,
    )
    st.caption(
        "Means over output positions, with 95 % intervals over images and sampled positions. "
        "Uniform mixing has a relative distance of 1; effective positions are exp(entropy of P) "
        "divided by the number of positions. The dynamic fraction is the part of the mixing that "
        "depends on the image: 0 for a linear layer. Prefix tokens are left out of all other rows."
    )


def _text(value: float, low: float, high: float, digits: str) -> str:
    if np.isnan(value):
        return "–"
    bounds = "" if np.isnan(low) else f" [{low:{digits}}, {high:{digits}}]"
    return f"{value:{digits}}{bounds}"


def show_curves(found: Sequence[SpatialMixing], view: str) -> None:
    """One quantity of all networks and baselines against relative depth."""
    st.subheader("Depth curves", divider="grey")
    measure = url_state.choose(st.selectbox, "Measure", "mix-measure", MEASURES, width=340)
    title, digits = MEASURES[measure]

    def rows(result: SpatialMixing) -> pd.DataFrame:
        frame = result.to_frame()
        return frame[(frame["view"] == view) & (frame["quantity"] == measure)]

    frame = charts.table(found, rows)
    if frame["value"].isna().all():
        st.info("This quantity is not defined for any of these layers.", icon=":material/info:")
        return
    drawn = charts.curves(
        frame,
        "value",
        title.lower() if title[1:2].islower() else title,
        digits=digits,
        more={"se:Q .3~g": "standard error", "positions:Q": "output positions"},
    )
    show.chart(drawn, f"mixing {view} {measure} by depth", frame)
    st.caption(
        f"View: {VIEWS[view][1]}. Bands are 95 % intervals."
        + (" Dotted lines are untrained baselines." if len(set(frame["weights"])) > 1 else "")
    )


# -- attention -------------------------------------------------------------------------------------


def attention(names: Sequence[str]) -> None:
    """All heads of a block for one query position, and how far the heads of all blocks attend."""
    networks = calls.loaded(names)
    vits = [name for name, network in networks.items() if network.family == "vit"]
    others = [plain(shown(name)) for name in networks if name not in vits]
    if others:
        has = "has no attention maps" if len(others) == 1 else "have no attention maps"
        more = "" if vits else " Select a ViT in the sidebar, for instance `zoo:vit-s0`."
        st.info(f"{join(others)} {has}: only ViTs mix by attention.{more}", icon=":material/info:")
    if not vits:
        return
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    name = url_state.choose(row.selectbox, "Network", "mix-vit", vits, format_func=shown, width=240)
    most = _count(row, "mix-reading", READING_IMAGES, READING_IMAGES[1])
    given: dict[str, Any] = {"images": lambda _network: data.images(), "most": most}
    for distance in calls.measured(
        PAGE, [name], "attention distance", "mixing.attention_distance", **given
    ):
        blocks = [layer.name for layer in distance.blocks]
        options = range(1, len(blocks) + 1)
        block = url_state.choose(st.select_slider, "Block", "mix-block", options) - 1
        with guarded():
            show_heads(name, blocks[block], distance, block, most)
        with guarded():
            st.subheader("Mean attention distance per head", divider="grey")
            title = f"attention distance {name}"
            drawn = spatial_charts.head_distances(distance, block)
            show.chart(drawn, title, distance.to_frame())
            st.caption(
                f"One point per head, with its 95 % interval over {distance.n} images; the heads "
                "of the chosen block are red. Grey ticks are uniform attention to all patches that "
                "a head can see. Attention says which values are averaged, not what the block "
                "makes of them: see Spatial mixing."
            )
            show.findings([distance])


def show_heads(name: str, block: str, distance: Any, number: int, most: int) -> None:
    """Maps of all heads for the query position under the pointer."""
    images, network = data.images().sample(most), model(name)
    key = (calls.key_of(network), calls.key_of_images(images), block)
    found = cached(
        "attention maps",
        key,
        f"Attention of {block} of {name}",
        lambda: mp.mixing.attention_maps(network, images, block),
        on_disk=False,
    )
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    rows, columns = found.grid
    i = url_state.number(row, "Query row", "mix-query-row", 1, rows, rows // 2, width=130)
    j = url_state.number(row, "Query column", "mix-query-col", 1, columns, columns // 2, width=130)
    own = "Off: all heads and query positions have one colour scale. On: each map has its own."
    alone = url_state.toggle(row, "Colour scale per map", "mix-heads-scale", True, help=own)
    frame, grid = cached(
        "pictures",
        ("heads", *key, alone),
        "Drawing",
        lambda: spatial_charts.query_frame(found, not alone),
        queue="draw",
        on_disk=False,
    )
    heads = range(len(found.maps))
    titles = [f"head {h}: {distance.distance.value[number, h]:.1f} px" for h in heads]
    steps = [-(-n // m) for n, m in zip(found.grid, grid, strict=True)]
    cell = (i - 1) // steps[0] * grid[1] + (j - 1) // steps[1]
    drawn = spatial_charts.head_maps(frame, grid, titles, cell)
    show.chart(drawn, f"heads {block} {name}", frame.drop(columns="picture"))
    window = " within a window, averaged over windows" if distance.windowed[number] else ""
    st.caption(
        plain(
            f"Attention of the query position (red) to all {rows}×{columns} positions{window} in "
            f"every head of {block}, averaged over {found.n} images, without prefix tokens; dark "
            "is none. Hover over a position to see its maps, click to hold it, double-click to "
            "release it; or set row and column. The title of each head has its mean attention "
            "distance."
        )
    )


# -- principal components --------------------------------------------------------------------------


def components(names: Sequence[str]) -> None:
    """The first three principal components of the positions of a layer as colours over images."""
    networks = calls.loaded(names)
    if not networks:
        return
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    most = _count(row, "mix-pca-images", READING_IMAGES, READING_IMAGES[1])
    place = st.container()
    found = calls.measured(
        PAGE,
        list(networks),
        "principal components",
        "mixing.token_components",
        images=lambda _network: data.images(),
        most=most,
        layers="blocks",
        shown=6,
    )
    if not found:
        return
    layers = _depth(place, [r.layers for r in found], "mix-pca-depth")
    columns = st.columns([1, *[1] * len(found)])
    first = found[0]
    columns[0].markdown("**Images**")
    columns[0].image(_column(first.pictures), width=_PICTURE, alt="The images, one below the other")
    for column, r, k in zip(columns[1:], found, layers, strict=True):
        layer = r.layers[k]
        column.markdown(f"**{plain(_name(r))}**")
        alt = f"Principal components of {layer.name} of {r.model.name} as colours, per image"
        column.image(_column(r.colours(layer.name)), width=_PICTURE, alt=alt)
        part = _text(r.together[k], r.together_low[k], r.together_high[k], ".1%")
        column.caption(
            plain(
                f"{layer.name}, depth {layer.depth:.2f}. Three components explain {part} "
                "of the variance."
            )
        )
    st.caption(
        plain(
            f"Red, green and blue are the first three principal components of all positions of a "
            f"layer, over {first.n} images: equal colours are similar features, within one layer "
            "of one network. Colours of different networks and layers are not comparable."
        )
    )
    show.findings(found)
    frame = pd.concat([r.to_frame() for r in found], ignore_index=True)
    show.folded_table("Explained variance by layer", frame)


def _column(pictures: np.ndarray) -> Image.Image:
    """Pictures [image, row, column, 3], in 0..1 or bytes, one below the other, each a square with
    its positions as squares."""
    if pictures.dtype != np.uint8:
        pictures = (255 * pictures).round().astype(np.uint8)
    side, gap = 2 * _PICTURE, 8
    whole = Image.new("RGBA", (side, len(pictures) * (side + gap) - gap), (0, 0, 0, 0))
    for k, one in enumerate(map(Image.fromarray, pictures)):
        size = (side, round(side * one.height / one.width))
        whole.paste(one.resize(size, Image.Resampling.NEAREST), (0, k * (side + gap)))
    return whole
