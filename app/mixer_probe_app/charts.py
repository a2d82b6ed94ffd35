"""Interactive charts, in altair: readable on light and dark ground, with everything about a mark in
its tooltip."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from mixer_probe.core.result import ModelRecord
from mixer_probe.core.words import base_name, short_name
from mixer_probe.plotting.style import colour_of
from mixer_probe.probing import ProbeResult
from mixer_probe.similarity import LayerMatches, SimilarityMatrix, best_matches

GREY = "#8A8A8A"
NULL_GREY = "#9E9E9E"
# Readable on light and dark ground, and on every colour of viridis.
CHOSEN = "#FF4B4B"
BLUE, ORANGE = "#3B8EC9", "#E08214"
LONGEST_LABEL = 140
# In pixels: a cell of a matrix, the space for axis labels, and the tallest matrix.
_CELL, _SMALLEST_CELL, _LABELS, _TALLEST = 34, 16, 120, 620
# With its title, axes and legend, about square in a column of `MAP_WIDTH`.
MAP_WIDTH, _MAP = 255, 400

# -- parts of charts -------------------------------------------------------------------------------


def tips(fields: Mapping[str, str]) -> list[alt.Tooltip]:
    """A line of the tooltip per field, by its title: "value:Q .3f" is a number with three decimals,
    "layer:N" a name."""
    found = []
    for field, title in fields.items():
        name, _, kind = field.rpartition(":")
        kind, _, digits = kind.partition(" ")
        found.append(alt.Tooltip(f"{name}:{kind}", title=title, format=digits or alt.Undefined))
    return found


def colours(values: Mapping[str, Any]) -> alt.Scale:
    """A scale from values to colours, or to other marks."""
    return alt.Scale(domain=[*values], range=[*values.values()])


def network_colour(frame: pd.DataFrame, **legend: Any) -> alt.Color:
    """One colour per network, the same in all charts and figures that show them in the same
    order."""
    look: dict[str, Any] = {"symbolType": "circle", "symbolOpacity": 1, "labelLimit": 240} | legend
    return alt.Color(
        "network:N",
        title="network",
        scale=colours(colour_of(frame["network"])),
        legend=alt.Legend(**look),
    )


def pick(name: str, *fields: str) -> alt.Parameter:
    """A click on a mark, which selects its `fields` as `name`."""
    return alt.selection_point(name=name, fields=[*fields], on="click", empty=False)


def picked(key: str, name: str) -> dict[str, Any]:
    """What was clicked in the chart `key`, for callbacks; empty for a click beside all marks."""
    points = (st.session_state.get(key) or {}).get("selection", {}).get(name) or [{}]
    return dict(points[0])


def zoom() -> alt.Parameter:
    """Dragging and Shift + wheel move and zoom a chart; the wheel alone scrolls the page."""
    return alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.shiftKey]")


def uri(picture: Image.Image) -> str:
    """A picture as an address, for charts."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def span(low: float, high: float) -> str:
    """An interval as text."""
    return "none" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def _up() -> alt.Axis:
    return alt.Axis(labelLimit=LONGEST_LABEL, labelOverlap="greedy", labelFlush=False)


def _across() -> alt.Axis:
    return alt.Axis(
        labelLimit=LONGEST_LABEL, labelOverlap="greedy", labelFlush=False, labelAngle=-45
    )


# -- curves ----------------------------------------------------------------------------------------

WEIGHTS = ("trained", "untrained", "null")
# As in the figures: untrained baselines are dotted, with open markers, and nulls dashed.
_DASHES = ([1, 0], [2, 3], [6, 4])
_ACROSS = {
    "depth": ("relative depth", alt.Scale(domain=[0, 1], nice=False)),
    "k": ("number of neighbours k", alt.Scale(type="log")),
    "distance_px": ("distance between patches (px)", alt.Scale()),
}


def table(
    results: Sequence[Any], rows: Callable[[Any], pd.DataFrame] = lambda result: result.to_frame()
) -> pd.DataFrame:
    """The tables of all results, one below the other, with the columns that curves need: the
    network's short name, and whether its weights are "trained" or "untrained"."""
    parts = []
    for result in results:
        frame = rows(result)
        known = {"model": result.model.name, "trained": result.model.trained}
        parts.append(
            frame.assign(**{name: value for name, value in known.items() if name not in frame})
        )
    frame = pd.concat(parts, ignore_index=True)
    networks = frame["model"].map(base_name).map(short_name)
    return frame.assign(
        network=networks, weights=np.where(frame["trained"].astype(bool), *WEIGHTS[:2])
    )


def curves(
    frame: pd.DataFrame,
    value: str,
    title: str,
    *,
    more: Mapping[str, str] | None = None,
    bounds: tuple[str, str] | None = ("low", "high"),
    band: str = "95 % interval",
    level: tuple[float, str] | None = None,
    digits: str = ".3f",
    zero: bool = True,
    log: bool = False,
    across: str = "depth",
) -> alt.LayerChart:
    """The column `value` against the column `across`, in one colour per network.

    Bands are the columns `bounds`, where the table has them, called `band`; dots and dashes
    distinguish the column `weights`, where there is one; a grey line is the `level` of chance.
    `more` are further lines of the tooltip, as `tips` takes them."""
    percent = digits.endswith("%")
    y_axis = alt.Axis(tickCount=6, format=".0%" if percent else alt.Undefined)
    y = alt.Y(
        f"{value}:Q",
        title=title,
        axis=y_axis,
        scale=alt.Scale(type="log") if log else alt.Scale(zero=zero),
    )
    x_title, x_scale = _ACROSS[across]
    x = alt.X(f"{across}:Q", title=x_title, axis=alt.Axis(tickCount=5), scale=x_scale)
    frame = frame.dropna(subset=[value])
    split, groups, filled = {}, ["model:N" if "model" in frame else "network:N"], alt.value(1)
    if "weights" in frame:
        groups.append("weights:N")
        known = {
            kind: dash for kind, dash in zip(WEIGHTS, _DASHES) if kind in set(frame["weights"])
        }
        legend = alt.Legend(symbolType="stroke", symbolSize=700, symbolStrokeWidth=2)
        split["strokeDash"] = alt.StrokeDash(
            "weights:N", title="weights", scale=colours(known), legend=legend
        )
        filled = alt.condition("datum.weights === 'untrained'", alt.value(0), filled)
    base = alt.Chart(frame).encode(x=x, color=network_colour(frame), detail=groups)
    shown = {"network:N": "network"} | ({"weights:N": "weights"} if split else {})
    shown |= {"layer:N": "layer"} if "layer" in frame else {}
    shown |= (
        {"depth:Q .2f": "relative depth"} if across == "depth" else {f"{across}:Q .3~g": x_title}
    )
    shown |= {f"{value}:Q {digits}": title}
    parts = [base.mark_line().encode(y=y, **split)]
    if bounds is not None and set(bounds) <= set(frame):
        shown |= {
            f"{end}:Q {digits}": f"{band}, {name}" for end, name in zip(bounds, ("low", "high"))
        }
        parts.insert(
            0,
            base.mark_area(opacity=0.16).encode(
                y=alt.Y(f"{bounds[0]}:Q", title=title), y2=f"{bounds[1]}:Q", **split
            ),
        )
    fill = alt.Fill("network:N", scale=colours(colour_of(frame["network"])), legend=None)
    points = base.mark_point(size=60, opacity=1).encode(y=y, fill=fill, fillOpacity=filled)
    parts.append(points.encode(tooltip=tips(shown | dict(more or {}))))
    if level is not None:
        rule: Any = alt.Chart(pd.DataFrame({"level": [level[0]]})).mark_rule(color=GREY)
        parts.append(rule.encode(y="level:Q", tooltip=tips({f"level:Q {digits}": level[1]})))
    return alt.layer(*parts).properties(height=400)


def probe_curves(results: Sequence[ProbeResult]) -> alt.LayerChart:
    """Accuracy against relative depth: bands are 95 % intervals, dotted lines untrained baselines,
    the grey line chance."""
    more = {"n_test:Q": "n test images", "n_train:Q": "n training images"}
    level = (results[0].chance, "chance")
    return curves(
        table(results), "accuracy", "test accuracy (%)", digits=".1%", level=level, more=more
    )


# -- layers against layers -------------------------------------------------------------------------


def heatmap(
    matrix: SimilarityMatrix,
    chosen: tuple[str, str] | None = None,
    path: bool = False,
    name: str = "cell",
) -> alt.Chart | alt.LayerChart:
    """Layers against layers, bright is similar; grey cells are not significant, undefined ones stay
    empty.

    The cell `chosen` is framed, with `path` dots join the best match of each row, and a click
    selects a cell as `name`."""
    definition, frame = matrix.definition, matrix.to_frame()
    frame["interval"] = [span(low, high) for low, high in zip(frame["low"], frame["high"])]
    frame["chance"] = [
        "not tested" if pd.isna(above) else "yes" if above else "no"
        for above in frame["above_null"]
    ]
    frame["chosen"] = [(a, b) == chosen for a, b in zip(frame["layer_a"], frame["layer_b"])]
    frame["estimator"] = frame["estimator"].replace("", "–")
    frame = frame.drop(columns=["above_null", "calibrated", "p_a", "p_b", "method"])
    axes: dict[str, Any] = {
        "x": alt.X(
            "layer_b:N",
            sort=[x.name for x in matrix.layers_b],
            title=f"layer of {_short(matrix.model_b)}",
            axis=_across(),
        ),
        "y": alt.Y(
            "layer_a:N",
            sort=[x.name for x in matrix.layers_a][::-1],
            title=f"layer of {_short(matrix.model_a)}",
            axis=_up(),
        ),
    }
    top = float(definition.highest)
    scheme = alt.SchemeParams("viridis", extent=[0, 1] if definition.larger_is_closer else [1, 0])
    head, _, rest = matrix.label.partition(" (")
    title = [head, f"({rest}"] if rest else [head]
    legend = alt.Legend(
        title=title, gradientLength=150, values=list(np.linspace(0, top, 5)), format=".2f"
    )
    colour = alt.Color(
        "value:Q", scale=alt.Scale(domain=[0, top], scheme=scheme, clamp=True), legend=legend
    )
    not_significant = "isValid(datum.value) && datum.chance == 'no'"
    fields = {
        "layer_a:N": "layer (rows)",
        "depth_a:Q .2f": "its relative depth",
        "layer_b:N": "layer (columns)",
        "depth_b:Q .2f": "its relative depth ",
        "value:Q .3f": definition.label,
        "interval:N": "95 % interval",
        "null_mean:Q .3f": "null, mean",
        "null_q95:Q .3f": "null, 95 %",
        "chance:N": "beyond its null",
        "n:Q": "n images",
        "estimator:N": "estimator",
    }
    cells = (
        alt.Chart(frame)
        .mark_rect(invalid="filter", cursor="pointer")
        .encode(
            **axes,
            color=alt.when(not_significant).then(alt.value(NULL_GREY)).otherwise(colour),
            stroke=alt.when("datum.chosen").then(alt.value(CHOSEN)).otherwise(alt.value(None)),
            strokeWidth=alt.value(3),
            tooltip=tips(fields),
        )
        .add_params(pick(name, "layer_a", "layer_b"))
    )
    whole: alt.Chart | alt.LayerChart = cells
    if path:
        matches = best_matches(matrix).to_frame().dropna(subset=["layer_b"])
        base = alt.Chart(matches.assign(place=range(len(matches)))).encode(**axes, order="place:Q")
        # White within black, so that the line shows on every colour.
        lines = [
            base.mark_line(color=shade, strokeWidth=width)
            for shade, width in (("black", 4), ("white", 2))
        ]
        dots = base.mark_point(
            filled=True, size=60, opacity=1, color="white", stroke="black", strokeWidth=1
        )
        whole = alt.layer(cells, *lines, dots)
    rows = len(matrix.layers_a)
    cell = max(_SMALLEST_CELL, min(_CELL, _TALLEST // max(1, rows)))
    return whole.properties(height=max(120, cell * rows) + _LABELS)


def _short(model: ModelRecord | None) -> str:
    return short_name(model.name) if model else "?"


def match_curve(matches: LayerMatches) -> alt.LayerChart:
    """Similarity of every layer to its best match, by depth; the dashed line is the null of the
    best match."""
    frame = matches.to_frame().dropna(subset=["value"])
    a, b = _short(matches.model_a), _short(matches.model_b)
    scale = alt.Scale(domain=[0, 1], nice=False)
    base = alt.Chart(frame).encode(
        x=alt.X(
            "depth_a:Q", title=f"relative depth of {a}", scale=scale, axis=alt.Axis(tickCount=5)
        )
    )
    up = [matches.matrix_label, "of the best match"]
    fields = {
        "layer_a:N": f"layer of {a}",
        "layer_b:N": f"best match in {b}",
        "depth_b:Q .2f": "its relative depth",
        "value:Q .3f": matches.matrix_label,
        "null95:Q .3f": "95 % null of the best match",
    }
    value = alt.Y("value:Q", title=up)
    return alt.layer(
        base.mark_line(color=GREY, strokeDash=[4, 4]).encode(y=alt.Y("null95:Q", title=up)),
        base.mark_line(color=BLUE).encode(y=value),
        base.mark_point(filled=True, size=70, opacity=1, color=BLUE).encode(
            y=value, tooltip=tips(fields)
        ),
    ).properties(height=260)


def class_bars(frame: pd.DataFrame, label: str) -> alt.LayerChart:
    """One bar per class with its 95 % interval; ticks are the 95 % null."""
    frame = frame.assign(
        interval=[span(low, high) for low, high in zip(frame["low"], frame["high"])]
    )
    order = list(frame.sort_values("value", ascending=False)["class"])
    fields = {
        "value:Q .3f": label,
        "interval:N": "95 % interval",
        "null_q95:Q .3f": "null, 95 %",
        "n:Q": "n images",
    }
    base = alt.Chart(frame).encode(
        y=alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=LONGEST_LABEL)),
        tooltip=tips({"class:N": "class"} | fields),
    )
    value = alt.X("value:Q", title=f"{label} within the class", axis=alt.Axis(tickCount=6))
    bars = base.mark_bar(color=BLUE, opacity=0.75).encode(x=value)
    spans = base.mark_rule(color=GREY, strokeWidth=2).encode(x="low:Q", x2="high:Q")
    null = base.mark_tick(color=CHOSEN, thickness=2).encode(x="null_q95:Q")
    return alt.layer(bars, spans, null).properties(height=alt.Step(20))


def distance_scatter(frame: pd.DataFrame, titles: tuple[str, str]) -> alt.Chart:
    """Pairs of images by their dissimilarity in two layers; drag and turn the wheel to zoom."""
    names = [f"1 − r in {title}" for title in titles]
    ends = {"distance_a": names[0], "distance_b": names[1]}
    x, y = (
        axis(f"{field}:Q", axis=alt.Axis(title=title, tickCount=5), scale=alt.Scale(zero=False))
        for axis, (field, title) in zip((alt.X, alt.Y), ends.items())
    )
    colour = colours({"same class": ORANGE, "different": BLUE})
    fields = {"image 1:N": "image 1", "image 2:N": "image 2"} | {
        f"{field}:Q .3f": title for field, title in ends.items()
    }
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_circle(size=22, opacity=0.45)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "classes:N", title="pair of", scale=colour, legend=alt.Legend(symbolOpacity=1)
            ),
            tooltip=tips(fields),
        )
        .properties(height=360)
        .interactive()
    )
    return chart


# -- classes and positions -------------------------------------------------------------------------


def confusion_cells(frame: pd.DataFrame, order: Sequence[str], chosen: str, name: str) -> alt.Chart:
    """Fraction of the images of a class (row) that are predicted as another (column); a click
    selects the row as `name`."""
    legend = alt.Legend(title=["images of the", "true class (%)"], format=".0%", gradientLength=150)
    fields = {
        "true:N": "true class",
        "predicted:N": "predicted class",
        "fraction:Q .1%": "fraction of the true class",
        "images:Q": "images",
    }
    chart: alt.Chart = (
        alt.Chart(frame.assign(chosen=frame["true"] == chosen))
        .mark_rect(invalid="filter", cursor="pointer")
        .encode(
            x=alt.X("predicted:N", sort=[*order], title="predicted class", axis=_across()),
            y=alt.Y("true:N", sort=[*order], title="true class", axis=_up()),
            color=alt.Color(
                "fraction:Q", scale=alt.Scale(domain=[0, 1], scheme="viridis"), legend=legend
            ),
            stroke=alt.when("datum.chosen").then(alt.value(CHOSEN)).otherwise(alt.value(None)),
            strokeWidth=alt.value(1.5),
            tooltip=tips(fields),
        )
        .add_params(pick(name, "true"))
        .properties(height=max(160, min(_TALLEST, 26 * len(order))) + _LABELS)
    )
    return chart


def class_points(frame: pd.DataFrame) -> alt.LayerChart:
    """Accuracy of every class with its interval, one colour per network; the class with the highest
    accuracy is on top."""
    order = list(frame.groupby("class")["accuracy"].mean().sort_values(ascending=False).index)
    names = list(frame["network"].unique())
    base = alt.Chart(frame).encode(
        y=alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=LONGEST_LABEL)),
        yOffset=alt.YOffset("network:N", sort=names),
        color=network_colour(frame),
    )
    fields = {
        "class:N": "class",
        "network:N": "network",
        "layer:N": "layer",
        "accuracy:Q .1%": "accuracy",
        "low:Q .1%": "95 % interval, low",
        "high:Q .1%": "95 % interval, high",
        "precision:Q .1%": "precision",
        "images:Q": "n test images",
    }
    axis = alt.Axis(format=".0%", tickCount=5)
    spans = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q", title="test accuracy (%)", axis=axis), x2="high:Q"
    )
    x = alt.X("accuracy:Q", title="test accuracy (%)")
    points = base.mark_point(filled=True, size=55, opacity=1).encode(x=x, tooltip=tips(fields))
    return alt.layer(spans, points).properties(height=alt.Step(11 if len(names) > 1 else 20))


def cells_frame(cells: np.ndarray, column: str = "value", first: int = 0) -> pd.DataFrame:
    """One cell of a grid [rows, columns] per row; rows and columns count from `first`."""
    rows, columns = np.indices(cells.shape) + first
    return pd.DataFrame(
        {"row": rows.ravel(), "column": columns.ravel(), column: cells.ravel().astype(float)}
    )


def position_map(
    frame: pd.DataFrame, title: str, scale: tuple[float, float], legend: str
) -> alt.Chart:
    """A grid of positions with their `value`, as the image lies: row 0 on top."""
    side = max(1, int(max(frame["row"].max(), frame["column"].max())) + 1)
    axis = alt.Axis(labels=False, ticks=False, domain=False)
    fields = {"row:O": "row of the grid", "column:O": "column of the grid", "value:Q .1%": legend}
    fields |= {f"{end}:Q .1%": f"95 % interval, {end}" for end in ("low", "high") if end in frame}
    bar = alt.Legend(
        title=legend, orient="bottom", format=".0%", gradientLength=160, titleLimit=260
    )
    chart: alt.Chart = (
        alt.Chart(frame, title=alt.TitleParams(title, fontSize=13, limit=260))
        .mark_rect(invalid="filter")
        .encode(
            x=alt.X("column:O", title=f"column of the grid ({side} wide)", axis=axis),
            y=alt.Y("row:O", title="row of the grid", axis=axis),
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(domain=[*scale], scheme="viridis", clamp=True),
                legend=bar,
            ),
            tooltip=tips(fields),
        )
        .properties(height=_MAP)
    )
    return chart
