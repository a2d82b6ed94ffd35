"""Figures and report sections of spatial kernels and kernel tying show the numbers of their
results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.core.errors import LayerError
from mixer_probe.weights import KernelTying, SpatialKernels
from mixer_probe.weights.figures import (
    average_kernels,
    kernel_depth,
    kernel_dictionary,
    kernel_energy,
    kernel_maps,
    kernel_tying_depth,
)
from mixer_probe.weights.figures.tiles import largest_offset
from mixer_probe.weights.views.kernels import kernel_sentence, kernels_section
from mixer_probe.weights.views.tying import tying_section, tying_sentence
from tests.networks import CASES, noise


def named(model: mp.Model, name: str) -> mp.Model:
    model.name = name
    return model


@pytest.fixture(scope="module")
def kernels() -> list[SpatialKernels]:
    return [
        mp.spatial_kernels(named(CASES[name].model(), name))
        for name in ("mixer", "vit", "convnext")
    ]


@pytest.fixture(scope="module")
def tying() -> list[KernelTying]:
    images = noise(4)
    names = ("mixer", "vit", "convnext", "resmlp")
    return [mp.kernel_tying(named(CASES[name].model(), name), images, draws=4) for name in names]


def drawn(figure: Figure) -> None:
    figure.savefig("/dev/null", format="png")


def test_maps_lie_where_their_positions_lie(kernels: list[SpatialKernels]) -> None:
    figure = kernel_maps(kernels[0], [1])
    image = figure.axes[0].images[0]
    values = np.asarray(image.get_array().filled(np.nan))
    maps = kernels[0].row_maps(1)
    # Grids of 4x4 are drawn at twice their size, 9 apart; position 6 is in row 1, column 2.
    np.testing.assert_allclose(values[9:17:2, 18:26:2], maps[6] / np.abs(maps[6]).max(), rtol=1e-6)
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    shared = np.asarray(
        kernel_maps(kernels[0], [1], shared_scale=True).axes[0].images[0].get_array().filled(np.nan)
    )
    np.testing.assert_allclose(shared[9:17:2, 18:26:2], maps[6] / np.abs(maps).max(), rtol=1e-6)
    drawn(figure)


def test_attention_goes_up_from_zero_and_large_grids_are_thinned(
    kernels: list[SpatialKernels],
) -> None:
    figure = kernel_maps(kernels[1], ["blocks.0"], most=4)
    image = figure.axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    values = np.asarray(image.get_array().filled(np.nan))
    assert values.shape == (17, 17)
    maps = kernels[1].row_maps(0)
    np.testing.assert_allclose(values[:8:2, :8:2], maps[5] / maps[5].max(), rtol=1e-6)
    assert "every 2nd position" in figure.axes[0].get_xlabel()


def test_convolutions_have_no_maps(kernels: list[SpatialKernels]) -> None:
    with pytest.raises(LayerError, match="is a convolution"):
        kernel_maps(kernels[2])


def test_average_kernels_share_one_scale_of_pixels(kernels: list[SpatialKernels]) -> None:
    figure = average_kernels(kernels, panels=2)
    panels = [axes for axes in figure.axes if axes.images and axes.get_xlim()[1] > 0]
    reach = max(max(k.reach_px) for r in kernels for k in r.kernels)
    outer = [axes for axes in panels if axes.get_xlabel() or axes.lines]
    assert {axes.get_xlim() for axes in outer} == {(-reach, reach)}
    first, kernel = outer[0].images[0], kernels[0].kernels[0]
    # 7 offsets of 8 px: from -28 to 28.
    assert first.get_extent() == [-28, 28, 28, -28]
    np.testing.assert_allclose(
        first.get_array(), kernel.rms / largest_offset(kernel.rms, kernel.grid)
    )
    circle = outer[0].lines[-1].get_xydata()
    np.testing.assert_allclose(np.hypot(*circle.T), kernel.distance_px)
    mean = average_kernels(kernels, kind="mean", panels=2, reach_px=50)
    assert mean.axes[0].get_xlim() == (-50, 50)
    assert mean.axes[0].images[0].norm.vmin == -1
    drawn(figure)


def test_single_pairs_do_not_set_the_colours() -> None:
    values = np.ones((7, 7))
    values[0, 0] = 100
    assert largest_offset(values, (4, 4)) == 1
    assert largest_offset(values, None) == 100


def test_depth_lines_are_the_frame(kernels: list[SpatialKernels]) -> None:
    figure = kernel_depth(kernels)
    for column, panel in zip(
        ("distance_px", "translation_fraction", "self_mass"), figure.axes, strict=False
    ):
        lines = [
            line
            for line in panel.lines
            if len(line.get_xdata()) > 1 and line.get_marker() != "None"
        ]
        for line, result in zip(lines, kernels, strict=True):
            np.testing.assert_allclose(line.get_ydata(), result.to_frame()[column])
    # Convolutions change grid, so only the two others have a line for uniform reading.
    assert len(figure.axes[0].lines) == len(kernels) + 2
    drawn(figure)


def test_tying_lines_are_counts_and_ratios_to_the_null(tying: list[KernelTying]) -> None:
    figure = kernel_tying_depth(tying)
    for line, result in zip(figure.axes[0].lines, tying, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), result.counts(0.9))
    convnext = tying[2]
    entries = [min(e.channels, 49) for e in convnext.layers]
    np.testing.assert_allclose(
        figure.axes[1].lines[2].get_ydata(), 100 * convnext.counts(0.9) / entries
    )
    frame = convnext.to_frame()
    # ResMLP is tied by construction and has no null.
    ratios = [line for line in figure.axes[2].lines if line.get_marker() != "None"]
    assert len(ratios) == 3
    np.testing.assert_allclose(
        ratios[2].get_ydata(), frame["offset_count_90"] / frame["null_count_90"]
    )
    drawn(figure)
    unit = kernel_tying_depth(tying, fraction=0.99, normalise=True)
    np.testing.assert_array_equal(
        unit.axes[0].lines[0].get_ydata(), tying[0].counts(0.99, normalise=True)
    )


def test_energy_curves_and_their_band(tying: list[KernelTying]) -> None:
    figure = kernel_energy(tying[2], [0, "stages.3.blocks.0"])
    axes = figure.axes[1]
    spectrum = tying[2].layer("stages.3.blocks.0").raw
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * spectrum.cumulative)
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(100)
    assert len(axes.collections) == 1
    effective = kernel_energy(tying[0])
    np.testing.assert_allclose(
        effective.axes[0].lines[1].get_ydata(), 100 * tying[0].layer(0).raw.offset_cumulative
    )
    drawn(figure)
    drawn(kernel_energy(tying[3]))


def test_dictionary_pictures(tying: list[KernelTying]) -> None:
    figure = kernel_dictionary(tying[2], [4], limit=3)
    spectrum = tying[2].layer(4).raw
    pictures = [axes for axes in figure.axes if axes.images][:3]
    for k, axes in enumerate(pictures):
        picture = spectrum.dictionary[k]
        np.testing.assert_allclose(axes.images[0].get_array(), picture / np.abs(picture).max())
        assert axes.get_title(loc="center") == f"{100 * spectrum.fractions[k]:.3g} %"
    drawn(figure)
    drawn(kernel_dictionary(tying[0]))


def test_sections_say_the_numbers(kernels: list[SpatialKernels], tying: list[KernelTying]) -> None:
    section = kernels_section(kernels)[0]
    assert len(section.paragraphs) == 3
    assert f"{kernels[0].kernels[0].distance_px:.1f} px" in section.paragraphs[0]
    assert "Its kernels are convolutions" in section.paragraphs[2]
    # Depth, averages, one set of maps for the mixer and the vit, table.
    assert len(section.content) == 5
    section = tying_section(tying)[0]
    counts = tying[2].counts(0.9)
    assert f"{counts.min():.0f} to {counts.max():.0f} shared kernels" in section.paragraphs[2]
    assert "by construction" in section.paragraphs[3]
    assert "measured on 4 images" in section.paragraphs[0]
    assert "images" not in section.paragraphs[2]


def test_untrained_twins_stand_beside_their_network(
    kernels: list[SpatialKernels], tying: list[KernelTying]
) -> None:
    twin = replace(
        kernels[0], model=replace(kernels[0].model, name="mixer?untrained", trained=False)
    )
    text = kernel_sentence(kernels[0], [kernels[0], twin])
    assert (
        f"untrained baseline in {twin.kernels[0].block}: {twin.kernels[0].distance_px:.1f} px"
        in text
    )
    other = replace(tying[0], model=replace(tying[0].model, name="mixer?untrained", trained=False))
    assert "Its untrained baseline requires" in tying_sentence(tying[0], [tying[0], other])
    assert len(tying_section([tying[0], other])[0].paragraphs) == 1
    drawn(kernel_depth([kernels[0], twin]))


def test_oblong_grids_are_drawn() -> None:
    network = MlpMixer(img_size=(16, 32), patch_size=8, embed_dim=24, num_blocks=1, num_classes=5)
    model = mp.load_model(
        network, input_size=(3, 16, 32), mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu"
    )
    found = mp.spatial_kernels(model)
    # 2x4 positions in 2 rows of 4 maps, four times their size.
    assert kernel_maps(found).axes[0].images[0].get_array().shape == (2 * 8 + 1, 4 * 16 + 3)
    tied = mp.kernel_tying(
        model, torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)), draws=1
    )
    assert tied.layer(0).raw.dictionary.shape[1:] == (3, 7)
    drawn(average_kernels([found]))
    drawn(kernel_dictionary(tied))
