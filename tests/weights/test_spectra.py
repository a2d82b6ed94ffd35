"""Spectra: singular values against dense operators and closed forms, every weight exactly once and
with the right role."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import DegenerateWeightsWarning, LayerError, MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.stats import prediction_limit
from mixer_probe.weights import MatrixSpectrum, WeightSpectra, weight_spectra
from mixer_probe.weights.matrices import MixingMatrices, MixingMatrix, mixing_matrices
from mixer_probe.weights.operators import (
    applied_weight,
    convolution_values,
    iid_values,
    marchenko_pastur_edge,
    matrix_values,
    product_values,
    stable_rank,
    tracy_widom_edge,
)
from tests.networks import CASES, as_model


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_operator(
    kernel: torch.Tensor, grid: tuple[int, int], stride: Any, dilation: Any, groups: int
) -> torch.Tensor:
    """The matrix [outputs, inputs] of the circular convolution, by convolving every unit image."""
    inputs = kernel.shape[1] * groups
    units = torch.eye(inputs * grid[0] * grid[1], dtype=torch.float64).reshape(-1, inputs, *grid)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:])]
    padded = F.pad(units, (0, reach[1], 0, reach[0]), mode="circular")
    return F.conv2d(padded, kernel, stride=stride, dilation=dilation, groups=groups).flatten(1).T


# -- singular values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, grid, stride, dilation, groups",
    [
        ((4, 3, 3, 3), (6, 5), (1, 1), (1, 1), 1),
        ((2, 5, 3, 1), (4, 4), (1, 1), (1, 1), 1),
        ((4, 3, 3, 3), (6, 8), (2, 2), (1, 1), 1),
        ((3, 2, 5, 5), (6, 9), (2, 3), (1, 1), 1),
        ((4, 3, 2, 2), (7, 6), (1, 1), (2, 3), 1),
        ((6, 2, 3, 3), (5, 5), (1, 1), (1, 1), 3),
        ((6, 2, 3, 3), (6, 4), (2, 2), (1, 1), 3),
        ((5, 1, 3, 3), (4, 6), (1, 1), (1, 1), 5),
        ((6, 1, 3, 3), (4, 4), (2, 2), (1, 1), 3),
        ((4, 3, 2, 2), (2, 2), (2, 2), (1, 1), 1),
    ],
)
def test_a_convolution_has_the_singular_values_of_its_dense_matrix(
    shape: tuple[int, ...], grid: tuple[int, int], stride: Any, dilation: Any, groups: int
) -> None:
    kernel = normal(*shape)
    dense = torch.linalg.svdvals(dense_operator(kernel, grid, stride, dilation, groups)).numpy()
    values = convolution_values(kernel, grid, stride, dilation, groups)
    assert len(values) == len(dense)
    np.testing.assert_allclose(values, dense, atol=1e-10)


def test_a_depthwise_kernel_has_the_magnitudes_of_its_fft() -> None:
    kernel = normal(3, 1, 3, 3)
    padded = np.zeros((3, 8, 8))
    padded[:, :3, :3] = kernel[:, 0].numpy()
    expected = np.sort(np.abs(np.fft.fft2(padded)).ravel())[::-1]
    np.testing.assert_allclose(convolution_values(kernel, (8, 8), groups=3), expected, atol=1e-12)


def test_a_rank_deficient_convolution_keeps_its_zeros() -> None:
    kernel = normal(4, 1, 3, 3).expand(4, 4, 3, 3)
    dense = torch.linalg.svdvals(dense_operator(kernel, (4, 4), (1, 1), (1, 1), 1)).numpy()
    values = convolution_values(kernel, (4, 4))
    np.testing.assert_allclose(values, dense, atol=1e-10)
    assert (values[16:] < 1e-13).all()


@pytest.mark.parametrize("shape", [(5, 5), (3, 40), (40, 3), (2, 30, 4)])
def test_matrices_of_any_shape(shape: tuple[int, ...]) -> None:
    matrix = normal(*shape)
    np.testing.assert_allclose(
        matrix_values(matrix), np.linalg.svd(matrix.numpy(), compute_uv=False), atol=1e-12
    )


def test_products_are_those_of_the_full_matrix() -> None:
    left, right = normal(3, 9, 2), normal(3, 2, 7, seed=1)
    expected = np.linalg.svd((left @ right).numpy(), compute_uv=False)[:, :2]
    np.testing.assert_allclose(product_values(left, right), expected, atol=1e-12)


def test_ranks_of_known_matrices() -> None:
    orthogonal = matrix_values(torch.linalg.qr(normal(12, 12))[0])
    assert stable_rank(orthogonal) == pytest.approx(12)
    one = matrix_values(torch.outer(normal(5), normal(7, seed=1)))
    assert stable_rank(one) == pytest.approx(1)
    # Singular values 2, 1, 1: (4 + 1 + 1) / 4, and the entropy of (1/2, 1/4, 1/4) is 3/2 ln 2.
    spectrum = entry_of(np.array([2.0, 1, 1]))
    assert spectrum.stable_rank == pytest.approx(1.5)
    assert spectrum.effective_rank == pytest.approx(2**1.5)
    assert spectrum.rms == pytest.approx(2**0.5)
    assert (spectrum.outliers, spectrum.outlier_energy) == (1, pytest.approx(2 / 3))


def entry_of(values: np.ndarray) -> MatrixSpectrum:
    place = (
        "layer",
        "role",
        "spatial",
        "block",
        1.0,
        True,
        None,
        "matrix",
        (3, 3),
        None,
        (1, 1),
        9,
    )
    return MatrixSpectrum(*place, 1.0, values, 1.9, 1.9, 0, 1.9, 1.0, 1.0)


# -- iid weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, columns", [(600, 600), (300, 1200)])
def test_the_edge_is_the_norm_of_large_iid_matrices(rows: int, columns: int) -> None:
    values, largest, _ = iid_values(
        lambda g: matrix_values(torch.randn(rows, columns, generator=g, dtype=torch.float64)), 2, 0
    )
    assert marchenko_pastur_edge(rows, columns) == pytest.approx(largest, rel=0.02)
    assert 1 / marchenko_pastur_edge(rows, columns) ** 2 == pytest.approx(
        stable_rank(values), rel=0.03
    )
    assert marchenko_pastur_edge(600, 600, 10.0) == pytest.approx(20 / 600**0.5)


@pytest.mark.parametrize(
    "rows, columns, draws", [(8, 8, 1500), (16, 48, 1500), (64, 64, 600), (1, 20, 200)]
)
def test_iid_matrices_exceed_the_limit_in_at_most_one_of_twenty(
    rows: int, columns: int, draws: int
) -> None:
    matrices = torch.randn(
        draws, rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    largest = torch.linalg.matrix_norm(matrices, 2) / torch.linalg.matrix_norm(matrices)
    above = float((largest > tracy_widom_edge(rows, columns)).double().mean())
    # 5 %, and less where sizes are small; three standard errors of the count of draws.
    assert above <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert above >= (0.02 if rows > 1 else 0)


def test_limits_of_operators_without_a_law_come_from_draws() -> None:
    rng = np.random.default_rng(0)
    above = [x[-1] > prediction_limit(x[:-1]) for x in rng.standard_normal((4000, 11))]
    assert np.mean(above) == pytest.approx(0.05, abs=0.011)
    assert prediction_limit(np.ones(1)) == np.inf
    entries = [
        e
        for name in ("resnet-bottleneck", "convnext")
        for e in weight_spectra(CASES[name].model()).entries
    ]
    drawn = [e for e in entries if e.operator == "convolution" and np.isnan(e.edge)]
    assert drawn
    assert all(np.isfinite(e.limit) for e in entries)
    assert np.mean([e.outliers > 0 for e in entries if e.main]) < 0.15


def test_the_edge_of_an_iid_convolution() -> None:
    # Every K(f) of 96 x 96 has iid entries of variance 9; there are 64, so the largest is a little
    # above the edge.
    assert convolution_values(normal(96, 96, 3, 3), (8, 8))[0] == pytest.approx(
        2 * np.sqrt(9 * 96), rel=0.05
    )
    entries = {e.layer: e for e in weight_spectra(CASES["resnet-bottleneck"].model()).entries}
    same = entries["layer2.1.conv2"]
    assert same.edge == pytest.approx(2 * same.rms)
    assert np.isnan(entries["layer2.0.conv2"].edge)
    # A matrix of 48 x 12: (1 / sqrt(48) + 1 / sqrt(12)) |W|.
    pointwise = entries["layer2.1.conv3"]
    assert pointwise.shape == (48, 12)
    assert pointwise.edge == pytest.approx((48**-0.5 + 12**-0.5) * pointwise.frobenius)


def test_random_networks_are_their_own_null() -> None:
    for name in ("mixer", "vit", "resnet-bottleneck", "convnext"):
        frame = weight_spectra(CASES[name].model()).to_frame()
        np.testing.assert_allclose(
            frame["null_effective_rank_fraction"], frame["effective_rank_fraction"], atol=0.2
        )
        assert frame["outlier_energy"].mean() < 0.1


def test_structure_shows_beside_the_null_of_the_same_norm() -> None:
    torch.manual_seed(0)
    network = MlpMixer(img_size=32, patch_size=4, embed_dim=48, num_blocks=1)
    with torch.no_grad():
        weight = network.blocks[0].mlp_tokens.fc1.weight
        weight.copy_(torch.outer(torch.randn(len(weight)), torch.randn(64)))
    spectra = weight_spectra(as_model(network))
    planted, plain = spectra.select(role="token fc1")[0], spectra.select(role="token fc2")[0]
    assert planted.stable_rank == pytest.approx(1, abs=1e-6)
    assert planted.outlier_energy == pytest.approx(1, abs=1e-6)
    assert plain.outlier_energy < 0.2
    for e in (planted, plain):
        np.testing.assert_allclose(
            np.linalg.norm(spectra.null_values(e)), np.linalg.norm(e.values), rtol=0.01
        )


# -- which matrices --------------------------------------------------------------------------------


def numbered(network: nn.Module) -> None:
    """Every weight of a linear layer or convolution gets a number of its own."""
    start = 0
    with torch.no_grad():
        for leaf in network.modules():
            if isinstance(leaf, (nn.Linear, nn.Conv2d)):
                leaf.weight.copy_(
                    torch.arange(start, start + leaf.weight.numel()).reshape(leaf.weight.shape)
                )
                start += leaf.weight.numel()


def test_every_group_of_an_untied_mixer_has_its_matrices() -> None:
    model = CASES["grouped-mixer"].model(torch.float64)
    found = mp.weight_spectra(model, null_size=20)
    assert not found.left_out
    for number, (first, last) in enumerate(
        (block.module.mlp_tokens.fc1_weight, block.module.mlp_tokens.fc2_weight)
        for block in model.structure.blocks
    ):
        entries = found.select(block=f"blocks.{number}", kind="spatial")
        assert [entry.layer for entry in entries] == [
            f"blocks.{number}.mlp_tokens.fc{k}_weight[{g}]" for k in (1, 2) for g in range(4)
        ]
        assert [entry.role for entry in entries] == ["token fc1"] * 4 + ["token fc2"] * 4
        for entry, matrix in zip(entries, [*first, *last], strict=True):
            np.testing.assert_allclose(
                entry.values, torch.linalg.svdvals(matrix.detach()).numpy(), rtol=1e-10
            )
    assert found.by_depth()["matrices"].tolist() == [2, 8, 2, 8]


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("untied-mixer", "grouped-mixer")])
def test_every_weight_of_the_blocks_appears_exactly_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Numbers that are standardised are no longer recognised.
    monkeypatch.setattr(
        "mixer_probe.weights.matrices.applied_weight", lambda leaf: leaf.weight.detach()
    )
    case = CASES[name]
    network = case.build().eval().double()
    model = as_model(network, case.size, dtype=torch.float64)
    numbered(network)
    found = mixing_matrices(model)
    left_out = {path for path, _reason in found.left_out}
    expected = [
        leaf.weight.detach().flatten()
        for block in model.structure.blocks
        for path, leaf in block.module.named_modules()
        if isinstance(leaf, (nn.Linear, nn.Conv2d))
        and f"{block.path}.{path}.weight" not in left_out
    ]
    held = [m.weight.flatten() for m in found.matrices if m.block]
    torch.testing.assert_close(
        torch.cat(held).sort().values, torch.cat(expected).sort().values, rtol=0, atol=0
    )
    inside = {
        f"{b.path}.{n}": p for b in model.structure.blocks for n, p in b.module.named_parameters()
    }
    leaves = {
        f"{b.path}.{n}.weight"
        for b in model.structure.blocks
        for n, m in b.module.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    }
    matrices = leaves | {n for n, p in inside.items() if sum(size > 1 for size in p.shape) > 1}
    assert matrices == {m.layer + ".weight" for m in found.matrices if m.block} | left_out
    if name not in ("swin", "swinv2", "beit", "mobilenetv4-hybrid"):
        assert not left_out


def test_what_is_left_out_has_a_reason() -> None:
    reasons = dict(mixing_matrices(CASES["swinv2"].model()).left_out)
    assert {path.rsplit("attn.", 1)[1] for path in reasons} == {
        "cpb_mlp.0.weight",
        "cpb_mlp.2.weight",
    }
    assert set(reasons.values()) == {"makes position biases from coordinates and mixes no features"}
    tables = dict(mixing_matrices(CASES["swin"].model()).left_out)
    assert all(path.endswith("relative_position_bias_table") for path in tables)


def roles_of(name: str, block: int = 0) -> dict[str, tuple[str, str]]:
    model = CASES[name].model()
    found = mixing_matrices(model).matrices
    path = model.structure.blocks[block].path
    return {m.role: (m.layer.removeprefix(path + "."), m.kind) for m in found if m.block == path}


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "mixer",
            {
                "token fc1": ("mlp_tokens.fc1", "spatial"),
                "token fc2": ("mlp_tokens.fc2", "spatial"),
                "channel fc1": ("mlp_channels.fc1", "channel"),
                "channel fc2": ("mlp_channels.fc2", "channel"),
            },
        ),
        (
            "gmixer",
            {
                "token fc1 (value)": ("mlp_tokens.fc1", "spatial"),
                "token fc1 (gate)": ("mlp_tokens.fc1", "spatial"),
                "token fc2": ("mlp_tokens.fc2", "spatial"),
                "channel fc1 (value)": ("mlp_channels.fc1", "channel"),
                "channel fc1 (gate)": ("mlp_channels.fc1", "channel"),
                "channel fc2": ("mlp_channels.fc2", "channel"),
            },
        ),
        (
            "resmlp",
            {
                "token mixing": ("linear_tokens", "spatial"),
                "channel fc1": ("mlp_channels.fc1", "channel"),
                "channel fc2": ("mlp_channels.fc2", "channel"),
            },
        ),
        (
            "gmlp",
            {
                "channel fc1": ("mlp_channels.fc1", "channel"),
                "token mixing": ("mlp_channels.gate.proj", "spatial"),
                "channel fc2": ("mlp_channels.fc2", "channel"),
            },
        ),
        (
            "vit",
            {
                "query": ("attn.qkv", "spatial"),
                "key": ("attn.qkv", "spatial"),
                "value": ("attn.qkv", "channel"),
                "proj": ("attn.proj", "channel"),
                "channel fc1": ("mlp.fc1", "channel"),
                "channel fc2": ("mlp.fc2", "channel"),
            },
        ),
        (
            "eva",
            {
                "query": ("attn.q_proj", "spatial"),
                "key": ("attn.k_proj", "spatial"),
                "value": ("attn.v_proj", "channel"),
                "proj": ("attn.proj", "channel"),
                "channel fc1 (gate)": ("mlp.fc1", "channel"),
                "channel fc1 (value)": ("mlp.fc1", "channel"),
                "channel fc2": ("mlp.fc2", "channel"),
            },
        ),
        (
            "parallel-scaling",
            {
                "channel fc1": ("in_proj", "channel"),
                "query": ("in_proj", "spatial"),
                "key": ("in_proj", "spatial"),
                "value": ("in_proj", "channel"),
                "proj": ("attn_out_proj", "channel"),
                "channel fc2": ("mlp_out_proj", "channel"),
            },
        ),
        (
            "resnet-d-se",
            {
                "conv1": ("conv1", "channel"),
                "conv2": ("conv2", "both"),
                "conv3": ("conv3", "channel"),
                "gate": ("se.fc2", "channel"),
                "shortcut": ("downsample.1", "channel"),
            },
        ),
        (
            "convnext",
            {
                "conv_dw": ("conv_dw", "spatial"),
                "channel fc1": ("mlp.fc1", "channel"),
                "channel fc2": ("mlp.fc2", "channel"),
            },
        ),
        ("convmixer", {"depthwise": ("0.fn.0", "spatial"), "pointwise": ("1", "channel")}),
    ],
)
def test_roles_and_kinds(name: str, expected: dict[str, tuple[str, str]]) -> None:
    assert roles_of(name) == expected


def matrix_of(found: MixingMatrices, role: str, block: str = "blocks.0") -> MixingMatrix:
    return next(m for m in found.matrices if m.role == role and m.block == block)


def test_fused_layers_are_split_as_the_forward_pass_splits_them() -> None:
    # What comes out of the parts is what the network computes.
    model = as_model(CASES["parallel-scaling"].network().double(), dtype=torch.float64)
    block, found = model.module.blocks[0], mixing_matrices(model)
    x = normal(2, 5, 24)
    parts = block.in_proj(x) if block.in_proj.bias is None else F.linear(x, block.in_proj.weight)
    for role, expected in zip(
        ("channel fc1", "query", "key", "value"), parts.split(block.in_split, -1)
    ):
        torch.testing.assert_close(F.linear(x, matrix_of(found, role).weight), expected)
    model = as_model(CASES["gmixer"].network().double(), dtype=torch.float64)
    mlp, found = model.module.blocks[0].mlp_tokens, mixing_matrices(model)
    mlp.fc1.bias.data.zero_()
    mlp.fc2.bias.data.zero_()
    x = normal(2, 3, 16)
    value, gate = (
        F.linear(x, matrix_of(found, f"token fc1 ({half})").weight) for half in ("value", "gate")
    )
    torch.testing.assert_close(
        F.linear(value * F.silu(gate), matrix_of(found, "token fc2").weight), mlp(x)
    )


@pytest.mark.skipif(
    "parallel-fused" not in CASES, reason="this timm has no fused output projection"
)
def test_a_joint_output_projection_is_split_by_its_inputs() -> None:
    model = CASES["parallel-fused"].model()
    found, weight = mixing_matrices(model), model.module.blocks[0].out_proj.weight
    torch.testing.assert_close(
        torch.cat([matrix_of(found, r).weight for r in ("proj", "channel fc2")], 1), weight.detach()
    )
    assert matrix_of(found, "proj").weight.shape == (24, 24)


def test_products_of_heads_are_what_attention_computes() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, qkv_bias=False
    ).double()
    spectra = weight_spectra(as_model(network, dtype=torch.float64))
    attention = network.blocks[0].attn
    for head in range(3):
        rows = slice(8 * head, 8 * head + 8)
        query, key, value = (w[rows] for w in attention.qkv.weight.detach().chunk(3))
        compared = torch.linalg.svdvals(query.T @ key)[:8].numpy()
        written = torch.linalg.svdvals(attention.proj.weight.detach()[:, rows] @ value)[:8].numpy()
        np.testing.assert_allclose(
            spectra.select(role="query-key")[head].values, compared, atol=1e-12
        )
        np.testing.assert_allclose(
            spectra.select(role="value-output")[head].values, written, atol=1e-12
        )
    entry = spectra.select(role="query-key")[2]
    assert (entry.head, entry.kind, entry.shape, entry.parameters, entry.main) == (
        2,
        "spatial",
        (24, 24),
        0,
        False,
    )


def test_heads_that_share_keys_and_heads_in_pairs() -> None:
    # Multi-query attention has one key head for all; differential attention two query heads for
    # each value head.
    products = mixing_matrices(CASES["mobilenetv4-hybrid"].model()).products
    if products:
        query_key = products[0]
        assert query_key.role == "query-key"
        torch.testing.assert_close(query_key.right[0], query_key.right[-1])
    if "vit-differential" in CASES:
        products = mixing_matrices(CASES["vit-differential"].model()).products
        assert [(p.role, len(p.left)) for p in products[:2]] == [
            ("query-key", 4),
            ("value-output", 2),
        ]


def test_downsampling_between_blocks_is_listed_at_its_depth() -> None:
    found = weight_spectra(CASES["convnext"].model())
    between = [e for e in found.entries if e.role == "downsample"]
    assert [e.layer for e in between] == [f"stages.{i}.downsample.1" for i in (1, 2, 3)]
    assert [e.depth for e in between] == pytest.approx([1 / 5, 2 / 5, 4 / 5])
    # Kernels that do not overlap: the operator is one matrix, repeated.
    weight = CASES["convnext"].network().stages[1].downsample[1].weight.detach().double()
    np.testing.assert_allclose(
        between[0].values, torch.linalg.svdvals(weight.flatten(1)).numpy(), atol=1e-6
    )
    assert [
        e.layer for e in weight_spectra(CASES["swin"].model()).entries if e.role == "downsample"
    ] == [
        "layers.1.downsample.reduction",
        "layers.2.downsample.reduction",
    ]


def test_convolutions_are_taken_on_their_own_grid_unless_it_is_large() -> None:
    model = CASES["resnet-bottleneck"].model()
    whole = {e.layer: e for e in weight_spectra(model, largest_grid=None).entries}
    assert whole["layer1.0.conv2"].grid == (16, 16)
    assert (whole["layer2.0.conv2"].grid, whole["layer2.0.conv2"].stride) == ((16, 16), (2, 2))
    assert whole["layer2.1.conv2"].grid == (8, 8)
    assert whole["layer4.0.conv2"].grid == (4, 4)
    assert whole["layer4.0.conv1"].grid is None
    halved = {e.layer: e for e in weight_spectra(model, largest_grid=4).entries}
    assert halved["layer1.0.conv2"].grid == (4, 4)
    # Frequencies of the small grid are among those of the large one.
    values = whole["layer1.0.conv2"].values
    distance = np.abs(halved["layer1.0.conv2"].values[:, None] - values).min(1)
    np.testing.assert_allclose(distance, 0, atol=1e-12)


def test_a_grid_smaller_than_the_kernel_is_enlarged_to_it() -> None:
    # Stage 4 of a 32 px network has one position, its kernels have 7 x 7 taps.
    network = CASES["convnext"].network()
    entries = {e.layer: e for e in weight_spectra(as_model(network, 32)).entries}
    entry = entries["stages.3.blocks.0.conv_dw"]
    assert entry.grid == (7, 7)
    kernel = network.stages[3].blocks[0].conv_dw.weight.detach().double()[:, 0].numpy()
    np.testing.assert_allclose(
        entry.values, np.sort(np.abs(np.fft.fft2(kernel)).ravel())[::-1], atol=1e-12
    )


def test_a_standardised_kernel_is_taken_as_applied() -> None:
    from timm.layers import StdConv2d

    layer = StdConv2d(3, 4, 3).double()
    x = normal(1, 3, 8, 8)
    torch.testing.assert_close(
        F.conv2d(x, applied_weight(layer), layer.bias, padding=layer.padding), layer(x)
    )


# -- the result ------------------------------------------------------------------------------------


def test_the_result_survives_storage_and_becomes_tables() -> None:
    found = weight_spectra(CASES["vit"].model())
    again: WeightSpectra = from_dict(to_dict(found))
    assert again.to_frame().equals(found.to_frame())
    np.testing.assert_array_equal(
        again.null_values(again.entries[3]), found.null_values(found.entries[3])
    )
    assert len(found.to_frame()) == 2 * (6 + 2 + 2)
    table = found.by_depth()
    assert table["depth"].tolist() == [0.5, 0.5, 1, 1]
    assert table["matrices"].tolist() == [4, 2, 4, 2]
    queries = found.select(kind="spatial", main=True, block="blocks.0")
    expected = np.mean([e.stable_rank / e.full_rank for e in queries])
    assert table[table["kind"] == "spatial"]["stable_rank_fraction"].iloc[0] == pytest.approx(
        expected
    )
    assert found.kinds == ("spatial", "channel")


def test_a_selection_that_matches_nothing_names_what_there_is() -> None:
    found = weight_spectra(CASES["mixer"].model())
    with pytest.raises(LayerError, match=r"no role 'token fc3'.*closest: token fc"):
        found.select(role="token fc3")
    with pytest.raises(LayerError, match=r"no block 'blocks.7'"):
        found.select(block="blocks.7")
    with pytest.raises(MeasureError, match="null_size is a whole number, 1 or more"):
        weight_spectra(CASES["mixer"].model(), null_size=0)


def test_degenerate_weights_are_nan_with_a_warning_and_spoil_nothing_else() -> None:
    network = CASES["mixer"].network()
    with torch.no_grad():
        network.blocks[0].mlp_tokens.fc1.weight.zero_()
        network.blocks[1].mlp_channels.fc2.weight[0, 0] = torch.nan
    with pytest.warns(
        DegenerateWeightsWarning, match=r"blocks.0.mlp_tokens.fc1, blocks.1.mlp_channels.fc2"
    ):
        found = weight_spectra(as_model(network))
    frame = found.to_frame().set_index("layer")
    bad = ["blocks.0.mlp_tokens.fc1", "blocks.1.mlp_channels.fc2"]
    assert frame.loc[bad, ["stable_rank", "effective_rank"]].isna().all(axis=None)
    assert frame.drop(bad)["stable_rank"].notna().all()
    assert found.by_depth()["stable_rank_fraction"].notna().all()
    assert found.by_depth()["matrices"].tolist() == [2, 1, 1, 2]


def test_the_network_is_left_alone() -> None:
    network = CASES["mixer"].network()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    weight_spectra(as_model(network)).entries[0].values[:] = 0
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())


def test_a_full_size_mixer_starts_on_the_edge() -> None:
    model = mp.load_model("mixer_b16_224", pretrained=False, device="cpu")
    found = mp.weight_spectra(model, null_size=1)
    frame = found.to_frame()
    assert frame["parameters"].sum() == sum(
        leaf.weight.numel() for leaf in model.module.blocks.modules() if isinstance(leaf, nn.Linear)
    )
    np.testing.assert_allclose(frame["spectral_norm"], frame["edge"], rtol=0.03)
    iid = [1 / marchenko_pastur_edge(*(int(n) for n in s.split("×"))) ** 2 for s in frame["shape"]]
    np.testing.assert_allclose(frame["stable_rank"], iid, rtol=0.06)
    tokens = frame[frame["kind"] == "spatial"]
    # 12 blocks of 196 x 384 twice.
    assert tokens["parameters"].sum() == 12 * 2 * 196 * 384


def test_training_gave_the_zoo_outliers_that_its_twins_lack() -> None:
    model = mp.load_model("zoo:mixer-s0", device="cpu")
    trained, fresh = (weight_spectra(m).by_depth() for m in (model, model.untrained()))
    assert (trained["outlier_energy"] > 0.2).all()
    assert (fresh["outlier_energy"] < 0.05).all()
