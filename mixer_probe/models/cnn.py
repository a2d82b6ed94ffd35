"""The CNN family: ResNet, ResNetV2, RegNet, EfficientNet, MobileNet, ConvNeXt and ConvMixer."""

from __future__ import annotations

from timm.models import _efficientnet_blocks as efficientnet
from timm.models import convmixer, convnext, regnet, resnet, resnetv2

from mixer_probe.models.adapter import Adapter, BlockSpec
from mixer_probe.models.layer import Axes

# A full convolution mixes positions and channels at once: a basic block has two such and no
# channel-mixing part.
_BASIC = tuple(
    BlockSpec(cls, ("conv1", "conv2"), (), Axes.BCHW)
    for cls in (resnet.BasicBlock, resnetv2.PreActBasic)
)
_BOTTLENECK = tuple(
    BlockSpec(cls, ("conv2",), ("conv3",), Axes.BCHW)
    for cls in (
        resnet.Bottleneck,
        resnetv2.PreActBottleneck,
        resnetv2.Bottleneck,
        regnet.Bottleneck,
        regnet.PreBottleneck,
    )
)
_EFFICIENTNET = (
    BlockSpec(efficientnet.DepthwiseSeparableConv, ("conv_dw",), ("conv_pw",), Axes.BCHW),
    BlockSpec(efficientnet.InvertedResidual, ("conv_dw",), ("conv_pwl",), Axes.BCHW),
    BlockSpec(efficientnet.EdgeResidual, ("conv_exp",), ("conv_pwl",), Axes.BCHW),
    BlockSpec(
        efficientnet.UniversalInvertedResidual, ("dw_start", "dw_mid"), ("pw_proj",), Axes.BCHW
    ),
    BlockSpec(
        efficientnet.MobileAttention,
        ("attn",),
        (),
        Axes.BCHW,
        (
            (
                "attn.attn_drop",
                "holds attention maps, no representation; take the attention module itself",
            ),
        ),
    ),
    BlockSpec(efficientnet.ConvBnAct, ("conv",), (), Axes.BCHW),
)


class _ConvNeXtSpec(BlockSpec):
    def axes_at(self, path: str, block: object) -> Axes | str:
        """Norm and MLP of a ConvNeXt block are channels-last unless the MLP is made of 1x1
        convolutions."""
        channels_last = path.partition(".")[0] in ("norm", "mlp") and not getattr(
            block, "use_conv_mlp", False
        )
        return Axes.BHWC if channels_last else Axes.BCHW


CNN = Adapter(
    family="cnn",
    includes="ResNet, ResNetV2, RegNet, EfficientNet, MobileNet, ConvNeXt, ConvMixer",
    blocks=(
        *_BASIC,
        *_BOTTLENECK,
        *_EFFICIENTNET,
        _ConvNeXtSpec(convnext.ConvNeXtBlock, ("conv_dw",), ("mlp",), Axes.BCHW),
        # ConvMixer's block is a Sequential: a residual depthwise convolution, then a 1x1
        # convolution.
        BlockSpec(convmixer.Residual, ("0.fn.0",), ("1",), Axes.BCHW, wraps=True),
    ),
    stems=("stem", "maxpool", "act1", "bn1", "conv1", "conv_stem"),
    norms=("norm", "head.norm", "norm_pre", "bn2", "norm_head", "final_conv.bn"),
    heads=("head", "fc", "classifier"),
    outside=Axes.BCHW,
)
