"""Attributions against gradients, sums and loops written out here, in float64 on small networks of
three families."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from timm.models import mlp_mixer
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

import mixer_probe as mp
from mixer_probe import attribution as at
from mixer_probe.core.errors import (
    EmptyAttributionWarning,
    ImagesError,
    IncompleteAttributionWarning,
    LayerError,
    MeasureError,
)
from mixer_probe.core.result import from_dict, to_dict
from tests.attribution.small import small
from tests.networks import CASES, as_model, noise

FAMILIES = ("mixer", "vit-gap", "vit", "resnet")


@pytest.fixture(scope="module")
def models() -> dict[str, mp.Model]:
    return {name: small(name) for name in FAMILIES}


def difference(
    model: mp.Model, x: torch.Tensor, baseline: torch.Tensor, targets: list[int]
) -> np.ndarray:
    with torch.no_grad():
        gap = model.module(x) - model.module(baseline)
    return gap[torch.arange(len(x)), targets].numpy()


def gradient(model: mp.Model, x: torch.Tensor, targets: list[int]) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model.module(x)[torch.arange(len(x)), targets].sum(), x)[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("baseline", ["mean", "black"])
def test_integrated_gradients_sum_to_the_logit_difference(
    models: dict[str, mp.Model], name: str, baseline: str
) -> None:
    model, x, targets = models[name], noise(3, dtype=torch.float64), [0, 4, 2]
    found = mp.attribute(model, x, target=targets, baseline=baseline, change=1.0)
    # mean and std of the model are 0.5, so that black is -1.
    expected = difference(
        model, x, torch.full_like(x, 0.0 if baseline == "mean" else -1.0), targets
    )
    np.testing.assert_allclose(found.logit_difference, expected, rtol=1e-12)
    np.testing.assert_allclose(found.maps.sum((1, 2)), expected, rtol=0.01)
    # Maps are kept in float32; summed in it, they would be rounded once more.
    np.testing.assert_allclose(
        found.convergence_delta, found.maps.sum((1, 2), dtype=np.float64) - expected, atol=1e-6
    )
    assert found.maps.shape == (3, 32, 32)
    assert found.relative_delta.max() <= 0.01


def test_integrated_gradients_equal_a_fine_sum(models: dict[str, mp.Model]) -> None:
    model, x = models["mixer"], noise(1, dtype=torch.float64)
    alphas = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    means = gradient(model, alphas.view(-1, 1, 1, 1) * x, [1] * 400).mean(0)
    found = mp.attribute(model, x, target=1, n_steps=256)
    np.testing.assert_allclose(
        found.maps[0], (x[0] * means).sum(0).numpy(), atol=1e-3 * float(means.abs().max())
    )


def test_too_few_steps_are_said(models: dict[str, mp.Model]) -> None:
    with pytest.warns(
        IncompleteAttributionWarning, match="deviate from the logit difference by more than 0%"
    ):
        found = mp.attribute(
            models["resnet"], noise(2, dtype=torch.float64), n_steps=2, max_steps=4, tolerance=1e-6
        )
    assert found.steps.tolist() == [4, 4]


def test_gradient_methods_equal_autograd(models: dict[str, mp.Model]) -> None:
    model, x, targets = models["vit"], noise(3, dtype=torch.float64), [1, 1, 3]
    expected = gradient(model, x, targets)
    saliency = mp.attribute(model, x, "saliency", target=targets)
    np.testing.assert_allclose(saliency.maps, expected.abs().sum(1).numpy(), rtol=1e-6)
    product = mp.attribute(model, x, "input_x_gradient", target=targets, baseline="black")
    np.testing.assert_allclose(
        product.maps, ((x + 1) * expected).sum(1).numpy(), rtol=1e-5, atol=1e-7
    )
    assert not saliency.signed
    assert product.signed
    assert np.isnan(saliency.convergence_delta).all()


def test_smoothgrad_of_little_noise_is_saliency_and_depends_on_the_seed(
    models: dict[str, mp.Model],
) -> None:
    x = noise(2, dtype=torch.float64)
    make = partial(mp.attribute, models["mixer"], x, target=0)
    np.testing.assert_allclose(
        make("smoothgrad", noise=1e-9, samples=3).maps, make("saliency").maps, rtol=1e-5, atol=1e-6
    )
    one, again, other = (make("smoothgrad", samples=3, seed=seed).maps for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 * one.max()


@pytest.mark.parametrize("name", ["mixer", "resnet"])
def test_occlusion_equals_a_loop_over_patches(models: dict[str, mp.Model], name: str) -> None:
    model, x = models[name], noise(2, dtype=torch.float64)
    found = mp.attribute(model, x, "occlusion", target=2, window=8)
    for i in range(4):
        for j in range(4):
            covered = x.clone()
            covered[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = 0
            expected = difference(model, x, covered, [2, 2])
            np.testing.assert_allclose(
                found.maps[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean((1, 2)),
                expected,
                rtol=1e-5,
            )
    if name == "mixer":
        # Its patches are 8 px, so that this is the default.
        np.testing.assert_array_equal(
            found.maps, mp.attribute(model, x, "occlusion", target=2).maps
        )


def test_deeplift_is_complete_where_it_is_allowed() -> None:
    network = ResNet(
        Bottleneck,
        [1, 1, 1, 1],
        num_classes=5,
        channels=(8, 8, 8, 8),
        stem_width=8,
        replace_stem_pool=True,
    )
    from tests.networks import randomised, settled

    model = as_model(settled(randomised(network), noise(8, 32)).double(), dtype=torch.float64)
    x = noise(3, dtype=torch.float64)
    found = mp.attribute(model, x, "deeplift", target=[0, 1, 2])
    np.testing.assert_allclose(
        found.maps.sum((1, 2)),
        difference(model, x, torch.zeros_like(x), [0, 1, 2]),
        rtol=1e-4,
        atol=1e-5,
    )
    assert "deeplift" in at.allowed_methods(model)
    assert not any(hasattr(m, "input") for m in model.module.modules())


@pytest.mark.parametrize("method", ["integrated_gradients", "gradcam", "saliency"])
def test_batches_do_not_matter(models: dict[str, mp.Model], method: str) -> None:
    x = noise(5, dtype=torch.float64)
    whole, parts = (
        mp.attribute(models["vit-gap"], x, method, target=1, batch_size=b) for b in (8, 2)
    )
    np.testing.assert_allclose(whole.maps, parts.maps, rtol=1e-5, atol=1e-9)
    assert whole.ids == parts.ids == ("0", "1", "2", "3", "4")


def test_targets(models: dict[str, mp.Model]) -> None:
    model = models["mixer"]
    x = noise(3, dtype=torch.float64)
    with torch.no_grad():
        predicted = model.module(x).argmax(1).tolist()
    assert mp.attribute(model, x, "saliency").targets.tolist() == predicted
    assert mp.attribute(model, x, "saliency", target=torch.tensor([1, 2, 0])).targets.tolist() == [
        1,
        2,
        0,
    ]
    with pytest.raises(MeasureError, match="no class 5: its 5 classes are 0 to 4"):
        mp.attribute(model, x, target=5)
    with pytest.raises(MeasureError, match="no class -1"):
        mp.attribute(model, x, target=-1)
    with pytest.raises(MeasureError, match="one for each of the 3 images"):
        mp.attribute(model, x, target=[1, 2])
    with pytest.raises(ImagesError, match="have no labels: target='labels' needs them"):
        mp.attribute(model, x, target="labels")


def test_a_headless_network_needs_a_target() -> None:
    network = mlp_mixer.MlpMixer(
        img_size=32, patch_size=8, num_blocks=1, embed_dim=12, num_classes=0
    )
    model = as_model(network)
    with pytest.raises(MeasureError, match=r"no classifier.*give target= the output \(0 to 11\)"):
        mp.attribute(model, noise(2), "saliency")
    assert mp.attribute(model, noise(2), "saliency", target=11).maps.max() > 0


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", "occlusion", "gradcam"])
def test_a_zero_head_is_said_and_never_drawn(method: str) -> None:
    model = as_model(
        mlp_mixer.MlpMixer(img_size=32, patch_size=8, num_blocks=1, embed_dim=12, num_classes=4)
    )
    with pytest.raises(MeasureError, match=r"every gradient .* is 0.*its head is zero"):
        mp.attribute(model, noise(2), method)


def test_empty_maps_are_said() -> None:
    model = small("resnet", torch.float32)
    # One image is the baseline itself.
    x = noise(2)
    x[1] = 0
    with pytest.warns(EmptyAttributionWarning, match="1 of 2 maps are zero everywhere"):
        mp.attribute(model, x, "input_x_gradient")


@pytest.mark.parametrize(
    ("name", "method", "options", "message"),
    [
        (
            "mixer",
            "deeplift",
            {},
            "DeepLIFT has no rule for GELU, LayerNorm.*'integrated_gradients' sums to the same",
        ),
        ("mixer", "attention_rollout", {}, "has no attention; 'gradcam'"),
        ("resnet", "gradcam", {"layer": "fc"}, "'fc' is pooled; 'layer4.0' works"),
        (
            "resnet",
            "gradcam",
            {"layer": "global_pool"},
            "'global_pool' is pooled; 'layer4.0' works",
        ),
        (
            "mixer",
            "gradcam",
            {"layer": "blocks.0.mlp_tokens.act"},
            "positions that form no grid; 'blocks.1' works",
        ),
        (
            "vit",
            "gradcam",
            {"layer": "blocks.1"},
            "uses only its class token there; 'blocks.0' works",
        ),
        ("mixer", "integrated_gradient", {}, "closest: integrated_gradients"),
        ("mixer", "layer_conductance", {}, "use mixer_probe.attribution.layer_conductance"),
        ("mixer", "integrated_gradients", {"steps": 3}, "no option 'steps'; closest: .*n_steps"),
        ("mixer", "saliency", {"layer": "blocks.0"}, "takes no layer; 'gradcam' does"),
        ("mixer", "saliency", {"baseline": "blak"}, "closest: black"),
        (
            "mixer",
            "saliency",
            {"baseline": torch.zeros(3, 8, 8)},
            r"shape \(3, 32, 32\), not \(3, 8, 8\)",
        ),
        ("mixer", "occlusion", {"window": 4, "stride": 8}, "leaves gaps"),
        ("mixer", "smoothgrad", {"samples": 0}, "samples of smoothgrad must be 1 or more, not 0"),
    ],
)
def test_one_sentence_says_what_works(
    models: dict[str, mp.Model], name: str, method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(MeasureError, match=message):
        mp.attribute(models[name], noise(2, dtype=torch.float64), method, **options)  # type: ignore[arg-type]


def test_images_of_another_size_and_unknown_layers(models: dict[str, mp.Model]) -> None:
    with pytest.raises(ImagesError, match=r"\(3, 16, 16\) and .* takes \(3, 32, 32\)"):
        mp.attribute(models["mixer"], noise(2, 16, torch.float64))
    with pytest.raises(LayerError, match=r"no layer 'block\.0'"):
        mp.attribute(models["mixer"], noise(2, dtype=torch.float64), "gradcam", layer="block.0")


@pytest.mark.parametrize(
    "method",
    ["attention_rollout", "gradient_attention", "gradcam", "integrated_gradients", "smoothgrad"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(method: str, fails: bool) -> None:
    model = CASES["vit"].model()
    network = model.module
    network.blocks[0].train()
    network.head.weight.requires_grad_(False)
    for block in network.blocks:
        block.attn.fused_attn = True
    network.blocks[1].attn.fused_attn = False
    _ = model.structure
    before = _state(network)
    if fails:
        handle = network.head.register_forward_hook(_fail_on_the_second_call())
        with pytest.raises(RuntimeError, match="planned"):
            mp.attribute(model, noise(2), method, target=0)
        handle.remove()
    else:
        mp.attribute(model, noise(2), method, target=0)
    assert _state(network) == before
    assert all(p.grad is None for p in network.parameters())


def _state(network: nn.Module) -> tuple[object, ...]:
    modules = [
        (m.training, getattr(m, "fused_attn", None), len(m._forward_hooks))
        for m in network.modules()
    ]
    return modules, [p.requires_grad for p in network.parameters()], torch.get_rng_state().tolist()


def _fail_on_the_second_call() -> object:
    calls = []

    def hook(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("planned")

    return hook


def test_results_survive_storage_and_tables(models: dict[str, mp.Model]) -> None:
    found = mp.attribute(models["mixer"], noise(2, dtype=torch.float64), "gradcam", target=0)
    again = from_dict(to_dict(found))
    np.testing.assert_array_equal(again.maps, found.maps)
    frame = found.to_frame()
    assert again.to_frame().equals(frame)
    assert frame["layer"].tolist() == ["blocks.1"] * 2
    assert found.layer is not None
    assert again.layer == found.layer
    assert found.pooled().shape == (2, 4, 4)
    np.testing.assert_allclose(found.pooled().sum((1, 2)), found.maps.sum((1, 2)), rtol=1e-5)


def test_a_jump_beside_the_baseline_is_found() -> None:
    """Without biases every layer norm multiplies what little there is beside a blank baseline by
    1,000, one after the other."""
    model = small("mixer")
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    x, baseline = 3 * noise(2, dtype=torch.float64), torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    expected = difference(model, x, baseline, [1, 3])
    plain = IntegratedGradients(model.module).attribute(
        x, baseline, target=torch.tensor([1, 3]), n_steps=1024, internal_batch_size=256
    )
    assert (np.abs(plain.sum((1, 2, 3)).numpy() / expected - 1) > 0.05).all()
    found = mp.attribute(model, x, target=[1, 3])
    np.testing.assert_allclose(found.maps.sum((1, 2), dtype=np.float64), expected, rtol=0.01)
    assert found.steps.max() < 2048


def test_the_zoo_is_complete_with_its_own_images() -> None:
    images = mp.load_images("demo", limit=2)
    for name in ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = mp.attribute(
                mp.load_model(name, device="cpu"), images, target="labels", change=0.1
            )
        assert found.relative_delta.max() <= 0.01, name
        assert found.target_names == tuple(images.class_names[i] for i in images.labels)  # type: ignore[index]
