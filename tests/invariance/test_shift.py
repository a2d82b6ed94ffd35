"""Representations of plain and distorted images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import load_results, save_results
from mixer_probe.images import HighPass, LowPass, PatchDrop, PatchShuffle, PixelShuffle, distort
from mixer_probe.invariance import distortion_examples, representation_shift
from mixer_probe.invariance.shift import mean_cosine
from mixer_probe.stats import mean_interval
from tests.invariance.planted import bag_of_pixels, colours
from tests.tiny import tiny_models


def test_cosine_by_hand() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 9, 5))
    centre = x.mean(0)
    table = [
        [
            float(
                (a - centre)
                @ (b - centre)
                / np.linalg.norm(a - centre)
                / np.linalg.norm(b - centre)
            )
            for b in y
        ]
        for a in x
    ]
    own = np.diag(table)
    mean, low, high, others = mean_cosine(x, y)
    assert mean == pytest.approx(own.mean())
    np.testing.assert_allclose([low, high], mean_interval(own, limits=(-1, 1))[1:], rtol=1e-12)
    assert others == pytest.approx((np.sum(table) - own.sum()) / 72)


def test_cosine_of_equal_opposite_and_constant_features() -> None:
    x = np.random.default_rng(1).standard_normal((50, 4))
    assert mean_cosine(x, x)[0] == pytest.approx(1)
    assert mean_cosine(x, 2 * x.mean(0) - x)[0] == pytest.approx(-1)
    assert mean_cosine(x, 3 * (x - x.mean(0)) + x.mean(0))[0] == pytest.approx(1)
    assert np.isnan(mean_cosine(np.ones((5, 3)), np.ones((5, 3)))).all()


def test_nothing_moves_where_nothing_is_done() -> None:
    found = representation_shift(
        tiny_models()[0], mp.load_images("demo", limit=30), (PatchDrop(0.0, 4),)
    )
    np.testing.assert_allclose(found.cka, 1, atol=1e-9)
    np.testing.assert_allclose(found.cosine, 1, atol=1e-9)


def test_what_ignores_position_does_not_move_when_pixels_do() -> None:
    images = colours(10)
    model = bag_of_pixels(images)
    found = representation_shift(
        model,
        images,
        (PixelShuffle(1), PatchShuffle(4), HighPass(0.5, "ideal")),
        ("blocks", "norm"),
    )
    np.testing.assert_allclose(found.cka[:2], 1, atol=1e-9)
    np.testing.assert_allclose(found.cosine[:2], 1, atol=1e-9)
    assert (found.cosine[2] < 0.99).all()


def test_numbers_are_those_of_extract_and_cka() -> None:
    images, model = mp.load_images("demo", limit=30), tiny_models()[1]
    found = representation_shift(
        model, images, (PatchShuffle(2), LowPass(2.0)), "blocks", permutations=40, resamples=20
    )
    plain, moved = (
        mp.extract(model, images, "blocks"),
        mp.extract(model, distort(images, LowPass(2.0)), "blocks"),
    )
    assert [layer.name for layer in found.layers] == plain.names()
    for i, name in enumerate(plain):
        assert found.cka[1, i] == pytest.approx(mp.cka(plain[name], moved[name]), abs=1e-9)
        assert found.cosine[1, i] == pytest.approx(mean_cosine(plain[name], moved[name])[0])
    assert (found.cka_low <= found.cka).all()
    assert (found.cka <= found.cka_high).all()
    assert (found.cka_null < 0.9).all()


def test_a_result_saves_and_loads(tmp_path: Path) -> None:
    images, model = mp.load_images("demo", limit=12), tiny_models()[0]
    distortions = (PatchShuffle(2), LowPass(2.0))
    results = [
        representation_shift(model, images, distortions, permutations=0, resamples=0),
        distortion_examples(model, images, distortions, 2),
    ]
    again = load_results(save_results(results, tmp_path / "r.json"))
    for old, new in zip(results, again, strict=True):
        assert new.to_frame().equals(old.to_frame())
        assert new.distortions == old.distortions
    assert np.isnan(results[0].cka_low).all()
    assert len(results[0].to_frame()) == 4


def test_examples_are_the_pixels_that_the_network_gets() -> None:
    images, model = mp.load_images("demo", limit=5), tiny_models()[0]
    found = distortion_examples(model, images, (PatchDrop(1.0, 4, fill=(0.0, 0.5, 1.0)),), 3)
    assert found.pixels.shape == (2, 3, 32, 32, 3)
    np.testing.assert_array_equal(found.pixels[0], [np.array(images[i]) for i in range(3)])
    assert (found.pixels[1] == [0, 128, 255]).all()
    assert found.ids == images.ids[:3]


def test_no_distortion_is_an_error() -> None:
    with pytest.raises(MeasureError, match="no distortion was given"):
        representation_shift(tiny_models()[0], mp.load_images("demo", limit=5), ())
