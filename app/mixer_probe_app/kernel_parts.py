"""The parts of the page Stem and kernels. Each measures only what it shows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from mixer_probe.core.words import short_name
from mixer_probe.weights.figures import (
    anatomy_bars,
    average_kernels,
    kernel_dictionary,
    kernel_energy,
    kernel_maps,
    position_similarity,
    stem_component_pictures,
    stem_pictures,
)
from mixer_probe_app import data, held, kernel_charts, kernels, show
from mixer_probe_app.analyses import findings
from mixer_probe_app.messages import guarded, plain

MANY = 128


def _say(results: list[Any], kind: str) -> None:
    with guarded():
        show.bullets(findings(results, (kind, kernels.result_key(results))))


def _heading(result: Any) -> None:
    st.subheader(plain(_label(result.model.name, result.model.trained)))


def _label(name: str, trained: bool) -> str:
    return short_name(name.removesuffix("?untrained")) + ("" if trained else " (untrained)")


# -- stem ------------------------------------------------------------------------------------------------------------------------

LOOKS = {"pictures": "Pictures", "components": "Principal components", "colour": "Colour and frequency"}
ORDERS = {"frequency": "Low frequency first", "norm": "Large norm first", "luminance": "Grey first, colour last"}


def stem_filters(names: tuple[str, ...]) -> None:
    """Filters of the first layer: as pictures, as principal components, or by colour and frequency."""
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    look = held.segments(row, "Show", "stem-look", list(LOOKS), format_func=LOOKS.__getitem__)
    if look == "pictures":
        order = held.select(row, "Sorted by", "stem-order", list(ORDERS), format_func=ORDERS.__getitem__, width=220)
        every = held.toggle(row, "All filters", "stem-all", help=f"Off: the first {MANY} in this order.")
    found = kernels.measured(names, kernels.STEM)
    if found and look == "colour":
        _colour(found)
    for result in found if look != "colour" else []:
        _heading(result)
        with guarded():
            _filter_pictures(result, order, None if every else MANY) if look == "pictures" else _components(result)
    if found:
        _say(found, "stem")


def _filter_pictures(found: Any, order: Any, limit: int | None) -> None:
    st.markdown(f"{len(found)} filters, stride {found.stride[0]} px, in the layer {plain(found.layer)}.")
    show.figure(
        partial(stem_pictures, found, order_by=order, limit=limit),
        ("stem", found.model.name, found.model.fingerprint, order, limit),
        f"stem {found.model.name}",
        "Mid-grey is zero, brighter is positive and darker negative in each colour; each filter has its own scale.",
        found.to_frame(),
    )


def _components(stem: Any) -> None:
    found = kernels.components(stem)
    show.figure(
        partial(stem_component_pictures, found),
        ("stem components", stem.model.name, stem.model.fingerprint),
        f"stem components {stem.model.name}",
        "Patterns to which the layer responds most, over all filters, with the fraction of energy that each explains; signs are "
        "arbitrary. The dashed line is the 95th percentile of the first component of iid filters.",
        found.to_frame(),
    )


def _colour(found: list[Any]) -> None:
    frame = kernel_charts.colour_frame(found)
    if frame.empty:
        st.info("None of these networks has colour input.", icon=":material/info:")
        return
    show.chart(kernel_charts.colour_points(frame), f"stem colour {_names(found)}", frame)
    st.caption(
        "Each point is a filter; drag and scroll to zoom. Filters at the top respond to brightness, those at the bottom to "
        "colour alone; random filters with three colour channels lie at one third. Smooth filters are at the left."
    )


def _names(results: list[Any]) -> str:
    return " ".join(r.model.name for r in results)


# -- kernels -------------------------------------------------------------------------------------------------------------------


def spatial_kernels(names: tuple[str, ...]) -> None:
    """From where positions read: by depth, on average, and for every position of one block."""
    titles = {name: texts[0] for name, texts in kernel_charts.KERNEL_MEASURES.items()}
    measure = held.segments(st, "Measure", "stem-kernel", list(titles), format_func=titles.__getitem__)
    found: list[Any] = kernels.measured(names, kernels.KERNELS)
    if not found:
        return
    frame = kernel_charts.lines_frame(found)
    _title, label, column = kernel_charts.KERNEL_MEASURES[measure]
    show.chart(kernel_charts.depth_curves(frame, label, column), f"kernels {measure} {_names(found)}", frame)
    st.caption(
        "The kernel K gives the weight with which each position reads every other: the linear part of a Mixer's token MLP, a "
        "ViT's attention computed from position embeddings alone, a CNN's own kernels. Dashed lines are untrained baselines. "
        "Hover over a layer for its values."
    )
    own: dict[str, Any] = kernels.own(found)
    st.subheader("Average kernel around a position")
    show.figure(
        lambda: average_kernels(list(own.values())),
        ("average kernels", kernels.result_key(list(own.values()))),
        f"average kernels {' '.join(own)}",
        "Root mean square by offset, all on one pixel scale; the lines cross at the reading position, the circle marks the mean "
        "mixing distance. Kernels too small to see are enlarged in the corner.",
        frame,
    )
    with guarded():
        _maps({name: r for name, r in own.items() if r.kernels[0].matrix is not None})
    _say(found, "spatial kernels")


def _maps(found: dict[str, Any]) -> None:
    """Who reads from whom, in one block of one network."""
    if not found:
        return
    st.subheader("Spatial mixing weights by position")
    left, right = st.columns([2, 3])
    result = found[held.select(left, "Network", "stem-network", list(found), format_func=short_name)]
    block = held.steps(right, "Block", "stem-block", range(1, len(result) + 1)) - 1
    show.figure(
        lambda: kernel_maps(result, [block]),
        ("kernel maps", result.model.name, result.model.fingerprint, block),
        f"kernel {result.kernels[block].layer} {result.model.name}",
        "Each small map belongs to the position at which it is drawn and shows where that position reads: red with positive "
        "weight, blue with negative (attention: dark to yellow). Maps that shift with their position indicate a convolution.",
        result.to_frame(),
    )


# -- tying, anatomy, positions ---------------------------------------------------------------------------------------------------


def kernel_tying(names: tuple[str, ...]) -> None:
    """How many spatial kernels the channels of a layer share."""
    titles = {name: texts[0] for name, texts in kernel_charts.TYING_MEASURES.items()}
    measure = held.segments(st, "Measure", "stem-tying", list(titles), format_func=titles.__getitem__)
    found: list[Any] = kernels.tying(names, data.images())
    if not found:
        return
    frame = kernel_charts.over_null(kernel_charts.lines_frame(found))
    _title, label, column = kernel_charts.TYING_MEASURES[measure]
    if frame[column].isna().all():
        st.info("Kernels tied by construction have no null to compare with.", icon=":material/info:")
    else:
        show.chart(kernel_charts.depth_curves(frame, label, column), f"tying {measure} {_names(found)}", frame)
    st.caption(
        "Each channel of a layer has its own spatial kernel; the count is the number of shared kernels that explain 90 % of "
        "their energy. Relative to the null, values below 1 mean that channels share shape and not only smoothness. Dashed "
        "lines are untrained baselines."
    )
    with guarded():
        _shared_kernels({n: r for n, r in kernels.own(found).items() if any(e.source != "construction" for e in r.layers)})
    _say(found, "tying")


def _shared_kernels(found: dict[str, Any]) -> None:
    """The energies and the pictures of the kernels that channels share in one network."""
    if not found:
        return
    result = found[held.select(st, "Network", "stem-network", list(found), format_func=short_name)]
    key, name = kernels.result_key([result]), result.model.name
    show.figure(
        lambda: kernel_dictionary(result),
        ("shared kernels", key),
        f"shared kernels {name}",
        "Shared kernels of the channels, strongest first, with the fraction of energy that each explains; signs are arbitrary.",
        result.to_frame(),
    )
    show.figure(
        lambda: kernel_energy(result),
        ("shared energy", key),
        f"energy of shared kernels {name}",
        "Energy explained by the leading kernels. The further above the grey band of random phases, the more shape the channels "
        "share.",
        result.to_frame(),
    )


def anatomy(names: tuple[str, ...]) -> None:
    """Which modules mix locations, and which channels."""
    found: list[Any] = kernels.measured(names, kernels.ANATOMY)
    if not found:
        return
    show.figure(
        lambda: anatomy_bars(found),
        ("anatomy", kernels.result_key(found)),
        f"anatomy {_names(found)}",
        "What each module mixes is measured: one position or channel of its input is perturbed, and the outputs that change are "
        "counted. Spatial mixing acts across locations, channel mixing within a location.",
        pd.concat([r.summary() for r in found], ignore_index=True),
    )
    _say(found, "anatomy")
    for result in found:
        show.folded_table(f"Modules of {result.model.name} in execution order", result.to_frame().drop(columns="model"))


def position_embeddings(names: tuple[str, ...]) -> None:
    """How alike the position embeddings of a ViT are."""
    found: list[Any] = kernels.measured(names, kernels.POSITIONS)
    if not found:
        st.info(
            "Position embeddings are part of a ViT: select one in the sidebar, for instance `zoo:vit-s0`.", icon=":material/info:"
        )
        return
    for result in found:
        _heading(result)
        show.figure(
            partial(position_similarity, result),
            ("positions", kernels.result_key([result])),
            f"positions {result.model.name}",
            "Each small map is drawn at its patch, which a cross marks, and shows how similar its embedding is to those of all "
            "patches. A red neighbourhood around each cross means that the network has learned the grid.",
            result.to_frame(),
        )
    st.subheader("Similarity by distance")
    frame = kernel_charts.distance_frame(found)
    show.chart(kernel_charts.distance_curves(frame), f"positions by distance {_names(found)}", frame)
    st.caption("Mean over all pairs of patches at a distance. Hover over a point for its spread over pairs.")
    _say(found, "positions")
