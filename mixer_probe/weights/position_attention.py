"""Attention from positions alone: what a transformer attends to without image content.

With an absolute position embedding p, head by head: softmax over j of q(z_i) . k(z_j) * scale,
where z = norm1(p) is the embedding of the patch positions alone - no patch content, no class token
- sent through the network's norm before the blocks (`norm_pre`, where there is one), the block's
own norm1 (with its gain, bias and eps), its qkv projection with biases, and its q and k norms. In
every block the residual stream is taken to hold the embedding alone. With a relative position bias
b (BEiT, Swin): softmax over j of b_ij, added to the above where there are both. Prefix tokens are
dropped and the rows renormalised, which for a softmax is the same as leaving them out beforehand.
Everything is float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import beit, swin_transformer, swin_transformer_v2, vision_transformer
from torch import nn

from mixer_probe.core.errors import ModelError
from mixer_probe.models.model import Model
from mixer_probe.models.structure import Block
from mixer_probe.weights.operators import double

# Older timm defines it there, newer in timm.layers.
Attention: Any = vision_transformer.Attention  # type: ignore[attr-defined]
_BLOCKS = (vision_transformer.Block, beit.Block)
_WINDOWED = (swin_transformer.WindowAttention, swin_transformer_v2.WindowAttention)


@dataclass(frozen=True)
class PositionAttention:
    """Attention from positions alone of one block: `heads` [head, S, S] float64 over a grid of S
    positions, rows summing to 1."""

    block: Block
    layer: str
    form: str
    grid: tuple[int, int]
    heads: torch.Tensor


@torch.no_grad()
def position_attention(model: Model) -> tuple[PositionAttention, ...]:
    """Attention from positions alone, of every block of a ViT.

    Raises ModelError, with the reason, for a network whose positions enter in another way."""
    found = []
    shared = [m for m in model.module.modules() if isinstance(m, beit.RelativePositionBias)][:1]
    for block in model.structure.single_blocks:
        attention = getattr(block.module, "attn", None)
        if isinstance(attention, _WINDOWED):
            heads, form = (
                _relative_bias(attention).softmax(-1),
                "softmax of the relative position bias within a window",
            )
            window = (int(attention.window_size[0]), int(attention.window_size[1]))
            found.append(PositionAttention(block, "attn", form, window, heads))
            continue
        logits = {}
        if (embedded := _embedding_logits(model, block)) is not None:
            logits["position embedding"] = embedded
        modules = [attention, *shared] if isinstance(attention, beit.Attention) else []
        if tables := [
            m for m in modules if getattr(m, "relative_position_bias_table", None) is not None
        ]:
            # The first row and column belong to the class token.
            logits["relative position bias"] = sum(
                (_relative_bias(m)[:, 1:, 1:] for m in tables), torch.zeros(())
            )
        grid = model.structure.token_grid
        if grid is None or not logits:
            reason = (
                "it has no absolute position embedding for its patch grid and no relative position "
                "bias"
            )
            if any("Rotary" in type(m).__name__ for m in model.module.modules()):
                reason = (
                    "a rotary embedding turns queries and keys by position, so that attention "
                    "without content does not exist"
                )
            elif type(block.module) not in _BLOCKS or attention is None:
                kind = type(block.module).__name__
                reason = (
                    f"a {kind} is not read; Block of ViT, DeiT and BEiT, and the blocks of Swin are"
                )
            elif not isinstance(attention, (Attention, beit.Attention)):
                kind = type(attention).__name__
                reason = f"a {kind} is not read; the attention of ViT, DeiT, BEiT and Swin is"
            raise ModelError(f"{model.name} has no position-only attention: {reason}")
        heads = torch.stack(list(logits.values())).sum(0).softmax(-1)
        found.append(
            PositionAttention(
                block, "attn", f"softmax of the {' and '.join(logits)} alone", grid, heads
            )
        )
    return tuple(found)


def _embedding_logits(model: Model, block: Block) -> torch.Tensor | None:
    """q(z_i) . k(z_j) * scale [head, S, S] of the absolute position embedding, None where it is not
    defined."""
    attention: Any = getattr(block.module, "attn", None)
    grid = model.structure.token_grid
    found = next(
        (
            (n, p)
            for n, p in model.module.named_parameters()
            if n.split(".")[-1] == "pos_embed" and p.ndim == 3
        ),
        None,
    )
    readable = isinstance(attention, (Attention, beit.Attention)) and type(block.module) in _BLOCKS
    if not readable or grid is None or found is None:
        return None
    name, parameter = found
    patches = grid[0] * grid[1]
    if parameter.shape[1] not in (patches, patches + model.structure.prefix):
        return None
    norm = dict(model.module.named_modules()).get(
        name.removesuffix("pos_embed") + "norm_pre", nn.Identity()
    )
    embedding = _double(norm)(double(parameter)[0, -patches:])
    own: Any = _double(attention)
    qkv = own.get_submodule("qkv")(_double(block.module.get_submodule("norm1"))(embedding))
    if getattr(own, "q_bias", None) is not None:
        qkv = qkv + torch.cat(
            [own.get_parameter("q_bias"), own.get_buffer("k_bias"), own.get_parameter("v_bias")]
        )
    q, k, _v = qkv.reshape(patches, 3, own.num_heads, -1).permute(1, 2, 0, 3)
    q_norm, k_norm = (getattr(own, name, nn.Identity()) for name in ("q_norm", "k_norm"))
    logits: torch.Tensor = float(attention.scale) * (q_norm(q) @ k_norm(k).transpose(-2, -1))
    return logits


def _relative_bias(module: nn.Module) -> torch.Tensor:
    """The relative position bias of every pair of tokens [head, n, n], float64: from a table (BEiT,
    Swin) or an MLP of the log-spaced offset (Swin V2)."""
    if isinstance(module, swin_transformer_v2.WindowAttention):
        own: Any = _double(module)
        table = own.get_submodule("cpb_mlp")(own.get_buffer("relative_coords_table")).view(
            -1, own.num_heads
        )
        return 16 * torch.sigmoid(table[own.get_buffer("relative_position_index")].permute(2, 0, 1))
    table = double(module.get_parameter("relative_position_bias_table"))
    return table[module.get_buffer("relative_position_index").cpu()].permute(2, 0, 1)


def _double(module: nn.Module) -> nn.Module:
    """A float64 copy in main memory; the network itself stays as it is."""
    return copy.deepcopy(module).cpu().double()
