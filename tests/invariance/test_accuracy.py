"""Accuracy under distortions: networks of which it is known what they lose."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import (
    ImagesError,
    MeasureError,
    NonFiniteWarning,
    UndefinedInvarianceWarning,
)
from mixer_probe.core.result import load_results, save_results
from mixer_probe.images import (
    HighPass,
    LowPass,
    PatchDrop,
    PatchShuffle,
    PixelShuffle,
    Shift,
    distort,
    from_arrays,
    paper_shuffle,
)
from mixer_probe.invariance import distortion_accuracy, own_grid, predictions, standard_distortions
from mixer_probe.probing import wilson_interval
from tests.invariance.planted import (
    answers,
    answers_right,
    bag_of_pixels,
    colours,
    position_reader,
    quadrants,
)
from tests.networks import randomised
from tests.tiny import tiny_models


def test_a_network_that_ignores_position_loses_nothing_when_pixels_move() -> None:
    images = colours()
    model = bag_of_pixels(images)
    moves = (
        PatchShuffle(2),
        PatchShuffle(8),
        PixelShuffle(1),
        PixelShuffle(2, tied=False),
        Shift(3, 1),
        paper_shuffle(4),
    )
    result = distortion_accuracy(model, images, (*moves, PatchDrop(1.0, 2)))
    assert result.accuracy.value[0] == 1
    np.testing.assert_array_equal(result.drop.value[: len(moves)], 0)
    np.testing.assert_array_equal(result.agreement.value[: len(moves)], 1)
    np.testing.assert_array_equal(result.kept.value[: len(moves)], 1)
    np.testing.assert_array_equal(result.p_value[: len(moves)], 1)
    # And with every patch grey all images are one: the share of one class is left.
    assert result.accuracy.value[-1] == 0.25
    assert result.kept.value[-1] == 0


def test_a_network_that_reads_position_follows_the_patches_it_reads() -> None:
    """On a 2x2 grid the bright quadrant moves to where the order says, and that is what the network
    names."""
    images = quadrants()
    shuffle = PatchShuffle(2, seed=4)
    result = distortion_accuracy(
        position_reader(images), images, (shuffle, PixelShuffle(2), Shift(8, 0), Shift(8, 8))
    )
    assert result.accuracy.value[0] == 1
    order = shuffle.order([zlib.crc32(name.encode()) for name in images.ids]).numpy()
    place = (order == result.labels[:, None]).argmax(1)
    np.testing.assert_array_equal(result.predicted[1], place)
    assert result.accuracy.value[1] == (place == result.labels).mean()
    # Pixels that stay inside their quadrant move no class; half a height down changes the row of
    # the quadrant.
    assert result.accuracy.value[2] > 0.95
    np.testing.assert_array_equal(result.predicted[3], result.labels ^ 2)
    np.testing.assert_array_equal(result.predicted[4], result.labels ^ 3)
    assert result.accuracy.value[3] == 0
    assert result.kept.value[2] == pytest.approx(-1 / 3)  # (0 - 1/4) / (1 - 1/4)


def test_a_network_that_cannot_read_the_class_has_nothing_to_lose() -> None:
    images = quadrants()
    scrambled = from_arrays(
        [np.array(image) for image in images],
        np.random.default_rng(3).permutation(images.labels),
        class_names=images.class_names,
    )
    with pytest.warns(UndefinedInvarianceWarning, match="not above chance"):
        result = distortion_accuracy(
            position_reader(images), scrambled, (PatchShuffle(2), LowPass(1.0))
        )
    assert not result.reads_class
    assert np.isnan([result.kept.value, result.kept.low, result.kept.high]).all()
    assert result.accuracy.low[0] <= 0.25 <= result.accuracy.high[0]
    assert np.isfinite(result.drop.value).all()
    assert result.to_frame()["kept"].isna().all()


def test_predictions_are_those_of_the_network_by_hand() -> None:
    images, model = mp.load_images("demo", limit=11), tiny_models()[1]
    distortions = (PatchShuffle(4), PatchDrop(0.5, 4), HighPass(4.0, level=(0.5, 0.5, 0.5)))
    found, classes = predictions(model, images, distortions, batch_size=4)
    assert classes == 1000
    for row, view in enumerate((images, *(distort(images, d) for d in distortions))):
        batch = torch.cat(list(view.batches(transform_of(model), 11)))
        with torch.no_grad():
            np.testing.assert_array_equal(found[row], model.module(batch).argmax(1))


def test_a_network_is_left_as_it_was() -> None:
    model = tiny_models()[2]
    model.module.train()
    predictions(model, mp.load_images("demo", limit=3), (Shift(1, 1),))
    assert all(m.training for m in model.module.modules())
    assert not any(m._forward_hooks for m in model.module.modules())


def test_distorted_images_can_be_distorted_further() -> None:
    images, model = mp.load_images("demo", limit=6), tiny_models()[0]
    twice, _ = predictions(model, distort(images, PatchShuffle(4)), (Shift(2, 0),))
    by_hand, _ = predictions(model, distort(distort(images, PatchShuffle(4)), Shift(2, 0)))
    np.testing.assert_array_equal(twice[1], by_hand[0])


def test_numbers_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 0])
    predicted = np.array([[0, 0, 1, 1, 2, 2, 0, 1], [0, 1, 1, 0, 2, 0, 2, 1]])
    result = answers(predicted, labels, (PatchShuffle(2),))
    assert result.accuracy.value.tolist() == [0.75, 0.5]
    assert (result.accuracy.low[0], result.accuracy.high[0]) == wilson_interval(6, 8)
    assert result.chance == 3 / 8
    assert result.drop.value.tolist() == [0.25]
    assert result.agreement.value.tolist() == [4 / 8]
    fractions = [np.bincount(row, minlength=3) / 8 for row in predicted]
    assert result.agreement_by_chance[0] == pytest.approx(
        float((fractions[0] * fractions[1]).sum())
    )


def test_what_is_kept_has_an_interval_of_the_right_width() -> None:
    """Delta method: with independent answers the standard error of the ratio follows from those of
    the two shares."""
    random = np.random.default_rng(0)
    n, p, q, chance = 4000, 0.8, 0.4, 0.1
    result = answers_right(random.random((2, n)) < [[p], [q]], (PatchShuffle(2),))
    p_, q_ = result.accuracy.value
    ratio = (q_ - chance) / (p_ - chance)
    error = np.sqrt(q_ * (1 - q_) / n + ratio**2 * p_ * (1 - p_) / n) / (p_ - chance)
    assert result.kept.value[0] == pytest.approx(ratio)
    assert result.kept.high[0] - result.kept.low[0] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_logits_that_are_not_finite_predict_nothing() -> None:
    images = quadrants(2)
    model = position_reader(images)
    model.module.head.weight.data[0] = torch.nan
    with pytest.warns(NonFiniteWarning, match="16 predictions"):
        found, _ = predictions(model, images, (Shift(1, 0),))
    assert (found == -1).all()


def test_a_result_saves_and_loads_with_its_distortions(tmp_path: Path) -> None:
    images = quadrants(5)
    result = distortion_accuracy(position_reader(images), images)
    again = load_results(save_results([result], tmp_path / "r.json"))[0]
    assert again.distortions == result.distortions
    np.testing.assert_array_equal(again.predicted, result.predicted)
    assert again.to_frame().equals(result.to_frame())
    assert len(result.to_frame()) == 1 + len(result.distortions)


def test_the_same_again_gives_the_same() -> None:
    images = quadrants(5)
    first, second = (
        distortion_accuracy(position_reader(images), images, batch_size=b).to_frame()
        for b in (64, 7)
    )
    assert first.equals(second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda m, i: distortion_accuracy(m, from_arrays(np.zeros((2, 16, 16, 3), np.uint8))),
            "have no labels",
        ),
        (
            lambda m, i: distortion_accuracy(tiny_models()[0], i),
            "is among the 1000 of tiny-mixer",
        ),
        (lambda m, i: distortion_accuracy(m, i, (Shift(1, 1), Shift(1, 1))), "twice"),
        (lambda m, i: distortion_accuracy(headless(), i), "has no classifier"),
        (
            lambda m, i: answers_right(np.ones((1, 20), bool)).filter_type("low-pass"),
            "was not measured under 'low-pass'",
        ),
    ],
)
def test_what_makes_no_sense_is_an_error(make: object, message: str) -> None:
    images = quadrants(2)
    with pytest.raises(ImagesError if "labels" in message else MeasureError, match=message):
        make(position_reader(images), images)  # type: ignore[operator]


def headless() -> mp.Model:
    network = MlpMixer(img_size=16, patch_size=4, embed_dim=8, num_blocks=1, num_classes=0)
    return mp.load_model(
        network, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu"
    )


def test_bare_tensors_and_grids_that_do_not_fit_are_errors() -> None:
    images = quadrants(2)
    with pytest.raises(ImagesError, match="not a Tensor"):
        predictions(position_reader(images), torch.zeros(2, 3, 16, 16))  # type: ignore[arg-type]
    with pytest.raises(ImagesError, match="5×5 does not divide"):
        distortion_accuracy(position_reader(images), images, (PatchShuffle(5),))


# -- the distortions that are there by default -----------------------------------------------------


def test_standard_distortions_of_a_mixer_at_224_px() -> None:
    model = mp.load_model("mixer_s16_224", pretrained=False, device="cpu")
    found = standard_distortions(model)
    assert own_grid(model) == (14, 14)
    assert [d.grid for d in found if isinstance(d, PatchShuffle)] == [2, 4, 8, 14]
    assert [d.grid for d in found if isinstance(d, PixelShuffle)] == [28, 14, 8, 4, 2, 1]
    assert [d.rows for d in found if isinstance(d, Shift)] == [1, 2, 4, 8, 16, 32] * 2
    assert {d.fill for d in found if isinstance(d, PatchDrop)} == {model.input.mean}
    images = torch.rand(1, 3, 224, 224)
    for distortion in found:
        assert distortion(images).shape == images.shape
    assert len(set(found)) == len(found)
    assert len({d.kind for d in found}) == 8


def test_each_kind_goes_from_mild_to_hard() -> None:
    """By the squared difference from the image, of noise whose values do not tell their
    neighbours."""
    model = tiny_models()[0]
    result = answers_right(
        np.ones((1 + len(standard_distortions(model)), 20), bool), standard_distortions(model)
    )
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = LowPass(3.0)(images) * 8
    for kind in ("patches dropped", "low-pass", "high-pass", "cyclic shift"):
        changes = [
            float((result.distortions[i](smooth) - smooth).square().mean())
            for i in result.filter_type(kind)
        ]
        assert changes == sorted(changes), kind


def test_a_cnn_has_the_grid_of_its_last_block() -> None:
    network = randomised(
        ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), stem_width=8, num_classes=4)
    )
    model = mp.load_model(
        network, input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu"
    )
    assert own_grid(model) == (2, 2)
    assert [d.grid for d in standard_distortions(model) if isinstance(d, PatchShuffle)] == [2]
    assert [d.grid for d in standard_distortions(model, grid=8) if isinstance(d, PatchShuffle)] == [
        2,
        4,
        8,
    ]


def test_no_warning_where_all_is_well() -> None:
    images = quadrants(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distortion_accuracy(position_reader(images), images, (Shift(1, 0),)).to_frame()
