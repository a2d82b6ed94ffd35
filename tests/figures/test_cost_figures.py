"""Figures of cost: what is drawn where, and that nothing is cut off."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord
from mixer_probe.core.section import Table
from mixer_probe.cost import AccuracyCost, cost_growth, model_cost
from mixer_probe.cost.figures import accuracy_cost_frontier, cost_growth_curves, mac_bars
from mixer_probe.cost.findings import accuracy_cost_sentences, growth_sentence
from mixer_probe.cost.frontier import COSTS
from mixer_probe.report import make_sections
from tests.networks import CASES


def planted() -> AccuracyCost:
    """Three networks: cheap and good, dear and better, dear and clearly worse than both."""
    models = tuple(replace(CASES["mixer"].model().record, name=f"net-{k}") for k in "abc")
    accuracy = np.array([[0.8, 0.9, 0.3]])
    cost = np.array([[1e6, 2e6, 3e6], [1e8, 4e9, 5e9], [1e6, 2e6, 2e6], [0.01, 0.02, np.nan]])
    images = ImagesRecord("demo", "test", 100, 10, "0" * 64)
    return AccuracyCost(
        models,
        images,
        ("linear probe, 50 images",),
        accuracy,
        accuracy - 0.05,
        accuracy + 0.05,
        COSTS,
        cost,
        100,
        0.1,
        "a CPU",
    )


def test_the_frontier_of_planted_networks() -> None:
    found = planted()
    assert found.frontier[0].tolist() == [[True, True, False]] * 4
    assert found.dominated[0].tolist() == [[False, False, True]] * 3 + [[False, False, False]]
    (said,) = accuracy_cost_sentences(found)
    assert "n = 100, chance 10.0 %" in said
    assert "net-b is the most accurate, 90.0 % [85.0 %, 95.0 %]" in said
    assert (
        "By parameters, MACs per image and peak activation bytes per image, net-a and net-b are on "
        "the Pareto frontier, and" in said
    )
    assert "and net-c is dominated beyond both intervals." in said
    assert (
        "By seconds per image, net-a and net-b are on the Pareto frontier, and none is dominated "
        "beyond both intervals." in said
    )


def test_parts_are_told_of_which_there_are() -> None:
    """A Mixer spends 2 S D_S C on positions and 2 S C D_C on channels; a basic block has no module
    for channels alone."""
    costs = [
        replace(model_cost(CASES[name].model(), runs=0), device=device)
        for name, device in (("mixer", "a"), ("resnet18", "b"))
    ]
    (section,) = make_sections(costs)
    mixer, resnet = section.paragraphs
    block = CASES["mixer"].model().module.blocks[0]
    ratio = block.mlp_tokens.fc1.out_features / block.mlp_channels.fc1.out_features
    found = re.search(
        r"\(([\d.]+) % in modules that mix positions and ([\d.]+) % in modules that mix channels "
        r"only\)",
        mixer,
    )
    assert found
    assert float(found[1]) / float(found[2]) == pytest.approx(ratio, rel=0.01)
    assert re.search(
        r"\([\d.]+ % in modules that mix positions and [\d.]+ % in shortcuts and other modules\)",
        resnet,
    )
    table = next(item for item in section.content if isinstance(item, Table))
    assert table.frame["device"].tolist() == ["a", "b"]
    (alone,) = make_sections(costs[:1])
    table = next(item for item in alone.content if isinstance(item, Table))
    assert "device" not in table.frame
    assert table.caption.endswith(" on a.")


def test_points_bars_and_hollow_markers() -> None:
    figure = accuracy_cost_frontier(planted())
    assert len(figure.axes) == 4
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [tuple(np.ravel(p.get_data())) for p in points] == [
        (1e6, 80.0),
        (2e6, 90.0),
        (3e6, 30.0),
    ]
    assert [p.get_markerfacecolor() == "white" for p in points] == [False, False, True]
    # Costs over more than a factor of six are on a logarithmic axis.
    assert [a.get_xscale() for a in figure.axes] == ["linear", "log", "linear", "linear"]


def test_growth_lines_are_ratios() -> None:
    growth = cost_growth(CASES["vit-gap"].model(), timed=0)
    timed = replace(growth, seconds=np.array([[1.0] * 7, [8.0] * 7]), peak_bytes=np.array([10, 40]))
    figure = cost_growth_curves([timed])
    first = [axes.lines[0].get_xydata() for axes in figure.axes]
    np.testing.assert_allclose(
        first[0], np.stack([[1, 4, 9, 16], growth.counted / growth.counted[0]], 1)
    )
    np.testing.assert_allclose(first[1], [[1, 1], [4, 8]])
    np.testing.assert_allclose(first[2], [[1, 1], [4, 4]])
    assert (
        "has an exponent of 1.50 [1.50, 1.50] (n = 7 passes at each of 2 sizes"
        in growth_sentence(timed)
    )
    assert "time was not measured" in growth_sentence(growth)
    with pytest.raises(MeasureError, match="no cost scaling"):
        cost_growth_curves([])


def test_bars_add_up_to_all_multiply_accumulates() -> None:
    costs = [model_cost(CASES[name].model(), runs=0) for name in ("mixer", "resnet-bottleneck")]
    (axes,) = mac_bars(costs).axes
    ends = {round(bar.get_y() + 0.4): bar.get_x() + bar.get_width() for bar in axes.patches}
    assert ends == {k: cost.macs.total for k, cost in enumerate(costs)}
