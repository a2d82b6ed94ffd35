"""Rows of the Jacobian of plain attention, which cost far less than backward passes.

With one output position i the gradient of v . f(x)_i reaches position j through the values, with
the weight A_ij, and through the keys, with what the softmax passes on: both are of rank one per
head, so that they are sums over heads of outer products. The query adds to position i alone."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mixer_probe.weights.position_attention import Attention


def has_plain_attention(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the spatial branch of a block, called with these further arguments, is a layer norm,
    timm's attention without norms, gates and masks inside, and a layer scale or none."""
    attention: Any = getattr(block, "attn", None)
    return bool(
        type(block) is Block
        and type(attention) is Attention
        and isinstance(block.norm1, nn.LayerNorm)
        and (isinstance(block.ls1, nn.Identity) or type(block.ls1).__name__ == "LayerScale")
        and all(
            isinstance(getattr(attention, name, nn.Identity()), nn.Identity)
            for name in ("q_norm", "k_norm", "norm")
        )
        and getattr(attention, "gate", None) is None
        and not any(value is not None and value is not False for value in (*args, *kwargs.values()))
    )


@torch.no_grad()
def attention_rows(block: Any, x: Tensor, at: Tensor, vectors: Tensor) -> Tensor:
    """v^T J_ij [row, image, token, channel] of the spatial branch at inputs x [image, token,
    channel], for output tokens `at` [row] and a vector v over channels for each, [row, channel]."""
    attention, norm = block.attn, block.norm1
    images, tokens, channels = x.shape
    heads, width = attention.num_heads, attention.proj.in_features
    q, k, v = (
        attention.qkv(norm(x)).reshape(images, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
    )
    q = q[:, :, at] * attention.scale
    A = (q @ k.transpose(-1, -2)).softmax(-1)
    vectors = vectors * getattr(block.ls1, "gamma", 1)
    out = (vectors @ attention.proj.weight).reshape(len(at), heads, -1)
    # What reaches the logits, through the softmax.
    passed = torch.einsum("rhd,bhnd->bhrn", out, v)
    logits = A * (passed - (A * passed).sum(-1, keepdim=True))
    to_q, to_k, to_v = attention.qkv.weight.reshape(3, heads, width // heads, channels)
    by_value = torch.einsum("rhd,hdc->rhc", out, to_v)
    by_key = torch.einsum("bhrd,hdc->bhrc", q, to_k)
    query = attention.scale * torch.einsum("bhrn,bhnd->bhrd", logits, k)
    rows = torch.einsum("bhrn,rhc->rbnc", A, by_value)
    rows += torch.einsum("bhrn,bhrc->rbnc", logits, by_key)
    rows[torch.arange(len(at)), :, at] += torch.einsum("bhrd,hdc->rbc", query, to_q)
    # The layer norm.
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    z = centred / spread
    if norm.weight is not None:
        rows *= norm.weight
    found: Tensor = rows - rows.mean(-1, keepdim=True) - z * (rows * z).mean(-1, keepdim=True)
    found /= spread
    return found
