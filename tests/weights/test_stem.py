"""Stem filters of every family are the weights of the layer that reads the image."""

import numpy as np
import pytest
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe.errors import ModelError
from mixer_probe.results import from_dict, to_dict


@pytest.mark.parametrize(
    "name, path",
    [
        ("mixer_s32_224", "stem.proj"),
        ("vit_tiny_patch16_224", "patch_embed.proj"),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj"),
        ("resnet18", "conv1"),
        ("resnet18d", "conv1.0"),
        ("convnext_atto", "stem.0"),
        ("efficientnet_b0", "conv_stem"),
        ("regnety_002", "stem.conv"),
    ],
)
def test_filters_are_the_first_convolution(name: str, path: str) -> None:
    model = mp.load_model(name, pretrained=False, device="cpu")
    stem = mp.stem_filters(model)
    layer = model.module.get_submodule(path)
    assert stem.layer == path
    assert stem.stride == layer.stride
    np.testing.assert_array_equal(np.asarray(stem), layer.weight.detach().numpy())
    assert sorted(stem.order.tolist()) == list(range(len(stem)))
    assert (np.diff(stem.frequency[stem.order]) >= 0).all()


def test_norm_and_storage() -> None:
    stem = mp.stem_filters(mp.load_model("resnet18", pretrained=False, device="cpu"))
    np.testing.assert_allclose(stem.norm, np.linalg.norm(stem.filters.reshape(64, -1), axis=1), rtol=1e-6)
    again = from_dict(to_dict(stem))
    np.testing.assert_array_equal(again.filters, stem.filters)
    assert again.to_frame().equals(stem.to_frame())
    assert stem[3].shape == (3, 7, 7)


def test_half_precision_weights_are_read() -> None:
    model = mp.load_model("resnet18", pretrained=False, device="cpu", dtype="bfloat16")
    expected = model.module.conv1.weight.detach().to(torch.float32).numpy()
    np.testing.assert_array_equal(mp.stem_filters(model).filters, expected)


def test_a_network_without_a_convolution_is_refused() -> None:
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, device="cpu")
    model.module.patch_embed.proj = nn.Identity()
    with pytest.raises(ModelError, match="no convolution that reads the image"):
        mp.stem_filters(model)
