"""Effective spatial kernels: planted ones come back exactly, in all families, and structure is told
from noise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, ModelError, UndefinedKernelWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.weights import SpatialKernels, spatial_kernels
from mixer_probe.weights.offsets import (
    bttb_fraction,
    bttb_fraction_centred,
    bttb_fraction_centred_iid,
    matrix_spread,
    offset_mean,
    offset_pairs,
    offset_rms,
    offset_sums,
    product_offset_sums,
    uniform_distance,
)
from tests.networks import CASES, UNTIED, as_model, randomised

GRIDS = [(5, 5), (3, 6)]


def convolution_matrix(kernel: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """K[i, j] of a zero-padded convolution: the answer at i to a picture that is 1 at j only."""
    size = grid[0] * grid[1]
    pictures = torch.eye(size, dtype=torch.float64).reshape(size, 1, *grid)
    padding = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    answers = F.conv2d(pictures, torch.from_numpy(kernel)[None, None], padding=padding)
    return answers.reshape(size, size).numpy().T


# -- offset space ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_offsets_are_summed_as_a_loop_over_pairs_would(grid: tuple[int, int]) -> None:
    h, w = grid
    kernel = np.random.default_rng(0).standard_normal((h * w, h * w))
    sums, pairs = np.zeros((2 * h - 1, 2 * w - 1)), np.zeros((2 * h - 1, 2 * w - 1))
    for i, j in itertools.product(range(h * w), repeat=2):
        at = (j // w - i // w + h - 1, j % w - i % w + w - 1)
        sums[at] += kernel[i, j]
        pairs[at] += 1
    np.testing.assert_allclose(offset_sums(kernel, grid), sums, atol=1e-12)
    np.testing.assert_array_equal(offset_pairs(grid), pairs)
    np.testing.assert_allclose(offset_mean(kernel[None], grid)[0], sums / pairs, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_outer_products_are_summed_without_making_them(grid: tuple[int, int]) -> None:
    write, read = np.random.default_rng(1).standard_normal((2, 7, grid[0] * grid[1]))
    products = write[:, :, None] * read[:, None, :]
    np.testing.assert_allclose(
        product_offset_sums(write, read, grid), offset_sums(products, grid), atol=1e-12
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_a_zero_padded_shared_convolution_is_all_structure_and_its_own_average(
    grid: tuple[int, int],
) -> None:
    kernel = np.random.default_rng(2).standard_normal((3, 5))
    matrix = convolution_matrix(kernel, grid)
    assert bttb_fraction(matrix, grid) == pytest.approx(1, abs=1e-14)
    assert bttb_fraction_centred(matrix, grid) == pytest.approx(1, abs=1e-14)
    expected = np.zeros((2 * grid[0] - 1, 2 * grid[1] - 1))
    top, left = grid[0] - 1 - 1, grid[1] - 1 - 2
    expected[top : top + 3, left : left + 5] = kernel
    np.testing.assert_allclose(offset_mean(matrix, grid), expected, atol=1e-14)
    np.testing.assert_allclose(offset_rms(matrix, grid), np.abs(expected), atol=1e-14)


@pytest.mark.parametrize("grid", [(7, 7), (4, 6)])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_iid_entries_have_the_share_of_their_dimensions(
    grid: tuple[int, int], shift: float
) -> None:
    h, w = grid
    expected = (2 * h - 1) * (2 * w - 1) / (h * w) ** 2
    draws = np.random.default_rng(3).standard_normal((400, h * w, h * w))
    plain = np.array([bttb_fraction(k, grid) for k in draws])
    assert plain.mean() == pytest.approx(expected, abs=4 * plain.std() / 20)
    # Without the mean, one dimension less of both, and a shift of all entries does not matter.
    centred = np.array([bttb_fraction_centred(k + shift, grid) for k in draws])
    assert centred.mean() == pytest.approx(
        ((2 * h - 1) * (2 * w - 1) - 1) / ((h * w) ** 2 - 1), abs=4 * centred.std() / 20
    )
    assert bttb_fraction_centred_iid(grid) == pytest.approx(centred.mean(), rel=0.05)


def test_a_constant_kernel_is_structure_only_before_its_mean_is_taken() -> None:
    constant = np.full((49, 49), 1 / 49)
    assert bttb_fraction(constant, (7, 7)) == pytest.approx(1)
    assert np.isnan(bttb_fraction_centred(constant, (7, 7)))


@pytest.mark.parametrize(
    "side, step, expected", [(14, 16, 116.49222709), (7, 32, 115.5029), (56, 4, 116.7768)]
)
def test_uniform_reading_has_the_golden_distance(side: int, step: float, expected: float) -> None:
    assert uniform_distance((side, side), (step, step)) == pytest.approx(expected, rel=1e-6)
    if side < 56:
        uniform = np.full((side**2, side**2), 1 / side**2)
        distance, self_mass = matrix_spread(uniform, (side, side), (step, step))
        assert distance == pytest.approx(expected, rel=1e-6)
        assert self_mass == pytest.approx(1 / side**2)


def test_spread_of_planted_kernels() -> None:
    assert matrix_spread(np.diag([1.0, -2, 3, 4, 5, 6]), (2, 3), (16, 16)) == (0, 1)
    # Each position reads itself with weight 1 and the one below (wrapped for the last row) with
    # weight 2: 4/5 of the energy.
    below = np.eye(6) + 2 * np.roll(np.eye(6), 3, axis=1)
    assert matrix_spread(below, (2, 3), (10, 1)) == pytest.approx((0.8 * 10, 0.2))
    # A position that reads nothing has no distance and does not count.
    below[0] = 0
    assert matrix_spread(below, (2, 3), (10, 1)) == pytest.approx((8, 0.2))


# -- the Mixer family ------------------------------------------------------------------------------


def small(**arguments: Any) -> MlpMixer:
    return randomised(CASES[arguments.pop("case")].build())  # type: ignore[return-value]


def test_mixer_kernels_are_w2_w1() -> None:
    network = MlpMixer(
        img_size=(16, 32),
        patch_size=8,
        embed_dim=16,
        num_blocks=2,
        mlp_ratio=(0.5, 4.0),
        num_classes=5,
    )
    planted = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.blocks[1].mlp_tokens.fc1.weight.copy_(torch.eye(8))
        network.blocks[1].mlp_tokens.fc2.weight.copy_(planted)
    found = mp.spatial_kernels(as_model(network, input_size=(3, 16, 32)))
    np.testing.assert_allclose(found.matrix("blocks.1"), planted.numpy(), rtol=1e-6)
    kernel = found.kernel(1)
    assert kernel.grid == (2, 4)
    assert kernel.step_px == (8, 8)
    assert kernel.mean.shape == kernel.rms.shape == (3, 7)
    # Map i is what position i reads.
    np.testing.assert_allclose(found.row_maps(1)[5], planted[5].reshape(2, 4).numpy(), rtol=1e-6)
    assert kernel.translation_fraction == pytest.approx(
        bttb_fraction_centred(planted.double().numpy(), (2, 4)), rel=1e-5
    )


def test_gmixer_resmlp_and_gmlp_kernels() -> None:
    g = as_model(small(case="gmixer"))
    mlp = g.module.blocks[0].mlp_tokens
    value = mlp.fc1.weight.chunk(2)[0 if mlp.gate_last else 1]
    np.testing.assert_allclose(
        mp.spatial_kernels(g).matrix(0),
        (mlp.fc2.weight @ value).detach().numpy(),
        rtol=1e-4,
        atol=1e-6,
    )
    resmlp = as_model(small(case="resmlp"))
    block = resmlp.module.blocks[1]
    scale = (block.ls1**2).mean().sqrt()
    expected = (scale * block.linear_tokens.weight).detach().numpy()
    np.testing.assert_allclose(mp.spatial_kernels(resmlp).matrix(1), expected, rtol=1e-5)
    gmlp = as_model(small(case="gmlp"))
    expected = gmlp.module.blocks[1].mlp_channels.gate.proj.weight.detach().numpy()
    np.testing.assert_array_equal(mp.spatial_kernels(gmlp).matrix(1), expected)


def test_a_fresh_mixer_reads_everywhere_and_has_no_structure() -> None:
    frame = mp.spatial_kernels(
        mp.load_model("mixer_b16_224", pretrained=False, device="cpu")
    ).to_frame()
    assert len(frame) == 12
    np.testing.assert_allclose(frame["distance_px"], 116.492, rtol=0.03)
    np.testing.assert_allclose(frame["translation_fraction"], frame["translation_iid"], atol=0.006)


# -- CNNs ------------------------------------------------------------------------------------------


def test_planted_depthwise_kernels_have_exact_distances() -> None:
    model = mp.load_model("convnext_atto", pretrained=False, device="cpu")
    stages = model.module.stages
    with torch.no_grad():
        for stage in stages:
            for block in stage.blocks:
                block.conv_dw.weight.zero_()
                block.conv_dw.weight[:, 0, 3, 3] = 1
        # A corner tap: 3 steps of 4 px down and right. Half the channels read it, half the middle.
        half = stages[0].blocks[0].conv_dw.weight
        half[: len(half) // 2] = 0
        half[: len(half) // 2, 0, 6, 6] = -1
        # In one channel 3, in another 4: energies 9 and 16 at one step up and two steps left of 32
        # px.
        last = stages[3].blocks[1].conv_dw.weight
        last.zero_()
        last[0, 0, 2, 3], last[1, 0, 3, 1] = 3, 4
    found = mp.spatial_kernels(model)
    corner = found.kernel("stages.0.blocks.0")
    assert corner.distance_px == pytest.approx(0.5 * 3 * 4 * 2**0.5)
    assert corner.self_mass == 0.5
    assert corner.translation_fraction == 1
    assert corner.mean[6, 6] == -0.5
    assert corner.rms[6, 6] == pytest.approx(0.5**0.5)
    last_kernel = found.kernel("stages.3.blocks.1.conv_dw")
    assert last_kernel.distance_px == pytest.approx((9 * 32 + 16 * 64) / 25)
    assert last_kernel.reach_px == (3.5 * 32, 3.5 * 32)
    assert found.kernel(1).distance_px == 0
    assert found.kernel(1).self_mass == 1
    # The first block of a stage is after its downsampling.
    assert [k.step_px[0] for k in found.kernels if k.block.endswith(".0")] == [4, 8, 16, 32]


def test_strides_and_dilation_set_the_pixels_of_a_tap() -> None:
    found = mp.spatial_kernels(mp.load_model("efficientnet_b0", pretrained=False, device="cpu"))
    steps = {k.layer: k.step_px for k in found.kernels}
    # 3x3 with stride 2 on the 112x112 map of a 224 px image.
    assert steps["blocks.1.0.conv_dw"] == (2, 2)
    assert steps["blocks.1.1.conv_dw"] == (4, 4)
    model = mp.load_model("convnext_atto", pretrained=False, device="cpu")
    convolution = model.module.stages[0].blocks[0].conv_dw
    convolution.dilation, convolution.padding = (2, 2), (6, 6)
    dilated = mp.spatial_kernels(model).kernel(0)
    assert (dilated.step_px, dilated.offset_step_px) == ((4, 4), (8, 8))
    # 240 px become 15 and then 8 positions: still 32 px each.
    uneven = mp.load_model("efficientnet_b1", pretrained=False, device="cpu")
    assert mp.spatial_kernels(uneven).kernels[-1].step_px == (32, 32)


def test_full_convolutions_add_the_energy_of_all_pairs_of_channels() -> None:
    model = as_model(CASES["resnet18"].network(), 64)
    kernel = mp.spatial_kernels(model).kernel("layer1.0.conv2")
    weight = model.module.layer1[0].conv2.weight.detach().double().numpy()
    np.testing.assert_allclose(kernel.rms**2, (weight**2).mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(kernel.mean, weight.mean((0, 1)), rtol=1e-12, atol=1e-15)
    energy = (weight**2).sum((0, 1))
    assert kernel.self_mass == pytest.approx(energy[1, 1] / energy.sum())
    assert kernel.norm == pytest.approx(np.linalg.norm(weight))
    assert "full" in kernel.form


@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if c.family != "vit" and c not in UNTIED]
)
def test_every_mixer_and_cnn_has_kernels(name: str) -> None:
    case = CASES[name]
    found = mp.spatial_kernels(case.model())
    assert len(found) >= 2
    assert (np.diff([k.depth for k in found.kernels]) >= 0).all()
    assert found.kernels[-1].depth <= 1
    assert np.isfinite(
        found.to_frame()
        .select_dtypes("number")[["distance_px", "self_mass", "translation_fraction", "norm"]]
        .to_numpy()
    ).all()


# -- ViT -------------------------------------------------------------------------------------------


def one_hot_vit() -> VisionTransformer:
    """Position embeddings one-hot, q = k = norm1(embedding), so that q_i k_j differs for i = j
    only."""
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=1, num_classes=5
    )
    with torch.no_grad():
        network.pos_embed[0, 1:] = torch.eye(16)
        for block in network.blocks:
            block.attn.qkv.weight.copy_(torch.eye(16).repeat(3, 1))
            block.attn.qkv.bias.zero_()
    return network


def test_attention_of_a_planted_position_embedding() -> None:
    found = mp.spatial_kernels(as_model(one_hot_vit()))
    # norm1 maps a one-hot vector of 16 to (e - 1/16) / sd with variance 15/256; differences of
    # products are 1 / (var + eps).
    logit = 16**-0.5 / (15 / 256 + 1e-6)
    own = np.exp(logit) / (np.exp(logit) + 15)
    expected = np.full((16, 16), (1 - own) / 15)
    np.fill_diagonal(expected, own)
    np.testing.assert_allclose(found.matrix(1), expected, rtol=1e-6)
    assert found.kernel(0).self_mass == pytest.approx(
        own**2 / (own**2 + 15 * ((1 - own) / 15) ** 2), rel=1e-9
    )


@pytest.mark.parametrize("name", ["vit", "vit-gap", "deit-distilled", "dinov2-registers"])
def test_position_attention_is_the_networks_own_attention_of_its_embedding(name: str) -> None:
    case = CASES[name]
    model = case.model(torch.float64)
    network = model.module
    block = network.blocks[1]
    patches = network.pos_embed[0, -16:]
    # The module itself, prefix tokens in front, then dropped and renormalised.
    tokens = torch.cat([torch.randn(case.prefix, patches.shape[1], dtype=torch.float64), patches])[
        None
    ]
    maps: list[torch.Tensor] = []
    block.attn.fused_attn = False
    handle = block.attn.attn_drop.register_forward_hook(
        lambda _m, _a, out: maps.append(out.detach())
    )
    block.attn(block.norm1(tokens))
    handle.remove()
    own = maps[0][0, :, case.prefix :, case.prefix :]
    own = (own / own.sum(-1, keepdim=True)).numpy()
    kernel = mp.spatial_kernels(model).kernel(1)
    np.testing.assert_allclose(kernel.matrix, own.mean(0), rtol=1e-5)
    distances = [matrix_spread(head, (4, 4), (8, 8))[0] for head in own]
    np.testing.assert_allclose(kernel.head_distance_px, distances, rtol=1e-10)


@pytest.mark.parametrize("name, window", [("beit", (4, 4)), ("swin", (4, 4)), ("swinv2", (4, 4))])
def test_relative_bias_is_the_attention_of_a_network_that_sees_nothing(
    name: str, window: tuple[int, int]
) -> None:
    model = CASES[name].model(torch.float64)
    maps: list[torch.Tensor] = []
    attentions = [b.module.attn for b in model.structure.blocks]
    handles = []
    for attention in attentions:
        nn.init.zeros_(attention.qkv.weight)
        for part in (attention.qkv.bias, getattr(attention, "q_bias", None)):
            if part is not None:
                nn.init.zeros_(part)
        attention.fused_attn = False
        handles.append(
            attention.attn_drop.register_forward_hook(lambda _m, _a, out: maps.append(out.detach()))
        )
    with torch.no_grad():
        model.module(CASES[name].images(1, torch.float64))
    for handle in handles:
        handle.remove()
    found = mp.spatial_kernels(model)
    assert found.kernel(0).grid == window
    # The first window of an unshifted block is masked nowhere.
    for i in range(0, len(found), 2):
        own = maps[i][0, :, -16:, -16:]
        own = (own / own.sum(-1, keepdim=True)).mean(0).numpy()
        np.testing.assert_allclose(found.matrix(i), own, rtol=1e-5)


def test_windows_are_measured_in_pixels_of_their_stage() -> None:
    found = mp.spatial_kernels(CASES["swin"].model())
    assert [k.step_px[0] for k in found.kernels] == [2, 2, 4, 4, 8, 8]


def test_other_ways_of_knowing_positions_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="rotary embedding"):
        mp.spatial_kernels(CASES["eva"].model())
    with pytest.raises(ModelError, match="ParallelScalingBlock is not read"):
        mp.spatial_kernels(CASES["parallel-scaling"].model())
    network = CASES["vit"].network()
    network.pos_embed = None
    with pytest.raises(ModelError, match="no absolute position embedding"):
        mp.spatial_kernels(as_model(network))


def test_the_network_is_left_alone() -> None:
    model = CASES["vit"].model()
    before = model.fingerprint
    mp.spatial_kernels(model).matrix(0)[:] = 0
    assert as_model(model.module).fingerprint == before
    assert model.dtype == torch.float32


# -- results ---------------------------------------------------------------------------------------


def test_kernels_of_zeros_and_uniform_ones_are_nan_where_undefined() -> None:
    network = small(case="mixer")
    nn.init.zeros_(network.blocks[0].mlp_tokens.fc2.weight)
    with pytest.warns(UndefinedKernelWarning, match=r"'blocks\.0\.mlp_tokens\.fc1' is zero"):
        found = mp.spatial_kernels(as_model(network))
    assert np.isnan(
        [
            found.kernel(0).distance_px,
            found.kernel(0).self_mass,
            found.kernel(0).translation_fraction,
        ]
    ).all()
    assert np.isfinite(found.kernel(1).distance_px)
    with pytest.warns(UndefinedKernelWarning):
        beit = mp.spatial_kernels(
            mp.load_model("beit_base_patch16_224", pretrained=False, device="cpu")
        )
    assert beit.kernel(3).distance_px == pytest.approx(116.49222709)
    assert np.isnan(beit.kernel(3).translation_fraction)


def test_wrong_blocks_are_named() -> None:
    found = spatial_kernels(as_model(small(case="mixer")))
    with pytest.raises(LayerError, match="spatial kernels 0 to 1, not 2"):
        found.kernel(2)
    with pytest.raises(LayerError, match=r"closest: blocks\.1"):
        found.kernel("block.1")
    assert found.index(-1) == found.index("blocks.1") == found.index("blocks.1.mlp_tokens.fc1") == 1
    convolutions = spatial_kernels(CASES["convnext"].model())
    with pytest.raises(LayerError, match="is a convolution: all positions share"):
        convolutions.row_maps(0)


@pytest.mark.parametrize("name", ["mixer", "vit", "convnext"])
def test_the_result_survives_storage(name: str) -> None:
    found = mp.spatial_kernels(CASES[name].model())
    again: SpatialKernels = from_dict(to_dict(found))
    assert again.to_frame().equals(found.to_frame())
    np.testing.assert_array_equal(again.kernel(1).rms, found.kernel(1).rms)
    assert again.model == found.model
