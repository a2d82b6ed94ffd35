"""The Mixer family: timm's `MlpMixer` in its four forms - Mixer, gMixer, ResMLP and gMLP."""

from __future__ import annotations

from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingBlock

from mixer_probe.models.adapter import Adapter, BlockSpec
from mixer_probe.models.layer import Axes

# The token-mixing MLP works on transposed tensors: image, channel, position. Between its two layers
# the last axis counts hidden units, no grid of positions even when there are as many. gMixer's MLP
# is gated, its axes are the same.
_HIDDEN = tuple((f"mlp_tokens.{name}", Axes.BCU) for name in ("fc1", "act", "drop1", "norm"))
_MIXER = BlockSpec(
    MixerBlock, ("mlp_tokens",), ("mlp_channels",), Axes.BNC, (("mlp_tokens", Axes.BCN), *_HIDDEN)
)
_RESMLP = BlockSpec(
    ResBlock, ("linear_tokens",), ("mlp_channels",), Axes.BNC, (("linear_tokens", Axes.BCN),)
)
# gMLP has one branch: a channel MLP whose gate mixes positions half-way.
_GMLP = BlockSpec(
    SpatialGatingBlock,
    ("mlp_channels.gate",),
    ("mlp_channels",),
    Axes.BNC,
    (("mlp_channels.gate.proj", Axes.BCN),),
)

MIXER = Adapter(
    family="mixer",
    includes="Mixer, gMixer, ResMLP, gMLP",
    blocks=(_MIXER, _RESMLP, _GMLP),
    stems=("stem", "patch_embed"),
    norms=("norm",),
    heads=("head",),
    outside=Axes.BCHW,
)
