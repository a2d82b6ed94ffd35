"""Figures of token-mixing units show the numbers: order, gaps, places, scales, nulls; and the
report says them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from timm.layers.mlp import GluMlp
from timm.models.mlp_mixer import MlpMixer, ResBlock
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.weights import TokenMixing
from mixer_probe.weights.figures import token_mixing_depth, token_mixing_scatter, token_mixing_units
from mixer_probe.weights.figures.tiles import Tiling
from mixer_probe.weights.views.units import token_mixing_section
from tests.networks import as_model, randomised
from tests.report.test_figure_layout import outside, overlapping, texts_of


def mixing(name: str, trained: bool = True, **arguments: object) -> TokenMixing:
    """Random weights that the figures take for trained ones, with pairs planted in the second half
    of the first block."""
    network = randomised(
        MlpMixer(
            **{"img_size": (32, 48), "patch_size": 4, "embed_dim": 40, "num_blocks": 3, **arguments}
        )
    )
    if "block_layer" not in arguments:
        with torch.no_grad():
            rows = network.blocks[0].mlp_tokens.fc1.weight
            rows[10:20] = -rows[:10]
    found = mp.token_mixing(as_model(network, input_size=(3, 32, 48), name=name), shuffles=2)
    return replace(found, model=replace(found.model, trained=trained))


@pytest.fixture(scope="module")
def mixer() -> TokenMixing:
    return mixing("a-mixer")


@pytest.fixture(scope="module")
def everyone(mixer: TokenMixing) -> list[TokenMixing]:
    """A Mixer with its twin, a gMixer, and a ResMLP of a single block with the long name of
    timm."""
    gated = mixing("a-gmixer", mlp_layer=GluMlp, act_layer=nn.SiLU, mlp_ratio=(1.0, 4.0))
    residual = mixing(
        "resmlp_12_224.fb_distilled_in1k-with-a-tail",
        block_layer=ResBlock,
        mlp_ratio=2,
        num_blocks=1,
    )
    return [mixer, mixing("a-mixer?untrained", trained=False), gated, residual]


# -- grids of units --------------------------------------------------------------------------------


def drawn(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))


def test_pairs_stand_close_and_others_apart() -> None:
    tiling = Tiling(6, (8, 9), 4, pairs=True)
    assert [tiling.corner(k) for k in range(6)] == [
        (0, 0),
        (0, 10),
        (0, 22),
        (0, 32),
        (11, 0),
        (11, 10),
    ]
    canvas = tiling.draw(np.arange(6.0)[:, None, None] * np.ones((6, 8, 9)))
    assert canvas.shape == (19, 41)
    for k in range(6):
        top, left = tiling.corner(k)
        assert (canvas[top : top + 8, left : left + 9] == k).all()
    assert np.isfinite(canvas).sum() == 6 * 72
    np.testing.assert_array_equal(
        Tiling(1, (2, 3), 4).draw(np.arange(6.0).reshape(1, 2, 3))[::4, ::4], [[0, 1, 2], [3, 4, 5]]
    )


@pytest.mark.parametrize("side", ["read", "write"])
def test_every_unit_is_drawn_in_its_place(mixer: TokenMixing, side: str) -> None:
    maps, order = mixer.units(1, side), mixer.order(1, side)
    own = drawn(token_mixing_units(mixer, 1, side=side, limit=None, columns=6))
    shared = drawn(
        token_mixing_units(mixer, 1, side=side, limit=None, columns=6, shared_scale=True)
    )
    tiling = Tiling(20, (8, 12), 6, pairs=True)
    for k, unit in enumerate(order):
        window = tuple(slice(at, at + n) for at, n in zip(tiling.corner(k), (8, 12), strict=True))
        np.testing.assert_allclose(own[window], maps[unit] / np.abs(maps[unit]).max(), rtol=1e-6)
        np.testing.assert_allclose(shared[window], maps[unit] / np.abs(maps).max(), rtol=1e-6)
    assert np.isfinite(own).sum() == maps.size


def test_planted_pairs_are_neighbours(mixer: TokenMixing) -> None:
    order = mixer.order(0).tolist()
    for unit in range(10):
        a, b = sorted((order.index(unit), order.index(unit + 10)))
        assert (a % 2, b) == (0, a + 1)
    np.testing.assert_allclose(mixer.measures(0).partner_cosine, -1)


def test_a_limit_shows_the_lowest_frequencies(mixer: TokenMixing) -> None:
    figure = token_mixing_units(mixer, 2, limit=4)
    assert "4 of 20 token-mixing units" in figure.axes[0].get_title(loc="left")
    assert np.isfinite(drawn(figure)).sum() == 4 * 96
    mean = mixer.frequency(2)[mixer.order(2)].reshape(-1, 2).mean(1)
    assert (np.diff(mean) >= 0).all()


def test_output_tokens_stand_where_they_are(everyone: list[TokenMixing]) -> None:
    residual = everyone[3]
    figure = token_mixing_units(residual, arrange="place", shared_scale=True)
    canvas, marks = drawn(figure), figure.axes[0].patches
    tiling, largest = Tiling(96, (8, 12), 12), np.abs(residual.units(0)).max()
    assert len(marks) == 96
    for token, mark in enumerate(marks):
        row, column = divmod(token, 12)
        top, left = tiling.corner(token)
        assert (top, left) == (11 * row, 15 * column)
        np.testing.assert_allclose(
            canvas[top : top + 8, left : left + 12], residual.units(0)[token] / largest, rtol=1e-6
        )
        assert mark.get_xy() == (left + column - 0.5, top + row - 0.5)


def test_hidden_units_have_no_place(mixer: TokenMixing) -> None:
    with pytest.raises(MeasureError, match="a Mixer, are not output tokens"):
        token_mixing_units(mixer, arrange="place")


# -- depth and scatter -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["read", "write"])
def test_depth_lines_are_the_summary_and_its_nulls(mixer: TokenMixing, side: str) -> None:
    panels = token_mixing_depth([mixer], side=side).axes
    table = mixer.summary(side)
    expected = {
        "Mean frequency": ("mean_frequency", "shuffled_mean_frequency", 1),
        "Localisation": ("mean_spread_px", "shuffled_mean_spread_px", 1),
        "Orientation": ("mean_coherence", "shuffled_mean_coherence", 1),
        "Effective rank": ("effective_rank", "shuffled_effective_rank", 20),
        "Cosine with the opposite-phase unit": ("mean_partner_cosine", "null_mean", 1),
    }
    assert len(panels) == 6
    for axes in panels[:5]:
        own, null, unit = expected[axes.get_title(loc="left")]
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [1 / 3, 2 / 3, 1])
        np.testing.assert_allclose(axes.lines[0].get_ydata(), table[own] / unit)
        np.testing.assert_allclose(axes.lines[1].get_ydata(), table[null] / unit)
        assert axes.lines[1].get_linestyle() == "--"
    np.testing.assert_allclose(panels[5].lines[0].get_ydata(), table["fraction_paired"])
    np.testing.assert_allclose(panels[5].lines[1].get_ydata(), 0.05)


def test_networks_without_a_side_are_left_out(everyone: list[TokenMixing]) -> None:
    def labels(side: str) -> list[str]:
        return [
            t.get_text() for t in token_mixing_depth(everyone, side=side).legends[0].get_texts()
        ]

    assert labels("gate") == ["a-gmixer", "null of each network"]
    assert labels("write") == ["a-mixer", "a-mixer?untrained", "a-gmixer", "null of each network"]
    assert len(labels("read")) == 5
    with pytest.raises(MeasureError, match="none of the networks has units of side 'gate'"):
        token_mixing_depth(everyone[:1], side="gate")


def test_scatter_shows_every_unit_once(mixer: TokenMixing) -> None:
    figure = token_mixing_scatter(mixer, [0, "blocks.2"], side="write")
    for axes, block in zip(figure.axes, (0, 2)):
        units, cross = axes.collections
        one = mixer.measures(block, "write")
        np.testing.assert_allclose(units.get_offsets(), np.stack([one.frequency, one.spread], 1))
        np.testing.assert_allclose(units.get_array(), -one.partner_cosine)
        np.testing.assert_allclose(
            cross.get_offsets(), [[one.shuffled.frequency.mean(), one.shuffled.spread.mean()]]
        )
    titles = [axes.get_title(loc="left") for axes in token_mixing_scatter(mixer).axes]
    assert titles[:3] == ["blocks.0", "blocks.1", "blocks.2"]


# -- the report ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def section(everyone: list[TokenMixing]) -> Section:
    return token_mixing_section(everyone)[0]


def test_sentences_are_the_numbers_with_their_nulls(section: Section, mixer: TokenMixing) -> None:
    table = mixer.summary()
    first, last = table.iloc[0], table.iloc[-1]
    text = section.paragraphs[0]
    assert text.startswith("a-mixer: 20 units per block.")
    assert (
        f"{first['mean_frequency']:.3f} in blocks.0 and {last['mean_frequency']:.3f} in blocks.2"
        in text
    )
    assert (
        f"shuffled positions: {table['shuffled_mean_frequency'].mean():.3f}; untrained baseline: "
        in text
    )
    assert f"{first['mean_spread_px']:.1f} in blocks.0" in text
    assert f"(at most 20) is {first['effective_rank']:.0f} in blocks.0" in text
    assert "a significant opposite-phase unit is 100.0 % in blocks.0" in text
    assert "5.0 % expected by chance" in text
    assert len(section.paragraphs) == 5  # units of three networks, and of two what they write
    assert not section.warnings


def test_a_network_of_one_block_is_told_once(section: Section) -> None:
    text = next(p for p in section.paragraphs if p.startswith("resmlp"))
    assert text.count(" in blocks.0") >= 4
    assert "and" not in text.partition("is ")[2].partition("(")[0]


def test_pictures_and_tables_of_the_report(section: Section, everyone: list[TokenMixing]) -> None:
    pictures = [c for c in section.content if isinstance(c, Picture)]
    tables = [c for c in section.content if isinstance(c, Table)]
    grids = [p.alt for p in pictures if p.alt.startswith("Grid")]
    assert sum("of a-mixer" in alt for alt in grids) == 4  # three blocks and what the last writes
    assert sum("of a-gmixer" in alt for alt in grids) == 5
    assert sum("Line plots" in p.alt for p in pictures) == 3
    assert sum("Scatter" in p.alt for p in pictures) == 3
    assert len(tables) == 4
    assert all(t.folded for t in tables)
    assert len(tables[0].rows) == 6
    assert len(tables[2].rows) == 9


def test_an_untrained_network_alone_is_said_to_be_so(mixer: TokenMixing) -> None:
    alone = replace(mixer, model=replace(mixer.model, trained=False))
    section = token_mixing_section([alone])[0]
    assert "a-mixer is untrained" in section.warnings[0]
    assert [c.alt[:4] for c in section.content[:1]] == ["Grid"]
    assert sum(isinstance(c, Picture) and c.alt.startswith("Grid") for c in section.content) == 1


def test_units_that_write_back_are_found_and_others_are_not(mixer: TokenMixing) -> None:
    def with_write(factor: float) -> TokenMixing:
        noise = np.random.default_rng(2).standard_normal((20, 8, 12))
        sets = tuple(
            replace(w, maps=noise + factor * r.maps) for r, w in zip(mixer.read, mixer.write)
        )
        return replace(mixer, write=sets)

    texts = token_mixing_section([with_write(-30.0)])[0].paragraphs
    assert (
        "in 3 of 3 blocks it differs significantly from that of randomly matched units" in texts[1]
    )
    assert "is -0." in texts[1]
    assert (
        "in no block are the read and write weights"
        in token_mixing_section([with_write(0.0)])[0].paragraphs[1]
    )


def test_too_few_surrogates_are_said_to_be_too_few(mixer: TokenMixing) -> None:
    few = replace(mixer, surrogates=9)
    section = token_mixing_section([few])[0]
    assert "9 surrogates are too few to test for opposite-phase pairs" in section.paragraphs[0]
    assert all(texts_of(c.figure) for c in section.content if isinstance(c, Picture))


def test_texts_do_not_overlap_or_leave_the_figures(section: Section) -> None:
    for item in section.content:
        if isinstance(item, Picture):
            texts = texts_of(item.figure)
            found = overlapping(texts)
            assert not found, (item.alt, found)
            assert not [text for text, box in texts if outside(box, item.figure.bbox)], item.alt


def test_the_largest_grids_fit_their_page(mixer: TokenMixing) -> None:
    rng = np.random.default_rng(0)
    for count, grid in ((384, (14, 14)), (512, (14, 14)), (1024, (28, 28))):
        maps = rng.standard_normal((count, *grid))
        big = replace(mixer.read[0], maps=maps, frequency=rng.random(count))
        figure = token_mixing_units(
            replace(mixer, grid=grid, read=(big, *mixer.read[1:])), 0, limit=None
        )
        assert figure.get_figheight() <= 13
        texts = texts_of(figure)
        assert not [text for text, box in texts if outside(box, figure.bbox)]
        # A tile is a sixth of an inch or more at a print width of seven inches.
        width = figure.axes[0].get_window_extent().width / figure.dpi / 10 * 7
        assert width / 24 > 1 / 6


def test_the_frame_of_all_sides_has_one_row_a_unit(everyone: list[TokenMixing]) -> None:
    gated = everyone[2]
    frame = pd.concat([gated.to_frame(side) for side in gated.sides])
    assert len(frame) == 3 * 3 * 20
    assert not frame.duplicated(["block", "side", "unit"]).any()
