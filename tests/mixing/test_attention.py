"""Attention distance against closed forms and attention computed from queries and keys."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import ImagesError, LayerError
from mixer_probe.mixing.attention import (
    attention_distance,
    attention_maps,
    coarse,
    patches_of,
)
from mixer_probe.mixing.high_norm import high_norm_tokens
from mixer_probe.models import Model
from mixer_probe.weights.offsets import pair_distance, uniform_distance
from tests.networks import CASES, as_model, module_output

ONE_MATRIX = (
    "vit",
    "vit-gap",
    "vit-attention-pooling",
    "deit-distilled",
    "dinov2-registers",
    "beit",
    "eva",
    "eva-post-norm",
    "hybrid",
    "res-post",
)


@pytest.mark.parametrize(
    ("grid", "step", "distance"), [(14, 16, 116.49222709), (7, 32, 115.5029), (56, 4, 116.7768)]
)
def test_uniform_attention(grid: int, step: float, distance: float) -> None:
    found = uniform_distance((grid, grid), (step, step))
    assert abs(found - distance) < 1e-4
    S = grid * grid
    if grid == 56:
        return
    maps = torch.full((1, S + 1, S + 1), 1 / (S + 1), dtype=torch.float64)
    to_prefix, patches = patches_of(maps, 1)
    D = torch.from_numpy(pair_distance((grid, grid), (step, step)))
    assert abs(float((patches * D).sum(-1).mean()) - found) < 1e-9
    assert abs(float(torch.special.entr(patches).sum(-1).mean()) - np.log(S)) < 1e-9
    torch.testing.assert_close(to_prefix, torch.full_like(to_prefix, 1 / (S + 1)))
    if grid == 14:
        # Without renormalising.
        assert abs(float((maps[0, 1:, 1:] * D).sum(-1).mean()) - 115.9009) < 1e-4


def test_identity_and_a_row_without_patches() -> None:
    maps = torch.eye(5, dtype=torch.float64)
    maps[2] = torch.tensor([1.0, 0, 0, 0, 0])
    to_prefix, patches = patches_of(maps, 1)
    assert to_prefix.tolist() == [0, 1, 0, 0]
    assert patches[0].tolist() == [1, 0, 0, 0]
    assert patches[1].isnan().all()


def zero_queries(model: Model) -> Model:
    """Attention of which all queries are zero is uniform."""
    network: Any = model.module
    with torch.no_grad():
        for block in network.blocks:
            rows = block.attn.qkv.weight.shape[0] // 3
            block.attn.qkv.weight[:rows] = 0
            block.attn.qkv.bias[:rows] = 0
            block.attn.q_norm = torch.nn.Identity()
            block.attn.k_norm = torch.nn.Identity()
    return model


def test_a_network_with_uniform_attention() -> None:
    model = zero_queries(CASES["dinov2-registers"].model(torch.float64))
    r = attention_distance(model, CASES["dinov2-registers"].images(3, torch.float64))
    assert np.abs(r.distance.value - uniform_distance((4, 4), (8, 8))).max() < 1e-12
    assert np.abs(r.relative - 1).max() < 1e-12
    assert np.abs(r.entropy.value - np.log(16)).max() < 1e-12
    assert np.abs(r.relative_entropy - 1).max() < 1e-12
    assert np.abs(r.prefix.value - 5 / 21).max() < 1e-12
    assert np.abs(r.mean.value - uniform_distance((4, 4), (8, 8))).max() < 1e-12
    assert np.isnan(r.distance.low).all()
    # A and I in equal parts, block by block: a fraction 2^-l stays, in part by the identity.
    stays = 0.5 ** np.arange(1, 3)
    moved = (1 - stays) * 16 / 21
    expected = moved / (moved + stays) * uniform_distance((4, 4), (8, 8))
    assert np.abs(r.rollout.value - expected).max() < 1e-12


def softmax_maps(model: Model, images: torch.Tensor, block: str) -> np.ndarray:
    """softmax(q k' / sqrt d) of a block, from its inputs and weights alone."""
    module: Any = model.module.get_submodule(block)
    x = module_output(model, images, f"{block}.norm1")
    n, tokens, width = x.shape
    attn = module.attn
    q, k, _ = (
        (x @ attn.qkv.weight.T + attn.qkv.bias)
        .reshape(n, tokens, 3, attn.num_heads, width // attn.num_heads)
        .permute(2, 0, 3, 1, 4)
    )
    scores = attn.q_norm(q) @ attn.k_norm(k).transpose(-1, -2) / (width // attn.num_heads) ** 0.5
    return scores.softmax(-1).detach().numpy()


@pytest.mark.parametrize("name", ["vit", "vit-gap", "deit-distilled", "dinov2-registers"])
def test_by_queries_and_keys(name: str) -> None:
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(5, torch.float64)
    r = attention_distance(model, images, batch_size=2)
    maps = [softmax_maps(model, images, f"blocks.{k}") for k in range(2)]
    P, D = case.prefix, pair_distance((4, 4), (8, 8))
    rolled = np.stack([np.eye(16 + P)] * 5)
    for k, one in enumerate(maps):
        patches = one[..., P:, P:] / one[..., P:, P:].sum(-1, keepdims=True)
        distance = (patches * D).sum(-1).mean(-1)
        np.testing.assert_allclose(r.distance.value[k], distance.mean(0), rtol=1e-10)
        se = distance.std(0, ddof=1) / 5**0.5
        np.testing.assert_allclose(r.distance.se[k], se, rtol=1e-8)
        assert (r.distance.low[k] < r.distance.value[k]).all()
        assert (r.distance.value[k] < r.distance.high[k]).all()
        entropy = -(patches * np.log(patches)).sum(-1).mean((0, 2))
        np.testing.assert_allclose(r.entropy.value[k], entropy, rtol=1e-10)
        if P:
            prefix = one[..., P:, :P].sum(-1).mean((0, 2))
            np.testing.assert_allclose(r.prefix.value[k], prefix, rtol=1e-10)
        np.testing.assert_allclose(r.maps[k], patches.mean((0, 1)), atol=1e-6)
        rolled = (one.mean(1) + np.eye(16 + P)) / 2 @ rolled
        through = rolled[:, P:, P:] / rolled[:, P:, P:].sum(-1, keepdims=True)
        np.testing.assert_allclose(r.rollout.value[k], (through * D).sum(-1).mean(), rtol=1e-10)
        found = attention_maps(model, images, f"blocks.{k}", batch_size=3)
        np.testing.assert_allclose(found.maps, patches.mean(0), atol=1e-6)
        np.testing.assert_allclose(found.of_prefix, one[..., :P, P:].mean(0), atol=1e-6)
        np.testing.assert_allclose(found.prefix, one[..., P:, :P].sum(-1).mean(0), atol=1e-6)
    assert np.isnan(r.prefix.value).all() == (P == 0)
    frame = r.to_frame()
    assert len(frame) == 4
    assert list(frame["block"]) == ["blocks.0"] * 2 + ["blocks.1"] * 2


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.family == "vit"])
def test_every_class_by_its_own_maps(name: str) -> None:
    """Maps that agree with the distances, and a network that is left as it was."""
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(3, torch.float64)
    fused = [getattr(m, "fused_attn", None) for m in model.module.modules()]
    before = model.module(images)
    r = attention_distance(model, images)
    assert [getattr(m, "fused_attn", None) for m in model.module.modules()] == fused
    assert torch.equal(model.module(images), before)
    assert len(r.blocks) == case.blocks
    for k, maps in enumerate(r.maps):
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-6)
        side = int(maps.shape[0] ** 0.5)
        # Swin has positions of 2 pixels, then of 4 and 8.
        step = 2 << k // 2 if name.startswith("swin") else case.size / side
        distance = (maps * pair_distance((side, side), (step, step))).sum(-1).mean()
        assert abs(distance - r.mean.value[k]) < 1e-5
    assert np.isfinite(r.distance.value).sum() == r.heads.sum() == len(r.to_frame())
    assert np.isfinite(r.rollout.value).all() == (
        name in ONE_MATRIX
        or name == "parallel-scaling"
        or name in ("parallel-fused", "eva-qk-norm")
    )
    assert r.windowed.all() == r.windowed.any() == name.startswith("swin")


def values_of(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """What the maps average: [image, head, token, channel of the head]."""
    if getattr(attn, "qkv", None) is None:
        v = attn.v_proj(x)
    else:
        v = (x @ attn.qkv.weight.T).chunk(3, -1)[2]
        bias = getattr(attn, "v_bias", None)
        if bias is None and attn.qkv.bias is not None:
            bias = attn.qkv.bias.chunk(3)[2]
        v = v if bias is None else v + bias
    return v.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize(
    "name", ["vit", "vit-gap", "beit", "eva", "eva-post-norm", "hybrid", "res-post"]
)
def test_values_averaged_by_the_maps_are_the_output_of_fused_attention(name: str) -> None:
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(1, torch.float64)
    attn: Any = model.module.get_submodule("blocks.1.attn")
    given: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _m, args: given.append(args[0]))
        for module in (attn, attn.proj)
    ]
    with torch.no_grad():
        model.module(images)
        v = values_of(attn, given[0])
    for handle in handles:
        handle.remove()
    found = attention_maps(model, images, "blocks.1")
    rows = torch.from_numpy(found.maps).double() * (1 - torch.from_numpy(found.prefix)[..., None])
    if case.prefix:
        rows = torch.cat([torch.from_numpy(found.prefix)[..., None], rows], -1)
    output = (rows @ v[0]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(output, given[1][0, case.prefix :], rtol=0, atol=1e-5)


def test_windows_that_are_shifted() -> None:
    """Pairs of positions from other sides of the image have no weight."""
    case = CASES["swin"]
    model, images = case.model(torch.float64), case.images(3, torch.float64)
    r = attention_distance(model, images)
    S = uniform_distance((4, 4), (2, 2))
    assert abs(r.uniform[0] - S) < 1e-12
    # The second block of a stage is shifted by half a window; the last stage has one window.
    assert r.uniform[1] < S
    assert r.uniform_entropy[1] < r.uniform_entropy[0] == np.log(16)
    assert abs(r.uniform[5] - uniform_distance((4, 4), (8, 8))) < 1e-12
    block: Any = model.module.requires_grad_(False).get_submodule("layers.0.blocks.1")
    x = module_output(model, images, "layers.0.blocks.1.norm1")
    # Every window by hand: 16 of 4 x 4 positions, shifted by two.
    x = torch.roll(x, (-2, -2), (1, 2)).reshape(3, 4, 4, 4, 4, -1).transpose(2, 3)
    x = x.reshape(3, 16, 16, -1)
    attn = block.attn
    q, k = (x @ attn.qkv.weight.T + attn.qkv.bias).chunk(3, -1)[:2]
    scores = q @ k.transpose(-1, -2) / 8**0.5
    table = attn.relative_position_bias_table[attn.relative_position_index.reshape(-1), 0]
    scores = scores + table.reshape(16, 16)
    where = (torch.arange(16) + 2) % 16
    pixel = torch.stack(torch.meshgrid(where, where, indexing="ij"), -1).reshape(4, 4, 4, 4, 2)
    pixel = pixel.transpose(1, 2).reshape(16, 16, 2)
    apart = (pixel[:, :, None] - pixel[:, None]).abs().amax(-1) > 3
    weights = scores.masked_fill(apart, -torch.inf).softmax(-1)
    # Between positions that see each other the distance is that in the image.
    D = 2 * (pixel[:, :, None] - pixel[:, None]).double().norm(dim=-1)
    distance = float((weights * D).sum(-1).mean())
    assert abs(distance - r.distance.value[1, 0]) < 1e-9
    seen = (~apart).double()
    uniform = float(((seen * D).sum(-1) / seen.sum(-1)).mean())
    assert abs(uniform - r.uniform[1]) < 1e-12


def test_large_grids_are_stored_on_cells() -> None:
    uniform = torch.full((1, 256, 256), 1 / 256, dtype=torch.float64)
    torch.testing.assert_close(
        coarse(uniform, (16, 16)), torch.full((1, 196, 196), 1 / 196, dtype=torch.float64)
    )
    # Cells of 2 x 2 positions: position (0, 0) attends to (27, 27) alone, the others to themselves.
    maps = torch.eye(784, dtype=torch.float64)
    maps[0] = maps[783]
    found = coarse(maps, (28, 28))
    assert found.shape == (196, 196)
    assert found[0, 195] == 0.25
    assert found[0, 0] == 0.75
    assert found[1, 1] == 1
    assert coarse(maps[:196, :196], (14, 14)) is not None


def test_tokens_of_large_norm() -> None:
    rng = np.random.default_rng(0)
    norms = rng.normal(10, 0.5, (20, 16))
    norms[:5, 3] = 100
    norms[0, 15] = 50
    found = high_norm_tokens([norms, np.ones((20, 16))], [(4, 4), (4, 4)])
    median = np.median(norms)
    mad = np.median(np.abs(norms - median))
    assert found.cut[0] == max(median + 6 * 1.4826 * mad, 2 * median) == 2 * median
    assert found.count.value.tolist() == [6 / 20, 0]
    assert found.images.tolist() == [5 / 20, 0]
    assert found.images_low[0] > 0
    assert found.places[0][0, 3] == np.float32(5 / 20)
    assert found.places[0][3, 3] == np.float32(1 / 20)
    assert found.places[0].sum() == pytest.approx(6 / 20)
    assert found.largest.tolist() == [100, 1]


def test_networks_without_attention_and_other_errors() -> None:
    images = torch.zeros(2, 3, 32, 32)
    with pytest.raises(LayerError, match="mixer without attention maps"):
        attention_distance(CASES["mixer"].model(), images)
    model = CASES["vit"].model()
    with pytest.raises(LayerError, match=r"no block with attention 'blocks.7'; .*blocks.0"):
        attention_maps(model, images, "blocks.7")
    with pytest.raises(ImagesError, match=r"\(3, 16, 16\)"):
        attention_distance(model, torch.zeros(2, 3, 16, 16))
    hidden = copy.deepcopy(CASES["vit"].network())
    hidden.blocks[1].attn.forward = lambda x, **_: x  # type: ignore[union-attr, index, operator]
    with pytest.raises(LayerError, match="do not pass through its attn_drop"):
        attention_distance(as_model(hidden), images)
