"""Charts of token-mixing units: small maps to click, frequency against spread, one unit at size,
and depth curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image

from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY
from mixer_probe.weights import TokenMixing
from mixer_probe_app.charts import WEIGHTS, cells_frame, curves, pick, table, tips, uri

CLICK = "picked"
FRAMES = {"chosen": "#E69F00", "opposite": "#009E73"}
ROLES = ("other units", "selected unit", "opposite-phase unit", "mean of shuffled units")
# Title, label of the axis, and the columns of the summary with the values and with their null.
DEPTHS = {
    "frequency": (
        "Frequency",
        "mean frequency (cycles/token)",
        "mean_frequency",
        "shuffled_mean_frequency",
    ),
    "localisation": (
        "Localisation",
        "mean spread around the centre of mass (px)",
        "mean_spread_px",
        "shuffled_mean_spread_px",
    ),
    "pairing": (
        "Pairing",
        "fraction of units with a significant opposite-phase unit",
        "fraction_paired",
        "chance",
    ),
    "cosine": (
        "Opposite-phase cosine",
        "mean cosine with the opposite-phase unit",
        "mean_partner_cosine",
        "null_mean",
    ),
    "orientation": (
        "Orientation",
        "mean coherence (1: one orientation)",
        "mean_coherence",
        "shuffled_mean_coherence",
    ),
    "rank": ("Rank", "effective rank", "effective_rank", "shuffled_effective_rank"),
}
# In pixels: a small map and its frame, a map at size.
_TILE, _FRAME, _MAP = 40, 3, 146
_FEW = alt.Axis(tickCount=6)
_UNIT = {
    "unit:Q": "unit",
    "frequency_cycles_per_token:Q .3f": "frequency (cycles/token)",
    "spread_px:Q .1f": "spread (px)",
    "orientation_degrees:Q .0f": "orientation (°)",
    "coherence:Q .2f": "coherence",
    "norm:Q .3f": "norm",
    "partner:Q": "opposite-phase unit",
    "partner_cosine:Q .3f": "cosine with opposite-phase unit",
    "partner_p:Q .2f": "p of that cosine",
}


def urls(maps: np.ndarray, scale: float | None = None, frame: str = "") -> list[str]:
    """Maps [unit, h, w] as pictures for a chart: red above zero, blue below, each on its own scale
    unless `scale` is given.

    `frame` is the colour of the edge, none by default."""
    largest = (
        np.abs(maps).max((1, 2), keepdims=True) if scale is None else np.full((1, 1, 1), scale)
    )
    scaled = np.divide(
        maps, largest, out=np.zeros_like(maps), where=np.broadcast_to(largest > 0, maps.shape)
    )
    zoom = max(1, -(-_TILE // max(maps.shape[1:])))
    colours = (255 * mpl.colormaps[DIVERGING](0.5 + 0.5 * scaled)).round().astype(np.uint8)
    found = []
    for one in colours.repeat(zoom, 1).repeat(zoom, 2):
        framed = Image.new(
            "RGBA", (one.shape[1] + 2 * _FRAME, one.shape[0] + 2 * _FRAME), frame or (0, 0, 0, 0)
        )
        framed.paste(Image.fromarray(one), (_FRAME, _FRAME))
        found.append(uri(framed))
    return found


def tiles(
    frame: pd.DataFrame, order: np.ndarray, pictures: Sequence[str], pairs: bool
) -> alt.Chart:
    """The units `order` with their `pictures`, row by row; the two of a pair stand close together
    if `pairs`."""
    columns = 16 if len(order) <= 128 else 24
    place = np.arange(len(order))
    column = place % columns + (np.where(place % 2 == 0, 0.03, -0.03) if pairs else 0.0)
    shown = frame.iloc[order].assign(picture=list(pictures), row=place // columns, column=column)
    rows = -(-len(order) // columns)
    side = alt.ExprRef(f"0.97 * min(width / {columns}, height / {rows})")
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_image(width=side, height=side, cursor="pointer")
        .encode(
            x=alt.X(
                "column:Q",
                axis=None,
                scale=alt.Scale(domain=[-0.5, columns - 0.5], nice=False, zero=False),
            ),
            y=alt.Y(
                "row:Q",
                axis=None,
                scale=alt.Scale(domain=[rows - 0.5, -0.5], nice=False, zero=False),
            ),
            url="picture:N",
            tooltip=tips(_UNIT),
        )
        .add_params(pick(CLICK, "unit"))
        .properties(height=rows * (54 if columns == 16 else 40))
        .configure_view(stroke=None)
    )
    return chart


def scatter(found: TokenMixing, block: int, frame: pd.DataFrame, unit: int) -> alt.Chart:
    """The units of a block by frequency and spread, the chosen one and its opposite marked, beside
    the mean of shuffled units."""
    opposite_unit, null = int(frame["partner"].iloc[unit]), found.measures(block).shuffled
    chosen, opposite = frame["unit"] == unit, frame["unit"] == opposite_unit
    role = np.select([chosen, opposite], [ROLES[1], ROLES[2]], ROLES[0])
    mean = {
        "frequency_cycles_per_token": np.mean(null.frequency),
        "spread_px": np.mean(null.spread),
        "coherence": np.mean(null.coherence),
        "partner_cosine": np.mean(null.partner_cosine),
        "opposition": -np.mean(null.partner_cosine),
    }
    units = frame.assign(
        role=role, order=opposite + 2 * chosen, opposition=-frame["partner_cosine"]
    )
    shown = pd.concat(
        [units, pd.DataFrame([{"unit": -1, "role": ROLES[3], "order": 3, **mean}])],
        ignore_index=True,
    )
    shapes = alt.Scale(domain=list(ROLES), range=["circle", "diamond", "triangle-up", "cross"])
    legend = alt.Legend(
        orient="bottom",
        columns=4,
        labelLimit=240,
        symbolStrokeWidth=0,
        symbolFillColor=GREY,
        symbolSize=90,
    )
    opposed = alt.Scale(domain=[0, 1], scheme="viridis", clamp=True)
    scale = alt.Scale(zero=False, padding=14)
    usual = f"datum.role == '{ROLES[0]}'"
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_point(filled=True, opacity=0.9, cursor="pointer")
        .encode(
            x=alt.X(
                "frequency_cycles_per_token:Q",
                title="frequency (cycles/token)",
                scale=scale,
                axis=_FEW,
            ),
            y=alt.Y(
                "spread_px:Q", title="spread around the centre of mass (px)", scale=scale, axis=_FEW
            ),
            shape=alt.Shape("role:N", title=None, scale=shapes, legend=legend),
            size=alt.condition(usual, alt.value(45), alt.value(260)),
            stroke=alt.condition(usual, alt.value("transparent"), alt.value(COLOURS[1])),
            strokeWidth=alt.value(2),
            color=alt.Color(
                "opposition:Q",
                title=["−cosine with", "the match"],
                scale=opposed,
                legend=alt.Legend(format=".1f"),
            ),
            order="order:Q",
            tooltip=tips(_UNIT),
        )
        .add_params(pick(CLICK, "unit"))
        .properties(height=460)
        .interactive()
    )
    return chart


# -- one unit --------------------------------------------------------------------------------------


def patches(maps: dict[str, np.ndarray]) -> pd.DataFrame:
    """Maps [h, w] by name as one table: one row per patch."""
    return pd.concat(
        [cells_frame(one, "weight", 1).assign(map=name) for name, one in maps.items()],
        ignore_index=True,
    )


def weights_map(values: np.ndarray, title: str, largest: float) -> alt.Chart:
    """One map [h, w] over the patches, on a scale from -`largest` to `largest`."""
    height, width = values.shape
    largest = largest or 1.0
    scale = alt.Scale(scheme="redblue", reverse=True, domain=[-largest, largest])
    legend = alt.Legend(
        title="weight",
        orient="bottom",
        gradientLength=_MAP - 30,
        values=[-largest, 0, largest],
        format=".2g",
    )
    # At most six labels, evenly spaced.
    across, down = (
        alt.Axis(values=list(range(1, n + 1, -(-n // 6))), labelAngle=0, ticks=False, domain=False)
        for n in (width, height)
    )
    chart: alt.Chart = (
        alt.Chart(patches({title: values}))
        .mark_rect()
        .encode(
            x=alt.X("column:O", title="patch column", axis=across, scale=alt.Scale(padding=0)),
            y=alt.Y("row:O", title="patch row", axis=down, scale=alt.Scale(padding=0)),
            color=alt.Color("weight:Q", scale=scale, legend=legend),
            tooltip=["row:O", "column:O", alt.Tooltip("weight:Q", format=".4f")],
        )
        .properties(
            width=_MAP,
            height=_MAP * height / width,
            title=alt.TitleParams(title, anchor="start", fontSize=14),
        )
    )
    return chart


def beside(charts: Sequence[alt.Chart]) -> Any:
    """Charts beside each other as one, for files."""
    return alt.hconcat(*charts).resolve_scale(color="independent").configure(background="white")


def output_map(frame: pd.DataFrame) -> alt.Chart:
    """Images against channels, coloured by the output of the unit."""
    largest = float(frame["value"].abs().max()) or 1.0
    scale = alt.Scale(scheme="redblue", reverse=True, domain=[-largest, largest])
    axis = alt.Axis(labelAngle=-90, labelOverlap="greedy", ticks=False, domain=False)
    upright = alt.Axis(labelAngle=0, ticks=False, domain=False)
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_rect()
        .encode(
            x=alt.X(
                "channel:O", title="channel of the network", axis=axis, scale=alt.Scale(padding=0)
            ),
            y=alt.Y("rank:O", title="image, by rank", axis=upright, scale=alt.Scale(padding=0)),
            color=alt.Color(
                "value:Q",
                title="unit output",
                scale=scale,
                legend=alt.Legend(format=".2g", gradientLength=120),
            ),
            tooltip=[
                "rank:O",
                "image:N",
                "class:N",
                "channel:O",
                alt.Tooltip("value:Q", title="unit output", format=".3f"),
            ],
        )
        .properties(height=26 * frame["rank"].nunique() + 70)
    )
    return chart


# -- depth -----------------------------------------------------------------------------------------


def depth_frame(results: Sequence[TokenMixing], measure: str) -> pd.DataFrame:
    """One row per block of a network, of its untrained baseline, and of the null of trained
    networks (of all, if none is)."""
    _title, _label, own, null = DEPTHS[measure]

    def rows(column: str) -> Callable[[Any], pd.DataFrame]:
        return lambda r: r.summary().assign(
            chance=r.chance, layer=lambda t: t["block"], value=lambda t: t[column]
        )

    nulls = table([r for r in results if r.model.trained] or list(results), rows(null)).assign(
        weights=WEIGHTS[2]
    )
    return pd.concat([table(results, rows(own)), nulls], ignore_index=True)


def depth_curves(frame: pd.DataFrame, measure: str) -> alt.LayerChart:
    """One measure of units against relative depth; dotted lines are untrained baselines, dashed
    ones the null."""
    zero = measure in ("pairing", "rank", "orientation")
    return curves(
        frame, "value", DEPTHS[measure][1], zero=zero, bounds=None, more={"units:Q": "units"}
    )
