"""Labels that stay labels, charts that carry their numbers, settings that keep the app at home."""

from __future__ import annotations

import io
import re
import tomllib
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from mixer_probe_app.charts import heatmap, probe_curves
from mixer_probe_app.messages import plain
from mixer_probe_app.show import saved_chart
from PIL import Image

from mixer_probe.core.result import Result
from mixer_probe.probing import ProbeResult
from mixer_probe.similarity import SimilarityMatrix
from tests.app.conftest import APP


@pytest.mark.parametrize(
    "label",
    [
        "*a*",
        "_a_",
        "[a](http://b)",
        "<img src=x>",
        "`a`",
        "$a$",
        ":red[a]",
        "# a",
        "- a",
        "a\n\nb",
        "~~a~~",
    ],
)
def test_no_label_acts_as_markup(label: str) -> None:
    escaped = plain(label)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(label.split())
    assert not re.search(r"(?<!\\)[*_`\[\]()<>#$:~]", escaped)
    assert "\n" not in escaped


def filter_type(study: list[Result], kind: type[Any]) -> list[Any]:
    return [result for result in study if isinstance(result, kind)]


def test_the_heatmap_carries_its_numbers(study: list[Result]) -> None:
    matrix = filter_type(study, SimilarityMatrix)[1]
    chart = heatmap(matrix).to_dict()
    rows = next(iter(chart["datasets"].values()))
    values = {(row["layer_a"], row["layer_b"]): row["value"] for row in rows}
    for i, a in enumerate(matrix.layers_a):
        for j, b in enumerate(matrix.layers_b):
            assert values[a.name, b.name] == pytest.approx(matrix.values[i, j])
    fields = {tip["field"] for tip in chart["encoding"]["tooltip"]}
    assert {"layer_a", "layer_b", "value", "null_q95", "n"} <= fields
    assert matrix.model_b.name in chart["encoding"]["x"]["title"]
    assert chart["encoding"]["x"]["sort"] == [layer.name for layer in matrix.layers_b]
    assert chart["encoding"]["y"]["sort"] == [layer.name for layer in matrix.layers_a][::-1]


def test_probe_curves_carry_intervals_n_and_twins(study: list[Result]) -> None:
    results: list[ProbeResult] = filter_type(study, ProbeResult)
    chart = probe_curves(results).to_dict()
    rows = [row for rows in chart["datasets"].values() for row in rows if "layer" in row]
    expected = [
        value
        for r in results
        for part in (r, r.untrained)
        if part is not None
        for value in part.accuracy
    ]
    np.testing.assert_allclose([row["accuracy"] for row in rows], expected)
    assert {row["weights"] for row in rows} == {"trained", "untrained"}
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    tips = [
        layer["encoding"]["tooltip"]
        for layer in chart["layer"]
        if isinstance(layer["encoding"].get("tooltip"), list)
    ]
    assert {"accuracy", "low", "high", "n_test", "layer"} <= {tip["field"] for tip in tips[0]}


def test_every_axis_has_a_title(study: list[Result]) -> None:
    charts: list[alt.TopLevelMixin] = [
        heatmap(filter_type(study, SimilarityMatrix)[0]),
        probe_curves(filter_type(study, ProbeResult)),
    ]
    for chart in charts:
        content = chart.to_dict()
        for layer in content.get("layer", [content]):
            axes = [layer["encoding"][axis] for axis in ("x", "y") if axis in layer["encoding"]]
            assert all(axis.get("title") for axis in axes) or layer["mark"]["type"] == "rule"


def test_a_chart_is_saved_in_its_own_size() -> None:
    frame = pd.DataFrame({"x": [1, 2], "y": [3, 4]})
    chart = alt.Chart(frame).mark_point().encode(x="x", y="y")
    widths = []
    for drawn in (chart, chart.properties(width=200, height=200)):
        svg, png = saved_chart(drawn, "svg").decode(), saved_chart(drawn, "png")
        assert svg.startswith("<svg")
        widths.append(
            (float(re.search(r'width="([\d.]+)"', svg)[1]), Image.open(io.BytesIO(png)).width)
        )  # type: ignore[index]
    (free, free_png), (own, own_png) = widths
    assert own < 300 < 640 < free < 720
    # Two pixels of the file for each of the chart.
    assert abs(own_png - 2 * own) <= 2
    assert abs(free_png - 2 * free) <= 2


@pytest.mark.parametrize("folder", [APP, APP / "pages"])
def test_the_app_listens_here_only_and_reports_nothing(folder: Any) -> None:
    settings = tomllib.loads((folder / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["address"] == "localhost"
    assert settings["browser"]["gatherUsageStats"] is False
