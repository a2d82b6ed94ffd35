"""Kernel tying: planted sets of kernels are counted exactly, effective kernels are mean Jacobians,
the null keeps spectra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, MeasureError, ModelError, UndefinedKernelWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.weights import KernelTying
from mixer_probe.weights.channel_kernels import (
    ChannelKernels,
    channel_kernels,
    kernel_sums,
    taps_kernels,
)
from mixer_probe.weights.offsets import offset_mean, offset_pairs
from mixer_probe.weights.tying import count_for, layer_tying
from mixer_probe.zoo.architectures import construct
from tests.networks import CASES, as_model, noise, randomised

RNG = np.random.default_rng


def orthonormal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(RNG(seed).standard_normal((columns, rows)))[0].T


def planted(energies: list[float], channels: int = 40, size: int = 5) -> np.ndarray:
    """Kernels [channel, size, size] with exactly these principal energies."""
    rank = len(energies)
    left, right = orthonormal(rank, channels).T, orthonormal(rank, size**2, 1)
    return ((left * np.sqrt(energies)) @ right).reshape(channels, size, size)


# -- counting --------------------------------------------------------------------------------------


def test_the_fewest_that_reach_a_fraction() -> None:
    energies = np.array([5.0, 3, 1.5, 0.5, 0])
    fractions = (0.4, 0.5, 0.51, 0.8, 0.9, 0.96, 1.0)
    assert [count_for(energies, s) for s in fractions] == [1, 1, 2, 2, 3, 4, 4]
    assert np.isnan(count_for(np.zeros(3), 0.9))
    with pytest.raises(MeasureError, match=r"above 0 and at most 1, not 1\.5"):
        count_for(energies, 1.5)


def test_planted_kernel_sets_come_back_with_counts_rank_and_dictionary() -> None:
    model = mp.load_model("convnext_atto", pretrained=False, device="cpu")
    kernels = planted([5, 3, 2], channels=40, size=7)
    with torch.no_grad():
        model.module.stages[1].blocks[0].conv_dw.weight[:40, 0] = torch.from_numpy(kernels).float()
        model.module.stages[1].blocks[0].conv_dw.weight[40:] = 0
    found = mp.kernel_tying(model, draws=3)
    entry = found.layer("stages.1.blocks.0")
    assert (entry.source, entry.shape, entry.possible, found.images, found.n) == (
        "weights",
        (7, 7),
        49,
        None,
        0,
    )
    assert [entry.raw.count(s) for s in (0.5, 0.9, 0.99)] == [1, 3, 3]
    np.testing.assert_allclose(entry.raw.energies[:3], [5, 3, 2], rtol=1e-5)
    np.testing.assert_allclose(entry.raw.fractions[:3], [0.5, 0.3, 0.2], rtol=1e-5)
    p = np.sqrt([5, 3, 2]) / np.sqrt([5, 3, 2]).sum()
    assert entry.raw.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    shared = orthonormal(3, 49, 1)
    cosines = np.abs(entry.raw.dictionary[:3].reshape(3, -1) @ shared.T)
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-4)
    # The sign of a component means nothing; its largest entry is positive.
    flat = entry.raw.dictionary.reshape(len(entry.raw.dictionary), -1)
    assert (np.abs(flat).max(1) == flat.max(1)).all()
    assert found.counts(0.99)[found.index("stages.1.blocks.0.conv_dw")] == 3


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_random_sets_of_rank_r_count_r(rank: int) -> None:
    rng = RNG(rank)
    kernels = np.tensordot(rng.standard_normal((300, rank)), rng.standard_normal((rank, 7, 7)), 1)
    found = layer_tying(taps_kernels(kernels, "b", "b.c", 1.0), draws=2)
    assert found.raw.count(0.99) == found.unit.count(0.99) == rank
    assert np.count_nonzero(found.raw.energies) == rank
    assert found.raw.null_count(0.99)[0] > rank


def test_unit_norm_counts_every_channel_alike() -> None:
    one, other = orthonormal(2, 9)
    kernels = np.stack([100 * one, *[other * scale for scale in (1, -2, 3)], 0 * one]).reshape(
        -1, 3, 3
    )
    found = layer_tying(taps_kernels(kernels, "b", "b.c", 1.0), draws=1)
    assert (found.raw.count(0.99), found.unit.count(0.99)) == (1, 2)
    np.testing.assert_allclose(found.raw.energies[:2], [1e4, 14])
    # Three channels share a shape, one has its own, a dead one counts for nothing.
    np.testing.assert_allclose(found.unit.energies[:2], [3, 1])
    np.testing.assert_allclose(
        found.unit.dictionary[0].ravel(), other * np.sign(other[np.abs(other).argmax()]), atol=1e-12
    )


# -- the null --------------------------------------------------------------------------------------


def test_noise_is_its_own_null() -> None:
    found = layer_tying(
        taps_kernels(RNG(0).standard_normal((384, 7, 7)), "b", "b.c", 1.0), draws=20
    )
    for spectrum in (found.raw, found.unit):
        for fraction in (0.5, 0.9, 0.99):
            mean, low, high = spectrum.null_count(fraction)
            assert low <= mean <= high
            assert abs(spectrum.count(fraction) - mean) <= 1.5


def test_the_null_keeps_energy_and_breaks_sharing() -> None:
    kernel = RNG(1).standard_normal((7, 7))
    found = layer_tying(
        taps_kernels(np.stack([kernel * s for s in range(1, 101)]), "b", "b.c", 1.0), draws=5
    )
    np.testing.assert_allclose(found.raw.null.sum(1), found.raw.energies.sum())
    np.testing.assert_allclose(found.unit.null.sum(1), 100)
    assert found.raw.count(0.99) == 1
    assert found.raw.null_count(0.9)[1] > 10
    assert found.raw.null_cumulative.shape == (5, 49)


def test_smooth_kernels_are_few_dimensional_by_themselves() -> None:
    # Two frequencies of fixed amplitude and random phase: four dimensions, in the null as in the
    # kernels.
    y = np.arange(8)
    phases = RNG(2).uniform(0, 2 * np.pi, (200, 2, 1, 1))
    kernels = np.cos(2 * np.pi * y[:, None] / 8 + phases[:, 0]) + np.cos(
        4 * np.pi * y / 8 + phases[:, 1]
    )
    found = layer_tying(taps_kernels(kernels, "b", "b.c", 1.0), draws=5)
    assert found.raw.count(0.99) == 4
    assert found.raw.null_count(0.99)[0] == 4


def test_seeds_repeat_and_layers_differ() -> None:
    model = CASES["convnext"].model()
    first, again, other = (mp.kernel_tying(model, draws=2, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.layer(0).raw.null, again.layer(0).raw.null)
    assert not np.array_equal(first.layer(0).raw.null, other.layer(0).raw.null)


# -- effective kernels are mean Jacobians ----------------------------------------------------------


def inputs_of(model: mp.Model, path: str, images: torch.Tensor) -> torch.Tensor:
    """What the module at `path` reads."""
    seen: list[torch.Tensor] = []
    handle = model.module.get_submodule(path).register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].detach())
    )
    with torch.no_grad():
        model.module(images)
    handle.remove()
    return seen[0]


def agree_with(kernels: ChannelKernels, explicit: np.ndarray, grid: tuple[int, int]) -> None:
    """Kernels, Gram matrix, spectrum, offset space and dictionary are those of the explicit kernels
    [C, S, S]."""
    for c in range(len(explicit)):
        np.testing.assert_allclose(kernels.kernel(c), explicit[c], atol=1e-10)
    flat = explicit.reshape(len(explicit), -1)
    a = kernels.coefficients
    np.testing.assert_allclose(a @ kernels.gram @ a.T, flat @ flat.T, atol=1e-10)
    np.testing.assert_allclose(
        kernels.in_offset_space,
        offset_mean(explicit, grid) * np.sqrt(offset_pairs(grid)),
        atol=1e-10,
    )
    found = layer_tying(kernels, draws=1, components=2)
    u, s, _ = np.linalg.svd(flat, full_matrices=False)
    k = min(len(s), len(found.raw.energies))
    np.testing.assert_allclose(found.raw.energies[:k], s[:k] ** 2, atol=1e-9 * s[0] ** 2)
    assert (s[k:] < 1e-7 * s[0]).all()
    first = offset_mean((u[:, 0] @ flat / s[0]).reshape(explicit.shape[1:]), grid)
    np.testing.assert_allclose(np.abs(found.raw.dictionary[0]), np.abs(first), atol=1e-9)


@pytest.mark.parametrize("name", ["mixer", "gmixer"])
def test_mixer_kernels_are_the_mean_jacobian_of_each_channel(name: str) -> None:
    case = CASES[name]
    model = case.model(torch.float64)
    images = case.images(3, torch.float64)
    kernels = channel_kernels(model, images, batch_size=2)[1]
    mlp = model.module.blocks[1].mlp_tokens
    # [image, channel, position]: every row is mixed by itself.
    x = inputs_of(model, "blocks.1.mlp_tokens", images)
    rows = x.reshape(-1, x.shape[-1])
    jacobians = torch.stack([torch.autograd.functional.jacobian(mlp, row) for row in rows])
    explicit = jacobians.reshape(*x.shape, -1).mean(0).numpy()
    assert kernels.layer == "blocks.1.mlp_tokens"
    assert kernels.shape == (16, 16)
    assert np.std(explicit, axis=0).max() > 1e-3
    agree_with(kernels, explicit, (4, 4))


def untied(groups: int, hidden: int) -> mp.Model:
    """A Mixer of 24 channels with 16 tokens, and token MLPs of so many units per group."""
    sizes = {"num_classes": 5, "patch_size": 8, "num_blocks": 2, "embed_dim": 24}
    network = construct(
        "mixer", 0, {**sizes, "mlp_ratio": [hidden / 24, 1.0], "token_groups": groups}
    )
    return as_model(randomised(network), dtype=torch.float64)


# More channels in a group than units, as many, and fewer: two forms of the kernels.
@pytest.mark.parametrize(("groups", "hidden"), [(2, 6), (4, 6), (4, 12), (24, 12)])
def test_untied_kernels_are_the_mean_jacobian_of_each_channel(groups: int, hidden: int) -> None:
    model, images = untied(groups, hidden), noise(3, dtype=torch.float64)
    kernels = channel_kernels(model, images, batch_size=2)[1]
    mlp = model.module.blocks[1].mlp_tokens
    x = inputs_of(model, "blocks.1.mlp_tokens", images)
    # [image, channel, position, channel, position]
    jacobians = torch.stack([torch.func.jacrev(lambda z: mlp(z[None])[0])(one) for one in x])
    own = torch.einsum("bcscj->bcsj", jacobians)
    assert jacobians.square().sum().item() == pytest.approx(own.square().sum().item(), rel=1e-12)
    explicit = own.mean(0).detach().numpy()
    assert (kernels.layer, kernels.shape, kernels.source) == (
        "blocks.1.mlp_tokens",
        (16, 16),
        "data",
    )
    assert np.std(explicit, axis=0).max() > 1e-3
    agree_with(kernels, explicit, (4, 4))
    found = layer_tying(kernels, draws=1)
    assert found.possible == min(24, groups * hidden)
    assert np.count_nonzero(found.raw.energies) == found.possible
    combined = np.random.default_rng(0).standard_normal(24)
    np.testing.assert_allclose(
        kernels.expand(combined @ kernels.coefficients),
        np.tensordot(combined, explicit, 1),
        atol=1e-10,
    )


@pytest.mark.parametrize("groups", [2, 24])
def test_groups_with_equal_weights_are_tied(groups: int) -> None:
    tied, model = CASES["mixer"].model(torch.float64), untied(groups, 12)
    images = noise(4, dtype=torch.float64)
    for block, like in zip(model.module.blocks, tied.module.blocks, strict=True):
        mlp = block.mlp_tokens
        with torch.no_grad():
            mlp.fc1_weight.copy_(like.mlp_tokens.fc1.weight)
            mlp.fc1_bias.copy_(like.mlp_tokens.fc1.bias)
            mlp.fc2_weight.copy_(like.mlp_tokens.fc2.weight)
            mlp.fc2_bias.copy_(like.mlp_tokens.fc2.bias)
        block.mlp_channels = like.mlp_channels
        block.norm1, block.norm2 = like.norm1, like.norm2
    model.module.stem = tied.module.stem
    for own, other in zip(
        mp.kernel_tying(model, images, draws=2).layers,
        mp.kernel_tying(tied, images, draws=2).layers,
        strict=True,
    ):
        energies = other.raw.energies
        np.testing.assert_allclose(
            own.raw.energies[: len(energies)], energies, atol=1e-10 * energies[0]
        )
        assert not own.raw.energies[len(energies) :].any()
        np.testing.assert_allclose(own.raw.null, other.raw.null, atol=1e-10 * energies[0])
        np.testing.assert_allclose(own.unit.energies[:12], other.unit.energies[:12], atol=1e-9)
        np.testing.assert_allclose(own.raw.dictionary[0], other.raw.dictionary[0], atol=1e-9)
        assert own.sharing == pytest.approx(other.sharing, rel=1e-9)
        assert own.raw.count(0.9) == other.raw.count(0.9)


@contextmanager
def fixed_attention(attention: nn.Module) -> Iterator[None]:
    """Attention patterns as the input makes them, but no gradient through them."""
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_hook(lambda _m, _a, out: out.detach())
    yield
    handle.remove()
    attention.fused_attn = True


@pytest.mark.parametrize("name", ["vit", "deit-distilled", "beit", "eva", "res-post"])
def test_vit_kernels_are_the_mean_jacobian_with_attention_held_fixed(name: str) -> None:
    case = CASES[name]
    model = case.model(torch.float64)
    images = case.images(3, torch.float64)
    before = [b.module.attn.fused_attn for b in model.structure.blocks]
    kernels = channel_kernels(model, images, batch_size=2)[1]
    assert [b.module.attn.fused_attn for b in model.structure.blocks] == before
    attention = model.module.blocks[1].attn
    p, c = case.prefix, 24
    seen: list[tuple[torch.Tensor, dict[str, object]]] = []
    handle = attention.register_forward_hook(
        lambda _m, args, kw, _o: seen.append((args[0], kw)), with_kwargs=True
    )
    with torch.no_grad():
        model.module(images)
    handle.remove()
    x, options = seen[0]
    total = torch.zeros(c, 16, 16, dtype=torch.float64)
    with fixed_attention(attention):
        for one in x:
            # [position, channel, position, channel]
            jacobian = torch.autograd.functional.jacobian(
                lambda z: attention(z[None], **options)[0], one
            )
            total += torch.einsum("icjc->cij", jacobian[p:, :, p:])
    agree_with(kernels, (total / 3).numpy(), case.grid)
    # Two heads: never more than two shared kernels.
    found = mp.kernel_tying(model, images, draws=1).layer(1)
    assert found.possible == 2
    assert np.count_nonzero(found.raw.energies) == 2


def test_attention_is_fused_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["vit"].model()
    block = model.module.blocks[1]
    before = block.attn.fused_attn
    # The network has been traced before it breaks.
    assert model.structure.token_grid == (4, 4)
    monkeypatch.setattr(model.module.blocks[0].mlp, "forward", lambda _x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mp.kernel_tying(model, CASES["vit"].images(2))
    assert block.attn.fused_attn == before
    assert not any(m._forward_hooks for m in model.module.modules())


@pytest.mark.parametrize("name", ["mixer", "grouped-mixer", "vit"])
def test_images_are_averaged_whatever_the_batches(name: str) -> None:
    case = CASES[name]
    model = case.model(torch.float64)
    images = case.images(5, torch.float64)
    results = [channel_kernels(model, images, batch_size=size) for size in (1, 2, 5)]
    for kernels in zip(*results, strict=True):
        for other in kernels[1:]:
            np.testing.assert_allclose(other.gram, kernels[0].gram, atol=1e-12)
            np.testing.assert_allclose(other.coefficients, kernels[0].coefficients, atol=1e-12)


def test_attention_without_prefix_sums_to_one() -> None:
    case = CASES["vit-gap"]
    maps = kernel_sums(case.model(torch.float64), case.images(2, torch.float64)).compute()
    np.testing.assert_allclose(maps[0].sum(-1), 1)
    assert maps[0].shape == (2, 16, 16)


# -- families --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resmlp", "gmlp"])
def test_kernels_tied_by_construction_are_one_and_need_no_images(name: str) -> None:
    model = CASES[name].model()
    found = mp.kernel_tying(model)
    entry = found.layer(1)
    assert (entry.source, entry.possible, found.n) == ("construction", 1, 0)
    assert found.counts(0.99).tolist() == [1, 1]
    assert np.isnan(entry.raw.null_count(0.9)).all()
    block = model.module.blocks[1]
    weight = (
        (block.linear_tokens if name == "resmlp" else block.mlp_channels.gate.proj)
        .weight.detach()
        .double()
        .numpy()
    )
    scales = block.ls1.detach().double().numpy() if name == "resmlp" else np.ones(72)
    assert entry.channels == len(scales)
    np.testing.assert_allclose(entry.raw.energies, (scales**2).sum() * (weight**2).sum(), rtol=1e-9)
    picture = offset_mean(weight, (4, 4)) / np.linalg.norm(weight)
    np.testing.assert_allclose(np.abs(entry.raw.dictionary[0]), np.abs(picture), atol=1e-9)


@pytest.mark.parametrize(
    "name", ["convnext", "convnextv2", "efficientnet-b0", "mobilenetv4", "convmixer"]
)
def test_depthwise_weights_are_read(name: str) -> None:
    model = CASES[name].model()
    for entry in channel_kernels(model):
        module = model.module.get_submodule(entry.layer)
        assert module.groups == module.in_channels == len(entry.coefficients)
        np.testing.assert_array_equal(
            entry.kernel(3), module.weight[3, 0].detach().double().numpy()
        )


@pytest.mark.parametrize("name", ["mixer", "untied-mixer", "gmixer", "vit"])
def test_missing_images_are_asked_for(name: str) -> None:
    with pytest.raises(ModelError, match=r"kernel tying needs images: give images=load_images"):
        mp.kernel_tying(CASES[name].model())


@pytest.mark.parametrize(
    "name, reason",
    [
        (
            "resnet18",
            r"3×3 convolutions \(layer1.0.conv1 and 15 more\), with a kernel for each pair of "
            r"channels",
        ),
        ("swin", "which is no sum over heads of one global pattern"),
        ("parallel-scaling", "has no attention module of its own"),
    ],
)
def test_networks_without_channel_kernels_are_refused_with_what_they_have(
    name: str, reason: str
) -> None:
    case = CASES[name]
    with pytest.raises(ModelError, match=reason) as caught:
        mp.kernel_tying(case.model(), case.images(2))
    assert "kernel tying is for ConvNeXt" in str(caught.value)


def test_kernels_of_zeros_are_nan_with_a_warning() -> None:
    network = CASES["convnext"].network()
    nn.init.zeros_(network.stages[0].blocks[0].conv_dw.weight)
    with pytest.warns(UndefinedKernelWarning, match=r"'stages\.0\.blocks\.0\.conv_dw' are zero"):
        found = mp.kernel_tying(as_model(network, 64), draws=2)
    row = found.to_frame().iloc[0]
    assert np.isnan(
        [row.count_90, row.effective_rank, row.first_fraction, row.null_count_90, row.unit_count_90]
    ).all()
    assert np.isfinite(found.to_frame().iloc[1].count_90)


# -- results ---------------------------------------------------------------------------------------


def test_the_frame_has_one_row_a_layer_and_the_result_survives_storage() -> None:
    case = CASES["mixer"]
    found = mp.kernel_tying(case.model(), case.images(4), draws=3, components=5)
    frame = found.to_frame()
    assert len(frame) == 2
    assert frame["count_90"].tolist() == found.counts(0.9).tolist()
    assert frame["unit_count_99"].tolist() == found.counts(0.99, normalise=True).tolist()
    assert (frame["count_50"] <= frame["count_90"]).all()
    assert (frame["n_images"] == 4).all()
    assert found.images is not None
    assert found.layer(0).raw.dictionary.shape == (5, 7, 7)
    again: KernelTying = from_dict(to_dict(found))
    assert again.to_frame().equals(frame)
    assert again.images == found.images


def test_wrong_layers_are_named() -> None:
    found = mp.kernel_tying(CASES["convnext"].model(), draws=1)
    with pytest.raises(LayerError, match="layers 0 to 4, not 5"):
        found.layer(5)
    with pytest.raises(LayerError, match=r"closest: stages\.2\.blocks\.1"):
        found.layer("stages.2.block.1")


def test_a_trained_mixer_shares_few_kernels() -> None:
    found = mp.kernel_tying(
        mp.load_model("zoo:mixer-s0", device="cpu"), mp.load_images("demo", limit=8), draws=2
    )
    frame = found.to_frame()
    assert (frame["count_90"] < frame["null_count_90_low"]).all()
    np.testing.assert_array_equal(
        found.over_null(0.9), frame["offset_count_90"] / frame["null_count_90"]
    )
    assert (frame["count_99"] <= 128).all()
