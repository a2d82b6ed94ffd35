"""The ViT family: timm's VisionTransformer and its relatives (DeiT, DINOv2-style, BEiT, EVA, Swin)."""

from __future__ import annotations

from timm.models import beit, eva, swin_transformer, swin_transformer_v2
from timm.models import vision_transformer as vit

from mixer_probe.models.adapter import Adapter, BlockSpec
from mixer_probe.models.layer import Axes

_MAP = "holds attention maps [image, head, query, key], no representation; take the attention module itself"
_WINDOWS = (
    "stacks its windows on the image axis, so rows are not images; take the block's drop_path1, "
    "which is the same branch with every position back in its place"
)
_ATTENTION: tuple[tuple[str, Axes | str], ...] = (
    ("attn.q_norm", Axes.BHND),
    ("attn.k_norm", Axes.BHND),
    ("attn.attn_drop", _MAP),
)
# The parallel block normalises queries and keys before it swaps positions and heads.
_PARALLEL_ATTENTION: tuple[tuple[str, Axes | str], ...] = (
    ("q_norm", Axes.BNHD),
    ("k_norm", Axes.BNHD),
    ("attn_drop", _MAP),
)


def _vit_block(cls: type) -> BlockSpec:
    return BlockSpec(cls, ("attn",), ("mlp",), Axes.BNC, _ATTENTION)


def _parallel_block(cls: type) -> BlockSpec:
    return BlockSpec(cls, ("attn_out_proj",), ("mlp_out_proj",), Axes.BNC, _PARALLEL_ATTENTION)


def _swin_block(cls: type) -> BlockSpec:
    # Attention happens inside a method, so its branch is taken where it joins the residual stream.
    channels_last = tuple((name, Axes.BHWC) for name in ("norm1", "drop_path1"))
    sequences = tuple((name, Axes.BNC) for name in ("norm2", "mlp", "drop_path2"))
    return BlockSpec(cls, ("drop_path1",), ("mlp",), Axes.BHWC, (*channels_last, *sequences, ("attn", _WINDOWS)))


def _things_block(cls: type) -> BlockSpec:
    # Two attentions, then two MLPs, each in a ModuleList.
    inside = tuple((f"attns.{i}.{path}", axes) for i in range(4) for path, axes in _ATTENTION)
    return BlockSpec(cls, ("attns.0.attn", "attns.1.attn"), ("ffns.0.mlp", "ffns.1.mlp"), Axes.BNC, inside)


_PARALLEL = tuple(
    getattr(vit, name) for name in ("ParallelScalingBlock", "DiffParallelScalingBlock") if hasattr(vit, name)
)

VIT = Adapter(
    family="vit",
    includes="ViT, DeiT, DINOv2, BEiT, EVA, Swin",
    blocks=(
        *(_vit_block(cls) for cls in (vit.Block, vit.ResPostBlock, beit.Block, eva.EvaBlock, eva.EvaBlockPostNorm)),
        *(_parallel_block(cls) for cls in _PARALLEL),
        _things_block(vit.ParallelThingsBlock),
        _swin_block(swin_transformer.SwinTransformerBlock),
        _swin_block(swin_transformer_v2.SwinTransformerV2Block),
    ),
    stems=("patch_embed", "stem"),
    norms=("norm", "fc_norm"),
    heads=("head.fc", "head"),
    outside=Axes.BHWC,
)
