"""Curves, infidelity, sensitivity, randomisation and agreement against loops, SciPy and cases whose
answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import mixer_probe as mp
from mixer_probe import attribution as at
from mixer_probe.attribution.maps import cells, edges
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.stats import mean_interval
from tests.attribution.small import small
from tests.networks import noise

X = noise(4, dtype=torch.float64)


@pytest.fixture(scope="module")
def mixer() -> mp.Model:
    return small("mixer")


@pytest.fixture(scope="module")
def saliency(mixer: mp.Model) -> at.Attribution:
    return mp.attribute(mixer, X, "saliency", target=1)


def test_pooling_is_exact_for_grids_that_do_not_divide_the_image() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 10, 7))
    pooled = at.pool(maps, (4, 3))
    where = cells((10, 7), (4, 3))
    for k in range(12):
        np.testing.assert_allclose(pooled.reshape(2, -1)[:, k], maps[:, where == k].sum(1))
    assert edges(10, 4).tolist() == [0, 3, 5, 8]
    with pytest.raises(MeasureError, match="8 cells per side do not fit 7 pixels"):
        at.pool(maps, (4, 8))


def test_curves_equal_a_loop(mixer: mp.Model, saliency: at.Attribution) -> None:
    found = at.perturbation_curves(
        mixer, X, [saliency], steps=16, random_orders=2, deletion_baseline="black"
    )
    assert found.deletion.shape == (1, 4, 17)
    order = np.argsort(-saliency.pooled().reshape(4, 16), axis=1)
    with torch.no_grad():
        for i in range(4):
            image = X[i : i + 1].clone()
            for step in range(17):
                expected = mixer.module(image).softmax(1)[0, 1].item()
                assert found.deletion[0, i, step] == pytest.approx(expected, rel=1e-9)
                if step < 16:
                    row, column = divmod(int(order[i, step]), 4)
                    image[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = -1
    area = ((found.deletion[:, :, 1:] + found.deletion[:, :, :-1]) / 2).mean(-1)
    np.testing.assert_allclose(found.area("deletion"), area)
    # Insertion ends with the whole image, deletion begins with it.
    np.testing.assert_allclose(found.insertion[:, :, -1], found.deletion[:, :, 0])
    np.testing.assert_allclose(
        found.random_insertion[:, :, -1], np.tile(found.deletion[0, :, 0], (2, 1))
    )
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())


def test_equal_patches_are_removed_in_random_order(
    mixer: mp.Model, saliency: at.Attribution
) -> None:
    flat = replace(saliency, maps=np.zeros_like(saliency.maps))
    one, other = (
        at.perturbation_curves(mixer, X, [flat], seed=s, random_orders=1).deletion for s in (0, 1)
    )
    assert np.abs(one[..., 1:-1] - other[..., 1:-1]).max() > 0


def test_attributions_of_other_things_are_refused(
    mixer: mp.Model, saliency: at.Attribution
) -> None:
    with pytest.raises(
        MeasureError, match="whose weights, settings or preprocessing differ from those"
    ):
        at.perturbation_curves(small("vit"), X, [saliency])
    with pytest.raises(MeasureError, match="on other images"):
        at.perturbation_curves(mixer, X[:2], [saliency])
    with pytest.raises(MeasureError, match="different target classes"):
        at.perturbation_curves(mixer, X, [saliency, mp.attribute(mixer, X, "saliency", target=2)])
    with pytest.raises(MeasureError, match="at least one"):
        at.faithfulness(mixer, X, [])
    with pytest.raises(MeasureError, match="different images"):
        at.agreement([saliency, mp.attribute(mixer, X[:2], "saliency")])


def test_infidelity_of_a_perfect_and_of_a_uniform_map() -> None:
    """A network that is linear in what is removed: integrated gradients tell every fall."""
    model = small("mixer")
    with torch.no_grad():
        for p in model.module.blocks.parameters():
            p.zero_()
        model.module.norm.eps = 1e12
        model.module.norm.weight.fill_(1e6)
    exact = mp.attribute(model, X, "integrated_gradients", target=1)
    found = at.faithfulness(model, X, [exact], samples=40, sensitivity_samples=3, radius=0.05)
    np.testing.assert_allclose(found.infidelity, 0, atol=1e-4)
    assert (found.uniform_infidelity > 0.05).all()
    frame = found.to_frame()
    assert frame["method"].tolist() == [
        "integrated_gradients",
        "uniform map",
        "integrated_gradients",
    ]
    assert (found.sensitivity > 0).all()
    # The gradient of a linear network does not move, so that saliency is not sensitive at all.
    fixed = at.faithfulness(
        model, X, [mp.attribute(model, X, "saliency", target=1)], samples=4, sensitivity_samples=3
    )
    np.testing.assert_allclose(fixed.sensitivity, 0, atol=1e-5)
    assert from_dict(to_dict(found)).to_frame().equals(frame)


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients"])
def test_noise_of_a_single_image_has_its_target(mixer: mp.Model, method: str) -> None:
    """Every noisy copy has a map: with next to no noise it is that of the image."""
    a = mp.attribute(mixer, X[:1], method, target=1)
    found = at.faithfulness(mixer, X[:1], [a], samples=2, sensitivity_samples=3, radius=1e-6)
    assert 0 < found.sensitivity[0, 0] < 1e-3


def test_randomisation_redraws_everything_once_and_leaves_the_network_alone(
    mixer: mp.Model, saliency: at.Attribution
) -> None:
    before = mixer.module.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    found = at.randomisation_check(mixer, X, saliency, draws=2)
    assert found.stages == ("trained", "head", "norm", "blocks.1", "blocks.0", "stem and the rest")
    assert found.spearman.shape == found.ssim.shape == (2, 6, 4)
    np.testing.assert_allclose(found.spearman[:, 0], 1)
    np.testing.assert_allclose(found.ssim[:, 0], 1)
    # Other weights in every draw, and in the draws of another seed.
    other = at.randomisation_check(mixer, X, saliency, draws=2, seed=1)
    last = np.concatenate([found.spearman[:, -1], other.spearman[:, -1]])
    assert len(np.unique(last.round(9), axis=0)) == 4
    # A cascade of fewer steps ends in the same network: weights are drawn in one order.
    short = at.randomisation_check(mixer, X, saliency, draws=2, steps=2)
    assert short.stages == ("trained", "blocks.1", "stem and the rest")
    np.testing.assert_allclose(short.spearman[:, -1], found.spearman[:, -1])
    mean, low, high = found.excess()
    assert mean == pytest.approx((found.spearman[:, -1] - found.null_spearman).mean())
    assert low < mean < high
    with pytest.raises(MeasureError, match="draws is a whole number, 1 or more, not 0"):
        at.randomisation_check(mixer, X, saliency, draws=0)
    assert all(torch.equal(kept[name], value) for name, value in mixer.module.state_dict().items())
    assert np.abs(found.spearman[:, -1]).mean() < 0.9
    pooled = saliency.pooled().reshape(4, -1)
    expected = np.mean([spearmanr(pooled[0], pooled[j])[0] for j in (1, 2, 3)])
    assert found.null_spearman[0] == pytest.approx(expected)
    assert len(found.to_frame()) == 6
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())


@pytest.mark.parametrize("name", ["zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0"])
def test_the_zoo_forgets_its_maps_when_it_forgets_its_weights(name: str) -> None:
    model, images = mp.load_model(name, device="cpu"), mp.load_images("demo", limit=12)
    # As many images and draws as a report takes.
    found = at.randomisation_check(
        model, images, mp.attribute(model, images, "saliency", target="labels"), draws=5, steps=1
    )
    frame = found.to_frame()
    last = frame.iloc[-1]
    assert last["spearman_high"] < 0.5
    assert last["ssim_high"] < 0.5


def test_agreement_equals_scipy_and_has_a_null(mixer: mp.Model, saliency: at.Attribution) -> None:
    product = mp.attribute(mixer, X, "input_x_gradient", target=1)
    found = at.agreement([saliency, product, saliency], permutations=50)
    np.testing.assert_allclose(found.values[0, 2], 1)
    for i in range(4):
        expected = spearmanr(saliency.pooled()[i].ravel(), product.pooled()[i].ravel())[0]
        assert found.values[0, 1, i] == pytest.approx(expected)
    other = [
        spearmanr(saliency.pooled()[i].ravel(), saliency.pooled()[j].ravel())[0]
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    # Every pairing of different images is as likely as any other.
    assert found.null[0, 2] == pytest.approx(np.mean(other), abs=0.1)
    assert found.null95[0, 2] < 1
    assert len(found.to_frame()) == 3
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())


def test_networks_of_different_grids_agree_on_the_coarser_one() -> None:
    maps = [mp.attribute(small(name), X, "saliency", target=1) for name in ("mixer", "vit")]
    assert at.agreement(maps, grid=(2, 2)).grid == (2, 2)
    assert at.agreement(maps).grid == (4, 4)


def test_structural_similarity() -> None:
    a = np.random.default_rng(0).normal(size=(3, 20, 20))
    b = np.random.default_rng(1).normal(size=(3, 20, 20))
    np.testing.assert_allclose(at.ssim(a, 7 * a), 1)
    np.testing.assert_allclose(at.ssim(a, -a), 1)
    np.testing.assert_allclose(at.ssim(a, b), at.ssim(b, a))
    assert np.abs(at.ssim(a, b)).max() < 0.3
    assert np.isnan(at.ssim(a, np.zeros_like(a))).all()


def test_intervals_over_images() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(200, 100))
    mean, low, high = mean_interval(values)
    np.testing.assert_allclose(mean, values.mean(1))
    covered = ((low < 3) & (high > 3)).mean()
    assert 0.88 < covered < 0.99
    np.testing.assert_allclose((high - low).mean(), 2 * 1.96 * 2 / 10, rtol=0.05)
    one = mean_interval(np.array([[1.0, np.nan]]))
    assert one[0][0] == 1
    assert np.isnan([one[1][0], one[2][0]]).all()
