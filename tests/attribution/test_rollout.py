"""Attention rollout and gradient-weighted attention against a ViT written out here, and against
closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe import attribution as at
from mixer_probe.core.errors import MeasureError
from tests.attribution.small import small
from tests.networks import CASES, noise


def attention_by_hand(model: mp.Model, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and the attention [B, head, N, N] of every block of "vit-gap" or "vit", kept in the
    graph."""
    net = model.module
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(x)))
    kept = []
    for block in net.blocks:
        a = block.attn
        b, n, c = tokens.shape
        q, k, v = (
            a.qkv(block.norm1(tokens))
            .reshape(b, n, 3, a.num_heads, c // a.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        weights = (a.q_norm(q) @ a.k_norm(k).transpose(-2, -1) * a.scale).softmax(-1)
        kept.append(weights)
        mixed = a.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        tokens = tokens + block.ls1(mixed)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return net.forward_head(net.norm(tokens)), kept


@pytest.mark.parametrize("name", ["vit", "vit-gap"])
def test_both_equal_the_formulas(name: str) -> None:
    model, x = small(name), noise(2, dtype=torch.float64)
    logits, kept = attention_by_hand(model, x.requires_grad_())
    np.testing.assert_allclose(logits.detach(), model.module(x).detach(), rtol=1e-9)
    gradients = torch.autograd.grad(logits[:, 3].sum(), kept)
    prefix = 1 if name == "vit" else 0
    eye = torch.eye(16 + prefix, dtype=torch.float64)
    rollout, relevance = eye, eye
    for weights, gradient in zip(kept, gradients, strict=True):
        rollout = (weights.detach().mean(1) / 2 + eye / 2) @ rollout
        relevance = relevance + (weights.detach() * gradient).clamp_min(0).mean(1) @ relevance
    for method, matrix in (("attention_rollout", rollout), ("gradient_attention", relevance - eye)):
        row = matrix[:, 0, 1:] if prefix else matrix.mean(1)
        found = mp.attribute(model, x.detach(), method, target=3)
        assert found.native is not None
        np.testing.assert_allclose(found.native.reshape(2, 16), row.numpy(), rtol=1e-5, atol=1e-9)


def test_uniform_attention_rolls_out_uniformly() -> None:
    model = small("vit-gap")
    with torch.no_grad():
        for block in model.module.blocks:
            block.attn.qkv.weight[:48] = 0
            block.attn.qkv.bias[:48] = 0
    found = mp.attribute(model, noise(2, dtype=torch.float64), "attention_rollout")
    np.testing.assert_allclose(found.native, 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(found.maps, 1 / 16, rtol=1e-6)


def test_networks_with_windows_are_refused() -> None:
    name = next(n for n in CASES if "swin" in n)
    model = CASES[name].model()
    assert "attention_rollout" not in at.allowed_methods(model)
    with pytest.raises(MeasureError, match="no single attention matrix over all tokens; 'gradcam'"):
        mp.attribute(model, noise(1, CASES[name].size), "attention_rollout")
