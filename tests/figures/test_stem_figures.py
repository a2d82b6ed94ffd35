"""Figures of stems and position embeddings show the numbers they are given, and their texts and
panels stay apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from timm.models.vision_transformer import VisionTransformer

from mixer_probe.core.result import ModelRecord
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.weights import (
    PositionEmbeddings,
    StemFilters,
    colour_centroid,
    position_embeddings,
    stem_components,
)
from mixer_probe.weights.figures import (
    position_curves,
    position_similarity,
    stem_colour,
    stem_component_pictures,
    stem_pictures,
)
from mixer_probe.weights.views.stem import position_section, stem_section
from tests.networks import as_model
from tests.report.test_figure_layout import outside, overlapping, texts_of

LONG = "vit_base_patch16_224.augreg2_in21k_ft_in1k"


def stem_of(
    units: int, channels: int, size: int, name: str = "net", trained: bool = True
) -> StemFilters:
    filters = np.random.default_rng(units).standard_normal((units, channels, size, size))
    return StemFilters(
        ModelRecord(name, "vit", trained, "", "0", 1),
        "stem",
        filters,
        (size, size),
        colour_centroid(filters),
    )


def positions_of(name: str, size: tuple[int, int] = (32, 32), patch: int = 8) -> PositionEmbeddings:
    network = VisionTransformer(img_size=size, patch_size=patch, embed_dim=24, depth=1, num_heads=2)
    return position_embeddings(as_model(network, input_size=(3, *size), name=name))


def check_layout(figure: Figure) -> None:
    texts = texts_of(figure)
    assert not overlapping(texts)
    assert not [text for text, box in texts if outside(box, figure.bbox)]
    assert all(axes.has_data() for axes in figure.axes if axes.get_label() != "<colorbar>")


def test_filters_stand_in_the_order_that_is_asked_for() -> None:
    stem = stem_of(6, 3, 8)
    for order in ("frequency", "norm", "luminance"):
        drawn = np.asarray(
            stem_pictures(stem, order_by=order, columns=3).axes[0].images[0].get_array()
        )
        first, fourth = stem.order_by(order)[[0, 3]]
        for unit, corner in ((first, drawn[:8, :8]), (fourth, drawn[9:17, :8])):
            expected = 0.5 + 0.5 * stem.filters[unit] / np.abs(stem.filters[unit]).max()
            np.testing.assert_allclose(corner, expected.transpose(1, 2, 0), atol=1e-12)


def test_filters_of_one_channel_are_grey_and_of_four_stand_side_by_side() -> None:
    grey = np.asarray(stem_pictures(stem_of(4, 1, 8)).axes[0].images[0].get_array())
    assert (grey == grey[..., :1]).all()
    stem = stem_of(1, 4, 8)
    stem.filters[:] = 0
    stem.filters[0, 2] = 1.0
    wide = np.asarray(stem_pictures(stem).axes[0].images[0].get_array())
    assert wide.shape == (8, 32, 3)
    # Only the third channel is not zero: red, beside white.
    assert (wide[:, 16:24, 0] > wide[:, 16:24, 2]).all()
    np.testing.assert_allclose(wide[:, :16], np.broadcast_to(wide[0, 0], (8, 16, 3)), atol=1e-6)
    assert wide[0, 0].min() > 0.95


def test_all_filters_are_shown_unless_fewer_are_asked_for() -> None:
    figure = stem_pictures(stem_of(768, 3, 4))
    assert "all 768 filters" in figure.axes[0].get_title(loc="left")
    # 32 columns and 24 rows, all full, of tiles drawn at 8 pixels.
    assert figure.axes[0].images[0].get_array().shape[:2] == (24 * 9 - 1, 32 * 9 - 1)
    assert "5 of 768" in stem_pictures(stem_of(768, 3, 4), limit=5).axes[0].get_title(loc="left")


def test_components_carry_their_fractions() -> None:
    found = stem_components(stem_of(40, 3, 8), 9)
    figure = stem_component_pictures(found)
    *tiles, curve = figure.axes
    assert len(tiles) == 9
    assert tiles[0].get_title() == f"1: {100 * found.fractions[0]:.2g} %"
    expected = 0.5 + 0.5 * found.components[4] / np.abs(found.components[4]).max()
    np.testing.assert_allclose(
        tiles[4].images[0].get_array(), expected.transpose(1, 2, 0), atol=1e-12
    )
    np.testing.assert_allclose(curve.lines[0].get_ydata(), 100 * found.fractions)
    assert curve.lines[1].get_ydata()[0] == pytest.approx(100 * found.null_fraction)


def test_colour_is_drawn_against_frequency() -> None:
    stem = stem_of(12, 3, 8)
    axes = stem_colour([stem]).axes[0]
    np.testing.assert_allclose(
        axes.collections[0].get_offsets(), np.stack([stem.frequency, stem.luminance], 1)
    )
    assert axes.lines[0].get_ydata()[0] == pytest.approx(1 / 3)


def test_maps_stand_where_their_patches_are() -> None:
    found = positions_of("net", (64, 160))
    figure = position_similarity(found, most=4)
    maps = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    # 8 rows give every second, 20 columns every fifth, centred.
    rows, columns = (0, 2, 4, 6), (2, 7, 12, 17)
    assert len(maps) == 16
    for k, axes in enumerate(maps):
        place = rows[k // 4], columns[k % 4]
        np.testing.assert_allclose(axes.images[0].get_array(), found.similarity[place])
        assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-1, 1)
        assert (axes.lines[0].get_ydata()[0], axes.lines[0].get_xdata()[0]) == place
    assert [axes.get_xlabel() for axes in maps[-4:]] == [str(c) for c in columns]


def test_curves_are_the_numbers() -> None:
    found = positions_of("net")
    line = position_curves([found]).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), found.by_distance()["cosine"])
    assert line.get_linestyle() == "-"


@pytest.mark.parametrize(
    "units, channels, size", [(1, 3, 2), (5, 1, 3), (64, 3, 7), (96, 4, 4), (768, 3, 16)]
)
def test_layout_of_stems_of_all_sizes(units: int, channels: int, size: int) -> None:
    stem = stem_of(units, channels, size, LONG, trained=False)
    for figure in (stem_pictures(stem), stem_component_pictures(stem_components(stem))):
        check_layout(figure)


def test_layout_of_sections() -> None:
    stems = [stem_of(8, 3, 4, f"{LONG}.{k}", trained=k > 0) for k in range(2)]
    check_layout(stem_colour([stem_of(8, 3, 4, f"{LONG}.{k}") for k in range(5)]))
    places = [
        positions_of(LONG, size, patch)
        for size, patch in (((32, 32), 16), ((32, 96), 8), ((64, 64), 4))
    ]
    for section in (*stem_section(stems), *position_section(places)):
        for item in section.content:
            if isinstance(item, Picture):
                check_layout(item.figure)


def text_of(section: Section) -> str:
    return " ".join(section.paragraphs)


def test_sections_say_the_numbers() -> None:
    stem = stem_of(40, 3, 4)
    (section,) = stem_section([stem])
    found = stem_components(stem)
    energy = stem.norm**2
    luminance = (stem.luminance * energy).sum() / energy.sum()
    assert (
        f"Luminance accounts for {100 * luminance:.1f} % of their energy (iid weights: 33.3 %)"
        in text_of(section)
    )
    assert f"{found.needed(0.9)} of 40 principal components explain 90 %" in text_of(section)
    places = positions_of("net")
    (section,) = position_section([replace(places, model=replace(places.model, trained=False))])
    assert f"row alone explains {100 * places.row_fraction:.1f} %" in text_of(section)
    assert "(iid: 20.0 % and 20.0 %)" in text_of(section)
    assert section.warnings
    table = next(item for item in section.content if isinstance(item, Table))
    assert table.frame["same row"].iloc[0] == places.alike()["same row"]


def test_a_stem_of_zeros_has_a_section() -> None:
    stem = stem_of(4, 3, 4)
    blank = StemFilters(stem.model, stem.layer, 0 * stem.filters, stem.stride, np.full(4, np.nan))
    (section,) = stem_section([blank])
    assert "all of them zero" in text_of(section)
