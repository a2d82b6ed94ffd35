"""Figures of probes show the numbers they are given, with their baselines, and their texts and
panels stay apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.probing.figures import (
    attention_maps,
    class_accuracy,
    code_curves,
    confusion_heatmaps,
    control_code_curves,
    control_curves,
    few_shot_curves,
    patch_position_curves,
    position_maps,
    probe_curves,
    probe_paths,
    random_label_curves,
    reliability_diagrams,
    target_curves,
)
from tests.figures.test_stem_figures import check_layout
from tests.probes import (
    accuracy,
    attentive,
    calibrated,
    coded,
    confused,
    control_coded,
    controlled,
    few_shot,
    patch_placed,
    placed,
    randomised,
    record,
    targeted,
)

LONG = (
    "mixer_b16_224.goog_in21k_ft_in1k",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "local-dir:a/" + "long/" * 9,
)
DRAWN: dict[str, tuple[Any, Any]] = {
    "accuracy": (probe_curves, accuracy),
    "path": (probe_paths, accuracy),
    "few-shot": (few_shot_curves, few_shot),
    "control": (control_curves, controlled),
    "code": (code_curves, coded),
    "control-code": (control_code_curves, control_coded),
    "random": (random_label_curves, randomised),
    "positions": (position_maps, placed),
    "attention": (attention_maps, attentive),
    "patch-position": (patch_position_curves, patch_placed),
    "targets": (target_curves, targeted),
    "confusion": (confusion_heatmaps, confused),
    "classes": (class_accuracy, confused),
    "reliability": (reliability_diagrams, calibrated),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_layout_with_few_and_many_networks_of_long_names(name: str, count: int) -> None:
    draw, make = DRAWN[name]
    names = [
        LONG[i % 3] if i < 3 else f"network_{i}_of_many_with_a_long_name.in1k" for i in range(count)
    ]
    check_layout(draw([make(n) for n in names]))


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in DRAWN
        if n not in ("confusion", "classes", "reliability", "random", "control-code")
    ],
)
def test_undefined_layers_are_gaps(name: str) -> None:
    draw, make = DRAWN[name]
    check_layout(draw([make("net", undefined=True)]))


def lines(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.lines}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_accuracy_has_interval_twin_pixels_and_chance() -> None:
    result = accuracy("net")
    figure = probe_curves([result, accuracy("raw pixels", family="pixels", layers=1)])
    axes = figure.axes[0]
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["net"].get_ydata(), 100 * result.accuracy)
    np.testing.assert_allclose(drawn["net"].get_xdata(), [layer.depth for layer in result.layers])
    assert result.untrained is not None
    np.testing.assert_allclose(drawn["net?untrained"].get_ydata(), 100 * result.untrained.accuracy)
    band = axes.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for y in band[:, 1]} >= {
        round(100 * value, 6) for value in (*result.low, *result.high)
    }
    levels = [
        float(line.get_ydata()[0])
        for line in axes.lines
        if len(set(line.get_ydata())) == 1 and line.get_xdata()[0] == 0
    ]
    assert 100 * result.chance in [pytest.approx(level) for level in levels]
    assert legend(figure) == ["net", "untrained baseline", "raw pixels", "chance (25 %)"]


def test_one_layer_is_a_point_in_a_row_of_its_own() -> None:
    result, raw = accuracy("net", layers=1), accuracy("raw pixels", family="pixels", layers=1)
    figure = probe_curves([result, raw])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "net",
        "net?untrained",
        "raw pixels",
    ]
    assert axes.get_title(loc="left") == "Ridge probes after l0"
    bars, points = axes.lines[0:6:2], axes.lines[1:6:2]
    assert result.untrained is not None
    for y, (one, bar, point) in enumerate(
        zip((result, result.untrained, raw), bars, points, strict=True)
    ):
        np.testing.assert_allclose(np.ravel(point.get_data()), [100 * one.accuracy[0], y])
        np.testing.assert_allclose(bar.get_xdata(), [100 * one.low[0], 100 * one.high[0]])
    assert axes.lines[6].get_xdata()[0] == pytest.approx(100 * result.chance)
    check_layout(figure)
    check_layout(probe_curves([accuracy(name, layers=1, undefined=True) for name in LONG]))
    few = few_shot_curves([few_shot("net", layers=1)])
    assert len(few.axes) == 1
    check_layout(few)


def test_a_path_rings_its_choice() -> None:
    result = accuracy("net")
    figure = probe_paths([result])
    axes = figure.axes[0]
    test, left_out, ring = axes.lines[:3]
    np.testing.assert_allclose(test.get_ydata(), 100 * result.path_test[0])
    np.testing.assert_allclose(left_out.get_ydata(), 100 * result.path_left_out[0])
    assert left_out.get_linestyle() == "--"
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx(
        (result.chosen[0], 100 * result.accuracy[0])
    )
    assert axes.get_xscale() == "log"
    # Nothing of any panel lies above the frame, whichever network is the best.
    best = replace(result, path_test=np.ones_like(result.path_test))
    assert probe_paths([result, best]).axes[0].get_ylim()[1] > 100


def test_paths_of_named_layers() -> None:
    result = accuracy("net")
    axes = probe_paths([result], ["l1"]).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * result.path_test[1])
    with pytest.raises(MeasureError, match="net has no probe of l9"):
        probe_paths([result], ["l9"])
    with pytest.raises(MeasureError, match="a centroid probe has no hyperparameter path"):
        probe_paths([replace(result, method="centroid", path_name="")])


def test_few_shots_lie_on_a_logarithmic_axis_with_their_bounds() -> None:
    result = few_shot("net")
    left, right = few_shot_curves([result, few_shot("raw pixels", family="pixels", layers=1)]).axes
    assert left.get_xscale() == "log"
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "5", "10", "25"]
    np.testing.assert_allclose(lines(left)["net"].get_ydata(), 100 * result.mean[-1])
    np.testing.assert_allclose(lines(right)["net"].get_ydata(), 100 * result.mean[:, -1])
    np.testing.assert_allclose(lines(left)["raw pixels"].get_xdata(), result.shots)
    first = few_shot_curves([result], layer=0).axes[0]
    np.testing.assert_allclose(lines(first)["net"].get_ydata(), 100 * result.mean[0])


def test_one_shot_alone_is_a_figure_too() -> None:
    check_layout(few_shot_curves([few_shot("net", shots=(1,))]))


def test_selectivity_is_the_difference() -> None:
    result = controlled("net")
    left, middle, right = control_curves([result]).axes
    np.testing.assert_allclose(lines(left)["net"].get_ydata(), 100 * result.accuracy)
    np.testing.assert_allclose(
        left.lines[1].get_ydata(), 100 * result.control_accuracy.mean(axis=1)
    )
    np.testing.assert_allclose(lines(middle)["net"].get_ydata(), 100 * result.selectivity)
    np.testing.assert_allclose(lines(right)["net"].get_ydata(), 100 * result.relative_selectivity)
    assert "net?untrained" in lines(middle)
    assert "net?untrained" not in lines(left)


def test_a_relative_selectivity_far_below_zero_does_not_flatten_the_others() -> None:
    result = controlled("net")
    low = result.relative_low.copy()
    low[0] = -6.0
    assert control_curves([replace(result, relative_low=low)]).axes[2].get_ylim()[0] == -30


def test_codes_of_twins_are_dotted() -> None:
    own, twin = coded("net"), coded("net?untrained", trained=False)
    drawn = lines(code_curves([own, twin]).axes[0])
    np.testing.assert_allclose(drawn["net"].get_ydata(), own.compression)
    assert drawn["net?untrained"].get_linestyle() == ":"
    assert drawn["net?untrained"].get_color() == drawn["net"].get_color()


def test_maps_have_one_scale_and_chance_in_the_colour_bar() -> None:
    results = [placed("net"), placed("other")]
    figure = position_maps(results, layers=2)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 4
    np.testing.assert_allclose(images[0].get_array(), 100 * results[0].accuracy[0])
    np.testing.assert_allclose(images[1].get_array(), 100 * results[0].accuracy[-1])
    scales = {(image.norm.vmin, image.norm.vmax) for image in images}
    assert len(scales) == 1
    ((low, high),) = scales
    assert low < 100 * results[0].chance < high
    bar = next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert "25 chance" in [text.get_text() for text in bar.get_yticklabels()]


def test_attention_is_relative_to_even() -> None:
    result = attentive("net")
    image = next(axes for axes in attention_maps([result], layers=1).axes if axes.images).images[0]
    np.testing.assert_allclose(image.get_array(), result.attention[0] * result.attention[0].size)
    assert np.asarray(image.get_array()).mean() == pytest.approx(1)


def test_positions_without_a_grid_are_one_row() -> None:
    result = placed("net")
    flat = {
        name: tuple(part.reshape(1, -1) for part in getattr(result, name))
        for name in ("accuracy", "low", "high", "left_out")
    }
    check_layout(position_maps([replace(result, **flat)]))


def test_patch_positions_are_in_pixels_beside_chance() -> None:
    result = patch_placed("net")
    left, right = patch_position_curves([result]).axes
    np.testing.assert_allclose(lines(left)["net"].get_ydata(), result.distance_px)
    np.testing.assert_allclose(lines(right)["net"].get_ydata(), result.r2)
    assert "(px)" in left.get_ylabel()
    assert result.chance_distance_px[0] in [
        pytest.approx(line.get_ydata()[0]) for line in left.lines
    ]
    assert lines(left)["net?untrained"].get_linestyle() == ":"


def test_a_panel_a_target_and_hopeless_ones_do_not_stretch_it() -> None:
    result = targeted("net")
    figure = target_curves([result])
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(result.targets)
    np.testing.assert_allclose(lines(figure.axes[0])["net"].get_ydata(), result.score[:, 0])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "R² on test images",
        "R² on test images",
        "test accuracy",
    ]
    low = result.low.copy()
    low[:, 0] = -40
    assert target_curves([replace(result, low=low)]).axes[0].get_ylim()[0] == pytest.approx(-0.25)
    assert len(target_curves([result], ["hue"]).axes) == 1
    with pytest.raises(MeasureError, match="no target 'heu'; there are brightness, hue, place"):
        target_curves([result], ["heu"])


def test_confusion_shows_shares_of_the_true_class() -> None:
    result = confused("net")
    axes = confusion_heatmaps([result], layer=0).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * result.fractions[0])
    assert [text.get_text() for text in axes.get_yticklabels()] == list(result.class_names)
    assert len(axes.texts) == 16


def test_of_many_classes_the_hardest_are_drawn() -> None:
    names = tuple(f"class {k}" for k in range(60))
    counts = np.zeros((1, 60, 60), dtype=np.int64)
    counts[0] = 9 * np.eye(60, dtype=np.int64)
    counts[0, 7, 41] = 5
    result = replace(
        confused("net"), class_names=names, counts=counts, layers=confused("net").layers[:1]
    )
    figure = confusion_heatmaps([result], most=2)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["class 7", "class 41"]
    assert "2 of 60 classes" in figure.axes[0].get_title(loc="left")
    for most in (30, 60):
        check_layout(confusion_heatmaps([result], most=most))
    check_layout(class_accuracy([result]))


def test_classes_are_ordered_by_accuracy_with_their_intervals() -> None:
    result = confused("net")
    axes = class_accuracy([result], layer=0).axes[0]
    table = result.per_class().iloc[:4].sort_values("accuracy", ascending=False, kind="stable")
    assert [text.get_text() for text in axes.get_yticklabels()] == list(table["class"])
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 100 * table["accuracy"])
    with pytest.raises(MeasureError, match="the same classes"):
        class_accuracy([result, replace(result, class_names=("a", "b", "c", "d"))])


def test_reliability_is_accuracy_against_confidence() -> None:
    result = calibrated("net")
    axes = reliability_diagrams([result], layer=0).axes[0]
    points = axes.containers[-1].lines[0]
    np.testing.assert_allclose(points.get_xdata(), 100 * result.confidence[0])
    np.testing.assert_allclose(points.get_ydata(), 100 * result.accuracy[0])
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == pytest.approx(100)
    assert f"ECE {100 * result.ece[0]:.1f} points" in axes.get_title(loc="left")


def test_untrained_networks_of_their_own_are_named() -> None:
    result = replace(accuracy("net"), model=record("net", trained=False), untrained=None)
    assert legend(probe_curves([result])) == ["net (untrained)", "chance (25 %)"]
