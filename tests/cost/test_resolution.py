"""Growth with resolution: counts against closed forms, exponents of planted times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer

from mixer_probe.core.errors import MeasureError, ModelError
from mixer_probe.cost import at_resolution, cost_growth
from mixer_probe.models import load_model
from mixer_probe.models.macs import count_macs
from tests.networks import CASES, noise

C, L, P = 24, 2, 8
SIZES = (32, 64, 96, 128)
S = np.array([(size // P) ** 2 for size in SIZES], dtype=float)
STEM = S * 3 * P * P * C


@pytest.mark.parametrize(
    "name, spatial, channel",
    [
        ("mixer", 2 * S * 12 * C, 2 * S * C * 96),
        ("untied-mixer", 2 * S * 12 * C, 2 * S * C * 96),
        ("gmixer", S * 24 * C + S * 12 * C, S * C * 96 + S * 48 * C),
        ("resmlp", S * S * C, 2 * S * C * 96),
        ("gmlp", S * S * 72, S * C * 144 + S * 72 * C),
        ("vit-gap", 4 * S * C * C + 2 * S * S * C, 2 * S * C * 96),
    ],
)
def test_counts_at_every_resolution(name: str, spatial: np.ndarray, channel: np.ndarray) -> None:
    growth = cost_growth(CASES[name].model(), timed=0)
    assert growth.sizes == SIZES
    assert growth.tokens == tuple(S)
    np.testing.assert_array_equal([part.spatial for part in growth.macs], L * spatial)
    np.testing.assert_array_equal(growth.counted, STEM + L * (spatial + channel))


@pytest.mark.parametrize(
    "name", ["mixer", "gmixer", "resnet-bottleneck", "convnext", "convmixer", "swin"]
)
def test_linear_growth(name: str) -> None:
    """Fixed D_S, convolutions, and windows of fixed size: exponent 1, nothing quadratic."""
    growth = cost_growth(CASES[name].model(), timed=0)
    np.testing.assert_allclose(growth.exponents, 1, atol=1e-12)
    assert growth.exponent == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(growth.quadratic_fraction, 0, atol=1e-10)


@pytest.mark.parametrize("name, prefix", [("vit-gap", 0), ("vit", 1)])
def test_the_quadratic_fraction_of_a_vit(name: str, prefix: int) -> None:
    """2 L C S^2 of all, with a class token as well; the exponent approaches 2."""
    growth = cost_growth(CASES[name].model(), timed=0)
    np.testing.assert_allclose(
        growth.quadratic_fraction, L * 2 * C * S**2 / growth.counted, rtol=1e-9
    )
    n = S + prefix
    np.testing.assert_array_equal(growth.counted, STEM + L * (12 * n * C * C + 2 * n * n * C))
    assert (np.diff(growth.exponents) > 0).all()
    assert 1 < growth.exponent < growth.exponents[-1] < 2


def test_resmlp_and_gmlp_are_quadratic_as_well() -> None:
    growth = cost_growth(CASES["resmlp"].model(), timed=0)
    np.testing.assert_allclose(growth.quadratic_fraction, L * C * S**2 / growth.counted, rtol=1e-9)
    assert cost_growth(CASES["gmlp"].model(), timed=0).quadratic_fraction[-1] > 0.7


def test_against_networks_that_timm_builds_for_that_size() -> None:
    for cls, options in (
        (MlpMixer, {"num_blocks": 2}),
        (VisionTransformer, {"depth": 2, "num_heads": 2}),
    ):
        sizes = {"patch_size": 8, "embed_dim": 16, "num_classes": 3, **options}
        spec = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}
        small = load_model(cls(img_size=32, **sizes), input_size=(3, 32, 32), **spec)
        large = at_resolution(small, 64)
        own = cls(img_size=64, **sizes)
        assert count_macs(large.module, (3, 64, 64)) == count_macs(own, (3, 64, 64))
        assert large.parameters == sum(p.numel() for p in own.parameters())


def test_the_network_itself_stays() -> None:
    model = CASES["mixer"].model()
    images = noise(2)
    before = model.module(images)
    resized = at_resolution(model, 64)
    assert resized.module(noise(2, 64)).shape == (2, 5)
    shapes = at_resolution(model, 96, meta=True)
    assert {p.device.type for p in shapes.module.parameters()} == {"meta"}
    assert torch.equal(model.module(images), before)
    assert model.input.size == (3, 32, 32)
    assert torch.equal(at_resolution(model, 32).module(images), before)


def test_times_and_memory_are_measured_where_asked_for() -> None:
    growth = cost_growth(CASES["mixer"].model(), timed=2, batch_size=2, runs=6)
    assert growth.seconds.shape == (2, 6)
    assert (growth.seconds > 0).all()
    # All activations of a Mixer grow with the tokens, but for those after pooling.
    assert growth.peak_bytes[1] / growth.peak_bytes[0] == pytest.approx(4, rel=0.02)
    frame = growth.to_frame()
    assert frame["seconds_per_image"].isna().tolist() == [False, False, True, True]
    exponent, low, high = growth.measured_exponent
    assert low <= high
    assert np.isfinite(exponent)


def test_the_exponent_of_planted_times() -> None:
    growth = cost_growth(CASES["mixer"].model(), timed=0)
    assert np.isnan(growth.measured_exponent).all()
    rng = np.random.default_rng(0)
    exact = replace(growth, seconds=np.repeat(S[:, None] ** 1.5, 9, axis=1), peak_bytes=S)
    assert exact.measured_exponent == pytest.approx((1.5, 1.5, 1.5))
    noisy = replace(exact, seconds=S[:, None] ** 1.5 * np.exp(0.05 * rng.standard_normal((4, 25))))
    exponent, low, high = noisy.measured_exponent
    assert low < 1.5 < high
    assert low <= exponent <= high
    assert high - low < 0.1
    assert noisy.measured_exponent == (exponent, low, high)


def test_bad_sizes() -> None:
    model = CASES["mixer"].model()
    with pytest.raises(
        MeasureError, match="two sizes or more, each larger than the last, not 64, 32"
    ):
        cost_growth(model, (64, 32))
    with pytest.raises(MeasureError, match="not 32"):
        cost_growth(model, (32,))
    with pytest.raises(ModelError, match="patches of 8×8 px, which do not divide images of 36 px"):
        cost_growth(model, (32, 36))
    fixed = CASES["vit"].model()
    fixed.module.set_input_size = None
    with pytest.raises(ModelError, match="cannot be rebuilt for images of 64 px"):
        cost_growth(fixed)
