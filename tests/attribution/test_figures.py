"""Figures of attributions: what is drawn where, read back from the axes."""

from __future__ import annotations

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe import attribution as at
from mixer_probe.attribution.figures import (
    agreement_figure,
    attribution_overlays,
    perturbation_figure,
    randomisation_figure,
)
from mixer_probe.attribution.figures.overlays import coloured, crop_box
from mixer_probe.core.errors import MeasureError
from mixer_probe.images.transforms import model_transform
from tests.attribution.small import small


@pytest.fixture(scope="module")
def images() -> mp.Images:
    return mp.load_images("demo", limit=4)


@pytest.fixture(scope="module")
def model() -> mp.Model:
    import torch

    return small("mixer", torch.float32)


@pytest.fixture(scope="module")
def maps(model: mp.Model, images: mp.Images) -> list[at.Attribution]:
    return [
        mp.attribute(model, images, name, target=1) for name in ("saliency", "input_x_gradient")
    ]


@pytest.mark.parametrize(
    ("size", "crop_pct", "crop_mode", "side"),
    [
        ((299, 299), 0.875, "center", (224, 224)),
        ((400, 300), 0.9, "center", (224, 224)),
        ((300, 500), 1.0, "center", (224, 224)),
        ((400, 300), 0.9, "center", (160, 256)),
        ((400, 300), 0.9, "squash", (224, 224)),
        ((300, 500), 1.0, "squash", (192, 256)),
        ((400, 300), 0.94, "border", (224, 224)),
        ((300, 500), 1.0, "border", (192, 256)),
    ],
)
def test_the_overlay_lies_where_the_network_looked(
    size: tuple[int, int], crop_pct: float, crop_mode: str, side: tuple[int, int]
) -> None:
    """One bright spot, found again in the transformed image, lies at the same place of the
    original."""
    from PIL import Image

    picture = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x, y = size[0] // 2 + 60, size[1] // 2 - 50
    picture[y - 6 : y + 7, x - 6 : x + 7] = 255
    transform = model_transform((3, *side), (0.0,) * 3, (1.0,) * 3, "bilinear", crop_pct, crop_mode)
    entered = transform(Image.fromarray(picture))[0].numpy()
    rows, columns = np.mgrid[: side[0], : side[1]]
    left, right, bottom, top = crop_box(size, side, crop_pct, crop_mode)
    found_x = left + (right - left) * ((entered * columns).sum() / entered.sum() + 0.5) / side[1]
    found_y = top + (bottom - top) * ((entered * rows).sum() / entered.sum() + 0.5) / side[0]
    assert found_x == pytest.approx(x, abs=1.5)
    assert found_y == pytest.approx(y, abs=1.5)


def test_colours_are_symmetric_and_faint_at_zero() -> None:
    colours = coloured(np.array([[-2.0, 0.0, 2.0]]), signed=True)
    assert colours[0, 0, 2] > colours[0, 0, 0]
    assert colours[0, 2, 0] > colours[0, 2, 2]
    assert colours[0, :, 3] == pytest.approx([0.95, 0, 0.95])
    assert np.isfinite(coloured(np.zeros((2, 2)), signed=False)).all()


def test_overlays_show_each_image_and_result(maps: list[at.Attribution], images: mp.Images) -> None:
    figure = attribution_overlays(maps, images, indices=[0, 3])
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 6
    np.testing.assert_array_equal(panels[1].images[0].get_array(), np.asarray(images[3]))
    assert [axes.get_title() for axes in panels[2:]] == ["saliency", "", "input ×\ngradient", ""]
    assert figure.get_suptitle() == "MlpMixer"
    assert len(figure.axes) == 8
    with pytest.raises(MeasureError, match="indices are 0 to 3"):
        attribution_overlays(maps, images, indices=[4])
    with pytest.raises(MeasureError, match="other images"):
        attribution_overlays(maps, images.subset([0, 1]))


def test_curves_checks_and_agreement_are_drawn(
    model: mp.Model, maps: list[at.Attribution], images: mp.Images
) -> None:
    curves = at.perturbation_curves(model, images, maps, steps=4, random_orders=2)
    figure = perturbation_figure([curves])
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["saliency"], curves.deletion[0].mean(0))
    assert set(lines) == {"random order", "saliency", "input × gradient"}
    check = at.randomisation_check(model, images, maps[0])
    drawn = randomisation_figure([check]).axes[0]
    assert [t.get_text() for t in drawn.get_xticklabels()][-1] == "stem, rest"
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), check.spearman.mean((0, 2)))
    likeness = at.agreement(maps)
    texts = [t.get_text() for t in agreement_figure(likeness).axes[0].texts]
    assert texts == [f"{likeness.mean[0, 1]:.2f}"] * 2
