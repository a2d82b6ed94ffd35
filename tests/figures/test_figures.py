"""Figures show the numbers they are given: scales, order, greyed cells, labels with units."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import mixer_probe as mp
from mixer_probe.channels import ChannelStatistics
from mixer_probe.figures import (
    channel_depth,
    probe_curves,
    similarity_heatmaps,
    similarity_map,
    stem_pictures,
    token_mixing_depth,
    token_mixing_units,
)
from mixer_probe.figures.style import COLOURS, colour_of, short_name
from mixer_probe.figures.weights import tile
from mixer_probe.results import Result
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.weights import StemFilters, TokenMixing


def of(results: list[Result], kind: type) -> list:
    return [r for r in results if isinstance(r, kind)]


def test_tiles_lie_in_reading_order_with_gaps() -> None:
    maps = np.arange(5)[:, None, None] * np.ones((5, 8, 9))
    canvas = tile(maps, columns=2, gap=np.nan)
    assert canvas.shape == (26, 19)
    for k in range(5):
        top, left = 9 * (k // 2), 10 * (k % 2)
        assert (canvas[top : top + 8, left : left + 9] == k).all()
    assert np.isnan(canvas).sum() == canvas.size - 5 * 72


def test_small_maps_are_enlarged_beside_their_gap() -> None:
    canvas = tile(np.arange(8.0).reshape(2, 2, 2), columns=2, gap=np.nan)
    assert canvas.shape == (8, 17)
    np.testing.assert_array_equal(canvas[:, :8], np.kron(np.arange(4.0).reshape(2, 2), np.ones((4, 4))))


def test_units_are_drawn_symmetric_around_zero_in_the_order_of_pairs(study: list[Result]) -> None:
    units = of(study, TokenMixing)[0]
    image = token_mixing_units(units, 1, columns=4).axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    drawn = np.asarray(image.get_array().filled(np.nan))
    first = units.units(1)[units.order(1)[0]]
    # Units of 4x4 are drawn at twice their size.
    np.testing.assert_allclose(drawn[:8:2, :8:2], first / np.abs(first).max(), rtol=1e-6)
    assert np.nanmax(np.abs(drawn)) == pytest.approx(1.0)
    shared = token_mixing_units(units, 1, shared_scale=True, columns=4).axes[0].images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(shared[1:8:2, 1:8:2], first / np.abs(units.units(1)).max(), rtol=1e-6)


def test_a_filter_of_zeros_is_mid_grey(study: list[Result]) -> None:
    stem = of(study, StemFilters)[0]
    blank = StemFilters(stem.model, stem.layer, np.zeros_like(stem.filters), stem.stride, stem.frequency)
    picture = stem_pictures(blank).axes[0].images[0].get_array()
    assert (picture[:8, :8] == 0.5).all()


def test_cells_within_their_null_are_greyed_and_only_they(study: list[Result]) -> None:
    matrix = of(study, SimilarityMatrix)[1]
    axes = similarity_heatmaps([matrix]).axes[0]
    values, grey = (np.ma.filled(image.get_array(), np.nan) for image in axes.images)
    np.testing.assert_allclose(values, np.clip(matrix.values, 0, 1))
    np.testing.assert_array_equal(~np.isnan(grey), matrix.values <= matrix.null.quantile95)


def test_the_map_has_every_pair_both_ways_round(study: list[Result]) -> None:
    matrices = of(study, SimilarityMatrix)
    axes = similarity_map(matrices).axes[0]
    meshes = [m for m in axes.collections if m.get_cmap().name == "viridis"]
    assert len(meshes) == 9
    assert [t.get_text() for t in axes.get_xticklabels()] == ["tiny-mixer", "tiny-vit", "tiny-resnet"]
    upper = next(m for m in meshes if m.get_coordinates()[0, 0].tolist() == [1, 0])  # row network 0, column network 1
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
