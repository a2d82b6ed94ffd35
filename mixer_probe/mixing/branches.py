"""Where the residual branches of a block end: what each adds to the stream, layer scale
included."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models import _efficientnet_blocks as efficientnet
from timm.models import beit, convmixer, convnext, eva, mlp_mixer, regnet, resnet, resnetv2
from timm.models import vision_transformer as vit
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import nn

from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.models.structure import BlockRun, Structure


@dataclass(frozen=True)
class Branches:
    """The branches of one call of a block: block(x) = skip(x) + spatial + channel.

    `spatial` and `channel` are layers whose outputs are added to the stream, the spatial one first.
    A block with one branch that mixes positions and channels has it as `spatial`; both are None
    where the block has no skip connection, or no module returns what its branch adds. `skip` is the
    layer whose output the branch is added to, None for the block's input. `total` is the module
    that returns the sum, and `activation` one that is applied to the sum before the block returns
    it: its input is the sum, which it may overwrite."""

    block: str
    spatial: Layer | None
    channel: Layer | None = None
    skip: Layer | None = None
    total: str = ""
    activation: str = ""


@dataclass(frozen=True)
class _Ends:
    """Module paths inside a block, candidates in order of preference."""

    spatial: tuple[str, ...]
    channel: tuple[str, ...] = ()
    skip: str = "downsample"
    total: str = ""
    activation: str = ""


_TWO = _Ends(("drop_path1",), ("drop_path2",))
# Called twice in a block: at the end of the token-mixing branch, and of the channel-mixing one.
_TWICE = _Ends(("drop_path",), ("drop_path",))
_ONE = _Ends(("drop_path",))
_ENDS: dict[type[nn.Module], _Ends] = {
    vit.Block: _TWO,
    vit.ResPostBlock: _TWO,
    beit.Block: _TWO,
    eva.EvaBlock: _TWO,
    eva.EvaBlockPostNorm: _TWO,
    SwinTransformerBlock: _TWO,
    SwinTransformerV2Block: _TWO,
    vit.ParallelScalingBlock: _ONE,
    mlp_mixer.MixerBlock: _TWICE,
    mlp_mixer.ResBlock: _TWICE,
    mlp_mixer.SpatialGatingBlock: _ONE,
    resnet.BasicBlock: _Ends(("drop_path", "se", "bn2"), activation="act2"),
    resnet.Bottleneck: _Ends(("drop_path", "se", "bn3"), activation="act3"),
    resnetv2.PreActBasic: _ONE,
    resnetv2.PreActBottleneck: _ONE,
    resnetv2.Bottleneck: _Ends(("drop_path",), activation="act3"),
    # The skip of a block without downsampling is an Identity of that name, after norm1 in
    # PreBottleneck.
    regnet.Bottleneck: _Ends(("drop_path",), activation="act3"),
    regnet.PreBottleneck: _ONE,
    efficientnet.DepthwiseSeparableConv: _ONE,
    efficientnet.InvertedResidual: _ONE,
    efficientnet.EdgeResidual: _ONE,
    efficientnet.UniversalInvertedResidual: _ONE,
    efficientnet.ConvBnAct: _ONE,
    convnext.ConvNeXtBlock: _Ends(("drop_path",), skip="shortcut"),
    # The 1x1 convolution that follows has no skip connection.
    convmixer.Residual: _Ends(("0.fn",), total="0"),
}
if hasattr(vit, "DiffParallelScalingBlock"):
    _ENDS[vit.DiffParallelScalingBlock] = _ONE


def branch_ends(model: Model) -> tuple[Branches, ...]:
    """The branches of every call of a block, in execution order; see `Branches`."""
    structure = model.structure
    return tuple(_branches(structure, run) for run in structure.runs)


def _branches(structure: Structure, run: BlockRun) -> Branches:
    ends = _ENDS.get(run.block.spec.cls)
    if ends is None:
        return Branches(run.name, None)

    def first(names: tuple[str, ...], call: int = 0) -> Layer | None:
        """The layer of a call of the first of these modules that runs."""
        calls = next((found for n in names if (found := structure.calls(run, n))), [])
        return structure.at(*calls[call]) if call < len(calls) else None

    return Branches(
        run.name,
        spatial=first(ends.spatial),
        channel=first(ends.channel, call=int(ends.channel == ends.spatial)),
        skip=first((ends.skip,)),
        total=f"{run.block.path}.{ends.total}" if ends.total else run.block.path,
        activation=f"{run.block.path}.{ends.activation}" if ends.activation else "",
    )
