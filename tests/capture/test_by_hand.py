"""Captured layers against forward passes written out by hand in float64: explicit sums, no hooks,
no in-place module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixer_probe.capture import extract
from tests.networks import CASES

Found = dict[str, torch.Tensor]


def linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """[..., in] to [..., out] as a plain sum."""
    y = torch.einsum("...i,oi->...o", x, layer.weight)
    return y if layer.bias is None else y + layer.bias


def over_positions(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """[image, position, channel] to [image, unit, channel]: each unit is a weighted sum over
    positions."""
    return torch.einsum("us,bsc->buc", layer.weight, x) + layer.bias[None, :, None]


def normalised(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """Layer norm over the last axis, written out."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def patches(images: torch.Tensor, convolution: Any) -> torch.Tensor:
    """The patch embedding as a matrix product on flattened patches: [image, position, channel]."""
    size = convolution.kernel_size[0]
    n, channels, height, width = images.shape
    cut = images.reshape(n, channels, height // size, size, width // size, size).permute(
        0, 2, 4, 1, 3, 5
    )
    return linear(
        cut.reshape(n, -1, channels * size * size),
        _Flat(convolution.weight.flatten(1), convolution.bias),
    )


class _Flat:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias


def channel_mlp(x: torch.Tensor, mlp: Any, name: str, found: Found) -> torch.Tensor:
    found[f"{name}.fc1"] = linear(x, mlp.fc1)
    found[f"{name}.act"] = gelu(found[f"{name}.fc1"])
    found[name] = found[f"{name}.fc2"] = linear(found[f"{name}.act"], mlp.fc2)
    return found[name]


def mixer(network: Any, images: torch.Tensor) -> Found:
    found: Found = {}
    x = found["stem"] = patches(images, network.stem.proj)
    for i, block in enumerate(network.blocks):
        name = f"blocks.{i}"
        tokens = found[f"{name}.norm1"] = normalised(x, block.norm1)
        hidden = found[f"{name}.mlp_tokens.fc1"] = over_positions(tokens, block.mlp_tokens.fc1)
        active = found[f"{name}.mlp_tokens.act"] = gelu(hidden)
        mixed = found[f"{name}.mlp_tokens"] = over_positions(active, block.mlp_tokens.fc2)
        found[f"{name}.mlp_tokens.fc2"] = mixed
        x = x + mixed
        found[f"{name}.norm2"] = normalised(x, block.norm2)
        x = x + channel_mlp(
            found[f"{name}.norm2"], block.mlp_channels, f"{name}.mlp_channels", found
        )
        found[name] = x
    found["norm"] = normalised(x, network.norm)
    found["head"] = linear(found["norm"].mean(1), network.head)
    return found


def resmlp(network: Any, images: torch.Tensor) -> Found:
    found: Found = {}
    x = found["stem"] = patches(images, network.stem.proj)
    for i, block in enumerate(network.blocks):
        name = f"blocks.{i}"
        affine = found[f"{name}.norm1"] = block.norm1.alpha * x + block.norm1.beta
        mixed = found[f"{name}.linear_tokens"] = over_positions(affine, block.linear_tokens)
        x = x + block.ls1 * mixed
        affine = found[f"{name}.norm2"] = block.norm2.alpha * x + block.norm2.beta
        x = x + block.ls2 * channel_mlp(affine, block.mlp_channels, f"{name}.mlp_channels", found)
        found[name] = x
    found["norm"] = network.norm.alpha * x + network.norm.beta
    found["head"] = linear(found["norm"].mean(1), network.head)
    return found


def gmlp(network: Any, images: torch.Tensor) -> Found:
    found: Found = {}
    x = found["stem"] = patches(images, network.stem.proj)
    for i, block in enumerate(network.blocks):
        name, mlp = f"blocks.{i}", block.mlp_channels
        found[f"{name}.norm"] = normalised(x, block.norm)
        found[f"{name}.mlp_channels.fc1"] = linear(found[f"{name}.norm"], mlp.fc1)
        active = found[f"{name}.mlp_channels.act"] = gelu(found[f"{name}.mlp_channels.fc1"])
        u, v = active.split(active.shape[-1] // 2, dim=-1)
        v = found[f"{name}.mlp_channels.gate.norm"] = normalised(v, mlp.gate.norm)
        v = found[f"{name}.mlp_channels.gate.proj"] = over_positions(v, mlp.gate.proj)
        found[f"{name}.mlp_channels.gate"] = u * v
        found[f"{name}.mlp_channels"] = linear(u * v, mlp.fc2)
        x = found[name] = x + found[f"{name}.mlp_channels"]
    found["norm"] = normalised(x, network.norm)
    found["head"] = linear(found["norm"].mean(1), network.head)
    return found


def attention(x: torch.Tensor, attn: Any, name: str, found: Found) -> torch.Tensor:
    """Multi-head attention with normalised queries and keys, head by head."""
    found[f"{name}.qkv"] = linear(x, attn.qkv)
    q, k, v = found[f"{name}.qkv"].chunk(3, dim=-1)
    size = q.shape[-1] // attn.num_heads
    heads, queries = [], []
    for h in range(attn.num_heads):
        at = slice(h * size, (h + 1) * size)
        query, key = normalised(q[..., at], attn.q_norm), normalised(k[..., at], attn.k_norm)
        queries.append(query)
        weights = torch.softmax(torch.einsum("bnd,bmd->bnm", query, key) / size**0.5, dim=-1)
        heads.append(torch.einsum("bnm,bmd->bnd", weights, v[..., at]))
    found[f"{name}.q_norm"] = torch.cat(queries, dim=-1)
    found[name] = linear(torch.cat(heads, dim=-1), attn.proj)
    return found[name]


def vit(network: Any, images: torch.Tensor) -> Found:
    found: Found = {}
    x = found["patch_embed"] = patches(images, network.patch_embed.proj)
    x = torch.cat([network.cls_token.expand(len(x), -1, -1), x], dim=1) + network.pos_embed
    for i, block in enumerate(network.blocks):
        name = f"blocks.{i}"
        found[f"{name}.norm1"] = normalised(x, block.norm1)
        x = x + block.ls1.gamma * attention(
            found[f"{name}.norm1"], block.attn, f"{name}.attn", found
        )
        found[f"{name}.norm2"] = normalised(x, block.norm2)
        x = x + block.ls2.gamma * channel_mlp(
            found[f"{name}.norm2"], block.mlp, f"{name}.mlp", found
        )
        found[name] = x
    found["norm"] = normalised(x, network.norm)
    found["head"] = linear(found["norm"][:, 0], network.head)
    return found


def batch_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    def column(v: torch.Tensor) -> torch.Tensor:
        return v[None, :, None, None]

    scaled = (x - column(norm.running_mean)) / torch.sqrt(column(norm.running_var) + norm.eps)
    return scaled * column(norm.weight) + column(norm.bias)


def convolution(x: torch.Tensor, layer: Any) -> torch.Tensor:
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)


def rows(x: torch.Tensor) -> torch.Tensor:
    """[image, channel, row, column] as [image, position, channel]."""
    return torch.stack([x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])], dim=1)


def resnet18(network: Any, images: torch.Tensor) -> Found:
    maps: Found = {"conv1": convolution(images, network.conv1)}
    maps["bn1"] = batch_norm(maps["conv1"], network.bn1)
    maps["act1"] = maps["bn1"].clamp(min=0)
    x = maps["maxpool"] = F.max_pool2d(maps["act1"], 3, 2, 1)
    for stage in range(1, 5):
        for i, block in enumerate(getattr(network, f"layer{stage}")):
            name = f"layer{stage}.{i}"
            maps[f"{name}.conv1"] = convolution(x, block.conv1)
            maps[f"{name}.bn1"] = batch_norm(maps[f"{name}.conv1"], block.bn1)
            maps[f"{name}.act1"] = maps[f"{name}.bn1"].clamp(min=0)
            maps[f"{name}.conv2"] = convolution(maps[f"{name}.act1"], block.conv2)
            maps[f"{name}.bn2"] = batch_norm(maps[f"{name}.conv2"], block.bn2)
            if block.downsample is not None:
                x = maps[f"{name}.downsample"] = batch_norm(
                    convolution(x, block.downsample[0]), block.downsample[1]
                )
            x = maps[name] = maps[f"{name}.act2"] = (maps[f"{name}.bn2"] + x).clamp(min=0)
    found = {name: rows(x) for name, x in maps.items()}
    found["global_pool"] = x.mean((2, 3))
    found["fc"] = linear(found["global_pool"], network.fc)
    return found


def convnext(network: Any, images: torch.Tensor) -> Found:
    def channel_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
        return normalised(x.permute(0, 2, 3, 1), norm).permute(0, 3, 1, 2)

    found: Found = {}
    x = channel_norm(convolution(images, network.stem[0]), network.stem[1])
    found["stem"] = rows(x)
    for s, stage in enumerate(network.stages):
        if not isinstance(stage.downsample, nn.Identity):
            x = convolution(channel_norm(x, stage.downsample[0]), stage.downsample[1])
            found[f"stages.{s}.downsample"] = rows(x)
        for i, block in enumerate(stage.blocks):
            name = f"stages.{s}.blocks.{i}"
            mixed = convolution(x, block.conv_dw)
            found[f"{name}.conv_dw"] = rows(mixed)
            found[f"{name}.norm"] = normalised(rows(mixed), block.norm)
            change = block.gamma * channel_mlp(
                found[f"{name}.norm"], block.mlp, f"{name}.mlp", found
            )
            x = x + change.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
            found[name] = rows(x)
    found["head.global_pool"] = x.mean((2, 3))
    found["head.norm"] = normalised(found["head.global_pool"], network.head.norm)
    found["head"] = linear(found["head.norm"], network.head.fc)
    return found


BY_HAND: dict[str, Callable[[Any, torch.Tensor], Found]] = {
    "mixer": mixer,
    "resmlp": resmlp,
    "gmlp": gmlp,
    "vit": vit,
    "resnet18": resnet18,
    "convnext": convnext,
}


@pytest.mark.parametrize("name", BY_HAND)
@torch.no_grad()
def test_layers_are_those_of_the_formulas(name: str) -> None:
    case = CASES[name]
    model, images = case.model(torch.float64), case.images(3, torch.float64)
    wanted = BY_HAND[name](model.module, images)
    found = extract(model, images, list(wanted), reduce="none", batch_size=2)
    for layer, tensor in wanted.items():
        values = found[layer]
        if model.layer(layer).prefix_tokens:
            values = np.concatenate([found.prefix(layer), values], axis=1)
        np.testing.assert_allclose(
            values, tensor.numpy(), rtol=1e-9, atol=1e-10 * float(tensor.abs().max())
        )


@torch.no_grad()
def test_the_formulas_give_the_logits_of_the_network() -> None:
    for name, forward in BY_HAND.items():
        case = CASES[name]
        network, images = case.network().double(), case.images(2, torch.float64)
        torch.testing.assert_close(forward(network, images)[case.head], network(images))


def test_batch_norm_under_an_in_place_relu_keeps_its_negative_values() -> None:
    """ResNet-18's act1 overwrites what bn1 returned; a detached reference would show bn1 after the
    ReLU."""
    case = CASES["resnet18"]
    model = case.model()
    assert model.module.act1.inplace
    found = extract(
        model, case.images(2), ["bn1", "act1", "layer1.0.bn2", "layer1.0"], reduce="none"
    )
    assert (found["bn1"] < 0).mean() > 0.2
    assert (found["act1"] >= 0).all()
    np.testing.assert_array_equal(np.maximum(found["bn1"], 0), found["act1"])
    assert (found["layer1.0.bn2"] < 0).any()
    assert np.corrcoef(found["bn1"].ravel(), found["act1"].ravel())[0, 1] < 0.95


def test_the_hidden_layer_of_token_mixing_is_image_unit_channel() -> None:
    """Twelve hidden units of sixteen positions, in each of 24 channels."""
    case = CASES["mixer"]
    model = case.model(torch.float64)
    found = extract(
        model,
        case.images(3, torch.float64),
        ["blocks.0.norm1", "blocks.0.mlp_tokens.fc1"],
        reduce="none",
    )
    hidden, tokens = found["blocks.0.mlp_tokens.fc1"], found["blocks.0.norm1"]
    assert hidden.shape == (3, 12, 24)
    fc1 = model.module.blocks[0].mlp_tokens.fc1
    weight, bias = fc1.weight.detach().numpy(), fc1.bias.detach().numpy()
    one = sum(weight[7, s] * tokens[2, s, 5] for s in range(16)) + bias[7]
    assert hidden[2, 7, 5] == pytest.approx(one, rel=1e-12)
