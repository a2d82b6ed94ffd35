"""A Mixer is a CNN: the same network from convolutions, norms and pointwise functions alone
(Tolstikhin et al. 2021, Section 2).

"Our architecture can be seen as a very special CNN, which uses 1x1 convolutions for channel mixing,
and single-channel depth-wise convolutions of a full receptive field and parameter sharing for token
mixing. However, the converse is not true as typical CNNs are not special cases of Mixer." The state
is a map [image, channel, row, column] throughout. Each linear layer over the positions becomes a
convolution that covers the whole grid, one output channel per hidden unit; that of the hidden units
back to the positions becomes a 1x1 convolution whose output channels are the positions, laid out as
a map again."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import torch
from timm.layers.mlp import GatedMlp, GluMlp, Mlp
from timm.models.mlp_mixer import (
    MixerBlock,
    MlpMixer,
    ResBlock,
    SpatialGatingBlock,
    SpatialGatingUnit,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixer_probe.core.errors import ModelError
from mixer_probe.core.switches import lock_of, plain_modes
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model

Form = Literal["tied", "grouped"]
Grid = tuple[int, int]

_WORKS = "as_convolution takes timm's MlpMixer in its forms Mixer, gMixer, ResMLP and gMLP"
_REASONS = {
    "vit": (
        "the weights by which attention mixes positions are computed from the image, and a "
        "convolution's are fixed"
    ),
    "cnn": "it is a convolutional network already, and not every one of those is a Mixer",
}


@checked(ModelError)
def as_convolution(model: Model, form: Form = "tied") -> ConvolutionalMixer:
    """A Mixer, gMixer, ResMLP or gMLP as a network of convolutions, norms and pointwise functions,
    with the same logits.

    Token mixing is a depthwise convolution over the full grid with one kernel tied over all
    channels. In the form "tied" the channels are folded into the batch axis, so that one kernel
    sees each of them. In the form "grouped" it is an `nn.Conv2d` with as many groups as channels,
    whose weight is that kernel repeated; it is a parametrization, so there is one copy of it in
    memory beside the weight of the layer that is running. (With gradients every layer keeps its
    own, and on a CPU grouped convolutions are slow: take "tied" for those.)
    `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")` unties the channels of
    such a layer. Both forms have exactly as many parameters as the original.

    The module takes images [B, 3, H, W] and returns logits [B, classes] (features [B, C] without a
    head, and without pooling [B, position, ...], as the original). Weights are copies, in the type,
    on the device and in the train or eval mode of the original. Raises ModelError for another
    family and for blocks that are not timm's."""
    network: Any = model.module
    if model.family in _REASONS:
        raise ModelError(
            f"{model.name} cannot be written as a Mixer's convolutions: {_REASONS[model.family]}; "
            f"{_WORKS}"
        )
    _require(network, MlpMixer, model.name)
    grid = model.structure.token_grid
    stem = network.stem
    if (
        grid is None
        or not isinstance(getattr(stem, "proj", None), nn.Conv2d)
        or getattr(stem, "dynamic_img_pad", False)
    ):
        raise ModelError(
            f"the patch embedding of {model.name} is a {type(stem).__name__}, no single "
            f"convolution; {_WORKS}"
        )
    with lock_of(network), plain_modes():
        converted = ConvolutionalMixer(network, grid, form, model.input.size)
    linear = [path for path, module in converted.named_modules() if isinstance(module, nn.Linear)]
    if linear:
        raise ModelError(
            f"'{linear[0]}' of {model.name} holds a linear layer where timm's networks have none; "
            f"{_WORKS}"
        )
    return converted.train(network.training)


class ConvolutionalMixer(nn.Module):
    """A Mixer from convolutions. `grid` is (rows, columns) of its maps, `form` how the token-mixing
    kernels are tied.

    `stem`, each of `blocks`, and `norm` take and return maps [B, C, rows, columns]."""

    @checked(ModelError)
    def __init__(
        self, network: Any, grid: Grid, form: Form, input_size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.form, self.grid, self.input_size, self.pool = (
            form,
            grid,
            input_size,
            network.global_pool,
        )
        convert = partial(_block, grid=grid, form=form)
        self.stem = _named(
            proj=copy.deepcopy(network.stem.proj), norm=_over_channels(network.stem.norm)
        )
        self.blocks = nn.Sequential(*map(convert, network.blocks))
        self.norm = _over_channels(network.norm)
        self.head_drop = copy.deepcopy(network.head_drop)
        self.head = (
            _pointwise(network.head)
            if isinstance(network.head, nn.Linear)
            else copy.deepcopy(network.head)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]. Raises ModelError for images of another
        size."""
        if tuple(images.shape[1:]) != self.input_size:
            # A kernel that covers the whole grid would pass over a larger one without a word.
            raise ModelError(
                f"this network takes images of {self.input_size}, not {tuple(images.shape[1:])}"
            )
        maps = self.norm(self.blocks(self.stem(images)))
        if self.pool == "avg":
            maps = maps.mean((2, 3), keepdim=True)
        logits: Tensor = self.head(self.head_drop(maps)).flatten(2).transpose(1, 2)
        return logits[:, 0] if self.pool == "avg" else logits


class Residual(nn.Sequential):
    """x + f(x), where f runs the modules one after another."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to maps of the same shape."""
        changed = x
        for module in self:
            changed = module(changed)
        return x + changed


class FullFieldMixing(nn.Module):
    """Full-field depthwise convolution: `mixing` reads the whole map of each of `channels` and
    returns one value per position.

    In the tied form it sees [B * C, 1, h, w] and returns [B * C, h * w, 1, 1]; in the grouped form
    [B, C, h, w] and [B, C * h * w, 1, 1]."""

    def __init__(self, mixing: nn.Module, form: Form, channels: int) -> None:
        super().__init__()
        self.mixing, self.form, self.channels = mixing, form, channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to maps of the same shape."""
        folded = x.reshape(-1, 1, *x.shape[2:]) if self.form == "tied" else x
        mixed: Tensor = self.mixing(folded)
        return mixed.reshape(x.shape)


class OverChannels(nn.Module):
    """A norm over the last axis applied to the channels of maps, in each of `groups` groups of
    channels by itself."""

    def __init__(self, norm: nn.Module, groups: int = 1) -> None:
        super().__init__()
        self.norm, self.groups = norm, groups

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, G * C, h, w] to maps of the same shape."""
        last = x.movedim(1, -1)
        if self.groups > 1:
            last = last.reshape(*last.shape[:-1], self.groups, -1)
        normed: Tensor = self.norm(last)
        return normed.reshape(*x.shape[:1], *x.shape[2:], -1).movedim(-1, 1)


class ChannelScale(nn.Module):
    """One factor per channel (ResMLP's layer scale)."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = _copied(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to maps of the same shape."""
        return x * self.scale[:, None, None]


class Gate(nn.Module):
    """A gated linear unit over channels: one half of each group of channels times the activation of
    the other half."""

    def __init__(self, act: nn.Module, gate_last: bool, groups: int) -> None:
        super().__init__()
        self.act, self.gate_last, self.groups = act, gate_last, groups

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, G * 2U, h, w] to maps [B, G * U, h, w]."""
        first, second = x.reshape(len(x), self.groups, 2, -1, *x.shape[2:]).unbind(2)
        gated: Tensor = first * self.act(second) if self.gate_last else self.act(first) * second
        return gated.flatten(1, 2)


class SpatialGate(nn.Module):
    """gMLP's gate: one half of the channels times the other half, normed and mixed over
    positions."""

    def __init__(self, norm: nn.Module, mixing: nn.Module) -> None:
        super().__init__()
        self.norm, self.mixing = norm, mixing

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, 2C, h, w] to maps [B, C, h, w]."""
        kept, gating = x.chunk(2, dim=1)
        gated: Tensor = kept * self.mixing(self.norm(gating))
        return gated


class Repeated(nn.Module):
    """Parametrization: the weight or bias of one group [U, ...] repeated for all groups [G * U,
    ...]."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, one: Tensor) -> Tensor:
        """[U, ...] to [G * U, ...]."""
        return one.expand(self.groups, *one.shape).flatten(0, 1)

    def right_inverse(self, every: Tensor) -> Tensor:
        """[G * U, ...] to the [U, ...] of the first group."""
        return every[: len(every) // self.groups]


# -- blocks ----------------------------------------------------------------------------------------


def _block(block: Any, grid: Grid, form: Form) -> nn.Module:
    known = next(
        (cls for cls in (MixerBlock, ResBlock, SpatialGatingBlock) if isinstance(block, cls)), None
    )
    if known is None:
        raise ModelError(f"a {type(block).__name__} is no block of a Mixer; {_WORKS}")
    _require(block, known, "a block")
    mlp = block.mlp_channels
    if known is SpatialGatingBlock:
        _require(mlp, GatedMlp, "the MLP of a gMLP block")
        _require(mlp.gate, SpatialGatingUnit, "the gate of a gMLP block")
        channels = mlp.fc2.in_features
        kernels = _full_field(mlp.gate.proj, grid, channels if form == "grouped" else 1)
        mixing = FullFieldMixing(kernels, form, channels)
        gate = SpatialGate(_over_channels(mlp.gate.norm), mixing)
        gated_mlp = _mlp_of(mlp, _pointwise(mlp.fc1), _pointwise(mlp.fc2), 1, gate=gate)
        return _residual(block.norm, block.drop_path, mlp_channels=gated_mlp)
    _check_mlp(mlp)
    channel_mlp = _mlp_of(mlp, _pointwise(mlp.fc1), _pointwise(mlp.fc2), 1)
    channels = mlp.fc1.in_features
    groups = channels if form == "grouped" else 1
    if known is ResBlock:
        mixing = FullFieldMixing(_full_field(block.linear_tokens, grid, groups), form, channels)
        spatial = _residual(
            block.norm1, block.drop_path, linear_tokens=mixing, scale=ChannelScale(block.ls1)
        )
        channel = _residual(
            block.norm2, block.drop_path, mlp_channels=channel_mlp, scale=ChannelScale(block.ls2)
        )
    else:
        mlp = block.mlp_tokens
        _check_mlp(mlp)
        hidden = _mlp_of(
            mlp, _full_field(mlp.fc1, grid, groups), _pointwise(mlp.fc2, groups), groups
        )
        mixing = FullFieldMixing(hidden, form, channels)
        spatial = _residual(block.norm1, block.drop_path, mlp_tokens=mixing)
        channel = _residual(block.norm2, block.drop_path, mlp_channels=channel_mlp)
    return _named(spatial=spatial, channel=channel)


def _mlp_of(
    mlp: Any, first: nn.Module, last: nn.Module, groups: int, **gate: nn.Module
) -> nn.Module:
    """timm's MLPs are the same chain; a gated linear unit applies its activation inside its
    gate."""
    act = copy.deepcopy(mlp.act)
    middle = (
        {"glu": Gate(act, getattr(mlp, "gate_last", True), groups)}
        if isinstance(mlp, GluMlp)
        else {"act": act}
    )
    drops = {"drop1": copy.deepcopy(mlp.drop1)}, {"drop2": copy.deepcopy(mlp.drop2)}
    return _named(
        fc1=first,
        **middle,
        **drops[0],
        **gate,
        norm=_over_channels(mlp.norm, groups),
        fc2=last,
        **drops[1],
    )


def _check_mlp(mlp: Any) -> None:
    _require(mlp, GluMlp if isinstance(mlp, GluMlp) else Mlp, "the MLP of a block")


def _require(module: Any, cls: type[nn.Module], what: str) -> None:
    """Refuse what is not this class of timm's, or a subclass of it that computes something else."""
    if not isinstance(module, cls) or type(module).forward is not cls.forward:
        raise ModelError(
            f"{what} is a {type(module).__name__}, not timm's {cls.__name__}; {_WORKS}"
        )


def _full_field(linear: nn.Linear, grid: Grid, groups: int) -> nn.Conv2d:
    """Rows [U, S] of a linear layer over the positions as kernels [U, 1, h, w]."""
    return _convolution(linear.weight.reshape(-1, 1, *grid), linear.bias, groups)


def _pointwise(linear: nn.Linear, groups: int = 1) -> nn.Conv2d:
    """A linear layer [O, I] as kernels [O, I, 1, 1]."""
    return _convolution(linear.weight[:, :, None, None], linear.bias, groups)


def _convolution(kernels: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    """A convolution by copies of these kernels [U, I, kh, kw], the same for every group of I input
    channels."""
    units, inputs, height, width = kernels.shape
    # Without memory: the weight of all groups at once is only needed while the layer runs.
    has_bias = bias is not None
    layer = nn.Conv2d(
        groups * inputs,
        groups * units,
        (height, width),
        groups=groups,
        bias=has_bias,
        device="meta",
    )
    for name, values in (("weight", kernels), ("bias", bias)):
        if values is not None and groups == 1:
            setattr(layer, name, _copied(values))
        elif values is not None:
            parametrize.register_parametrization(layer, name, Repeated(groups))
            layer.get_submodule(f"parametrizations.{name}").original = _copied(values)
    return layer


def _copied(values: Tensor) -> nn.Parameter:
    return nn.Parameter(
        values.detach().clone(memory_format=torch.contiguous_format), values.requires_grad
    )


def _over_channels(norm: nn.Module, groups: int = 1) -> nn.Module:
    kept = copy.deepcopy(norm)
    return kept if isinstance(kept, nn.Identity) else OverChannels(kept, groups)


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _residual(norm: nn.Module, drop_path: nn.Module, **modules: nn.Module) -> nn.Module:
    return Residual(
        OrderedDict(norm=_over_channels(norm), **modules, drop_path=copy.deepcopy(drop_path))
    )
