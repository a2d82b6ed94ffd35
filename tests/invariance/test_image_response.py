"""One image in a network against plain forward passes, its nearest images against the definition,
and how far it is moved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import MeasureError
from mixer_probe.images import Images, PatchShuffle, distort
from mixer_probe.invariance import disagreements, image_response, image_shift, neighbours_by_layer
from mixer_probe.invariance.image_response import nearest_to


@pytest.fixture(scope="module")
def model() -> mp.Model:
    return mp.load_model("zoo:resnet-s0")


@pytest.fixture(scope="module")
def images() -> Images:
    return mp.load_images("demo", split="test", limit=20)


@pytest.fixture(scope="module")
def run(model: mp.Model, images: Images) -> Representations:
    return mp.extract(model, images)


def test_logits_norms_and_means_are_those_of_the_network(model: mp.Model, images: Images) -> None:
    one = images.subset([3])
    found = image_response(model, one)
    with torch.no_grad():
        logits = model.module(next(one.batches(transform_of(model), 1)))[0].double().numpy()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
    assert found.prediction == logits.argmax()
    assert not found.has_zero_head
    positions = mp.extract(model, one, reduce="none")
    table = found.norm_frame()
    assert table["layer"].tolist() == list(positions)
    for i, name in enumerate(positions):
        values = positions[name][0].astype(np.float64)
        norms = np.sqrt((values**2).sum(-1))
        np.testing.assert_allclose(found.norms[i].ravel(), norms.ravel(), rtol=1e-6)
        np.testing.assert_allclose(found.vectors[i], values.mean(0), rtol=1e-5, atol=1e-7)
        assert table["norm"][i] == pytest.approx(norms.mean())
        assert (table["largest"][i], table["positions"][i]) == (
            pytest.approx(norms.max()),
            norms.size,
        )


def test_classes_come_by_probability_and_the_true_one_with_them(
    model: mp.Model, images: Images
) -> None:
    found = image_response(model, images)
    order = np.argsort(-found.probabilities)
    table = found.class_frame(3, also=int(order[-1]))
    assert table["index"].tolist() == [*order[:3], order[-1]]
    assert table["rank"].tolist() == [1, 2, 3, 10]
    np.testing.assert_array_equal(table["probability"], found.probabilities[table["index"]])
    assert found.class_frame(3, also=int(order[0]))["index"].tolist() == order[:3].tolist()
    assert found.class_frame()["rank"].tolist() == list(range(1, 11))


def test_a_head_of_zeros_and_a_distilled_network(images: Images) -> None:
    assert image_response(mp.load_model("mixer_s32_224", pretrained=False), images).has_zero_head
    model = mp.load_model("deit_tiny_distilled_patch16_224", pretrained=False)
    with torch.no_grad():
        logits = (
            model.module(next(images.subset([0]).batches(transform_of(model), 1)))[0]
            .double()
            .numpy()
        )
    np.testing.assert_allclose(image_response(model, images).logits, logits, rtol=1e-3, atol=1e-5)


def test_nearest_images_are_those_of_the_definition(
    run: Representations, images: Images, model: mp.Model
) -> None:
    found = neighbours_by_layer(run, 6, 5)
    other = neighbours_by_layer(run, image_response(model, images.subset([6])), 6)
    for i, name in enumerate(run):
        centred = run[name].astype(np.float64) - run[name].astype(np.float64).mean(0)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        cosines = centred @ centred[6]
        order = [k for k in np.argsort(-cosines) if k != 6][:5]
        assert found.places[i].tolist() == order
        np.testing.assert_allclose(found.cosines[i], cosines[order], atol=1e-6)
        # Of an image that is not taken for one of the run, the nearest is its own.
        assert other.places[i].tolist() == [6, *order]
    assert [found.at(layer.depth) for layer in run.layers] == list(range(len(run.layers)))
    assert images.labels is not None
    table = found.class_frame(int(images.labels[6]), images.labels)
    assert table["same"].tolist() == [
        (images.labels[places] == images.labels[6]).sum() for places in found.places
    ]
    assert table["fraction"].tolist() == pytest.approx((table["same"] / 5).tolist())


def test_the_shift_of_one_image_is_that_of_representation_shift(
    run: Representations, images: Images, model: mp.Model
) -> None:
    shuffle = PatchShuffle(4)
    tables = []
    for i in range(len(images)):
        both = [
            image_response(model, x)
            for x in (images.subset([i]), distort(images.subset([i]), shuffle))
        ]
        tables.append(image_shift(run, i, *both))
    expected = mp.invariance.representation_shift(
        model, images, (shuffle,), permutations=0, resamples=0
    )
    np.testing.assert_allclose(
        np.mean([t["cosine"] for t in tables], axis=0), expected.cosine[0], atol=1e-5
    )
    assert all(table["rank"].between(1, 20).all() and (table["n"] == 20).all() for table in tables)
    one = image_response(model, images.subset([0]))
    same = image_shift(run, None, one, one)
    np.testing.assert_allclose(same["cosine"], 1, atol=1e-6)
    assert same["n"].tolist() == [21] * len(run.layers)
    assert isinstance(same, pd.DataFrame)


def test_too_few_images_and_values_that_are_not_finite() -> None:
    with pytest.raises(MeasureError, match="need three images or more, and there are 2"):
        nearest_to(np.zeros((2, 3)), np.zeros(3), 1)
    with pytest.raises(MeasureError, match="NaN or infinite"):
        nearest_to(np.ones((4, 3)), np.array([1.0, np.nan, 0.0]), 1)


def test_images_on_which_two_networks_disagree() -> None:
    generator = np.random.default_rng(0)
    wrong, right = generator.random((2, 2, 50)) > 0.5
    for both in (True, False):
        expected = [
            i
            for i in range(50)
            if right[1, i] and not wrong[1, i] and (not both or (right[0, i] and wrong[0, i]))
        ]
        assert disagreements(wrong, right, both_undistorted=both).tolist() == expected
        alone = [i for i in range(50) if not wrong[1, i] and (not both or wrong[0, i])]
        assert disagreements(wrong, both_undistorted=both).tolist() == alone
