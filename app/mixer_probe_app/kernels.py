"""The parts of the page Stem and kernels: results as in a report, with interactive charts in place
of some of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from mixer_probe.core.section import Picture
from mixer_probe.core.words import name_of, primary, short_name
from mixer_probe.weights import StemFilters
from mixer_probe.weights.channel_kernels import needs_images
from mixer_probe.weights.figures import kernel_maps, stem_pictures
from mixer_probe_app import calls, charts, data, show, url_state
from mixer_probe_app.messages import plain

PAGE = "Stem and kernels"
MANY = 128
LOOKS = {
    "pictures": "Pictures",
    "components": "Principal components",
    "colour": "Colour and frequency",
}
ORDERS = {
    "frequency": "Low frequency first",
    "norm": "Large norm first",
    "luminance": "Grey first, colour last",
}
KERNEL_MEASURES = {
    "distance": ("Mixing distance", "mean mixing distance (px)", "distance_px"),
    "structure": (
        "Translation structure",
        "translation fraction (1: a convolution)",
        "translation_fraction",
    ),
    "self": ("Self weight", "fraction of K² on the position itself", "self_mass"),
}
TYING_MEASURES = {
    "count": ("Shared kernels", "kernels for 90 % of the energy", "count_90"),
    "null": ("Relative to the null", "count ÷ null count (random phases)", "over_null"),
}
_UNTRAINED = "Dotted lines are untrained baselines. Hover over a layer for its values."
_NO_POSITIONS = (
    "Position embeddings are part of a ViT: select one in the sidebar, for instance `zoo:vit-s0`."
)


def stem_filters(names: Sequence[str]) -> None:
    """Filters of the first layer: as pictures, as principal components, or by colour and
    frequency."""
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    look = url_state.choose(row.segmented_control, "Show", "stem-look", LOOKS)
    order: Any = "frequency"
    limit = None
    if look == "pictures":
        order = url_state.choose(row.selectbox, "Sorted by", "stem-order", ORDERS, width=220)
        more = f"Off: the first {MANY} in this order."
        limit = None if url_state.toggle(row, "All filters", "stem-all", help=more) else MANY
    found: list[StemFilters] = calls.measured(PAGE, names, "stem filters", "stem_filters")
    if not found:
        return
    if look == "colour" and all(r.shape[1] == 1 for r in found):
        st.info("None of these networks has colour input.", icon=":material/info:")
    for result in found if look == "pictures" else []:
        untrained = "" if result.model.trained else " (untrained)"
        st.subheader(plain(short_name(result.model.name.removesuffix("?untrained")) + untrained))
        st.markdown(
            f"{len(result)} filters, stride {result.stride[0]} px, in the layer "
            f"{plain(result.layer)}."
        )
        show.figure(
            partial(stem_pictures, result, order_by=order, limit=limit),
            ("stem", calls.key_of_results([result]), order, limit),
            f"stem {result.model.name}",
            "Mid-grey is zero, brighter is positive and darker negative in each colour; each "
            "filter has its own scale.",
            result.to_frame(),
        )
    hidden = ("filters",) if look == "components" else ("filters", "components")
    replaced: dict[str, Any] = dict.fromkeys(
        f"stem-{kind}-{name_of(r.model)}" for kind in hidden for r in found
    )
    show.report(
        found,
        replaced | {"stem-colour": partial(colour_chart, found) if look == "colour" else None},
    )


def colour_chart(found: Sequence[StemFilters], picture: Picture) -> None:
    """Filters by frequency and fraction of energy in luminance; the area is the norm."""
    coloured = [r for r in found if r.shape[1] > 1]
    frame = charts.table(coloured)
    fields = {
        "network:N": "network",
        "unit:Q": "filter",
        "frequency_cycles_per_pixel:Q .3f": "frequency (cycles/px)",
        "luminance_fraction:Q .1%": "luminance",
        "red_green_fraction:Q .1%": "red against green",
        "blue_yellow_fraction:Q .1%": "blue against yellow",
        "norm:Q .3f": "norm",
    }
    fields = {field: title for field, title in fields.items() if field.partition(":")[0] in frame}
    y: dict[str, Any] = {
        "title": "fraction of energy in luminance",
        "scale": alt.Scale(domain=[-0.03, 1.03], nice=False),
    }
    points = (
        alt.Chart(frame)
        .mark_circle(opacity=0.6)
        .encode(
            x=alt.X(
                "frequency_cycles_per_pixel:Q",
                title="frequency (cycles/px)",
                axis=alt.Axis(tickCount=6),
            ),
            y=alt.Y("luminance_fraction:Q", axis=alt.Axis(tickCount=6), **y),
            size=alt.Size(
                "norm:Q",
                title="norm",
                legend=alt.Legend(orient="bottom", symbolFillColor=charts.GREY, tickCount=3),
            ),
            color=charts.network_colour(frame, orient="bottom"),
            tooltip=charts.tips(fields),
        )
    )
    iid = pd.DataFrame({"level": sorted({1 / r.shape[1] for r in coloured})})
    line = alt.Chart(iid).mark_rule(color=charts.GREY, strokeDash=[6, 4]).encode(y="level:Q")
    show.chart(
        alt.layer(line, points.interactive()).properties(height=480),
        f"stem colour {_names(found)}",
        frame,
    )
    show.caption(picture)


def spatial_kernels(names: Sequence[str]) -> None:
    """From where positions read: by depth, on average, and for every position of one block."""
    measure = url_state.choose(st.segmented_control, "Measure", "stem-kernel", KERNEL_MEASURES)
    found = calls.measured(PAGE, names, "spatial kernels", "spatial_kernels", baselines=True)
    if not found:
        return

    def by_depth(_picture: Picture) -> None:
        _depth_chart(found, charts.table(found), *KERNEL_MEASURES[measure])
        st.caption(
            "The kernel K gives the weight with which each position reads every other: the linear "
            "part of a Mixer's token MLP, a ViT's attention computed from position embeddings "
            f"alone, a CNN's own kernels. {_UNTRAINED}"
        )

    mixing = {r.model.name: r for r in primary(found) if r.kernels[0].matrix is not None}
    hidden = dict.fromkeys(f"kernels-{name_of(r.model)}" for r in mixing.values())
    show.report(found, {"kernels-depth": by_depth, **hidden})
    if not mixing:
        return
    st.subheader("Spatial mixing weights by position")
    left, right = st.columns([2, 3])
    result = mixing[
        url_state.choose(
            left.selectbox, "Network", "stem-network", list(mixing), format_func=short_name
        )
    ]
    block = (
        url_state.choose(right.select_slider, "Block", "stem-block", range(1, len(result) + 1)) - 1
    )
    show.figure(
        lambda: kernel_maps(result, [block]),
        ("kernel maps", calls.key_of_results([result]), block),
        f"kernel {result.kernels[block].layer} {result.model.name}",
        "Each small map belongs to the position at which it is drawn and shows where that position "
        "reads: red with positive weight, blue with negative (attention: dark to yellow). Maps "
        "that shift with their position indicate a convolution.",
        result.to_frame(),
    )


def kernel_tying(names: Sequence[str]) -> None:
    """How many spatial kernels the channels of a layer share. Only Mixers and ViTs look at the
    images."""
    measure = url_state.choose(st.segmented_control, "Measure", "stem-tying", TYING_MEASURES)
    images = lambda network: data.images() if needs_images(network) else None  # noqa: E731
    found = calls.measured(
        PAGE, names, "kernel tying", "kernel_tying", baselines=True, images=images
    )

    def by_depth(_picture: Picture) -> None:
        frame = charts.table(
            found, lambda result: result.to_frame().assign(over_null=result.over_null(0.9))
        )
        if frame[TYING_MEASURES[measure][2]].isna().all():
            st.info(
                "Kernels tied by construction have no null to compare with.", icon=":material/info:"
            )
        else:
            _depth_chart(found, frame, *TYING_MEASURES[measure])
        st.caption(
            "Each channel of a layer has its own spatial kernel; the count is the number of shared "
            "kernels that explain 90 % of their energy. Relative to the null, values below 1 mean "
            f"that channels share shape and not only smoothness. {_UNTRAINED}"
        )

    if found:
        show.report(found, {"tying-depth": by_depth})


def anatomy(names: Sequence[str]) -> None:
    """Which modules mix positions, and which channels."""
    if found := calls.measured(PAGE, names, "anatomy", "anatomy"):
        show.report(found)


def position_embeddings(names: Sequence[str]) -> None:
    """Similarity of the position embeddings of a ViT, by distance and for every patch."""
    found = calls.measured(PAGE, names, "position embeddings", "position_embeddings")
    if not found:
        st.info(_NO_POSITIONS, icon=":material/info:")
        return

    def by_distance(picture: Picture) -> None:
        frame = charts.table(found, lambda result: result.by_distance())
        frame = frame.assign(low=frame["cosine"] - frame["sd"], high=frame["cosine"] + frame["sd"])
        more = {"sd:Q .3f": "standard deviation over pairs", "pairs:Q": "pairs"}
        band = "one standard deviation"
        drawn = charts.curves(
            frame, "cosine", "mean cosine similarity", across="distance_px", more=more, band=band
        )
        show.chart(drawn, f"positions by distance {_names(found)}", frame)
        show.caption(picture)

    show.report(found, {"positions-distance": by_distance})


def _depth_chart(
    found: Sequence[Any], frame: pd.DataFrame, title: str, label: str, column: str
) -> None:
    """One column of the table against relative depth, with its other numbers in the tooltip."""
    numbers = [
        name for name in frame.select_dtypes("number").columns if name not in (column, "depth")
    ][:8]
    more = {f"{name}:Q .3~g": name.replace("_", " ") for name in numbers}
    drawn = charts.curves(frame, column, label, digits=".3~g", log=column == "count_90", more=more)
    show.chart(drawn, f"{title} {_names(found)}", frame)


def _names(results: Sequence[Any]) -> str:
    return " ".join(r.model.name for r in results)
