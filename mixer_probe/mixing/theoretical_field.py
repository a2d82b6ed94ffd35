"""The theoretical receptive field: the input pixels that a position of a layer can depend on at
all, whatever the weights.

A convolution or pooling of kernel k, dilation d and stride s makes of a field of r pixels one of r
+ (k - 1) d j, where j, the distance in pixels between neighbouring positions, becomes j s (Araujo,
Norris and Sim 2019, Distill, eq. 2). The walk follows the modules in the order in which they run,
along the main path of residual blocks: their shortcuts have smaller fields.

What reads all positions at once (token mixing, attention, squeeze-and-excitation, norms over the
positions) makes the field the whole image. It is found with one image of which one corner pixel is
NaN, which every operation hands on: where the opposite corner of a layer becomes NaN and the walk
does not reach it, something else did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from timm.layers.blur_pool import BlurPool2d
from timm.layers.mixed_conv2d import MixedConv2d
from torch import nn

from mixer_probe.capture import capture
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.mixing.grid import with_grid
from mixer_probe.models.cnn import CNN
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.models.trace import blank_images, trace

_SHORTCUTS = ("downsample", "shortcut")


@checked(MeasureError)
def theoretical_field(model: Model, layers: str | Sequence[str] = "blocks") -> dict[str, float]:
    """Side in pixels of the theoretical receptive field of each layer, by name: the longer of its
    two sides, also where it is larger than the image (427 px after the last block of ResNet-50).

    Infinite where the field is the whole image whatever its size, as of every block of a Mixer or
    ViT; NaN for windowed attention (Swin) before a window is as large as the map, where the field
    depends on the position. Raises MeasureError for a layer without a grid of positions, and as
    `Model.select` does."""
    chosen = [layer for layer, _ in with_grid(model.select(layers), "a receptive field")]
    walked = _walk(model)
    places = {layer.name: layer for layer in (*model.layers, *chosen) if layer.grid}
    reads_all = _reads_all(model, list(places.values()))
    size = np.array(model.input.size[1:])
    windows = model.family == "vit" and model.structure.blocks[0].spec.axes is Axes.BHWC

    def whole(layer: Layer) -> bool:
        if windows:
            # A shifted window holds positions of opposite borders, which a mask keeps apart, though
            # not for NaN.
            sides = getattr(model.module.get_submodule(layer.module), "window_size", (0, 0))
            return all(a >= b for a, b in zip(sides, layer.grid or sides, strict=True))
        field, jump = walked[layer.module, layer.call]
        # By the walk, the last position is too far away from the first pixel.
        return reads_all[layer.name] and bool((field < 2 * (size - jump)).any())

    # What a block reads, all that follow read.
    blocks = [layer for layer in places.values() if layer.kind == "block" and whole(layer)]
    since = min((layer.order for layer in blocks), default=math.inf)
    mixed = min((x.order for x in model.layers if x.kind == "spatial"), default=math.inf)
    found = {}
    for layer in chosen:
        if layer.order >= since or whole(layer):
            found[layer.name] = math.inf
        elif windows and layer.order >= mixed:
            found[layer.name] = math.nan
        else:
            found[layer.name] = float(walked[layer.module, layer.call][0].max())
    return found


Field = tuple[np.ndarray, np.ndarray]


def _walk(model: Model) -> dict[tuple[str, int], Field]:
    """Field and distance of neighbouring positions, each (rows, columns) in pixels, after every
    call of every module."""
    modules = dict(model.module.named_modules())
    state: dict[str, Field] = {"": (np.ones(2), np.ones(2))}
    found: dict[tuple[str, int], Field] = {}
    inside = {
        path: next((p for p in _parents(path) if CNN.spec(modules[p]) is not None), "")
        for path in modules
    }
    entry, last = state[""], ""
    for call in trace(model.module, model.input.size):
        block = inside[call.path]
        if block != last:
            entry, last = state[""], block
            state = {"": entry}
        shortcut = next(
            (
                f"{block}.{name}"
                for name in _SHORTCUTS
                if block and f"{call.path}.".startswith(f"{block}.{name}.")
            ),
            "",
        )
        before = state.get(shortcut, entry)
        parallel = isinstance(modules[call.path.rpartition(".")[0]], MixedConv2d)
        state[shortcut] = before if parallel else _grown(before, modules[call.path])
        found[call.path, call.call] = state[shortcut]
    return found


def _parents(path: str) -> list[str]:
    """The paths of the modules around a module, the outermost first."""
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _grown(field: Field, module: nn.Module) -> Field:
    size, jump = field
    if isinstance(module, MixedConv2d):
        # Kernels of several sizes side by side.
        return max((_grown(field, part) for part in module.children()), key=lambda f: f[0].max())
    if isinstance(module, BlurPool2d):
        kernel, stride, dilation = module.filt_size, module.stride, 1
    elif isinstance(module, nn.Conv2d | nn.MaxPool2d):
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation  # type: ignore[assignment]
    elif isinstance(module, nn.AvgPool2d):
        kernel, stride, dilation = module.kernel_size, module.stride, 1  # type: ignore[assignment]
    else:
        return field
    reach = (np.broadcast_to(kernel, 2) - 1) * np.broadcast_to(dilation, 2)
    return size + reach * jump, jump * np.broadcast_to(stride, 2)


def _reads_all(model: Model, layers: Sequence[Layer]) -> dict[str, bool]:
    """Whether the last position of each layer depends on the first pixel."""
    image = blank_images(model.module, model.input.size, 1)
    image[:, :, 0, 0] = math.nan

    def hit(_layer: Layer, positions: torch.Tensor, _prefix: torch.Tensor | None) -> bool:
        return bool(positions[:, -1].isnan().any())

    with capture(model, layers, hit) as run:
        return run(image)
