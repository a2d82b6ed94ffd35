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


def positions_and_prefix(
    output: torch.Tensor, layer: Layer
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(positions [image, position, channel], prefix tokens [image, token, channel] or None) of a
    raw output.

    A pooled output [image, channel] has one position. Raises LayerError if the output has other
    sizes than the layer."""
    sequence = _SEQUENCE[Axes[layer.axes]](output)
    prefix = layer.prefix_tokens
    if sequence.shape[1] != max(layer.positions, 1) + prefix or sequence.shape[2] != layer.channels:
        raise LayerError(
            f"'{layer.name}' returned shape {tuple(output.shape)} where {max(layer.positions, 1)} "
            f"positions and {layer.channels} channels were expected; was the network changed after "
            "it was loaded?"
        )
    return sequence[:, prefix:], sequence[:, :prefix] if prefix else None
