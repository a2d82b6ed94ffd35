"""One small network of every timm class that is read, with what a person who knows the class says
about it.

`axes` are rules written from the classes' source, not from the package under test: (regular
expression on the module path, layout), the first that matches holds. Layouts name the axes of a raw
output for one image and are turned into [position, channel] by `positions`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, GatedMlp, GluMlp, RmsNorm
from timm.models import (
    beit,
    convmixer,
    convnext,
    deit,
    eva,
    mlp_mixer,
    regnet,
    resnet,
    resnetv2,
    vision_transformer,
)
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from mixer_probe.models import Model, load_model
from mixer_probe.models.structure import WORDS
from mixer_probe.zoo.architectures import construct

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Case:
    """A network and the truth about it. `unreadable` matches the modules whose output is no
    representation."""

    name: str
    build: Callable[[], nn.Module]
    family: str
    size: int
    stem: str
    grid: tuple[int, int]
    blocks: int
    norm: str | None
    head: str
    axes: Rules
    prefix: int = 0
    parts: tuple[tuple[str, str], ...] | None = None
    unreadable: str = "$^"

    def network(self, seed: int = 0) -> nn.Module:
        return settled(randomised(self.build(), seed), noise(8, self.size)).eval()

    def model(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
        return as_model(self.network(), self.size, dtype=dtype, device=device)

    def images(self, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return noise(n, self.size, dtype)

    def layout(self, path: str) -> str:
        return next(layout for pattern, layout in self.axes if re.search(pattern, path))


def as_model(network: nn.Module, size: int = 32, **options: Any) -> Model:
    options = {
        "input_size": (3, size, size),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "device": "cpu",
    } | options
    return load_model(network, **options)


def noise(
    n: int, size: int = 32, dtype: torch.dtype = torch.float32, seed: int = 1
) -> torch.Tensor:
    return torch.randn(
        n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def module_output(model: Model, images: torch.Tensor, name: str) -> torch.Tensor:
    """The raw output of a module, by a hook of its own."""
    found: list[torch.Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(
        lambda _m, _i, out: found.append(out.detach().clone())
    )
    with torch.no_grad():
        model.module(images)
    handle.remove()
    return found[0]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, so that no gate is shut: timm starts heads, layer scales, last
    batch norms and spatial gates at or near zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1:
                p.copy_(draw(p) / p[0].numel() ** 0.5)
            elif name.endswith("bias"):
                p.copy_(0.1 * draw(p))
            else:
                p.copy_(1 + 0.2 * draw(p))
    return network


def settled(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """Running statistics as these images give them, so that deep networks neither fade nor
    explode."""
    norms = [m for m in network.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(images)
    for norm in norms:
        norm.momentum = 0.1
    return network


def shapes_only(build: Callable[..., nn.Module], *arguments: Any, **named: Any) -> nn.Module:
    """The network without memory for its weights, where this timm can build it so."""
    try:
        with torch.device("meta"):
            return build(*arguments, **named)
    except (RuntimeError, NotImplementedError):
        return build(*arguments, **named).to("meta")


def positions(raw: torch.Tensor, layout: str) -> torch.Tensor:
    """A raw output [image, ...] as [image, position, channel]."""
    if layout == "BNC":
        return raw
    if layout == "BCN":
        return raw.permute(0, 2, 1)
    if layout == "BHWC":
        return raw.reshape(raw.shape[0], -1, raw.shape[3])
    if layout == "BCHW":
        return raw.permute(0, 2, 3, 1).reshape(raw.shape[0], -1, raw.shape[1])
    if layout == "BHND":
        return raw.permute(0, 2, 1, 3).reshape(raw.shape[0], raw.shape[2], -1)
    if layout == "BNHD":
        return raw.reshape(raw.shape[0], raw.shape[1], -1)
    assert layout == "BC"
    return raw.reshape(raw.shape[0], 1, -1)


def askable(model: Model) -> list[str]:
    """Every readable name; a container that is called as a word for layers ("blocks") is left out,
    the word wins."""
    return [
        name
        for name in model.structure.names()
        if name not in WORDS or model.layer(name).kind != "other"
    ]


def takes(cls: Callable[..., Any], argument: str) -> bool:
    """Whether this timm's class has an argument; older ones lack some."""
    return argument in inspect.signature(cls).parameters


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, num_classes=5, **arguments)


_MIXER = partial(
    mlp_mixer.MlpMixer, num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=24
)
_VIT_SIZES = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
_VIT = partial(vision_transformer.VisionTransformer, **_VIT_SIZES)
_EVA = partial(
    eva.Eva,
    **_VIT_SIZES,
    use_rot_pos_emb=True,
    ref_feat_shape=(4, 4),
    swiglu_mlp=True,
    mlp_ratio=8 / 3,
)

_MIXER_AXES: Rules = (
    (r"^head", "BC"),
    (r"^stem\.proj", "BCHW"),
    (r"\.(mlp_tokens|linear_tokens)\b", "BCN"),
    (r"\.gate\.proj$", "BCN"),
    ("", "BNC"),
)
_VIT_AXES: Rules = (
    (r"^(head|head_dist|head_drop|fc_norm|attn_pool)$", "BC"),
    (r"^patch_embed\.(proj|backbone)", "BCHW"),
    (r"attn(_pool)?\.(q_norm|k_norm|sub_norm)", "BHND"),
    ("", "BNC"),
)
_PARALLEL_AXES: Rules = ((r"\.(q_norm|k_norm)$", "BNHD"), *_VIT_AXES)
_DIFFERENTIAL_AXES: Rules = ((r"\.(q_norm|k_norm|sub_norm)$", "BHND"), *_VIT_AXES)
_SWIN_AXES: Rules = (
    (r"^patch_embed\.proj", "BCHW"),
    (r"^head\.(global_pool|drop|fc|flatten)|^head$", "BC"),
    (r"\.blocks\.\d+\.(norm2|mlp|drop_path2)", "BNC"),
    ("", "BHWC"),
)
_CNN_POOLED = (r"^(head|global_pool|fc|classifier|head_drop)\b", "BC")
_CNN_AXES: Rules = (_CNN_POOLED, ("", "BCHW"))
# MobileNetV3 and V4 pool before their last convolution.
_MOBILENET_AXES: Rules = ((r"^(act2|conv_head|norm_head)\b", "BC"), *_CNN_AXES)
_CONVNEXT_AXES: Rules = (
    (r"^head\.norm$", "BC"),
    _CNN_POOLED,
    (r"\.blocks\.\d+\.(norm|mlp)\b", "BHWC"),
    ("", "BCHW"),
)

_ATTENTION_MAPS = r"attn_drop$"
_WINDOWS = r"\.attn(\.|$)"
_MIXING = (("mlp_tokens", "spatial"), ("mlp_channels", "channel"), ("", "block"))
_TRANSFORMER = (("attn", "spatial"), ("mlp", "channel"), ("", "block"))
_WINDOWED = (("drop_path1", "spatial"), ("mlp", "channel"), ("", "block"))
_PARALLEL = (("attn_out_proj", "spatial"), ("mlp_out_proj", "channel"), ("", "block"))
_THINGS = (
    ("attns.0.attn", "spatial"),
    ("attns.1.attn", "spatial"),
    ("ffns.0.mlp", "channel"),
    ("ffns.1.mlp", "channel"),
    ("", "block"),
)
_ONE_PROJECTION = (("out_proj", "spatial"), ("", "block"))
_BASIC = (("conv1", "spatial"), ("conv2", "spatial"), ("", "block"))
_BOTTLENECK = (("conv2", "spatial"), ("conv3", "channel"), ("", "block"))
_CONVNEXT = (("conv_dw", "spatial"), ("mlp", "channel"), ("", "block"))


def _mixer(name: str, parts: Any = _MIXING, **arguments: Any) -> Case:
    build = partial(_MIXER, **arguments)
    return Case(name, build, "mixer", 32, "stem", (4, 4), 2, "norm", "head", _MIXER_AXES, 0, parts)


def _vit(name: str, build: Any, prefix: int, **truth: Any) -> Case:
    usual = {
        "norm": "norm",
        "axes": _VIT_AXES,
        "parts": _TRANSFORMER,
        "unreadable": _ATTENTION_MAPS,
    }
    sizes = {"size": 32, "grid": (4, 4), "blocks": 2}
    return Case(
        name,
        build,
        "vit",
        stem="patch_embed",
        head="head",
        prefix=prefix,
        **(usual | sizes | truth),
    )


def _blocks(name: str, block: Any, parts: Any, **truth: Any) -> Case:
    norms = {} if block is vision_transformer.ResPostBlock else {"qk_norm": True}
    return _vit(name, partial(_VIT, block_fn=block, **norms), 1, parts=parts, **truth)


def _swin(name: str, cls: Any) -> Case:
    # Stages of 16x16, 8x8 and 4x4 positions; the last is one window, whose rows look like images.
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "num_classes": 5}
    build = partial(cls, **sizes, embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4))
    truth = {"norm": "norm", "head": "head", "parts": _WINDOWED, "unreadable": _WINDOWS}
    return Case(name, build, "vit", 32, "patch_embed", (16, 16), 6, axes=_SWIN_AXES, **truth)


def _cnn(name: str, build: Any, stem: str, grid: int, blocks: int, head: str, **truth: Any) -> Case:
    truth = {"norm": None, "axes": _CNN_AXES} | truth
    return Case(name, build, "cnn", 64, stem, (grid, grid), blocks, head=head, **truth)


_RESNET = partial(resnet.ResNet, num_classes=5, channels=(8, 12, 16, 24), stem_width=8)
_RESNETV2 = partial(
    resnetv2.ResNetV2,
    channels=(16, 24, 32, 48),
    num_classes=5,
    stem_chs=8,
    norm_layer=BatchNormAct2d,
)
_REGNET = partial(regnet.RegNetCfg, w0=16, wa=14.4, wm=1.6, group_size=8, depth=4, stem_width=8)
_CONVNEXT_NET = partial(convnext.ConvNeXt, depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), num_classes=5)


def _regnet(**arguments: Any) -> Callable[[], nn.Module]:
    return lambda: regnet.RegNet(_REGNET(**arguments), num_classes=5)


MIXERS = (
    _mixer("mixer", mlp_ratio=(0.5, 4.0)),
    _mixer("gmixer", mlp_ratio=(1.0, 4.0), mlp_layer=GluMlp, act_layer=nn.SiLU),
    _mixer(
        "resmlp",
        (("linear_tokens", "spatial"), ("mlp_channels", "channel"), ("", "block")),
        mlp_ratio=4,
        block_layer=mlp_mixer.ResBlock,
        norm_layer=mlp_mixer.Affine,
    ),
    _mixer(
        "gmlp",
        (("mlp_channels.gate", "spatial"), ("mlp_channels", "channel"), ("", "block")),
        mlp_ratio=6,
        block_layer=mlp_mixer.SpatialGatingBlock,
        mlp_layer=GatedMlp,
    ),
)

# A token MLP for every channel, and for every six channels.
UNTIED = tuple(
    replace(
        MIXERS[0],
        name=name,
        build=partial(
            construct,
            "mixer",
            0,
            {
                "num_classes": 5,
                "patch_size": 8,
                "num_blocks": 2,
                "embed_dim": 24,
                "mlp_ratio": [0.5, 4.0],
                "token_groups": groups,
            },
        ),
    )
    for name, groups in (("untied-mixer", 24), ("grouped-mixer", 4))
)

VITS = [
    _vit("vit", partial(_VIT, qk_norm=True, init_values=1e-5), 1),
    _vit("vit-gap", partial(_VIT, class_token=False, global_pool="avg"), 0, norm="fc_norm"),
    _vit("vit-attention-pooling", partial(_VIT, class_token=False, global_pool="map"), 0),
    _vit("deit-distilled", partial(deit.VisionTransformerDistilled, **_VIT_SIZES), 2),
    _vit("dinov2-registers", partial(_VIT, reg_tokens=4, no_embed_class=True, init_values=1e-5), 5),
    _vit(
        "beit",
        partial(beit.Beit, **_VIT_SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True),
        1,
        norm="fc_norm",
    ),
    _vit("eva", partial(_EVA, qkv_fused=False), 1, norm="fc_norm"),
    _vit("eva-post-norm", partial(_EVA, use_post_norm=True), 1, norm="fc_norm"),
    _vit("hybrid", _timm("vit_tiny_r_s16_p8_224", img_size=64, depth=2), 1, size=64, grid=(2, 2)),
    _swin("swin", SwinTransformer),
    _swin("swinv2", SwinTransformerV2),
    _blocks(
        "parallel-scaling", vision_transformer.ParallelScalingBlock, _PARALLEL, axes=_PARALLEL_AXES
    ),
    _blocks("parallel-things", vision_transformer.ParallelThingsBlock, _THINGS),
    _blocks("res-post", vision_transformer.ResPostBlock, _TRANSFORMER),
]
if takes(eva.Eva, "qk_norm"):
    VITS.append(_vit("eva-qk-norm", partial(_EVA, qk_norm=True, global_pool="token"), 1))
if takes(vision_transformer.ParallelScalingBlock, "fuse_out_proj"):
    fused = partial(vision_transformer.ParallelScalingBlock, fuse_out_proj=True)
    VITS.append(_blocks("parallel-fused", fused, _ONE_PROJECTION, axes=_PARALLEL_AXES))
if hasattr(vision_transformer, "DiffParallelScalingBlock"):
    block = vision_transformer.DiffParallelScalingBlock
    VITS.append(_blocks("parallel-differential", block, _ONE_PROJECTION, axes=_DIFFERENTIAL_AXES))
if takes(vision_transformer.VisionTransformer, "attn_layer"):
    VITS.append(
        _vit(
            "vit-differential",
            partial(_VIT, attn_layer="diff", qk_norm=True, norm_layer=RmsNorm),
            1,
        )
    )

CNNS = (
    _cnn("resnet18", _timm("resnet18"), "maxpool", 16, 8, "fc", parts=_BASIC),
    _cnn(
        "resnet-bottleneck",
        partial(_RESNET, resnet.Bottleneck, [1, 2, 1, 1]),
        "maxpool",
        16,
        5,
        "fc",
        parts=_BOTTLENECK,
    ),
    _cnn(
        "resnet-d-se",
        partial(
            _RESNET,
            resnet.Bottleneck,
            [1, 1, 1, 1],
            stem_type="deep",
            avg_down=True,
            block_args={"attn_layer": "se"},
        ),
        "maxpool",
        16,
        4,
        "fc",
        parts=_BOTTLENECK,
    ),
    _cnn(
        "resnetv2",
        partial(_RESNETV2, (1, 1, 1, 1)),
        "stem",
        16,
        4,
        "head",
        norm="norm",
        parts=_BOTTLENECK,
    ),
    _cnn(
        "resnetv2-basic",
        partial(_RESNETV2, (1, 1, 1, 1), basic=True),
        "stem",
        16,
        4,
        "head",
        norm="norm",
        parts=_BASIC,
    ),
    _cnn(
        "resnetv2-post",
        partial(_RESNETV2, (1, 1, 1, 1), preact=False),
        "stem",
        16,
        4,
        "head",
        parts=_BOTTLENECK,
    ),
    _cnn("regnet-y", _regnet(se_ratio=0.25), "stem", 32, 4, "head", parts=_BOTTLENECK),
    _cnn("regnet-v", _regnet(preact=True), "stem", 32, 4, "head", parts=_BOTTLENECK),
    _cnn("efficientnet", _timm("test_efficientnet"), "bn1", 32, 5, "classifier", norm="bn2"),
    _cnn("efficientnet-b0", _timm("efficientnet_b0"), "bn1", 32, 16, "classifier", norm="bn2"),
    _cnn("mobilenetv2", _timm("mobilenetv2_035"), "bn1", 32, 17, "classifier", norm="bn2"),
    _cnn(
        "mobilenetv3",
        _timm("mobilenetv3_small_050"),
        "bn1",
        32,
        12,
        "classifier",
        axes=_MOBILENET_AXES,
    ),
    _cnn(
        "mobilenetv4",
        _timm("mobilenetv4_conv_small_035"),
        "bn1",
        32,
        17,
        "classifier",
        axes=_MOBILENET_AXES,
        norm="norm_head",
    ),
    _cnn(
        "mobilenetv4-hybrid",
        _timm("mobilenetv4_hybrid_medium"),
        "bn1",
        32,
        32,
        "classifier",
        axes=_MOBILENET_AXES,
        norm="norm_head",
        unreadable=_ATTENTION_MAPS,
    ),
    _cnn(
        "convnext",
        _CONVNEXT_NET,
        "stem",
        16,
        5,
        "head",
        norm="head.norm",
        axes=_CONVNEXT_AXES,
        parts=_CONVNEXT,
    ),
    _cnn(
        "convnext-conv-mlp",
        partial(_CONVNEXT_NET, conv_mlp=True),
        "stem",
        16,
        5,
        "head",
        norm="head.norm",
        parts=_CONVNEXT,
    ),
    _cnn(
        "convnextv2",
        partial(_CONVNEXT_NET, use_grn=True, ls_init_value=None),
        "stem",
        16,
        5,
        "head",
        norm="head.norm",
        axes=_CONVNEXT_AXES,
        parts=_CONVNEXT,
    ),
    _cnn(
        "convmixer",
        partial(convmixer.ConvMixer, dim=16, depth=2, kernel_size=5, patch_size=4, num_classes=5),
        "stem",
        16,
        2,
        "head",
        axes=((r"^(pooling|head)\b", "BC"), ("", "BCHW")),
        parts=(("0.fn.0", "spatial"), ("1", "channel"), ("", "block")),
    ),
)

CASES = {case.name: case for case in (*MIXERS, *UNTIED, *VITS, *CNNS)}
