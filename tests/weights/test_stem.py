"""Stem filters of every family are the weights of the layer that reads the image; planted filters,
colours and components."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError, ModelError
from mixer_probe.core.result import ModelRecord, from_dict, to_dict
from mixer_probe.weights import StemComponents, StemFilters, colour_centroid, stem_components
from mixer_probe.weights.stem import colour_fractions, luminance_fraction
from tests.networks import as_model

RECORD = ModelRecord("net", "vit", True, "", "0", 1)


def stem_of(filters: np.ndarray) -> StemFilters:
    return StemFilters(RECORD, "stem", filters, (4, 4), colour_centroid(filters))


def grating(size: int, ky: int, kx: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.cos(2 * np.pi * (ky * y + kx * x) / size + 0.4)


@pytest.mark.parametrize(
    "name, path",
    [
        ("mixer_s32_224", "stem.proj"),
        ("vit_tiny_patch16_224", "patch_embed.proj"),
        ("vit_tiny_r_s16_p8_224", "patch_embed.backbone.conv"),
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
    if type(layer) is nn.Conv2d:
        np.testing.assert_array_equal(np.asarray(stem), layer.weight.detach().numpy())
    assert sorted(stem.order.tolist()) == list(range(len(stem)))
    assert (np.diff(stem.frequency[stem.order]) >= 0).all()


def test_a_standardised_convolution_shows_what_it_applies() -> None:
    model = mp.load_model("resnetv2_50x1_bit", pretrained=False, device="cpu")
    layer = model.module.stem.conv
    stored = layer.weight.detach().double().numpy().reshape(64, -1)
    # Qiao et al. 2019: each filter minus its mean over its standard deviation.
    expected = (stored - stored.mean(1, keepdims=True)) / np.sqrt(
        stored.var(1, keepdims=True) + layer.eps
    )
    np.testing.assert_allclose(mp.stem_filters(model).filters.reshape(64, -1), expected, atol=1e-4)


def test_norm_and_storage() -> None:
    stem = mp.stem_filters(mp.load_model("resnet18", pretrained=False, device="cpu"))
    np.testing.assert_allclose(
        stem.norm, np.linalg.norm(stem.filters.reshape(64, -1), axis=1), rtol=1e-6
    )
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


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    "name, path", [("test_vit", "patch_embed.proj"), ("test_efficientnet", "conv_stem")]
)
def test_stems_of_one_or_four_channels(name: str, path: str, channels: int) -> None:
    network = timm.create_model(name, in_chans=channels)
    size = (channels, *network.default_cfg["input_size"][1:])
    model = as_model(network, input_size=size, mean=(0.5,) * channels, std=(0.5,) * channels)
    stem = mp.stem_filters(model)
    assert (stem.layer, stem.shape[1]) == (path, channels)
    assert "red_green_fraction" not in stem.to_frame()
    if channels == 1:
        np.testing.assert_allclose(stem.luminance, 1)
    assert stem_components(stem, 3).components.shape == (3, *stem.shape[1:])


# -- planted filters -------------------------------------------------------------------------------


def test_a_planted_grating_has_its_frequency_whatever_its_colour() -> None:
    grey, red = np.ones(3), np.array([1.0, 0, 0])
    filters = np.stack(
        [c[:, None, None] * grating(16, 2, 3) for c in (grey, red, np.array([1.0, -1, 0]))]
    )
    np.testing.assert_allclose(stem_of(filters).frequency, np.hypot(2, 3) / 16, atol=1e-12)


def test_luminance_and_opponent_colours_are_told_apart_exactly() -> None:
    pattern = np.random.default_rng(0).standard_normal((4, 4))
    colours = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2], [1, 0, 0], [0, 0, 1]], dtype=float)
    filters = colours[:, :, None, None] * pattern
    np.testing.assert_allclose(luminance_fraction(filters), [1, 0, 0, 1 / 3, 1 / 3], atol=1e-15)
    # (1, 0, 0) has (1, 1, 1)/sqrt(3), (1, -1, 0)/sqrt(2) and (-1, -1, 2)/sqrt(6) coordinates
    # 1/sqrt(3), 1/sqrt(2), -1/sqrt(6).
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3, 1 / 2, 1 / 6], [1 / 3, 0, 2 / 3]]
    np.testing.assert_allclose(colour_fractions(filters), expected, atol=1e-15)
    # A grey grating under a colour blob: energies add, for the two are orthogonal.
    both = 3 * colours[0][:, None, None] * grating(8, 1, 0) + colours[1][:, None, None] * np.ones(
        (8, 8)
    )
    grey, colour = 9 * 3 * 32, 2 * 64
    assert luminance_fraction(both[None]) == pytest.approx([grey / (grey + colour)], abs=1e-12)


def test_iid_filters_have_a_third_of_their_energy_in_luminance() -> None:
    fractions = colour_fractions(np.random.default_rng(0).standard_normal((4000, 3, 4, 4)))
    np.testing.assert_allclose(fractions.mean(0), 1 / 3, atol=0.005)


def test_constant_and_zero_filters_have_no_frequency_and_nobody_is_warned() -> None:
    filters = np.stack(
        [np.full((3, 4, 4), 0.1), np.zeros((3, 4, 4)), np.broadcast_to(grating(4, 1, 0), (3, 4, 4))]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stem = stem_of(filters)
        frame = stem.to_frame()
        assert stem.order.tolist()[0] == 2
        assert stem.order_by("luminance").tolist()[-1] == 1
    np.testing.assert_array_equal(np.isnan(stem.frequency), [True, True, False])
    np.testing.assert_array_equal(frame["luminance_fraction"].isna(), [False, True, False])


def test_orders() -> None:
    stem = stem_of(np.random.default_rng(0).standard_normal((9, 3, 4, 4)))
    assert (np.diff(stem.norm[stem.order_by("norm")]) <= 0).all()
    assert (np.diff(stem.luminance[stem.order_by("luminance")]) <= 0).all()
    with pytest.raises(MeasureError, match="known: frequency, norm, luminance"):
        stem.order_by("frequencies")


# -- principal components --------------------------------------------------------------------------


def test_centred_components_are_those_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((40, 3, 3, 3)) * np.linspace(3, 1, 3)[:, None, None] + 1
    found = stem_components(stem_of(filters), 5, centred=True)
    pca = PCA(5).fit(filters.reshape(40, -1))
    np.testing.assert_allclose(found.fractions[:5], pca.explained_variance_ratio_, rtol=1e-10)
    signs = np.sign((found.components.reshape(5, -1) * pca.components_).sum(1))
    np.testing.assert_allclose(
        found.components.reshape(5, -1), signs[:, None] * pca.components_, atol=1e-9
    )
    np.testing.assert_allclose(
        found.scores, pca.transform(filters.reshape(40, -1)) * signs, atol=1e-9
    )


def test_uncentred_components_are_the_directions_that_the_embedding_answers_to() -> None:
    filters = np.random.default_rng(1).standard_normal((30, 3, 2, 2)) + 0.5
    rows = filters.reshape(30, -1)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    found = stem_components(stem_of(filters), 12)
    np.testing.assert_allclose(found.fractions, values[::-1] / values.sum(), rtol=1e-10)
    overlap = np.abs((found.components.reshape(12, -1) * vectors[:, ::-1].T).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-9)
    np.testing.assert_allclose(found.scores @ found.components.reshape(12, -1), rows, atol=1e-9)


def test_planted_components_come_back_with_their_fractions() -> None:
    patterns = np.stack([np.ones((3, 8, 8)), np.broadcast_to(grating(8, 1, 2), (3, 8, 8))])
    unit = patterns / np.linalg.norm(patterns.reshape(2, -1), axis=1)[:, None, None, None]
    # Each pattern in two filters of opposite sign: energies 2 * 9 and 2 * 1.
    filters = np.concatenate([3 * unit[:1], -3 * unit[:1], unit[1:], -unit[1:]])
    found = stem_components(stem_of(filters), 2)
    np.testing.assert_allclose(found.fractions[:2], [0.9, 0.1], atol=1e-12)
    np.testing.assert_allclose(found.components[0], unit[0], atol=1e-12)
    np.testing.assert_allclose(np.abs(found.components[1]), np.abs(unit[1]), atol=1e-12)
    np.testing.assert_allclose(found.luminance, 1, atol=1e-12)
    assert np.isnan(found.frequency[0])
    assert found.frequency[1] == pytest.approx(np.hypot(1, 2) / 8, abs=1e-12)
    assert (found.needed(0.5), found.needed(0.9), found.needed(0.95), found.needed(1)) == (
        1,
        1,
        2,
        2,
    )


def test_the_sign_is_fixed_and_does_not_hang_on_rounding() -> None:
    filters = np.random.default_rng(2).standard_normal((20, 3, 4, 4))
    found, turned = stem_components(stem_of(filters), 6), stem_components(stem_of(-filters), 6)
    np.testing.assert_allclose(found.components, turned.components, atol=1e-10)
    flat = found.components.reshape(6, -1)
    assert (flat[np.arange(6), np.abs(flat).argmax(1)] > 0).all()
    # An odd pattern has a largest and a smallest entry of the same size: the first one is positive.
    odd = np.zeros((1, 1, 1, 4))
    odd[..., 1], odd[..., 2] = -1, 1 + 1e-12
    np.testing.assert_allclose(
        stem_components(stem_of(odd), 1).components.ravel(), [0, 1, -1, 0] / np.sqrt(2), atol=1e-9
    )


def test_the_largest_share_of_iid_filters_is_within_the_edge() -> None:
    filters = np.random.default_rng(3).standard_normal((768, 3, 8, 8))
    found = stem_components(stem_of(filters))
    # The edge of infinite matrices, (sqrt(768) + sqrt(192))^2 / (768 * 192) = (3/2)^2 / 192, and
    # 0.98 scales of 1 % above it.
    assert 2.25 / 192 < found.null_fraction < 1.02 * 2.25 / 192
    assert found.fractions[0] < found.null_fraction
    assert found.fractions[0] == pytest.approx(found.null_fraction, rel=0.03)


def test_components_survive_storage_and_become_a_table() -> None:
    found = stem_components(stem_of(np.random.default_rng(4).standard_normal((10, 3, 2, 2))), 4)
    again: StemComponents = from_dict(to_dict(found))
    np.testing.assert_array_equal(again.components, found.components)
    frame = again.to_frame()
    assert len(frame) == 4
    np.testing.assert_allclose(frame["cumulative_fraction"], np.cumsum(found.fractions[:4]))


def test_filters_without_components_are_refused() -> None:
    stem = stem_of(np.full((5, 3, 2, 2), 0.3))
    assert stem_components(stem).fractions[0] == pytest.approx(1)
    with pytest.raises(MeasureError, match="all equal"):
        stem_components(stem, centred=True)
    with pytest.raises(MeasureError, match="all zero"):
        stem_components(replace(stem, filters=np.zeros((5, 3, 2, 2))))
    with pytest.raises(MeasureError, match="k is a whole number, 1 or more, not 0"):
        stem_components(stem, 0)
    with pytest.raises(MeasureError, match="above 0 and at most 1"):
        stem_components(stem).needed(0)


def test_the_zoo_has_structure_that_its_twin_lacks() -> None:
    model = mp.load_model("zoo:resnet-s0", device="cpu")
    trained, fresh = (stem_components(mp.stem_filters(m)) for m in (model, model.untrained()))
    assert trained.fractions[0] > 1.5 * trained.null_fraction
    assert trained.needed(0.9) < fresh.needed(0.9)
