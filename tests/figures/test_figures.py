"""Figures show the numbers they are given: scales, order, greyed cells, labels with units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import mixer_probe as mp
from mixer_probe.channels import ChannelStatistics
from mixer_probe.channels.figures import channel_depth
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.words import short_name
from mixer_probe.models import Layer
from mixer_probe.plotting.style import COLOURS, colour_of
from mixer_probe.probing.figures import probe_curves
from mixer_probe.similarity import SimilarityMatrix, find_measure
from mixer_probe.similarity.figures import (
    layer_identification_bars,
    match_figure,
    model_summary,
    similarity_heatmaps,
    similarity_map,
    similarity_measures,
)
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.matches import best_matches
from mixer_probe.similarity.nulls import null_of
from mixer_probe.similarity.summary import model_similarity
from mixer_probe.weights import StemFilters, TokenMixing
from mixer_probe.weights.figures import stem_pictures, token_mixing_depth, token_mixing_units
from mixer_probe.weights.figures.tiles import tile


def of(results: list[Result], kind: type) -> list:
    return [r for r in results if isinstance(r, kind)]


def test_tiles_lie_in_reading_order_with_gaps() -> None:
    maps = np.arange(5)[:, None, None] * np.ones((5, 8, 9))
    canvas = tile(maps, columns=2, background=np.nan)
    assert canvas.shape == (26, 19)
    for k in range(5):
        top, left = 9 * (k // 2), 10 * (k % 2)
        assert (canvas[top : top + 8, left : left + 9] == k).all()
    assert np.isnan(canvas).sum() == canvas.size - 5 * 72


def test_small_maps_are_enlarged_beside_their_gap() -> None:
    canvas = tile(np.arange(8.0).reshape(2, 2, 2), columns=2, background=np.nan)
    assert canvas.shape == (8, 17)
    np.testing.assert_array_equal(
        canvas[:, :8], np.kron(np.arange(4.0).reshape(2, 2), np.ones((4, 4)))
    )


def test_units_are_drawn_symmetric_around_zero_in_the_order_of_pairs(study: list[Result]) -> None:
    units = of(study, TokenMixing)[0]
    image = token_mixing_units(units, 1, columns=4).axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    drawn = np.asarray(image.get_array().filled(np.nan))
    first = units.units(1)[units.order(1)[0]]
    # Units of 4x4 are drawn at twice their size.
    np.testing.assert_allclose(drawn[:8:2, :8:2], first / np.abs(first).max(), rtol=1e-6)
    assert np.nanmax(np.abs(drawn)) == pytest.approx(1.0)
    shared = (
        token_mixing_units(units, 1, shared_scale=True, columns=4)
        .axes[0]
        .images[0]
        .get_array()
        .filled(np.nan)
    )
    np.testing.assert_allclose(
        shared[1:8:2, 1:8:2], first / np.abs(units.units(1)).max(), rtol=1e-6
    )


def test_a_filter_of_zeros_is_mid_grey(study: list[Result]) -> None:
    stem = of(study, StemFilters)[0]
    blank = StemFilters(
        stem.model, stem.layer, np.zeros_like(stem.filters), stem.stride, stem.frequency
    )
    picture = stem_pictures(blank).axes[0].images[0].get_array()
    assert (picture[:8, :8] == 0.5).all()


def test_cells_within_their_null_are_greyed_and_only_they(study: list[Result]) -> None:
    matrix = of(study, SimilarityMatrix)[1]
    axes = similarity_heatmaps([matrix]).axes[0]
    values, grey = (np.ma.filled(image.get_array(), np.nan) for image in axes.images)
    np.testing.assert_allclose(values, np.clip(matrix.values, 0, 1))
    np.testing.assert_array_equal(~np.isnan(grey), matrix.values <= matrix.null.quantile95)


def cka_of(study: list[Result]) -> list[SimilarityMatrix]:
    return [m for m in of(study, SimilarityMatrix) if m.measure == "cka"]


def layers(*kinds: str) -> tuple[Layer, ...]:
    return tuple(
        Layer(f"l{i}", kind, (i + 1) / len(kinds), None, 4, 0, 0) for i, kind in enumerate(kinds)
    )


def matrix_of(
    values: list[list[float]],
    chance: float | None = 0.5,
    kinds: tuple[str, ...] = ("block",),
    **changes: Any,
) -> SimilarityMatrix:
    """A matrix with these values, all cells of which have one null."""
    found = np.array(values, dtype=float)
    a, b = ((kinds * 9)[:size] for size in found.shape)
    direction = find_measure(changes.get("measure", "cka")).direction
    null = None if chance is None else null_of(np.full((20, *found.shape), chance), direction)
    record = ModelRecord("net", "vit", True, "", "0", 1)
    fields = {
        "measure": "cka",
        "estimator": "unbiased",
        "kernel": "linear",
        "n": 9,
        "method": "gram",
        "reduce": "mean",
        "seed": 0,
    }
    models = {"model_a": record, "model_b": replace(record, name="other"), "images": None}
    p = {"p_a": (4,) * len(a), "p_b": (4,) * len(b)}
    return SimilarityMatrix(
        values=found,
        layers_a=layers(*a),
        layers_b=layers(*b),
        null=null,
        **models,
        **p,
        **(fields | changes),
    )


def procrustes_of(values: list[list[float]], chance: float) -> SimilarityMatrix:
    return matrix_of(values, chance, measure="procrustes", estimator="", kernel="")


def drawn_by(axes: Axes) -> list[np.ndarray]:
    return [np.ma.filled(image.get_array(), np.nan) for image in axes.images]


def test_bright_is_alike_for_distances_too() -> None:
    figure = similarity_heatmaps([procrustes_of([[0.2, 1.3], [1.0, 0.4]], 0.9)])
    _values, grey = drawn_by(figure.axes[0])
    image = figure.axes[0].images[0]
    assert image.norm.vmax == pytest.approx(2**0.5)
    near, far = (sum(image.cmap(image.norm(value))[:3]) for value in (0.2, 1.3))
    assert near > far
    np.testing.assert_array_equal(~np.isnan(grey), [[False, True], [True, False]])
    bar = figure.axes[-1]
    assert "Procrustes distance, 0 to 1.41; 0 is identical" in bar.get_ylabel()
    assert bar.get_ylim()[0] > bar.get_ylim()[1]


def test_undefined_cells_are_crossed_and_not_grey() -> None:
    axes = similarity_heatmaps([matrix_of([[0.9, np.nan], [0.1, 0.8]])]).axes[0]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((1, 0), "×")]
    np.testing.assert_array_equal(~np.isnan(drawn_by(axes)[1]), [[False, False], [True, False]])


def test_one_scale_holds_one_measure() -> None:
    both = [matrix_of([[0.9, 0.1]]), procrustes_of([[0.2, 1.3]], 0.9)]
    for draw in (similarity_heatmaps, similarity_map):
        with pytest.raises(MeasureError, match="similarity_measures"):
            draw(both)


def test_strips_show_kinds_where_there_are_several() -> None:
    plain = similarity_heatmaps([matrix_of([[0.9, 0.1], [0.2, 0.8]])])
    assert not plain.axes[0].patches
    figure = similarity_heatmaps(
        [matrix_of([[0.9, 0.1], [0.2, 0.8]], kinds=("spatial", "channel"))]
    )
    strips = figure.axes[0].patches
    assert len(strips) == 4
    assert len({to_hex(strip.get_facecolor()) for strip in strips}) == 2
    # Beside the cells, not on them.
    assert all(
        strip.get_y() + strip.get_height() < -0.5 or strip.get_x() + strip.get_width() < -0.5
        for strip in strips
    )
    assert {"spatial layer", "channel layer"} <= {
        text.get_text() for text in figure.legends[0].get_texts()
    }


def test_the_path_is_the_best_match_with_open_markers_below_the_null() -> None:
    axes = similarity_heatmaps([matrix_of([[0.9, 0.1], [0.2, 0.8], [0.4, 0.3]])], paths=True).axes[
        0
    ]
    path = axes.lines[0]
    assert (list(path.get_xdata()), list(path.get_ydata())) == ([0, 1, 0], [0, 1, 2])
    filled, hollow = axes.collections
    np.testing.assert_array_equal(filled.get_offsets(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(hollow.get_offsets(), [[0, 2]])
    assert len(hollow.get_facecolor()) == 0


def test_every_measure_has_the_scale_that_it_declares() -> None:
    values = [[0.9, -0.3], [0.2, 0.6]]
    names = ["predictivity", "procrustes", "angular_procrustes", "rsa"]
    matrices = [
        matrix_of(values, None),
        *(matrix_of(values, None, measure=name, estimator="", kernel="") for name in names),
    ]
    panels = [
        axes for axes in similarity_measures(matrices).axes if axes.get_label() != "<colorbar>"
    ]
    tops = [axes.images[0].norm.vmax for axes in panels]
    assert tops == pytest.approx([1, 1, 2**0.5, np.pi / 2, 1])
    assert {axes.images[0].norm.vmin for axes in panels} == {0}
    assert [axes.get_title(loc="left") for axes in panels] == [m.label for m in matrices]
    with pytest.raises(MeasureError, match="one pair"):
        similarity_measures([matrices[0], replace(matrices[1], model_b=matrices[0].model_a)])


def test_matches_are_drawn_by_depth() -> None:
    matches = best_matches(matrix_of([[0.9, 0.1], [0.2, 0.8], [0.4, 0.3], [np.nan, np.nan]]))
    figure = match_figure([matches])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["_open"].get_xdata(), [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(lines["_open"].get_ydata(), [0.5, 1, 0.5, np.nan])
    np.testing.assert_allclose(lines["_above"].get_ydata(), [0.5, 1])
    assert "no significant order" in figure.axes[0].get_title(loc="left")
    # Two layers are in order in one case of two, five in one of 120.
    for layers, said in ((2, "no significant order"), (5, "increases with depth")):
        drawn_figure = match_figure(
            [best_matches(matrix_of((0.2 + 0.7 * np.eye(layers)).tolist()))]
        )
        assert said in drawn_figure.axes[0].get_title(loc="left")
    assert "open: not above chance" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_many_pairs_all_look_different() -> None:
    one = best_matches(matrix_of([[0.9, 0.1], [0.2, 0.8]]))
    lines = [line for line in match_figure([one] * 20).axes[0].lines if line.get_label() == "_open"]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20


def test_networks_stand_in_the_order_of_their_tree(study: list[Result]) -> None:
    summary = model_similarity(cka_of(study))
    cells, tree = model_summary(summary).axes[:2]
    names = [summary.models[i].name for i in summary.order]
    assert [t.get_text() for t in cells.get_yticklabels()] == names
    assert len(tree.collections) == 1
    assert cells.texts[1].get_text() == f"{summary.values[summary.order[0], summary.order[1]]:.2f}"
    assert len(model_summary(model_similarity(cka_of(study)[1:2])).axes) == 2


def test_fractions_of_layers_identified_are_drawn_by_measure() -> None:
    record = ModelRecord("net", "vit", True, "", "0", 1)
    partner = np.array([[[0, 1, 2, 3], [0, 1, 2, 3]], [[0, 0, 0, 3], [1, 1, 2, 0]]])
    models = (record, replace(record, name="other"))
    found = LayerIdentification(
        models, layers(*["block"] * 4), ("cka", "rsa"), ("CKA", "RSA"), partner, 9, "mean", None
    )
    axes = layer_identification_bars([found, found]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["RSA", "CKA"]
    first, second = (line for line in axes.lines if line.get_label().startswith("net"))
    np.testing.assert_allclose(first.get_xdata(), [100, 50])
    assert first.get_color() != second.get_color()
    assert 25 in [line.get_xdata()[0] for line in axes.lines]


def test_the_map_has_every_pair_both_ways_round(study: list[Result]) -> None:
    matrices = cka_of(study)
    axes = similarity_map(matrices).axes[0]
    meshes = [m for m in axes.collections if m.get_cmap().name == "viridis"]
    assert len(meshes) == 9
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "tiny-mixer",
        "tiny-vit",
        "tiny-resnet",
    ]
    # row network 0, column network 1
    upper = next(m for m in meshes if m.get_coordinates()[0, 0].tolist() == [1, 0])
    np.testing.assert_allclose(upper.get_array(), np.clip(matrices[1].values, 0, 1))
    lower = next(m for m in meshes if m.get_coordinates()[0, 0].tolist() == [0, 1])
    box = lower.get_coordinates()
    assert (box[..., 1].min(), box[..., 1].max()) == (1, 2)


@pytest.mark.parametrize("name", ["depth", "channels", "probes"])
def test_every_axis_has_a_label_and_every_panel_a_title(study: list[Result], name: str) -> None:
    figures = {
        "depth": lambda: token_mixing_depth(of(study, TokenMixing)),
        "channels": lambda: channel_depth(of(study, ChannelStatistics)),
        "probes": lambda: probe_curves(of(study, mp.probing.ProbeResult)),
    }
    figure: Figure = figures[name]()
    for axes in figure.axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.lines


def test_curves_are_the_numbers(study: list[Result]) -> None:
    probes = of(study, mp.probing.ProbeResult)
    lines = {line.get_label(): line for line in probe_curves(probes).axes[0].lines}
    np.testing.assert_allclose(lines["tiny-vit"].get_ydata(), 100 * probes[1].accuracy)
    assert lines["tiny-vit?untrained"].get_linestyle() == ":"
    assert lines["tiny-vit?untrained"].get_color() == lines["tiny-vit"].get_color()


def test_drawing_leaves_the_callers_style_alone(study: list[Result]) -> None:
    before = dict(mpl.rcParams)
    stem_pictures(of(study, StemFilters)[0])
    assert dict(mpl.rcParams) == before


def test_twins_share_a_colour_and_long_names_are_cut() -> None:
    colours = colour_of(["a", "a?untrained", "b"])
    assert colours == {"a": COLOURS[0], "b": COLOURS[1]}
    assert len(short_name("hf-hub:somebody/" + "x" * 80)) <= 34
