"""From a module's raw output to `[image, position, channel]`, by the axes that the layer states.
Views where possible."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mixer_probe.core.errors import LayerError
from mixer_probe.models.layer import Axes, Layer

# From the axes of an output to [image, token, channel], views where possible.
_SEQUENCE: dict[Axes, Callable[[torch.Tensor], torch.Tensor]] = {
    Axes.BC: lambda x: x.reshape(x.shape[0], 1, -1),
    Axes.BNC: lambda x: x,
    Axes.BCN: lambda x: x.transpose(1, 2),
    Axes.BCU: lambda x: x.transpose(1, 2),
    Axes.BCHW: lambda x: x.flatten(2).transpose(1, 2),
    Axes.BHWC: lambda x: x.flatten(1, 2),
    Axes.BNHD: lambda x: x.flatten(2),
    Axes.BHND: lambda x: x.transpose(1, 2).flatten(2),
}


_RAW: dict[Axes, Callable[[torch.Tensor, torch.Size], torch.Tensor]] = {
    Axes.BC: lambda x, shape: x.reshape(shape),
    Axes.BNC: lambda x, shape: x,
    Axes.BCN: lambda x, shape: x.transpose(1, 2),
    Axes.BCU: lambda x, shape: x.transpose(1, 2),
    Axes.BCHW: lambda x, shape: x.transpose(1, 2).reshape(shape),
    Axes.BHWC: lambda x, shape: x.reshape(shape),
    Axes.BNHD: lambda x, shape: x.reshape(shape),
    Axes.BHND: lambda x, shape: x.reshape(*x.shape[:2], shape[1], shape[3]).transpose(1, 2),
}


def tokens(output: torch.Tensor, layer: Layer) -> torch.Tensor:
    """A raw output as [image, token, channel]: the prefix tokens, then the positions.

    A pooled output [image, channel] has one position. Raises LayerError if the output has other
    sizes than the layer."""
    sequence = _SEQUENCE[Axes[layer.axes]](output)
    expected = max(layer.positions, 1) + layer.prefix_tokens, layer.channels
    if tuple(sequence.shape[1:]) != expected:
        raise LayerError(
            f"'{layer.name}' returned shape {tuple(output.shape)} where {max(layer.positions, 1)} "
            f"positions and {layer.channels} channels were expected; was the network changed after "
            "it was loaded?"
        )
    return sequence


def raw(sequence: torch.Tensor, layer: Layer, shape: torch.Size) -> torch.Tensor:
    """The inverse of `tokens`: a raw output of that shape from [image, token, channel]."""
    return _RAW[Axes[layer.axes]](sequence, shape)


def positions_and_prefix(
    output: torch.Tensor, layer: Layer
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(positions [image, position, channel], prefix tokens [image, token, channel] or None) of a
    raw output; see `tokens`."""
    sequence, prefix = tokens(output, layer), layer.prefix_tokens
    return sequence[:, prefix:], sequence[:, :prefix] if prefix else None
