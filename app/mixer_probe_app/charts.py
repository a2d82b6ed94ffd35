"""Charts that people touch, in altair: readable on light and dark ground, with everything about a point in its tooltip."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from mixer_probe.core.result import ModelRecord
from mixer_probe.core.words import base_name, short_name
from mixer_probe.models import Layer
from mixer_probe.plotting.style import colour_of
from mixer_probe.probing import ProbeResult
from mixer_probe.similarity import LayerMatches, SimilarityMatrix, best_matches

NULL_GREY = "#9E9E9E"
# Readable on light and dark ground, and on every colour of viridis.
CHOSEN = "#FF4B4B"
_RULE_GREY = "#8A8A8A"
_BLUE, _ORANGE = "#3B8EC9", "#E08214"
# In pixels.
_CELL, _SMALLEST_CELL = 34, 16
_LONGEST = 140
_ROOM_FOR_AXIS = 120
_TALLEST = 620
# With its title, axes and legend, about square in a column of `MAP_WIDTH`.
MAP_WIDTH, _MAP = 255, 400


# -- layers against layers -------------------------------------------------------------------------------------------------


def heatmap(
    matrix: SimilarityMatrix, chosen: tuple[str, str] | None = None, path: bool = False, pick: str = "cell"
) -> alt.Chart | alt.LayerChart:
    """Layers against layers, bright is alike; grey cells do not clear their null, undefined ones stay empty.

    The cell `chosen` is framed, with `path` dots join the best match of each row, and a click selects a cell as `pick`."""
    frame = _matrix_frame(matrix, chosen)
    cells = (
        alt.Chart(frame)
        .mark_rect(invalid="filter", cursor="pointer")
        .encode(
            x=alt.X("layer_b:N", sort=_names(matrix.layers_b), title=_title(matrix.model_b), axis=_across()),
            y=alt.Y("layer_a:N", sort=_names(matrix.layers_a)[::-1], title=_title(matrix.model_a), axis=_up()),
            color=_cell_colour(matrix),
            stroke=alt.when("datum.chosen").then(alt.value(CHOSEN)).otherwise(alt.value(None)),
            strokeWidth=alt.value(3),
            tooltip=_heatmap_tooltip(matrix),
        )
        .add_params(alt.selection_point(name=pick, fields=["layer_a", "layer_b"], on="click", empty=False))
    )
    whole: alt.Chart | alt.LayerChart = alt.layer(cells, *_path(matrix)) if path else cells
    return whole.properties(height=_height(len(matrix.layers_a)))


def _matrix_frame(matrix: SimilarityMatrix, chosen: tuple[str, str] | None) -> pd.DataFrame:
    frame = matrix.to_frame()
    frame["interval"] = [_span(low, high) for low, high in zip(frame["low"], frame["high"])]
    frame["chance"] = [_said(above) for above in frame["above_null"]]
    frame["chosen"] = [(a, b) == chosen for a, b in zip(frame["layer_a"], frame["layer_b"])]
    frame["estimator"] = frame["estimator"].replace("", "–")
    return frame.drop(columns=["above_null", "calibrated", "p_a", "p_b", "method"])


def _span(low: float, high: float) -> str:
    return "none" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def _said(above: object) -> str:
    return "not tested" if pd.isna(above) else "yes" if above else "no"


def _cell_colour(matrix: SimilarityMatrix) -> alt.Color | object:
    definition = matrix.definition
    top = float(definition.highest)
    scheme = alt.SchemeParams("viridis", extent=[0, 1] if definition.larger_is_closer else [1, 0])
    scale = alt.Scale(domain=[0, top], scheme=scheme, clamp=True)
    name, _, rest = matrix.label.partition(" (")
    title = [name, f"({rest}"] if rest else [name]
    legend = alt.Legend(title=title, gradientLength=150, values=list(np.linspace(0, top, 5)), format=".2f")
    grey = "isValid(datum.value) && datum.chance == 'no'"
    return alt.when(grey).then(alt.value(NULL_GREY)).otherwise(alt.Color("value:Q", scale=scale, legend=legend))


def _path(matrix: SimilarityMatrix) -> list[alt.Chart]:
    """The best match of each row: white within black, so that it shows on every colour."""
    frame = best_matches(matrix).to_frame().dropna(subset=["layer_b"])
    frame["place"] = range(len(frame))
    base = alt.Chart(frame).encode(
        x=alt.X("layer_b:N", sort=_names(matrix.layers_b), title=_title(matrix.model_b), axis=_across()),
        y=alt.Y("layer_a:N", sort=_names(matrix.layers_a)[::-1], title=_title(matrix.model_a), axis=_up()),
        order="place:Q",
    )
    lines = [base.mark_line(color=colour, strokeWidth=width) for colour, width in (("black", 4), ("white", 2))]
    return [*lines, base.mark_point(filled=True, size=60, opacity=1, color="white", stroke="black", strokeWidth=1)]


def _across() -> alt.Axis:
    return alt.Axis(labelLimit=_LONGEST, labelOverlap="greedy", labelFlush=False, labelAngle=-45)


def _up() -> alt.Axis:
    return alt.Axis(labelLimit=_LONGEST, labelOverlap="greedy", labelFlush=False)


def _height(rows: int) -> int:
    cell = max(_SMALLEST_CELL, min(_CELL, _TALLEST // max(1, rows)))
    return max(120, cell * rows) + _ROOM_FOR_AXIS


def _names(layers: Sequence[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def _title(model: ModelRecord | None) -> str:
    return f"layer of {short_name(model.name) if model else '?'}"


def _heatmap_tooltip(matrix: SimilarityMatrix) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("layer_a:N", title="layer (rows)"),
        alt.Tooltip("depth_a:Q", title="its relative depth", format=".2f"),
        alt.Tooltip("layer_b:N", title="layer (columns)"),
        alt.Tooltip("depth_b:Q", title="its relative depth ", format=".2f"),
        alt.Tooltip("value:Q", title=matrix.definition.label, format=".3f"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("null_mean:Q", title="null, mean", format=".3f"),
        alt.Tooltip("null_q95:Q", title="null, 95 %", format=".3f"),
        alt.Tooltip("chance:N", title="beyond its null"),
        alt.Tooltip("n:Q", title="n images"),
        alt.Tooltip("estimator:N", title="estimator"),
    ]


def match_curve(matches: LayerMatches) -> alt.LayerChart:
    """How alike every layer is to its best match, by depth; the dashed line is the null of the best match."""
    frame = matches.to_frame().dropna(subset=["value"])
    frame["interval"] = [_span(low, high) for low, high in zip(frame["low"], frame["high"])]
    across = alt.X("depth_a:Q", title=f"relative depth of {_short(matches.model_a)}", scale=_unit(), axis=alt.Axis(tickCount=5))
    up = [matches.matrix_label, "of the best match"]
    base = alt.Chart(frame).encode(x=across)
    band = base.mark_area(opacity=0.2, color=_BLUE).encode(y=alt.Y("low:Q", title=up), y2="high:Q")
    line = base.mark_line(color=_BLUE).encode(y=alt.Y("value:Q", title=up))
    null = base.mark_line(color=_RULE_GREY, strokeDash=[4, 4]).encode(y=alt.Y("null95:Q", title=up))
    tips = [
        alt.Tooltip("layer_a:N", title=f"layer of {_short(matches.model_a)}"),
        alt.Tooltip("layer_b:N", title=f"best match in {_short(matches.model_b)}"),
        alt.Tooltip("depth_b:Q", title="its relative depth", format=".2f"),
        alt.Tooltip("value:Q", title=matches.matrix_label, format=".3f"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("null95:Q", title="95 % null of the best match", format=".3f"),
    ]
    points = base.mark_point(filled=True, size=70, opacity=1, color=_BLUE).encode(y=alt.Y("value:Q", title=up), tooltip=tips)
    return alt.layer(band, null, line, points).properties(height=260)


def _short(model: ModelRecord | None) -> str:
    return short_name(model.name) if model else "?"


def _unit() -> alt.Scale:
    return alt.Scale(domain=[0, 1], nice=False)


def class_bars(frame: pd.DataFrame, label: str) -> alt.LayerChart:
    """One bar a class with its 95 % interval; ticks are the 95 % null."""
    frame = frame.assign(interval=[_span(low, high) for low, high in zip(frame["low"], frame["high"])])
    order = list(frame.sort_values("value", ascending=False)["class"])
    up = alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=_LONGEST))
    tips = [
        alt.Tooltip("class:N"),
        alt.Tooltip("value:Q", title=label, format=".3f"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("null_q95:Q", title="null, 95 %", format=".3f"),
        alt.Tooltip("n:Q", title="n images"),
    ]
    base = alt.Chart(frame).encode(y=up, tooltip=tips)
    bars = base.mark_bar(color=_BLUE, opacity=0.75).encode(
        x=alt.X("value:Q", title=f"{label} within the class", axis=alt.Axis(tickCount=6))
    )
    spans = base.mark_rule(color=_RULE_GREY, strokeWidth=2).encode(x="low:Q", x2="high:Q")
    null = base.mark_tick(color=CHOSEN, thickness=2).encode(x="null_q95:Q")
    return alt.layer(bars, spans, null).properties(height=alt.Step(20))


def distance_scatter(frame: pd.DataFrame, titles: tuple[str, str]) -> alt.Chart:
    """Pairs of images by their dissimilarity in two layers; drag and turn the wheel to zoom."""
    axes = [alt.Axis(title=f"1 − r in {title}", tickCount=5) for title in titles]
    colour = alt.Scale(domain=["same class", "different"], range=[_ORANGE, _BLUE])
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_circle(size=22, opacity=0.45)
        .encode(
            x=alt.X("distance_a:Q", axis=axes[0], scale=alt.Scale(zero=False)),
            y=alt.Y("distance_b:Q", axis=axes[1], scale=alt.Scale(zero=False)),
            color=alt.Color("classes:N", title="pair of", scale=colour, legend=alt.Legend(symbolOpacity=1)),
            tooltip=[
                "image 1:N",
                "image 2:N",
                alt.Tooltip("distance_a:Q", title=f"1 − r in {titles[0]}", format=".3f"),
                alt.Tooltip("distance_b:Q", title=f"1 − r in {titles[1]}", format=".3f"),
            ],
        )
        .properties(height=360)
        .interactive()
    )
    return chart


# -- curves by depth -------------------------------------------------------------------------------------------------------

TRAINED = ("trained", "random")
# The first is solid.
_DASHES = ([1, 0], [5, 4])


def curves(
    frame: pd.DataFrame,
    value: str,
    title: str,
    *,
    bounds: tuple[str, str] = ("low", "high"),
    dashes: tuple[str, Sequence[str]] = ("weights", TRAINED),
    level: tuple[float, str] | None = None,
    percent: bool = True,
    more: dict[str, str] | None = None,
    across: tuple[str, str] = ("depth", "relative depth"),
) -> alt.LayerChart:
    """The column `value` against depth, one colour a network: bands are `bounds`, dashes tell apart what the column `dashes[0]`
    says, a dotted line is the `level` that chance gives. `more` are columns and titles to tell in the tooltip."""
    shape = ".1%" if percent else ".3f"
    y = alt.Y(f"{value}:Q", title=title, scale=alt.Scale(zero=percent), axis=alt.Axis(format=".0%" if percent else "g"))
    scale = _unit() if across[0] == "depth" else alt.Scale(type="log")
    x = alt.X(f"{across[0]}:Q", title=across[1], axis=alt.Axis(tickCount=5), scale=scale)
    base = alt.Chart(frame).encode(x=x, color=_network_colour(frame), detail="model:N")
    groups = ["model:N", f"{dashes[0]}:N"]
    split = base.encode(strokeDash=_dash(frame, *dashes), detail=groups)
    band = split.mark_area(opacity=0.16).encode(y=alt.Y(f"{bounds[0]}:Q", title=title), y2=f"{bounds[1]}:Q")
    tips = _curve_tooltip(value, title, shape, bounds, dashes[0], more or {})
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y=y, tooltip=tips, detail=groups)
    parts = [band, split.mark_line().encode(y=y), points]
    if level is not None:
        parts.append(_level(*level, shape))
    return alt.layer(*parts).properties(height=400)


def _network_colour(frame: pd.DataFrame) -> alt.Color:
    colours = colour_of(frame["network"])
    legend = alt.Legend(symbolType="circle", symbolOpacity=1, labelLimit=240)
    return alt.Color("network:N", title="network", scale=alt.Scale(domain=[*colours], range=[*colours.values()]), legend=legend)


def _dash(frame: pd.DataFrame, column: str, values: Sequence[str]) -> alt.StrokeDash:
    known = {value: dash for value, dash in zip(values, _DASHES) if value in set(frame[column])}
    scale = alt.Scale(domain=[*known], range=[*known.values()])
    legend = alt.Legend(symbolType="stroke", symbolSize=700, symbolStrokeWidth=2)
    return alt.StrokeDash(f"{column}:N", title=column, scale=scale, legend=legend)


def _level(value: float, name: str, shape: str) -> alt.Chart:
    rule: alt.Chart = alt.Chart(pd.DataFrame({"level": [value]})).mark_rule(color=_RULE_GREY, strokeDash=[2, 3])
    return rule.encode(y="level:Q", tooltip=alt.Tooltip("level:Q", title=name, format=shape))


def _curve_tooltip(
    value: str, title: str, shape: str, bounds: tuple[str, str], dash: str, more: dict[str, str]
) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("model:N", title="network"),
        alt.Tooltip(f"{dash}:N", title=dash),
        alt.Tooltip("layer:N", title="layer"),
        alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
        alt.Tooltip(f"{value}:Q", title=title, format=shape),
        alt.Tooltip(f"{bounds[0]}:Q", title="95 % interval, low", format=shape),
        alt.Tooltip(f"{bounds[1]}:Q", title="95 % interval, high", format=shape),
        *(alt.Tooltip(f"{column}:Q", title=name) for column, name in more.items()),
    ]


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of layers with the columns that curves need: the network's short name, and whether its weights are trained."""
    networks = frame["model"].map(base_name).map(short_name)
    return frame.assign(network=networks, weights=frame["trained"].map({True: TRAINED[0], False: TRAINED[1]}))


def probe_curves(results: Sequence[ProbeResult]) -> alt.LayerChart:
    """Accuracy against relative depth: bands are 95 % intervals, dashed lines untrained baselines, the dotted line chance."""
    frame = named(pd.concat([r.to_frame() for r in results], ignore_index=True))
    more = {"n_test": "n test images", "n_train": "n training images"}
    return curves(frame, "accuracy", "test accuracy (%)", level=(results[0].chance, "chance"), more=more)


# -- classes and places ----------------------------------------------------------------------------------------------------


def confusion_cells(frame: pd.DataFrame, order: Sequence[str], chosen: str, pick: str) -> alt.Chart:
    """Which class (row) is taken for which (column), as shares of the images of the row; a click selects the row as `pick`."""
    frame = frame.assign(chosen=frame["true"] == chosen)
    scale = alt.Scale(domain=[0, 1], scheme="viridis")
    legend = alt.Legend(title=["images of the", "true class (%)"], format=".0%", gradientLength=150)
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_rect(invalid="filter", cursor="pointer")
        .encode(
            x=alt.X("predicted:N", sort=[*order], title="predicted class", axis=_across()),
            y=alt.Y("true:N", sort=[*order], title="true class", axis=_up()),
            color=alt.Color("share:Q", scale=scale, legend=legend),
            stroke=alt.when("datum.chosen").then(alt.value(CHOSEN)).otherwise(alt.value(None)),
            strokeWidth=alt.value(1.5),
            tooltip=[
                alt.Tooltip("true:N", title="true class"),
                alt.Tooltip("predicted:N", title="predicted class"),
                alt.Tooltip("share:Q", title="fraction of the true class", format=".1%"),
                alt.Tooltip("images:Q", title="images"),
            ],
        )
        .add_params(alt.selection_point(name=pick, fields=["true"], on="click", empty=False))
        .properties(height=max(160, min(_TALLEST, 26 * len(order))) + _ROOM_FOR_AXIS)
    )
    return chart


def class_points(frame: pd.DataFrame) -> alt.LayerChart:
    """Accuracy of every class with its interval, one colour a network; the easiest class is on top."""
    order = list(frame.groupby("class")["accuracy"].mean().sort_values(ascending=False).index)
    networks = len(frame["network"].unique())
    base = alt.Chart(frame).encode(
        y=alt.Y("class:N", sort=order, title="class", axis=alt.Axis(labelLimit=_LONGEST)),
        yOffset=alt.YOffset("network:N", sort=[*colour_of(frame["network"])]),
        color=_network_colour(frame),
    )
    title = "test accuracy (%)"
    spans = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q", title=title, axis=alt.Axis(format=".0%", tickCount=5)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=alt.X("accuracy:Q", title=title),
        tooltip=[
            alt.Tooltip("class:N"),
            alt.Tooltip("network:N"),
            alt.Tooltip("layer:N"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", title="95 % interval, low", format=".1%"),
            alt.Tooltip("high:Q", title="95 % interval, high", format=".1%"),
            alt.Tooltip("precision:Q", format=".1%", title="precision"),
            alt.Tooltip("images:Q", title="n test images"),
        ],
    )
    return alt.layer(spans, points).properties(height=alt.Step(11 if networks > 1 else 20))


def place_map(frame: pd.DataFrame, title: str, scale: tuple[float, float], legend: str) -> alt.Chart:
    """A grid of positions with their `value`, as the image lies: row 0 on top."""
    side = max(1, int(max(frame["row"].max(), frame["column"].max())) + 1)
    axis = alt.Axis(labels=False, ticks=False, domain=False)
    tips = [
        alt.Tooltip("row:O", title="row of the grid"),
        alt.Tooltip("column:O", title="column of the grid"),
        alt.Tooltip("value:Q", title=legend, format=".1%"),
        *(alt.Tooltip(f"{end}:Q", title=f"95 % interval, {end}", format=".1%") for end in ("low", "high") if end in frame),
    ]
    bar = alt.Legend(title=legend, orient="bottom", format=".0%", gradientLength=160, titleLimit=260)
    chart: alt.Chart = (
        alt.Chart(frame, title=alt.TitleParams(title, fontSize=13, limit=260))
        .mark_rect(invalid="filter")
        .encode(
            x=alt.X("column:O", title=f"column of the grid ({side} wide)", axis=axis),
            y=alt.Y("row:O", title="row of the grid", axis=axis),
            color=alt.Color("value:Q", scale=alt.Scale(domain=[*scale], scheme="viridis", clamp=True), legend=bar),
            tooltip=tips,
        )
        .properties(height=_MAP)
    )
    return chart
