"""Figures of channels draw the numbers, with labels, inside the canvas."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.channels import ChannelStatistics, channel_pages, channels_needed
from mixer_probe.channels.figures import (
    channel_depth,
    channel_page,
    channels_needed_curves,
    partner_strength,
    selectivity_depth,
    selectivity_distributions,
)
from tests.networks import as_model, noise, randomised, settled


@pytest.fixture(scope="module")
def models() -> list[mp.Model]:
    mixer = randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=3))
    resnet = ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), stem_width=8)
    return [
        as_model(mixer, name="m$xer"),
        as_model(settled(randomised(resnet), noise(8)), name="resnet"),
    ]


@pytest.fixture(scope="module")
def reps(models: list[mp.Model]) -> list[mp.Representations]:
    return [mp.extract(model, mp.load_images("demo", limit=80)) for model in models]


@pytest.fixture(scope="module")
def statistics(models: list[mp.Model]) -> list[ChannelStatistics]:
    return [mp.channel_statistics(model, mp.load_images("demo", limit=30)) for model in models]


def finished(figure: Figure) -> Figure:
    """Drawn, with every panel titled and labelled."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel() or axes.get_subplotspec().get_geometry()[0] > 1
    return figure


def test_channel_depth_draws_the_summary(statistics: list[ChannelStatistics]) -> None:
    figure = finished(channel_depth(statistics))
    assert len(figure.axes) == 6
    for result, i in zip(statistics, range(2), strict=True):
        table = result.summary()
        np.testing.assert_array_equal(figure.axes[3].lines[i].get_ydata(), table["median_kurtosis"])
        np.testing.assert_array_equal(figure.axes[4].lines[i].get_ydata(), table["largest_ratio"])
        np.testing.assert_allclose(
            figure.axes[5].lines[i].get_ydata(), 100 * table["participation"] / table["channels"]
        )


def test_results_of_an_earlier_version_have_the_first_row_alone(
    statistics: list[ChannelStatistics],
) -> None:
    old = replace(statistics[0], kurtosis=(), median_magnitude=None, participation=None)
    assert len(channel_depth([old, statistics[1]]).axes) == 3


def test_without_a_sketch_there_is_still_a_figure(models: list[mp.Model]) -> None:
    bare = mp.channel_statistics(models[0], noise(4), quantiles=False, covariance=False)
    finished(channel_depth([bare]))


def test_selectivity_draws_the_summary(reps: list[mp.Representations]) -> None:
    results = [mp.class_selectivity(r, permutations=19) for r in reps]
    figure = finished(selectivity_depth(results))
    for i, result in enumerate(results):
        table = result.summary()
        np.testing.assert_allclose(
            figure.axes[0].lines[i].get_ydata(), 100 * table["fraction_selective"]
        )
        np.testing.assert_array_equal(figure.axes[1].lines[i].get_ydata(), table["auroc_median"])
    figure = finished(selectivity_distributions(results))
    assert [a.get_title(loc="left") for a in figure.axes] == [r"m\$xer", "resnet"]
    np.testing.assert_allclose(
        figure.axes[0].lines[0].get_ydata(), results[0].summary()["auroc_median"]
    )
    finished(selectivity_distributions([*results, *results]))
    finished(selectivity_depth([mp.class_selectivity(reps[0], permutations=0)]))


def test_curves_of_channels_needed_are_the_accuracies(
    models: list[mp.Model], reps: list[mp.Representations]
) -> None:
    train = mp.extract(models[0], mp.load_images("demo", split="train", limit=80))
    result = channels_needed(train, reps[0], draws=2, probe="centroid")
    (axes,) = finished(channels_needed_curves([result])).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * result.selective[0])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 100 * result.random[0].mean(1))


def test_histograms_of_partners_hold_all_channels(reps: list[mp.Representations]) -> None:
    result = mp.channel_partners(reps[0], reps[1], "blocks.2", "layer1.0", permutations=19)
    (axes,) = finished(partner_strength([result])).axes
    assert sum(
        bar.get_height() for bar in axes.patches if hasattr(bar, "get_height")
    ) == pytest.approx(100)
    assert f"{100 * result.fraction_above:.0f} % above null" in [t.get_text() for t in axes.texts]


def test_a_page_has_its_pictures_and_numbers(
    models: list[mp.Model], reps: list[mp.Representations], statistics: list[ChannelStatistics]
) -> None:
    images = mp.load_images("demo", limit=80)
    selectivity = mp.class_selectivity(reps[0], permutations=19)
    partners = [mp.channel_partners(reps[0], reps[1], "blocks.2", "layer1.0", permutations=19)]
    (page,) = channel_pages(
        models[0],
        images,
        {"blocks.2": 3},
        k=3,
        statistics=statistics[0],
        selectivity=selectivity,
        partners=partners,
    )
    figure = channel_page(page)
    figure.draw_without_rendering()
    board = figure.axes[0]
    # Three pictures, patches, maps over pictures in grey, and lowest pictures.
    assert len(board.images) == 3 * (1 + 1 + 2 + 1)
    np.testing.assert_array_equal(board.images[0].get_array(), page.top.pictures[0])
    left, right, bottom, top = board.images[0].get_extent()
    box, fractions = board.patches[0], page.top.boxes[0]
    assert box.get_xy() == pytest.approx(
        (left + fractions[1] * (right - left), top + fractions[0] * (bottom - top))
    )
    texts = texts_of(figure)
    assert f"{page.statistics['mean']:.3g} ± {page.statistics['std']:.3g}" in texts
    assert any(t.startswith(f"channel {page.partners[0][2]}, r = ") for t in texts)


def texts_of(figure: Figure) -> list[str]:
    """All texts, those beside panels too."""
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("layer", ["blocks.0.mlp_tokens.fc1", "head", "blocks.0"])
def test_pages_of_layers_without_a_grid_and_without_numbers(
    models: list[mp.Model], layer: str
) -> None:
    (page,) = channel_pages(models[0], noise(4), {layer: 0}, k=1)
    figure = channel_page(page)
    figure.draw_without_rendering()
    texts = texts_of(figure)
    assert {"no statistics", "not available", "not computed"} <= set(texts)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.1), (0.45, 0.55), (0.9, 1.0), (0.0, 1.0)])
def test_crops_stay_inside_the_image(models: list[mp.Model], start: float, stop: float) -> None:
    (page,) = channel_pages(models[0], noise(2), {"blocks.0": 0}, k=1)
    # Every pixel names its row and its column.
    rows, columns = np.indices((32, 32))
    picture = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)[None]
    shown = replace(page.top, pictures=picture, boxes=np.array([[start, start, stop, stop]]))
    crop = np.asarray(channel_page(replace(page, top=shown)).axes[0].images[1].get_array())
    for side in (crop[:, 0, 0], crop[0, :, 1]):
        first, end = int(side[0]), int(side[-1]) + 1
        assert side.tolist() == list(range(first, end))
        assert 0 <= first < end <= 32
        assert first <= start * 32
        assert end >= stop * 32
        assert end - first <= max(0.3, stop - start) * 32 + 2
