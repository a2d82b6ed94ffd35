"""A network with the logits of the original for patches in another order.

A Mixer has no order of patches but the one in its token-mixing weights (Tolstikhin et al. 2021,
Section 3.4): permute those with the patches and every logit stays. A ViT has it in its position
embedding alone. Training cannot tell the orders apart; a trained network can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from timm.layers.mlp import GluMlp, Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.mlp_mixer import (
    MixerBlock,
    MlpMixer,
    ResBlock,
    SpatialGatingBlock,
    SpatialGatingUnit,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mixer_probe.core.errors import ModelError
from mixer_probe.core.switches import copied
from mixer_probe.models.model import Model, Weights, make_model

_WORKS = (
    "patches can be permuted in timm's MlpMixer (Mixer, gMixer, ResMLP, gMLP) and VisionTransformer"
)


@torch.no_grad()
def permute_patches(model: Model, permutation: Sequence[int] | np.ndarray | Tensor) -> Model:
    """The same network for images whose patch i is patch permutation[i] of the original
    (`permute_cells` with the token grid).

    Of every token-mixing MLP the columns of its first layer and the rows and bias of its second are
    permuted, of one-matrix forms (ResMLP, gMLP) rows, columns and bias; of a ViT the position
    embedding. The weights are copies.

    Raises ModelError for what is no permutation of the patches, for a CNN (its order is in how
    convolutions slide), for relative position terms, and for a stem whose patches overlap."""
    stem = next((m for m in model.module.modules() if isinstance(m, PatchEmbed)), None)
    grid = model.structure.token_grid
    if (
        grid is None
        or stem is None
        or stem.proj.kernel_size != stem.proj.stride
        or model.family == "cnn"
    ):
        raise ModelError(
            f"{model.name} does not cut its images into separate patches of a grid; {_WORKS}"
        )
    order, count = torch.as_tensor(permutation).to(model.device), grid[0] * grid[1]
    if order.ndim != 1 or not torch.equal(
        order.sort().values, torch.arange(count, device=order.device)
    ):
        raise ModelError(
            f"a permutation of the patches of {model.name} must contain each of 0 to {count - 1} "
            "once"
        )
    network = copied(model.module)
    if isinstance(network, MlpMixer):
        for block in network.blocks:
            _permute_block(block, order, model.name)
    elif isinstance(network, VisionTransformer):
        relative = getattr(network, "rope", None) is not None or any(
            "rel_pos" in path for path, _ in network.named_modules()
        )
        if relative:
            raise ModelError(
                f"{model.name} adds relative positions in its attention, which cannot be permuted "
                f"through the weights; {_WORKS}"
            )
        if network.pos_embed is not None:
            # Prefix tokens, where they have an embedding, come first and stay.
            prefix = network.pos_embed.shape[1] - len(order)
            _into(
                network.pos_embed,
                torch.cat([network.pos_embed[:, :prefix], network.pos_embed[:, prefix + order]], 1),
            )
    else:
        raise ModelError(f"{model.name} is a {type(network).__name__}; {_WORKS}")
    weights = Weights(
        f"{model.weights.source}, patches permuted", model.weights.trained, model.weights.note
    )
    return make_model(f"{model.name}, patches permuted", network, model.input, weights)


def _permute_block(block: nn.Module, order: Tensor, name: str) -> None:
    if isinstance(block, ResBlock):
        return _conjugate(block.get_submodule("linear_tokens"), order)
    if isinstance(block, SpatialGatingBlock):
        gate = block.get_submodule("mlp_channels.gate")
        if isinstance(gate, SpatialGatingUnit):
            return _conjugate(gate.get_submodule("proj"), order)
        raise ModelError(f"the gate of {name} is a {type(gate).__name__}; {_WORKS}")
    mixing = block.get_submodule("mlp_tokens") if isinstance(block, MixerBlock) else block
    if not isinstance(mixing, (Mlp, GluMlp)):
        raise ModelError(f"{name} mixes tokens by a {type(mixing).__name__}; {_WORKS}")
    first, last = mixing.fc1, mixing.fc2
    if not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear):
        raise ModelError(
            f"the token MLP of {name} is made of a {type(first).__name__}, not of linear layers; "
            f"{_WORKS}"
        )
    _into(first.weight, first.weight[:, order])
    _permute_rows(last, order)
    return None


def _conjugate(layer: nn.Module, order: Tensor) -> None:
    """Inputs and outputs of a square linear layer."""
    assert isinstance(layer, nn.Linear)
    _into(layer.weight, layer.weight[:, order])
    _permute_rows(layer, order)


def _permute_rows(layer: nn.Linear, order: Tensor) -> None:
    _into(layer.weight, layer.weight[order])
    if layer.bias is not None:
        _into(layer.bias, layer.bias[order])


def _into(parameter: Tensor, values: Tensor) -> None:
    # A parameter indexed by a permutation is a copy, so that it can be written back in place.
    parameter.copy_(values)
