"""Intervals of the place of a token are for other training images and other test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mixer_probe.capture import Piece
from mixer_probe.models.layer import Layer
from mixer_probe.probing import patch_position as module
from mixer_probe.probing.patch_position import GROUPS, GroupedMoments, centres, patch_position_probe
from mixer_probe.stats import jackknife_variance, mean_interval, training_interval
from tests.networks import as_model, noise, randomised

PLACES = centres((3, 3), (30, 30))


def test_groups_leave_out_every_tenth_image():
    x = torch.randn(23, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ridge = np.array([0.01])
    moments = GroupedMoments(PLACES)
    for start, end in ((0, 4), (4, 17), (17, 23)):
        moments.update(moments.of(x[start:end]), end - start)
    found = moments.compute(ridge, ridge)
    assert len(found) == 1 + GROUPS
    for group, probes in enumerate(found[1:]):
        alone = GroupedMoments(PLACES)
        rest = x[torch.arange(23) % GROUPS != group]
        alone.update(alone.of(rest), len(rest))
        torch.testing.assert_close(
            probes.regression, alone.total.compute(ridge).regression, rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(
            probes.directions, alone.total.compute(ridge).directions, rtol=1e-7, atol=1e-9
        )


def test_the_jackknife_of_a_mean_is_its_squared_standard_error():
    images = np.random.default_rng(0).normal(size=GROUPS)
    left_out = np.array([np.delete(images, k).mean() for k in range(GROUPS)])
    total, interaction = jackknife_variance(np.repeat(left_out[:, None], 7, axis=1))
    assert total == pytest.approx(images.var(ddof=1) / GROUPS)
    assert interaction == pytest.approx(0, abs=1e-30)


def test_training_images_that_change_nothing_leave_the_interval_over_test_images():
    right = np.random.default_rng(0).random(40)
    value, low, high = mean_interval(right)
    np.testing.assert_allclose(
        training_interval(value, low, high, np.tile(right, (GROUPS, 1))), (low, high)
    )
    shifted = right + 0.1 * np.random.default_rng(1).normal(size=(GROUPS, 1))
    wide = training_interval(value, low, high, shifted)
    assert wide[0] < low < high < wide[1]


def deep() -> Any:
    """A ViT of many layers of 4 x 4 tokens, whose activations no one looks at."""
    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 15,
        "num_heads": 2,
        "mlp_ratio": 1,
    }
    return as_model(
        randomised(VisionTransformer(**sizes, class_token=False, global_pool="avg")).eval()
    )


def tokens(separation: float) -> Callable[..., Iterator[Piece]]:
    """A stream of independent draws for every layer: a mean of each position, plus what images
    share, plus noise."""
    random, means = torch.Generator().manual_seed(3), separation * torch.eye(16)

    def draw(
        _model: Any,
        images: Any,
        layers: Sequence[Layer],
        reducer: Callable[..., Any],
        **_options: Any,
    ) -> Iterator[Piece]:
        def x() -> torch.Tensor:
            spread, common, own = (
                torch.randn(len(images), *size, generator=random)
                for size in ((1, 1), (1, 16), (16, 16))
            )
            return means + 0.3 * common + torch.exp(0.3 * spread) * own

        yield Piece(0, len(images), {layer.name: reducer(layer, x(), None) for layer in layers})

    return draw


def test_the_interval_covers_what_other_training_and_test_images_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, train, test = deep(), noise(80), noise(40, seed=2)
    monkeypatch.setattr(module, "stream", tokens(4.0))
    found = [
        patch_position_probe(model, train, test, ("pos_drop", "blocks"), ridges=[1e-2])
        for _ in range(40)
    ]
    for name in ("r2", "accuracy", "distance_px"):
        value, low, high = (
            np.concatenate([getattr(r, side + name) for r in found])
            for side in ("", "low_", "high_")
        )
        covered = ((low <= value.mean()) & (value.mean() <= high)).mean()
        assert 0.93 <= covered <= 0.97


def test_fewer_than_ten_training_images_have_no_interval() -> None:
    result = patch_position_probe(deep(), noise(9), noise(6, seed=2), "blocks.0")
    assert np.isfinite([result.r2[0], result.accuracy[0], result.distance_px[0]]).all()
    assert np.isnan([result.low_r2[0], result.high_accuracy[0], result.low_distance_px[0]]).all()
