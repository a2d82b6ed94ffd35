"""Figures and sections of dissection draw and say the numbers, inside the canvas."""

from dataclasses import replace

import numpy as np
import pytest
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.channels import DissectedChannel, Dissection, dissect, dissected_channel
from mixer_probe.channels.figures import (
    dissected_channel_pictures,
    dissection_concepts,
    dissection_depth,
)
from mixer_probe.images import concepts_from_arrays
from mixer_probe.report.views import all_views
from tests.networks import as_model, noise, randomised, settled

NAMES = ("bright$", "left", "small", "noise")


@pytest.fixture(scope="module")
def images() -> mp.Images:
    return mp.load_images("demo", limit=60)


@pytest.fixture(scope="module")
def concepts(images: mp.Images):
    rng = np.random.default_rng(0)
    masks = np.zeros((60, 4, 32, 32), dtype=bool)
    for i, image in enumerate(images):
        grey = np.asarray(image).mean(-1)
        masks[i, 0] = grey > 200
        masks[i, 1, :, : rng.integers(4, 28)] = True
        masks[i, 2, :3, :3] = i % 3 == 0
        masks[i, 3] = rng.uniform(size=(32, 32)) > 0.9
    return concepts_from_arrays(masks, NAMES, images.ids)


@pytest.fixture(scope="module")
def models() -> list[mp.Model]:
    mixer = randomised(MlpMixer(img_size=32, patch_size=4, embed_dim=16, num_blocks=3))
    resnet = ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), stem_width=8)
    return [
        as_model(mixer, name="m$xer"),
        as_model(settled(randomised(resnet), noise(8)), name="resnet"),
    ]


@pytest.fixture(scope="module")
def results(models: list[mp.Model], images: mp.Images, concepts) -> list[Dissection]:
    kinds = [["blocks", "spatial"], "blocks"]
    return [
        dissect(model, images, concepts, layers, permutations=19, quantile=0.95)
        for model, layers in zip(models, kinds, strict=True)
    ]


@pytest.fixture(scope="module")
def page(
    models: list[mp.Model], images: mp.Images, concepts, results: list[Dissection]
) -> DissectedChannel:
    return dissected_channel(models[0], images, concepts, results[0], "blocks.0", 5, k=4)


def test_depth_has_a_row_for_each_kind_and_draws_the_summary(results: list[Dissection]) -> None:
    figure = dissection_depth(results)
    figure.draw_without_rendering()
    assert len(figure.axes) == 6
    assert [a.get_title(loc="left") for a in figure.axes[:3]] == [
        "Detectors: blocks",
        "Concepts with a detector: blocks",
        "Best channel: blocks",
    ]
    for i, result in enumerate(results):
        table = result.summary()
        table = table[table["kind"] == "block"]
        np.testing.assert_allclose(
            figure.axes[0].lines[i].get_ydata(), 100 * table["fraction_detectors"]
        )
        np.testing.assert_array_equal(figure.axes[1].lines[i].get_ydata(), table["unique_concepts"])
        np.testing.assert_array_equal(figure.axes[2].lines[i].get_ydata(), table["strength_max"])
    assert len(dissection_depth(results[1:]).axes) == 3


def test_bars_are_detectors_and_dots_the_best_iou(results: list[Dissection]) -> None:
    figure = dissection_concepts(results)
    figure.draw_without_rendering()
    bars, dots = figure.axes
    order = [t.get_text().replace("\\", "") for t in bars.get_yticklabels()]
    assert sorted(order) == sorted(NAMES)
    for container, result in zip(bars.containers, results, strict=True):
        counts = result.concept_frame().groupby("concept")["detectors"].sum().reindex(order)
        assert [bar.get_width() for bar in container] == counts.tolist()
    best = results[0].concept_frame().groupby("concept")["iou"].max().reindex(order)
    np.testing.assert_allclose(dots.collections[2].get_offsets()[:, 0], best)


def test_without_a_null_there_are_still_figures_and_sentences(models, images, concepts) -> None:
    bare = dissect(models[0], images, concepts, permutations=0, quantile=0.95)
    dissection_depth([bare]).draw_without_rendering()
    dissection_concepts([bare]).draw_without_rendering()
    (section,) = all_views()[Dissection].sections([bare])
    assert "no permutations were computed; no IoU is above" in section.paragraphs[0]


def test_pictures_of_a_channel(page: DissectedChannel) -> None:
    figure = dissected_channel_pictures(page)
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 8
    picture = shown[0].images[0].get_array()
    np.testing.assert_array_equal(picture[page.lit[0]], page.pictures[0][page.lit[0]])
    assert (picture[~page.lit[0]] <= page.pictures[0][~page.lit[0]]).all()
    np.testing.assert_array_equal(shown[4].images[0].get_array(), page.maps[0])
    assert f"IoU {page.iou:.3f}" in figure.get_suptitle()


def test_pictures_where_nothing_is_lit_or_there(page: DissectedChannel) -> None:
    empty = replace(
        page,
        lit=np.zeros_like(page.lit),
        masks=np.zeros_like(page.masks),
        maps=np.ones_like(page.maps),
    )
    figure = dissected_channel_pictures(empty)
    figure.draw_without_rendering()
    assert "no pixel" in figure.axes[0].get_title()


def test_sections_say_the_numbers(results: list[Dissection], page: DissectedChannel) -> None:
    twin = replace(
        results[0], model=replace(results[0].model, name="m$xer?untrained", trained=False)
    )
    trained = replace(results[0], model=replace(results[0].model, trained=True))
    random = replace(results[1], model=replace(results[1].model, trained=False))
    (section,) = all_views()[Dissection].sections([trained, random, twin])
    assert len(section.paragraphs) == 2
    frame = trained.to_frame()
    found = frame["detector"].sum()
    counted = (
        f"{100 * found / len(frame):.1f} % of {len(frame)} channels significantly detect a concept"
    )
    # Some channel is beyond chance where its p-value, corrected for its layer, is so for all layers
    # too.
    any_beyond = frame["p_value"].min() * len(trained.layers) <= 0.05
    assert (counted if any_beyond else "no channel of") in section.paragraphs[0]
    sure = replace(trained, p_value=tuple(np.where(p <= 0.05, 0.001, p) for p in trained.p_value))
    assert counted in all_views()[Dissection].sections([sure])[0].paragraphs[0]
    assert any("resnet" in text for text in section.warnings)
    for item in section.content:
        # Drawn and formatted without an error.
        assert getattr(item, "data", None) or item.rows
    (pictures,) = all_views()[DissectedChannel].sections([page])
    assert f"IoU {page.iou:.3f} with {page.concept}" in pictures.paragraphs[0]
    none = replace(results[1], p_value=tuple(np.ones_like(p) for p in results[1].p_value))
    assert (
        "significantly detects any of 4 concepts"
        in all_views()[Dissection].sections([none])[0].paragraphs[0]
    )
