"""The ViT family: timm's VisionTransformer and its relatives (DeiT, DINOv2-style, BEiT, EVA,
Swin)."""

from __future__ import annotations

from timm.models import beit, eva, swin_transformer, swin_transformer_v2
from timm.models import vision_transformer as vit

from mixer_probe.models.adapter import Adapter, AxesTable, BlockSpec
from mixer_probe.models.layer import Axes

_MAP = (
    "holds attention maps [image, head, query, key], no representation; take the attention module "
    "itself"
)
_WINDOWS = (
    "stacks its windows on the image axis, so rows are not images; take the block's drop_path1, "
    "which is the same branch with every position back in its place"
)


def _heads(place: str, axes: Axes = Axes.BHND) -> AxesTable:
    """What an attention at `place` (a path with its dot, or nothing) returns head by head."""
    return (
        *((place + name, axes) for name in ("q_norm", "k_norm", "sub_norm")),
        (place + "attn_drop", _MAP),
    )


# Hybrid embeddings hold a whole CNN; some networks pool by attention.
_AROUND: AxesTable = (
    ("patch_embed.backbone", Axes.BCHW),
    ("patch_embed.proj", Axes.BCHW),
    *_heads("attn_pool."),
)


def _parallel_block(cls: type, axes: Axes) -> BlockSpec:
    # Attention and MLP may share one output projection, which then mixes positions and channels at
    # once.
    return BlockSpec(
        cls, ("attn_out_proj", "out_proj"), ("mlp_out_proj",), Axes.BNC, _heads("", axes)
    )


def _swin_block(cls: type) -> BlockSpec:
    # Attention happens inside a method, so its branch is taken where it joins the residual stream.
    channels_last = tuple((name, Axes.BHWC) for name in ("norm1", "drop_path1"))
    sequences = tuple((name, Axes.BNC) for name in ("norm2", "mlp", "drop_path2"))
    return BlockSpec(
        cls, ("drop_path1",), ("mlp",), Axes.BHWC, (*channels_last, *sequences, ("attn", _WINDOWS))
    )


# Queries and keys of the parallel block are normalised before positions and heads are swapped;
# those of its differential form, which older timm does not have, after.
_PARALLEL = [_parallel_block(vit.ParallelScalingBlock, Axes.BNHD)]
if hasattr(vit, "DiffParallelScalingBlock"):
    _PARALLEL.append(_parallel_block(vit.DiffParallelScalingBlock, Axes.BHND))

# Several attentions, then several MLPs (two in timm's networks), each in a ModuleList.
_ATTENTIONS = tuple(f"attns.{i}.attn" for i in range(4))
_THINGS = BlockSpec(
    vit.ParallelThingsBlock,
    _ATTENTIONS,
    tuple(f"ffns.{i}.mlp" for i in range(4)),
    Axes.BNC,
    tuple(entry for place in _ATTENTIONS for entry in _heads(place + ".")),
)

VIT = Adapter(
    family="vit",
    includes="ViT, DeiT, DINOv2, BEiT, EVA, Swin",
    blocks=(
        *(
            BlockSpec(cls, ("attn",), ("mlp",), Axes.BNC, _heads("attn."))
            for cls in (vit.Block, vit.ResPostBlock, beit.Block, eva.EvaBlock, eva.EvaBlockPostNorm)
        ),
        *_PARALLEL,
        _THINGS,
        _swin_block(swin_transformer.SwinTransformerBlock),
        _swin_block(swin_transformer_v2.SwinTransformerV2Block),
    ),
    stems=("patch_embed", "stem"),
    norms=("norm", "fc_norm"),
    heads=("head",),
    outside=Axes.BHWC,
    around=_AROUND,
)
