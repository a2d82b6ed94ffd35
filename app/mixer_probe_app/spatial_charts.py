"""Charts of spatial mixing: output cells to hover over with the map of what each reads, and the
heads of an attention block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image

from mixer_probe.mixing import AttentionDistance, AttentionMaps, SpatialMixing
from mixer_probe.plotting.style import SEQUENTIAL
from mixer_probe_app.charts import CHOSEN, GREY, tips, uri

# In pixels: the sides of maps by the number of networks, and of the pictures inside charts.
_SIDES = {1: 340, 2: 300, 3: 188}
_TILE, _GRID = 64, 180
# Heads beside each other, and the most pixels that they and each of them have.
_ACROSS, _HEADS, _HEAD = 5, 525, 150
# Queries along a side for which attention is drawn.
_MOST_QUERIES = 16
_HOVER, _HELD = "hover", "held"
# The cell that was clicked, or else the one under the pointer.
_CHOSEN = f"isValid({_HELD}.cell) ? {_HELD}.cell[0] : {_HOVER}.cell[0]"


def pictures(maps: np.ndarray, largest: np.ndarray) -> list[str]:
    """Maps [map, row, column] as pictures for a chart, from 0 to `largest` [map]."""
    top = np.where(largest > 0, largest, 1)[:, None, None]
    colours = mpl.colormaps[SEQUENTIAL](np.nan_to_num(maps / top).clip(0, 1))[..., :3]
    zoom = max(1, -(-_TILE // max(maps.shape[1:])))
    found = (255 * colours).round().astype(np.uint8).repeat(zoom, 1).repeat(zoom, 2)
    return [uri(Image.fromarray(one)) for one in found]


def with_selections(whole: Any, charts: Sequence[Any], cell: int) -> Any:
    """A concatenated chart with a cell to choose in some `charts` of it: the one under the pointer,
    at first `cell`, unless a click holds one."""
    # altair sets a number at the end of a name to the place of the chart in its column: they are
    # the first.
    views = [f"cells of {k}_0" for k in range(len(charts))]
    for chart, name in zip(charts, views, strict=True):
        chart.name = name
    hover = alt.PointSelectionConfig(type="point", fields=["cell"], on="pointerover", clear=False)
    held = alt.PointSelectionConfig(
        type="point", fields=["cell"], on="click", clear="dblclick", toggle=False
    )
    whole.params = [
        alt.TopLevelSelectionParameter(
            name=_HOVER, select=hover, views=views, value=[{"cell": cell}]
        ),
        alt.TopLevelSelectionParameter(name=_HELD, select=held, views=views),
    ]
    return whole.configure_view(stroke=None)


# -- spatial mixing --------------------------------------------------------------------------------


def cell_frame(result: SpatialMixing, view: str, layer: int) -> pd.DataFrame:
    """One row per output cell: its place in the common grid and in pixels, and P within itself."""
    rows, columns = result.cells
    cell = np.arange(rows * columns)
    row, column = np.divmod(cell, columns)
    P = result.matrix[result.views.index(view), layer].reshape(-1, rows, 2, columns, 2)
    own = P.sum((2, 4), dtype=np.float64)[cell, row, column]
    height, width = result.size[0] / rows, result.size[1] / columns
    return pd.DataFrame(
        {
            "cell": cell,
            "row": row + 1,
            "column": column + 1,
            "left": column * width,
            "right": (column + 1) * width,
            "top": row * height,
            "bottom": (row + 1) * height,
            "own": own,
        }
    )


def source_frame(result: SpatialMixing, view: str, layer: int) -> pd.DataFrame:
    """One row per output cell and source cell: where the source lies in pixels, P and its standard
    error."""
    at = result.views.index(view), layer
    P, se = result.matrix[at], result.matrix_se[at]
    rows, columns = (2 * n for n in result.cells)
    row, column = np.divmod(np.arange(rows * columns), columns)
    height, width = result.size[0] / rows, result.size[1] / columns
    places = {
        "left": column * width,
        "right": (column + 1) * width,
        "top": row * height,
        "bottom": (row + 1) * height,
    }
    return pd.DataFrame(
        {
            "cell": np.repeat(np.arange(len(P)), P.shape[1]),
            **{name: np.tile(values, len(P)) for name, values in places.items()},
            "P": P.ravel().astype(float),
            "se": se.ravel().astype(float),
        }
    )


def reading_maps(
    results: Sequence[SpatialMixing],
    view: str,
    layers: Sequence[int],
    titles: Sequence[str],
    cell: int,
    scale: str,
) -> Any:
    """Networks beside each other: above the output cells, each a small map of P over the sources;
    below at size the map of the cell under the pointer, the same in all networks, at first `cell`.

    The `scale` of colours is "own" of each map, "root" with the root of P, or "shared" by all."""
    side = _SIDES.get(len(results), _SIDES[3])
    matrices = [r.matrix[r.views.index(view), k] for r, k in zip(results, layers, strict=True)]
    top = max(float(np.nanmax(m)) for m in matrices) if scale == "shared" else None
    parts: list[alt.VConcatChart] = []
    for result, layer, matrix, title in zip(results, layers, matrices, titles, strict=True):
        shape = [2 * n for n in result.cells]
        maps = matrix.reshape(-1, *shape).astype(float)
        maps = np.sqrt(maps) if scale == "root" else maps
        largest = maps.max((1, 2)) if top is None else np.full(len(maps), top)
        cells = cell_frame(result, view, layer).assign(picture=pictures(maps, largest))
        frame = source_frame(result, view, layer)
        heading = alt.TitleParams(
            title.split("\n"), fontSize=13, anchor="start", limit=side + 30, offset=6
        )
        above = _overview(cells, result.cells, side).properties(title=heading)
        below = _one_map(frame, cells, result, side, top, scale == "root", first=not parts)
        parts.append(alt.vconcat(above, below, spacing=14))
    whole = alt.hconcat(*parts, spacing=18).resolve_scale(color="independent")
    return with_selections(whole, [part.vconcat[0].layer[0] for part in whole.hconcat], cell)


def _overview(cells: pd.DataFrame, grid: tuple[int, int], side: int) -> Any:
    """The output cells as small maps; the chosen one is framed."""
    rows, columns = grid
    height = side * rows / columns
    x = alt.X("column:O", axis=None, scale=alt.Scale(padding=0))
    y = alt.Y("row:O", axis=None, scale=alt.Scale(padding=0))
    fields = {
        "row:Q": "row of the output cell",
        "column:Q": "column of the output cell",
        "own:Q .1%": "P from the cell itself",
    }
    base = alt.Chart(cells).encode(x=x, y=y)
    images = base.mark_image(
        width=0.92 * side / columns, height=0.92 * height / rows, cursor="pointer"
    ).encode(url="picture:N", tooltip=tips(fields))
    frame = (
        base.transform_filter(f"datum.cell == ({_CHOSEN})")
        .mark_rect(fill=None, stroke=CHOSEN, strokeWidth=3)
        .encode()
    )
    drawn: Any = alt.layer(images, frame).properties(width=side, height=height)
    return drawn


def _one_map(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    result: SpatialMixing,
    side: int,
    top: float | None,
    root: bool,
    first: bool,
) -> Any:
    """P over the sources of the chosen cell, in pixels of the image."""
    height, width = result.size
    scale: Any = alt.Scale(
        type="sqrt" if root else "linear",
        scheme=alt.SchemeParams(SEQUENTIAL),
        domain=[0, top] if top else alt.Undefined,
        zero=True,
    )
    legend = alt.Legend(
        title="P", orient="bottom", format=".2~p", gradientLength=side - 30, tickCount=2
    )

    def axis(kind: Any, ends: tuple[str, str], most: float, title: str | None) -> dict[str, Any]:
        domain = [0, most] if ends[0] == "left" else [most, 0]
        found = kind(
            f"{ends[0]}:Q",
            title=title,
            scale=alt.Scale(domain=domain, nice=False, padding=0),
            axis=alt.Axis(tickCount=4, grid=False, minExtent=24, maxExtent=24),
        )
        name = "x" if ends[0] == "left" else "y"
        return {name: found, f"{name}2": f"{ends[1]}:Q"}

    places = axis(alt.X, ("left", "right"), width, "right (px)")
    places |= axis(alt.Y, ("top", "bottom"), height, "down (px)" if first else None)
    fields = {
        "left:Q .1~f": "from (px right)",
        "top:Q .1~f": "from (px down)",
        "P:Q .3~p": "P",
        "se:Q .2~p": "standard error of P",
    }
    only = f"datum.cell == ({_CHOSEN})"
    sources = (
        alt.Chart(frame)
        .transform_filter(only)
        .mark_rect(invalid="filter")
        .encode(**places, color=alt.Color("P:Q", scale=scale, legend=legend), tooltip=tips(fields))
    )
    own = (
        alt.Chart(cells)
        .transform_filter(only)
        .mark_rect(fill=None, stroke=CHOSEN, strokeWidth=2)
        .encode(**places)
    )
    drawn: Any = alt.layer(sources, own).properties(width=side, height=side * height / width)
    return drawn


# -- attention -------------------------------------------------------------------------------------


def query_frame(found: AttentionMaps, shared: bool) -> tuple[pd.DataFrame, tuple[int, int]]:
    """One row per head and query position, with its map as a picture; and the grid of the queries,
    which are every position, or every few of a large grid."""
    rows, columns = found.grid
    down, across = (np.arange(n)[:: -(-n // _MOST_QUERIES)] for n in (rows, columns))
    queries = (down[:, None] * columns + across).ravel()
    heads = len(found.maps)
    maps = found.maps[:, queries].reshape(-1, rows, columns).astype(float)
    largest = np.full(len(maps), np.nanmax(maps)) if shared else maps.max((1, 2))
    row, column = np.divmod(np.arange(len(queries)), len(across))
    frame = pd.DataFrame(
        {
            "head": np.repeat(np.arange(heads), len(queries)),
            "cell": np.tile(np.arange(len(queries)), heads),
            "row": np.tile(down[row] + 1, heads),
            "column": np.tile(across[column] + 1, heads),
            "self": found.maps[:, queries, queries].ravel().astype(float),
            "largest": maps.max((1, 2)),
            "prefix": found.prefix[:, queries].ravel().astype(float),
            "picture": pictures(maps, largest),
        }
    )
    return frame, (len(down), len(across))


def head_maps(frame: pd.DataFrame, grid: tuple[int, int], titles: Sequence[str], cell: int) -> Any:
    """Query positions to hover over, beside the maps of all heads for the chosen one."""
    rows, columns = grid
    x = alt.X("column:O", axis=None, scale=alt.Scale(padding=0))
    y = alt.Y("row:O", axis=None, scale=alt.Scale(padding=0))
    queries = frame[frame["head"] == 0].drop(columns="picture")
    chosen = f"datum.cell == ({_CHOSEN})"
    place = {"row:Q": "row of the query position", "column:Q": "column of the query position"}
    title = alt.TitleParams("Query position", fontSize=13, anchor="start")
    grid_chart = (
        alt.Chart(queries)
        .mark_rect(fill=GREY, stroke="white", strokeWidth=0.5, cursor="pointer")
        .encode(
            x=x,
            y=y,
            fill=alt.condition(chosen, alt.value(CHOSEN), alt.value(GREY)),
            tooltip=tips(place),
        )
        .properties(width=_GRID, height=_GRID * rows / columns, title=title)
    )
    across = min(len(titles), _ACROSS)
    side = min(_HEAD, _HEADS / across)
    shown = frame.assign(
        across=frame["head"] % across,
        down=frame["head"] // across,
        title=np.array(titles)[frame["head"]],
    )
    lines = -(-len(titles) // across)
    fields = {
        "head:Q": "head",
        "self:Q .2%": "attention to itself",
        "largest:Q .2%": "largest attention",
    }
    if frame["prefix"].notna().any() and frame["prefix"].any():
        fields["prefix:Q .1%"] = "attention to prefix tokens"
    base = (
        alt.Chart(shown)
        .transform_filter(chosen)
        .encode(
            x=alt.X("across:O", axis=None, scale=alt.Scale(padding=0)),
            y=alt.Y("down:O", axis=None, scale=alt.Scale(padding=0)),
        )
    )
    height = side * rows / columns
    images = base.mark_image(width=side - 6, height=height - 6).encode(
        url="picture:N", tooltip=tips(fields)
    )
    labels = base.mark_text(dy=-height / 2 - 9, fontSize=11, color=GREY).encode(text="title:N")
    heads = alt.layer(images, labels).properties(
        width=across * side,
        height=lines * (height + 30),
        title=alt.TitleParams("Attention per head", fontSize=13, anchor="start"),
    )
    whole = alt.hconcat(grid_chart, heads, spacing=26)
    return with_selections(whole, [whole.hconcat[0]], cell)


def head_distances(result: AttentionDistance, block: int) -> Any:
    """Mean attention distance of every head against the block; the grey line is uniform attention,
    and the heads of `block` are marked."""
    frame = result.to_frame().assign(
        number=lambda t: t["block"].map({x.name: i + 1 for i, x in enumerate(result.blocks)})
    )
    frame = frame.assign(chosen=frame["number"] == block + 1)
    x = alt.X("number:O", title="block", axis=alt.Axis(labelAngle=0))
    y = alt.Y("distance:Q", title="mean attention distance (px)", axis=alt.Axis(tickCount=6))
    colour = alt.condition("datum.chosen", alt.value(CHOSEN), alt.value("#3B8EC9"))
    offset = alt.XOffset("head:O")
    fields = {
        "block:N": "block",
        "head:Q": "head",
        "distance:Q .2f": "distance (px)",
        "distance_low:Q .2f": "95 % interval, low",
        "distance_high:Q .2f": "95 % interval, high",
        "relative:Q .3f": "relative to uniform attention",
        "entropy:Q .2f": "entropy (nats)",
        "n:Q": "images",
    }
    base = alt.Chart(frame).encode(x=x, xOffset=offset, color=colour)
    spans = base.mark_rule(strokeWidth=1.5).encode(
        y=alt.Y("distance_low:Q", title="mean attention distance (px)"), y2="distance_high:Q"
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=y, tooltip=tips(fields))
    uniform = (
        alt.Chart(frame.drop_duplicates("number"))
        .mark_tick(color=GREY, thickness=2, bandSize=30)
        .encode(x=x, y="uniform:Q", tooltip=tips({"uniform:Q .2f": "uniform attention (px)"}))
    )
    drawn: Any = alt.layer(uniform, spans, points).properties(height=320)
    return drawn
