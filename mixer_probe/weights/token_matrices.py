"""The matrices that mix tokens in each block, for all four forms of timm's `MlpMixer`, with one
meaning of rows and columns.

Units, effective kernels and spectra of token mixing are computed from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from timm.layers.mlp import GluMlp
from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingBlock
from torch import nn

from mixer_probe.core.errors import ModelError
from mixer_probe.core.words import first_and_more, join
from mixer_probe.models.model import Model
from mixer_probe.weights.operators import double_array
from mixer_probe.zoo.architectures import UntiedMlp


@dataclass(frozen=True)
class TokenMatrices:
    """The token-mixing matrices of one block, float64. S is the number of tokens, in rows of the
    patch grid.

    `block` is the module path, `depth` (i + 1) / L, `form` "Mixer", "gMixer", "ResMLP" or "gMLP",
    and `layer` the path of the first token-mixing layer inside the block. With w the hidden units
    of a token MLP, or the S output tokens of the one-matrix forms, for tokens x [S] of one channel
    (normalised; biases left out):

    - Mixer: write.T @ act(read @ x), act GELU in timm's networks; `read` are the rows of fc1 [w,
      S], `write` the columns of fc2, transposed to [w, S].
    - gMixer: write.T @ (read @ x * act(gate @ x)), act SiLU; `read` and `gate` [w, S] are the plain
      and the activated half of fc1. timm's GluMlp activates the second half, or the first if it has
      gate_last=False.
    - ResMLP: read @ x, with `read` [S, S] the rows of linear_tokens times the root mean square of
      the layer scale ls1 over channels. Every channel c has the matrix ls1[c] * linear_tokens, so
      this one has the mean energy of them all; the sign that ls1 may have for single channels is
      lost.
    - gMLP: read @ x multiplies the other half of the channels; `read` [S, S] are the rows of
      gate.proj.

    `gate` and `write` are None for the forms that lack them. Gains of the norm before the mixing
    (one per channel) are in none of the matrices."""

    block: str
    depth: float
    form: str
    layer: str
    read: np.ndarray
    gate: np.ndarray | None
    write: np.ndarray | None

    @property
    def linear_part(self) -> np.ndarray:
        """The matrix [S, S] of the mixing without activation and gate: write.T @ read, or read for
        the one-matrix forms."""
        return self.read if self.write is None else self.write.T @ self.read


def token_matrices(model: Model) -> tuple[TokenMatrices, ...]:
    """The token-mixing matrices of every block of a Mixer, gMixer, ResMLP or gMLP, in execution
    order. They are copies.

    Raises ModelError for a network without them, saying what mixes its positions instead, and for
    token MLPs per group of channels (`UntiedMlp`), which have many matrices in a block."""
    if model.family != "mixer":
        raise ModelError(
            f"{model.name} is a {model.family} and has no token-mixing weights: it mixes positions "
            f"by {spatial_mixers(model)}; token-mixing weights are in Mixer, gMixer, ResMLP and "
            "gMLP"
        )
    blocks = model.structure.single_blocks
    found = []
    for i, block in enumerate(blocks):
        module, place = block.module, (block.path, (i + 1) / len(blocks))
        if isinstance(module, ResBlock):
            scale = np.sqrt((double_array(module.get_parameter("ls1")) ** 2).mean())
            read = scale * double_array(module.get_parameter("linear_tokens.weight"))
            found.append(TokenMatrices(*place, "ResMLP", "linear_tokens", read, None, None))
            continue
        if isinstance(module, SpatialGatingBlock):
            read = double_array(module.get_parameter("mlp_channels.gate.proj.weight"))
            found.append(TokenMatrices(*place, "gMLP", "mlp_channels.gate.proj", read, None, None))
            continue
        assert isinstance(module, MixerBlock)
        mlp = module.get_submodule("mlp_tokens")
        first, last = getattr(mlp, "fc1", None), getattr(mlp, "fc2", None)
        if isinstance(mlp, UntiedMlp):
            raise ModelError(
                f"'{block.path}.mlp_tokens' has token-mixing weights for each of {mlp.groups} "
                "groups of channels, and units and kernels of a layer are those of one token MLP "
                "for all channels; kernel_tying, weight_spectra and spatial_mixing take such layers"
            )
        if not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear):
            raise ModelError(
                f"'{block.path}.mlp_tokens' is a {type(mlp).__name__}; token-mixing weights are "
                "read from MLPs whose two linear layers are fc1 and fc2, such as timm's Mlp and "
                "GluMlp"
            )
        read, write = double_array(first.weight), np.ascontiguousarray(double_array(last.weight).T)
        form, gate = "Mixer", None
        if isinstance(mlp, GluMlp):
            form, half = "gMixer", len(read) // 2
            read, gate = (read[:half], read[half:]) if mlp.gate_last else (read[half:], read[:half])
        found.append(TokenMatrices(*place, form, "mlp_tokens.fc1", read, gate, write))
    return tuple(found)


def has_untied_mlps(model: Model) -> bool:
    """Whether a block has a token MLP per group of channels."""
    return any(
        isinstance(getattr(block.module, "mlp_tokens", None), UntiedMlp)
        for block in model.structure.blocks
    )


def spatial_mixers(model: Model) -> str:
    """What mixes the positions of a network, for messages: "attention (blocks.0.attn and 11 more)",
    "7×7 depthwise convolutions (...)"."""
    kinds: dict[str, list[str]] = {}
    for layer in model.layers:
        if layer.kind != "spatial":
            continue
        modules = model.module.get_submodule(layer.module).modules()
        kind = "attention"
        if convolution := next(
            (m for m in modules if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1), None
        ):
            depthwise = "depthwise " if convolution.groups == convolution.in_channels > 1 else ""
            kind = f"{'×'.join(map(str, convolution.kernel_size))} {depthwise}convolutions"
        kinds.setdefault(kind, []).append(layer.module)
    return (
        join(f"{kind} ({first_and_more(paths)})" for kind, paths in kinds.items())
        if kinds
        else "nothing in its blocks"
    )
