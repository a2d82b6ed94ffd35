"""Charts that people touch, in altair: readable on light and dark ground, with everything about a point in its tooltip."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from mixer_probe.figures.style import base_name, colour_of, short_name
from mixer_probe.models import Layer
from mixer_probe.probing import ProbeResult
from mixer_probe.results import ModelRecord
from mixer_probe.similarity import SimilarityMatrix

NULL_GREY = "#9E9E9E"
_RULE_GREY = "#8A8A8A"
# In pixels.
_CELL = 30
_LONGEST = 140
_ROOM_FOR_AXIS = 120


def heatmap(matrix: SimilarityMatrix) -> alt.Chart:
    """Layers against layers on a scale from 0 to 1; grey cells do not clear their null, undefined ones stay empty."""
    scale = alt.Scale(domain=[0, 1], scheme="viridis", clamp=True)
    title = [matrix.measure.upper(), f"({matrix.kernel}, {matrix.estimator})"]
    legend = alt.Legend(title=title, gradientLength=150, values=[0, 0.25, 0.5, 0.75, 1], format=".2f")
    colour = (
        alt.when("isValid(datum.value) && isValid(datum.null_q95) && datum.value <= datum.null_q95")
        .then(alt.value(NULL_GREY))
        .otherwise(alt.Color("value:Q", scale=scale, legend=legend))
    )
    up = alt.Axis(labelLimit=_LONGEST, labelOverlap="greedy", labelFlush=False)
    across = alt.Axis(labelLimit=_LONGEST, labelOverlap="greedy", labelFlush=False, labelAngle=-45)
    chart: alt.Chart = (
        alt.Chart(matrix.to_frame())
        .mark_rect(invalid="filter")
        .encode(
            x=alt.X("layer_b:N", sort=_names(matrix.layers_b), title=_title(matrix.model_b), axis=across),
            y=alt.Y("layer_a:N", sort=_names(matrix.layers_a)[::-1], title=_title(matrix.model_a), axis=up),
            color=colour,
            tooltip=_heatmap_tooltip(),
        )
        .properties(height=max(120, _CELL * len(matrix.layers_a)) + _ROOM_FOR_AXIS)
    )
    return chart


def _names(layers: Sequence[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def _title(model: ModelRecord | None) -> str:
    return f"layer of {short_name(model.name) if model else '?'}"


def _heatmap_tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("layer_a:N", title="layer (rows)"),
        alt.Tooltip("depth_a:Q", title="its relative depth", format=".2f"),
        alt.Tooltip("layer_b:N", title="layer (columns)"),
        alt.Tooltip("depth_b:Q", title="its relative depth ", format=".2f"),
        alt.Tooltip("value:Q", title="CKA", format=".3f"),
        alt.Tooltip("null_q95:Q", title="null, 95 %", format=".3f"),
        alt.Tooltip("null_mean:Q", title="null, mean", format=".3f"),
        alt.Tooltip("n:Q", title="n images"),
    ]


def probe_curves(results: Sequence[ProbeResult]) -> alt.LayerChart | alt.FacetChart:
    """Accuracy against relative depth: bands are 95 % intervals, dashed lines random weights, the grey line chance."""
    frame = _probe_frame(results)
    colours = colour_of(frame["network"])
    base = alt.Chart(frame).encode(
        x=alt.X("depth:Q", title="relative depth", scale=alt.Scale(domain=[0, 1], nice=False), axis=alt.Axis(tickCount=5)),
        color=alt.Color(
            "network:N",
            title="network",
            scale=alt.Scale(domain=[*colours], range=[*colours.values()]),
            legend=alt.Legend(symbolType="circle", symbolOpacity=1, labelLimit=240),
        ),
        detail="model:N",
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=_ACCURACY), y2="high:Q")
    line = base.mark_line().encode(y=_accuracy(), strokeDash=_dash())
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=_accuracy(), tooltip=_probe_tooltip())
    chance = alt.Chart(pd.DataFrame({"chance": [results[0].chance]})).mark_rule(color=_RULE_GREY, strokeDash=[2, 3])
    chance = chance.encode(y="chance:Q", tooltip=alt.Tooltip("chance:Q", title="chance", format=".1%"))
    return alt.layer(band, line, points, chance).properties(height=420)


_ACCURACY = "test accuracy (%)"


def _accuracy() -> alt.Y:
    return alt.Y("accuracy:Q", title=_ACCURACY, scale=alt.Scale(domainMin=0), axis=alt.Axis(format=".0%"))


def _dash() -> alt.StrokeDash:
    scale = alt.Scale(domain=["trained", "random"], range=[[1, 0], [5, 4]])
    legend = alt.Legend(symbolType="stroke", symbolSize=700, symbolStrokeWidth=2)
    return alt.StrokeDash("weights:N", title="weights", scale=scale, legend=legend)


def _probe_frame(results: Sequence[ProbeResult]) -> pd.DataFrame:
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    frame["network"] = frame["model"].map(base_name).map(short_name)
    frame["weights"] = frame["trained"].map({True: "trained", False: "random"})
    return frame


def _probe_tooltip() -> list[alt.Tooltip]:
    shares = {"accuracy": "accuracy", "low": "95 % interval, low", "high": "95 % interval, high", "chance": "chance"}
    return [
        alt.Tooltip("model:N", title="network"),
        alt.Tooltip("weights:N", title="weights"),
        alt.Tooltip("layer:N", title="layer"),
        alt.Tooltip("depth:Q", title="relative depth", format=".2f"),
        *(alt.Tooltip(f"{field}:Q", title=title, format=".1%") for field, title in shares.items()),
        alt.Tooltip("n_test:Q", title="n test images"),
    ]
