"""Table 1 of the Mixer paper, counted: the scales of Tolstikhin et al. 2021 with their parameters
and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixer_probe.core.frame import Frame
from mixer_probe.core.result import Result, storable
from mixer_probe.models.macs import count_macs

_PX = 224


@storable
@dataclass(frozen=True)
class MixerScale:
    """One column of Table 1: patch side P, width C, `layers` L, hidden units D_S and D_C, and
    parameters in millions as printed.

    `timm_name` is "" where timm has no such network. Networks have no classifier, images 224 px."""

    name: str
    timm_name: str
    patch: int
    width: int
    layers: int
    token_units: int
    channel_units: int
    printed_millions: int

    @property
    def tokens(self) -> int:
        """S = (224 / P)^2."""
        return (_PX // self.patch) ** 2

    @property
    def parameters(self) -> int:
        """Weights and biases of embedding, token MLPs, channel MLPs and layer norms, by formula."""
        s, c, d_s, d_c = self.tokens, self.width, self.token_units, self.channel_units
        block = 2 * s * d_s + d_s + s + 2 * c * d_c + d_c + c + 4 * c
        return 3 * self.patch**2 * c + c + self.layers * block + 2 * c

    @property
    def macs(self) -> int:
        """S C (3 P^2 + 2 L (D_S + D_C)), by formula: linear in S for fixed D_S."""
        return (
            self.tokens
            * self.width
            * (3 * self.patch**2 + 2 * self.layers * (self.token_units + self.channel_units))
        )


# Tolstikhin et al. 2021, Table 1.
TABLE1 = (
    MixerScale("S/32", "mixer_s32_224", 32, 512, 8, 256, 2048, 19),
    MixerScale("S/16", "mixer_s16_224", 16, 512, 8, 256, 2048, 18),
    MixerScale("B/32", "mixer_b32_224", 32, 768, 12, 384, 3072, 60),
    MixerScale("B/16", "mixer_b16_224", 16, 768, 12, 384, 3072, 59),
    MixerScale("L/32", "mixer_l32_224", 32, 1024, 24, 512, 4096, 206),
    MixerScale("L/16", "mixer_l16_224", 16, 1024, 24, 512, 4096, 207),
    MixerScale("H/14", "", 14, 1280, 32, 640, 5120, 431),
)


@dataclass(frozen=True)
class MixerScales(Result):
    """The scales of Table 1 with the `parameters` and `macs` [scale] counted on timm's networks
    without their classifier."""

    title: ClassVar[str] = "Table 1 of the Mixer paper"
    frame = Frame(
        "scale",
        """scale=scales.name scales.timm_name scales.layers scales.patch C=scales.width
        S=scales.tokens D_S=scales.token_units D_C=scales.channel_units
        paper_millions=scales.printed_millions parameters
        parameters_by_formula=scales.parameters macs macs_by_formula=scales.macs""",
    )

    scales: Annotated[tuple[MixerScale, ...], "scale"]
    parameters: Annotated[tuple[int, ...], "scale"]
    macs: Annotated[tuple[int, ...], "scale"]


def mixer_scales() -> MixerScales:
    """Count every scale of Table 1. Networks are built on the meta device: counting needs shapes,
    no weights."""
    networks: list[nn.Module] = []
    with torch.device("meta"):
        for s in TABLE1:
            if s.timm_name:
                networks.append(timm.create_model(s.timm_name, num_classes=0))
            else:
                sizes: dict[str, Any] = {
                    "patch_size": s.patch,
                    "embed_dim": s.width,
                    "num_blocks": s.layers,
                }
                sizes["mlp_ratio"] = (s.token_units / s.width, s.channel_units / s.width)
                networks.append(MlpMixer(**sizes, num_classes=0))
    parameters = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
    return MixerScales(
        TABLE1, parameters, tuple(count_macs(network, (3, _PX, _PX)) for network in networks)
    )
