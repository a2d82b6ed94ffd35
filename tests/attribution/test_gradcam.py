"""Grad-CAM against captum on feature maps and against a formula written out on token sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

import mixer_probe as mp
from mixer_probe.attribution.gradcam import gradcam_layer
from tests.attribution.small import small
from tests.networks import CASES, noise


def by_hand(
    model: mp.Model, path: str, x: torch.Tensor, target: int, prefix: int, transposed: bool = False
) -> np.ndarray:
    """[B, 4, 4] from the raw output [B, N, C] ([B, C, N] if transposed) of a module."""
    kept: list[torch.Tensor] = []
    handle = model.module.get_submodule(path).register_forward_hook(
        lambda _m, _i, out: kept.append(out)
    )
    logits = model.module(x.clone().requires_grad_())
    handle.remove()
    grad = torch.autograd.grad(logits[:, target].sum(), kept[0])[0]
    value = kept[0].detach()
    if transposed:
        value, grad = value.transpose(1, 2), grad.transpose(1, 2)
    value, grad = value[:, prefix:], grad[:, prefix:]
    return (
        torch.einsum("bnc,bc->bn", value, grad.mean(1)).clamp_min(0).reshape(len(x), 4, 4).numpy()
    )


@pytest.mark.parametrize("layer", ["layer1.0", "layer2.0", "bn1", "layer3.0.conv2"])
def test_feature_maps_equal_captum(layer: str) -> None:
    model, x = small("resnet"), noise(2, dtype=torch.float64)
    # captum's hook sees what an in-place ReLU made of a tensor; without it both see the same.
    for module in model.module.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    expected = LayerGradCam(model.module, model.module.get_submodule(layer)).attribute(
        x, target=3, relu_attributions=True
    )
    found = mp.attribute(model, x, "gradcam", target=3, layer=layer)
    assert found.native is not None
    np.testing.assert_allclose(found.native, expected[:, 0].detach().numpy(), rtol=1e-5, atol=1e-8)


def test_in_place_activations_do_not_reach_what_was_caught() -> None:
    model, x = small("resnet"), noise(2, dtype=torch.float64)
    found = mp.attribute(model, x, "gradcam", target=3, layer="bn1").native
    for module in model.module.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    np.testing.assert_array_equal(
        found, mp.attribute(model, x, "gradcam", target=3, layer="bn1").native
    )


@pytest.mark.parametrize(
    ("name", "path", "prefix", "transposed"),
    [
        ("mixer", "blocks.1", 0, False),
        ("mixer", "blocks.0.mlp_tokens", 0, True),
        ("vit", "blocks.0", 1, False),
        ("dinov2-registers", "blocks.0", 5, False),
        ("vit-gap", "blocks.1", 0, False),
    ],
)
def test_token_layouts_equal_the_formula(
    name: str, path: str, prefix: int, transposed: bool
) -> None:
    model, x = small(name), noise(2, dtype=torch.float64)
    found = mp.attribute(model, x, "gradcam", target=2, layer=path)
    assert found.native is not None
    assert found.native.shape == (2, 4, 4)
    assert found.maps.shape == (2, 32, 32)
    np.testing.assert_allclose(
        found.native, by_hand(model, path, x, 2, prefix, transposed), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("mixer", "blocks.1"),
        ("vit-gap", "blocks.1"),
        ("vit-attention-pooling", "blocks.1"),
        ("vit", "blocks.0"),
    ],
)
def test_the_default_layer_is_the_last_whose_patches_are_read(name: str, layer: str) -> None:
    assert gradcam_layer(CASES[name].model(), None).name == layer


def test_a_real_mixer_has_a_map_of_14_by_14() -> None:
    model = mp.load_model("mixer_s16_224", pretrained=False, device="cpu")
    with torch.no_grad():
        model.module.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = mp.attribute(model, noise(1, 224), "gradcam")
    assert found.native is not None
    assert found.native.shape == (1, 14, 14)
    assert found.maps.shape == (1, 224, 224)
