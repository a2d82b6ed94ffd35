"""Charts of token-mixing units: small maps to click, where units lie, one unit at size, and their change with depth."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import altair as alt
import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image

from mixer_probe.core.words import base_name, short_name
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, colour_of
from mixer_probe.weights import TokenMixing

CLICK = "picked"
FRAMES = {"chosen": "#E69F00", "partner": "#009E73"}
ROLES = ("other units", "selected unit", "opposite-phase unit", "mean of shuffled units")
DEPTHS = {
    "frequency": ("Frequency", "mean frequency (cycles/token)", "mean_frequency", "shuffled_mean_frequency"),
    "localisation": ("Localisation", "mean spread around the centre of mass (px)", "mean_spread_px", "shuffled_mean_spread_px"),
    "pairing": ("Pairing", "fraction of units with a significant opposite-phase unit", "share_paired", "chance"),
    "cosine": ("Opposite-phase cosine", "mean cosine with the opposite-phase unit", "mean_partner_cosine", "null_mean"),
    "orientation": ("Orientation", "mean coherence (1: one orientation)", "mean_coherence", "shuffled_mean_coherence"),
    "rank": ("Rank", "effective rank", "effective_rank", "shuffled_effective_rank"),
}
_KINDS = {"trained": [1, 0], "untrained": [6, 4], "null": [1, 3]}
# In pixels: a small map and its frame, a map at size, a picture.
_TILE, _FRAME, _MAP = 40, 3, 146


# -- all units of a block --------------------------------------------------------------------------------------------------------


def urls(maps: np.ndarray, scale: float | None = None, frame: str = "") -> list[str]:
    """Maps [unit, h, w] as pictures for a chart: red above zero, blue below, each on its own scale unless `scale` is given.

    `frame` is the colour of the edge, none by default."""
    largest = np.abs(maps).max((1, 2), keepdims=True) if scale is None else np.full((1, 1, 1), scale)
    scaled = np.divide(maps, largest, out=np.zeros_like(maps), where=np.broadcast_to(largest > 0, maps.shape))
    zoom = max(1, -(-_TILE // max(maps.shape[1:])))
    colours = (255 * mpl.colormaps[DIVERGING](0.5 + 0.5 * scaled)).round().astype(np.uint8)
    edge = Image.new("RGBA", (1, 1), frame or (0, 0, 0, 0)).getpixel((0, 0))
    return [_url(one.repeat(zoom, 0).repeat(zoom, 1), edge) for one in colours]


def _url(picture: np.ndarray, edge: Any) -> str:
    height, width = picture.shape[:2]
    framed = Image.new("RGBA", (width + 2 * _FRAME, height + 2 * _FRAME), edge)
    framed.paste(Image.fromarray(picture), (_FRAME, _FRAME))
    stream = io.BytesIO()
    framed.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def unit_frame(found: TokenMixing, block: int) -> pd.DataFrame:
    """One row a unit of a block, with every measure."""
    frame = found.to_frame()
    return frame[frame["block"] == found.blocks[block]].reset_index(drop=True)


def tiles(frame: pd.DataFrame, order: np.ndarray, pictures: Sequence[str], pairs: bool) -> alt.Chart:
    """The units `order` with their `pictures`, row by row; the two of a pair stand close together if `pairs`."""
    columns = 16 if len(order) <= 128 else 24
    place = np.arange(len(order))
    shown = frame.iloc[order].assign(picture=list(pictures), row=place // columns, column=_columns(place % columns, pairs))
    rows = -(-len(order) // columns)
    side = alt.ExprRef(f"0.97 * min(width / {columns}, height / {rows})")
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_image(width=side, height=side, cursor="pointer")
        .encode(
            x=alt.X("column:Q", axis=None, scale=alt.Scale(domain=[-0.5, columns - 0.5], nice=False, zero=False)),
            y=alt.Y("row:Q", axis=None, scale=alt.Scale(domain=[rows - 0.5, -0.5], nice=False, zero=False)),
            url="picture:N",
            tooltip=unit_tooltip(),
        )
        .add_params(_click())
        .properties(height=rows * (54 if columns == 16 else 40))
        .configure_view(stroke=None)
    )
    return chart


def _columns(column: np.ndarray, pairs: bool) -> np.ndarray:
    return column + np.where(column % 2 == 0, 0.03, -0.03) if pairs else column.astype(float)


def _click() -> alt.Parameter:
    return alt.selection_point(name=CLICK, fields=["unit"], on="click", empty=False)


def unit_tooltip() -> list[alt.Tooltip]:
    """Everything about a unit."""
    return [
        alt.Tooltip("unit:Q", title="unit"),
        alt.Tooltip("frequency_cycles_per_token:Q", title="frequency (cycles/token)", format=".3f"),
        alt.Tooltip("spread_px:Q", title="spread (px)", format=".1f"),
        alt.Tooltip("orientation_degrees:Q", title="orientation (°)", format=".0f"),
        alt.Tooltip("coherence:Q", title="coherence", format=".2f"),
        alt.Tooltip("norm:Q", title="norm", format=".3f"),
        alt.Tooltip("partner:Q", title="opposite-phase unit"),
        alt.Tooltip("partner_cosine:Q", title="cosine with opposite-phase unit", format=".3f"),
        alt.Tooltip("partner_p:Q", title="p of that cosine", format=".2f"),
    ]


def scatter(found: TokenMixing, block: int, frame: pd.DataFrame, unit: int) -> alt.Chart:
    """The units of a block by frequency and spread, the chosen one and its partner marked, beside the mean of shuffled units."""
    shown = pd.concat([_with_roles(frame, unit), _shuffled(found, block)], ignore_index=True)
    roles = alt.Scale(domain=list(ROLES), range=["circle", "diamond", "triangle-up", "cross"])
    opposed = alt.Scale(domain=[0, 1], scheme="viridis", clamp=True)
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_point(filled=True, opacity=0.9, cursor="pointer")
        .encode(
            x=alt.X(
                "frequency_cycles_per_token:Q",
                title="frequency (cycles/token)",
                scale=alt.Scale(zero=False, padding=14),
                axis=_few(),
            ),
            y=alt.Y(
                "spread_px:Q", title="spread around the centre of mass (px)", scale=alt.Scale(zero=False, padding=14), axis=_few()
            ),
            shape=alt.Shape("role:N", title=None, scale=roles, legend=_shapes()),
            size=alt.condition(f"datum.role == '{ROLES[0]}'", alt.value(45), alt.value(260)),
            stroke=alt.condition(f"datum.role == '{ROLES[0]}'", alt.value("transparent"), alt.value(COLOURS[1])),
            strokeWidth=alt.value(2),
            color=alt.Color("opposition:Q", title=["−cosine with", "the match"], scale=opposed, legend=alt.Legend(format=".1f")),
            order="order:Q",
            tooltip=unit_tooltip(),
        )
        .add_params(_click())
        .properties(height=460)
        .interactive()
    )
    return chart


def _few() -> alt.Axis:
    return alt.Axis(tickCount=6)


def _shapes() -> alt.Legend:
    return alt.Legend(orient="bottom", columns=4, labelLimit=240, symbolStrokeWidth=0, symbolFillColor=GREY, symbolSize=90)


def _with_roles(frame: pd.DataFrame, unit: int) -> pd.DataFrame:
    partner = int(frame["partner"].iloc[unit])
    order = (frame["unit"] == partner) + 2 * (frame["unit"] == unit)
    role = np.select([frame["unit"] == unit, frame["unit"] == partner], [ROLES[1], ROLES[2]], ROLES[0])
    return frame.assign(role=role, order=order, opposition=-frame["partner_cosine"])


def _shuffled(found: TokenMixing, block: int) -> pd.DataFrame:
    null = found.measures(block).shuffled
    numbers = {
        "frequency_cycles_per_token": np.mean(null.frequency),
        "spread_px": np.mean(null.spread),
        "coherence": np.mean(null.coherence),
        "partner_cosine": np.mean(null.partner_cosine),
        "opposition": -np.mean(null.partner_cosine),
    }
    return pd.DataFrame([{"unit": -1, "role": ROLES[3], "order": 3, **numbers}])


# -- one unit ------------------------------------------------------------------------------------------------------------------


def weights_frame(maps: dict[str, np.ndarray]) -> pd.DataFrame:
    """Maps [h, w] by name as one table: one row a patch."""
    return pd.concat([_patches(values).assign(map=name) for name, values in maps.items()], ignore_index=True)


def _patches(values: np.ndarray) -> pd.DataFrame:
    rows, columns = np.indices(values.shape)
    return pd.DataFrame({"row": rows.ravel() + 1, "column": columns.ravel() + 1, "weight": values.ravel().astype(float)})


def weights_map(values: np.ndarray, title: str, largest: float) -> alt.Chart:
    """One map [h, w] over the patches, on a scale from -`largest` to `largest`."""
    height, width = values.shape
    largest = largest or 1.0
    scale = alt.Scale(scheme="redblue", reverse=True, domain=[-largest, largest])
    legend = alt.Legend(title="weight", orient="bottom", gradientLength=_MAP - 30, values=[-largest, 0, largest], format=".2g")
    across, down = (alt.Axis(values=_some(n), labelAngle=0, ticks=False, domain=False) for n in (width, height))
    chart: alt.Chart = (
        alt.Chart(_patches(values))
        .mark_rect()
        .encode(
            x=alt.X("column:O", title="patch column", axis=across, scale=alt.Scale(padding=0)),
            y=alt.Y("row:O", title="patch row", axis=down, scale=alt.Scale(padding=0)),
            color=alt.Color("weight:Q", scale=scale, legend=legend),
            tooltip=["row:O", "column:O", alt.Tooltip("weight:Q", format=".4f")],
        )
        .properties(width=_MAP, height=_MAP * height / width, title=alt.TitleParams(title, anchor="start", fontSize=14))
        # Otherwise axes and legend take their room from the map, which is then no square.
        .properties(autosize=alt.AutoSizeParams(type="pad"))
    )
    return chart


def _some(count: int, most: int = 6) -> list[int]:
    """At most so many of the numbers from 1 to `count`, evenly spaced."""
    return list(range(1, count + 1, -(-count // most)))


def saved(charts: Sequence[alt.Chart], kind: str) -> bytes:
    """Charts beside each other as SVG or PNG."""
    row = (
        alt.hconcat(*(_without_autosize(chart) for chart in charts))
        .resolve_scale(color="independent")
        .configure(background="white")
    )
    if kind == "svg":
        text = io.StringIO()
        row.save(text, format="svg")
        return text.getvalue().encode()
    stream = io.BytesIO()
    row.save(stream, format="png", scale_factor=2.0)
    return stream.getvalue()


def _without_autosize(chart: alt.Chart) -> alt.Chart:
    """A chart that can be a part of another one."""
    alone = chart.copy()
    alone.autosize = alt.Undefined
    return alone


# -- images of a unit ----------------------------------------------------------------------------------------------------------


def given_frame(given: np.ndarray, images: Sequence[str], classes: Sequence[str], most: int = 32) -> pd.DataFrame:
    """What a unit gives [rank, channel] in the `most` channels where it gives most in any of the images: one row a value."""
    channels = np.sort(np.argsort(-np.abs(given).max(0), kind="stable")[:most])
    ranks = np.arange(1, len(given) + 1)
    return pd.DataFrame(
        {
            "rank": np.repeat(ranks, len(channels)),
            "image": np.repeat(list(images), len(channels)),
            "class": np.repeat(list(classes), len(channels)),
            "channel": np.tile(channels, len(given)),
            "value": given[:, channels].ravel().astype(float),
        }
    )


def given_map(frame: pd.DataFrame) -> alt.Chart:
    """Images against channels, coloured by what the unit gives."""
    largest = float(frame["value"].abs().max()) or 1.0
    scale = alt.Scale(scheme="redblue", reverse=True, domain=[-largest, largest])
    axis = alt.Axis(labelAngle=-90, labelOverlap="greedy", ticks=False, domain=False)
    upright = alt.Axis(labelAngle=0, ticks=False, domain=False)
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_rect()
        .encode(
            x=alt.X("channel:O", title="channel of the network", axis=axis, scale=alt.Scale(padding=0)),
            y=alt.Y("rank:O", title="image, by rank", axis=upright, scale=alt.Scale(padding=0)),
            color=alt.Color("value:Q", title="unit output", scale=scale, legend=alt.Legend(format=".2g", gradientLength=120)),
            tooltip=["rank:O", "image:N", "class:N", "channel:O", alt.Tooltip("value:Q", title="unit output", format=".3f")],
        )
        .properties(height=26 * frame["rank"].nunique() + 70)
    )
    return chart


# -- depth ---------------------------------------------------------------------------------------------------------------------


def depth_frame(results: Sequence[TokenMixing], measure: str) -> pd.DataFrame:
    """One row a block of a network, of its random twin, and of the null of what was trained (or of all, if nothing was)."""
    _name, _label, own, null = DEPTHS[measure]
    nulls = [r for r in results if r.model.trained] or list(results)
    parts = [_depth(r, own, "trained" if r.model.trained else "untrained") for r in results]
    return pd.concat([*parts, *(_depth(r, null, "null") for r in nulls)], ignore_index=True)


def _depth(result: TokenMixing, column: str, kind: str) -> pd.DataFrame:
    table = result.summary().assign(chance=result.chance)
    network = short_name(base_name(result.model.name))
    return table[["block", "depth", "units"]].assign(network=network, weights=kind, value=table[column])


def depth_curves(frame: pd.DataFrame, measure: str) -> alt.Chart:
    """One measure of units against relative depth; dashed lines are random weights, dotted ones the null."""
    title, label, *_ = DEPTHS[measure]
    colours = colour_of(frame["network"])
    kinds = {kind: dash for kind, dash in _KINDS.items() if kind in set(frame["weights"])}
    dash = alt.Scale(domain=list(kinds), range=list(kinds.values()))
    chart: alt.Chart = (
        alt.Chart(frame.dropna(subset="value"))
        .mark_line(point=alt.OverlayMarkDef(size=55))
        .encode(
            x=alt.X(
                "depth:Q", title="relative depth (1: last block)", scale=alt.Scale(domain=[0, 1.02], nice=False), axis=_few()
            ),
            y=alt.Y("value:Q", title=label, axis=_few(), scale=alt.Scale(zero=measure in ("pairing", "rank", "orientation"))),
            color=alt.Color("network:N", scale=alt.Scale(domain=[*colours], range=[*colours.values()]), legend=_legend()),
            strokeDash=alt.StrokeDash(
                "weights:N", title="weights", scale=dash, legend=_legend(symbolStrokeColor=GREY, symbolFillColor=GREY)
            ),
            tooltip=_depth_tooltip(title),
        )
        .properties(height=420)
    )
    return chart


def _legend(**look: Any) -> alt.Legend:
    return alt.Legend(orient="bottom", symbolType="stroke", symbolSize=500, symbolStrokeWidth=2, labelLimit=240, **look)


def _depth_tooltip(title: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("network:N", title="network"),
        alt.Tooltip("weights:N", title="weights"),
        alt.Tooltip("block:N", title="block"),
        alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
        alt.Tooltip("value:Q", title=title.lower(), format=".3f"),
        alt.Tooltip("units:Q", title="units"),
    ]
