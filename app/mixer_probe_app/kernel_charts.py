"""Charts of kernels by depth, of stem filters, and of position embeddings by distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from mixer_probe.core.words import base_name, short_name
from mixer_probe.plotting.style import GREY, colour_of
from mixer_probe.weights import KernelTying, PositionEmbeddings, SpatialKernels, StemFilters

KERNEL_MEASURES = {
    "distance": ("Mixing distance", "mean mixing distance (px)", "distance_px"),
    "structure": ("Translation structure", "translation fraction (1: a convolution)", "translation_fraction"),
    "self": ("Self weight", "fraction of K² on the position itself", "self_mass"),
}
TYING_MEASURES = {
    "count": ("Shared kernels", "kernels for 90 % of the energy", "count_90"),
    "null": ("Relative to the null", "count ÷ null count (random phases)", "over_null"),
}
_SHARES = {"red_green_share": "red against green", "blue_yellow_share": "blue against yellow"}
_KINDS = {"trained": [1, 0], "untrained": [6, 4]}


def lines_frame(results: Sequence[KernelTying | SpatialKernels]) -> pd.DataFrame:
    """One row a layer of every network."""
    return pd.concat([_labelled(r, r.to_frame()) for r in results], ignore_index=True)


def _labelled(result: KernelTying | SpatialKernels | PositionEmbeddings, frame: pd.DataFrame) -> pd.DataFrame:
    kind = "trained" if result.model.trained else "untrained"
    return frame.assign(network=short_name(base_name(result.model.name)), weights=kind)


def over_null(frame: pd.DataFrame) -> pd.DataFrame:
    """Tying with the count in offset space as a share of that of random phases: below 1 channels share shapes."""
    return frame.assign(over_null=frame["offset_count_90"] / frame["null_count_90"])


def depth_curves(frame: pd.DataFrame, label: str, column: str) -> alt.Chart:
    """One column of `lines_frame` against relative depth; dashed lines are random weights."""
    numbers = [name for name in frame.select_dtypes("number").columns if name not in (column, "depth")][:8]
    x = alt.X("depth:Q", title="relative depth (1: last block)", scale=alt.Scale(domain=[0, 1.02], nice=False), axis=_few())
    scale = alt.Scale(type="log", nice=True) if column == "count_90" else alt.Scale(zero=True)
    return _curves(frame.dropna(subset=column), x, alt.Y(f"{column}:Q", title=label, scale=scale, axis=_few())).encode(
        tooltip=[
            *_who(),
            alt.Tooltip("layer:N", title="layer"),
            alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
            alt.Tooltip(f"{column}:Q", title=label, format=".3~g"),
            *(alt.Tooltip(f"{name}:Q", title=name.replace("_", " "), format=".3~g") for name in numbers),
        ]
    )


def _few() -> alt.Axis:
    return alt.Axis(tickCount=6)


def _who() -> list[alt.Tooltip]:
    return [alt.Tooltip("network:N", title="network"), alt.Tooltip("weights:N", title="weights")]


def _curves(frame: pd.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    colours = colour_of(frame["network"])
    kinds = {kind: dash for kind, dash in _KINDS.items() if kind in set(frame["weights"])}
    dash = alt.Scale(domain=list(kinds), range=list(kinds.values()))
    colour = alt.Scale(domain=[*colours], range=[*colours.values()])
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=50))
        .encode(
            x=x,
            y=y,
            color=alt.Color("network:N", scale=colour, legend=_legend(symbolType="stroke", symbolSize=500, symbolStrokeWidth=2)),
            strokeDash=alt.StrokeDash("weights:N", title="weights", scale=dash, legend=_dashes()),
        )
        .properties(height=420)
    )
    return chart


def _dashes() -> alt.Legend:
    return _legend(symbolType="stroke", symbolSize=500, symbolStrokeWidth=2, symbolStrokeColor=GREY, symbolFillColor=GREY)


def _legend(**look: Any) -> alt.Legend:
    return alt.Legend(orient="bottom", labelLimit=240, **look)


def colour_frame(stems: Sequence[StemFilters]) -> pd.DataFrame:
    """One row a filter of every network that sees colour."""
    frames = [r.to_frame().assign(network=short_name(r.model.name)) for r in stems if r.shape[1] > 1]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def colour_points(frame: pd.DataFrame) -> alt.Chart:
    """Filters by frequency and share of luminance; the area is the norm. Networks are told by colour."""
    colours = colour_of(frame["network"])
    scale = alt.Scale(domain=[*colours], range=[*colours.values()])
    shares = {name: title for name, title in _SHARES.items() if name in frame}
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_circle(opacity=0.6)
        .encode(
            x=alt.X("frequency_cycles_per_pixel:Q", title="frequency (cycles/px)", axis=_few()),
            y=alt.Y(
                "luminance_share:Q",
                title="fraction of energy in luminance",
                scale=alt.Scale(domain=[-0.03, 1.03], nice=False),
                axis=_few(),
            ),
            size=alt.Size("norm:Q", title="norm", legend=_legend(symbolFillColor=GREY, tickCount=3)),
            color=alt.Color("network:N", scale=scale, legend=_legend()),
            tooltip=[
                "network:N",
                alt.Tooltip("unit:Q", title="filter"),
                alt.Tooltip("frequency_cycles_per_pixel:Q", title="frequency (cycles/px)", format=".3f"),
                alt.Tooltip("luminance_share:Q", title="luminance", format=".1%"),
                *(
                    alt.Tooltip(f"{name}:Q", title=name.removesuffix("_share").replace("_", " to "), format=".1%")
                    for name in shares
                ),
                alt.Tooltip("norm:Q", title="norm", format=".3f"),
            ],
        )
        .properties(height=480)
        .interactive()
    )
    return chart


def distance_frame(results: Sequence[PositionEmbeddings]) -> pd.DataFrame:
    """Mean similarity of position embeddings by distance, of every network."""
    return pd.concat([_labelled(r, r.by_distance()) for r in results], ignore_index=True)


def distance_curves(frame: pd.DataFrame) -> alt.Chart:
    """Similarity of position embeddings against the distance of their patches."""
    x = alt.X("distance_px:Q", title="distance between patches (px)", axis=_few())
    y = alt.Y("cosine:Q", title="mean cosine similarity", axis=_few())
    return _curves(frame, x, y).encode(
        tooltip=[
            *_who(),
            alt.Tooltip("distance_px:Q", title="distance (px)", format=".1f"),
            alt.Tooltip("cosine:Q", title="mean cosine", format=".3f"),
            alt.Tooltip("sd:Q", title="standard deviation over pairs", format=".3f"),
            alt.Tooltip("pairs:Q", title="pairs"),
        ]
    )
