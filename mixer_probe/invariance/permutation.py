"""A network with the logits of the original for patches, and pixels inside patches, in another
order.

A Mixer has no order of patches but the one in its token-mixing weights (Tolstikhin et al. 2021,
Section 3.4): permute those with the patches and every logit stays. A ViT has it in its position
embedding alone. The order of the pixels inside all patches is in the columns of the stem's kernel.
Training cannot tell the orders apart; a trained network can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

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
from mixer_probe.images.distortions import (
    Chain,
    Distortion,
    PatchShuffle,
    PixelShuffle,
    to_cells,
)
from mixer_probe.models.model import Model
from mixer_probe.zoo.architectures import UntiedMlp

_WORKS = (
    "patches can be permuted in timm's MlpMixer (Mixer, also with untied token MLPs, gMixer, "
    "ResMLP, gMLP) and VisionTransformer"
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
    grid = _patch_grid(model)
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
    return _changed(model, network, "patches permuted", lambda m: permute_patches(m, permutation))


@torch.no_grad()
def absorb_distortion(model: Model, distortion: Distortion) -> Model:
    """The network whose logits on images are those of `model` on images with this distortion: what
    a network trained on distorted images has to become to see undistorted ones.

    The distortion permutes patches and, in one order for all patches, the pixels inside them, the
    same for all images: `PatchShuffle` and `PixelShuffle` with shared=True on the token grid, or a
    chain of them such as `paper_shuffle(grid, seed)`. The order of patches goes into the weights
    that `permute_patches` permutes, that of pixels into the columns of the stem's kernel. The
    weights are copies.

    Raises ModelError for other distortions, for one that moves pixels from patch to patch, as those
    of another grid do (grid 1 permutes all pixels of an image), and for networks as
    `permute_patches` does."""
    grid, size = _patch_grid(model), model.input.size[1:]
    for step in _steps(distortion):
        if not isinstance(step, (PatchShuffle, PixelShuffle)) or not step.shared:
            raise ModelError(
                f"'{step.label}' is no permutation that is the same for all images; weights absorb "
                "PatchShuffle and PixelShuffle with shared=True, such as those of paper_shuffle"
            )
    # Where each pixel of a distorted image comes from, [patch, pixel].
    places = torch.arange(size[0] * size[1], dtype=torch.float64).reshape(1, 1, *size)
    found, own = (
        to_cells(pixels, grid)[0, :, 0].flatten(1).long()
        for pixels in (distortion(places.expand(1, 3, -1, -1)), places)
    )
    number = torch.empty(own.numel(), dtype=torch.long)
    number[own.flatten()] = torch.arange(own.numel())
    patch, pixel = number[found] // own.shape[1], number[found] % own.shape[1]
    if (patch != patch[:, :1]).any() or (pixel != pixel[:1]).any():
        raise ModelError(
            f"'{distortion.label}' does not move whole patches of {model.name}, with pixels inside "
            f"them in one order; give the distortion the network's token grid {grid[0]}×{grid[1]}"
        )
    permuted = permute_patches(model, patch[:, 0].argsort())
    kernel = _stem(permuted).proj.weight
    _into(kernel, kernel.flatten(2)[..., pixel[0].argsort()].reshape(kernel.shape))
    return _changed(
        model,
        permuted.module,
        f"'{distortion.label}' absorbed",
        lambda m: absorb_distortion(m, distortion),
    )


def _changed(
    model: Model, network: nn.Module, what: str, change: Callable[[Model], Model]
) -> Model:
    """The model with this network, named after what was done; its untrained baseline is changed in
    the same way."""
    weights = replace(model.weights, source=f"{model.weights.source}, {what}")
    untrained = None if model.make_untrained is None else lambda: change(model.untrained())
    return replace(
        model,
        name=f"{model.name}, {what}",
        module=network,
        weights=weights,
        make_untrained=untrained,
    )


def _steps(distortion: Distortion) -> Iterator[Distortion]:
    """The single distortions of a chain."""
    if isinstance(distortion, Chain):
        for step in distortion.steps:
            yield from _steps(step)
    else:
        yield distortion


def _patch_grid(model: Model) -> tuple[int, int]:
    """The grid of separate patches. Raises ModelError for a network without."""
    stem, grid = _stem(model), model.structure.token_grid
    if (
        grid is None
        or stem is None
        or stem.proj.kernel_size != stem.proj.stride
        or model.family == "cnn"
    ):
        raise ModelError(
            f"{model.name} does not cut its images into separate patches of a grid; {_WORKS}"
        )
    return grid


def _stem(model: Model) -> Any:
    # Any: torch's annotations say of a submodule only that it may be a tensor.
    return next((m for m in model.module.modules() if isinstance(m, PatchEmbed)), None)


def _permute_block(block: nn.Module, order: Tensor, name: str) -> None:
    if isinstance(block, ResBlock):
        return _conjugate(block.get_submodule("linear_tokens"), order)
    if isinstance(block, SpatialGatingBlock):
        gate = block.get_submodule("mlp_channels.gate")
        if isinstance(gate, SpatialGatingUnit):
            return _conjugate(gate.get_submodule("proj"), order)
        raise ModelError(f"the gate of {name} is a {type(gate).__name__}; {_WORKS}")
    mixing = block.get_submodule("mlp_tokens") if isinstance(block, MixerBlock) else block
    if isinstance(mixing, UntiedMlp):
        _into(mixing.fc1_weight, mixing.fc1_weight[..., order])
        _into(mixing.fc2_weight, mixing.fc2_weight[:, order])
        return _into(mixing.fc2_bias, mixing.fc2_bias[:, order])
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
