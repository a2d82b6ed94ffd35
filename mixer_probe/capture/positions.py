"""From a module's raw output to `[image, position, channel]`, by the axes that the layer states. Views where possible."""

from __future__ import annotations

import torch

from mixer_probe.core.errors import LayerError
from mixer_probe.models.layer import Axes, Layer


def positions_and_prefix(output: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(positions [image, position, channel], prefix tokens [image, token, channel] or None) of a raw output.

    A pooled output [image, channel] has one position. Raises LayerError if the output has other sizes than the layer."""
    sequence = _sequence(output, Axes[layer.axes])
    prefix = layer.prefix_tokens
    if sequence.shape[1] != max(layer.positions, 1) + prefix or sequence.shape[2] != layer.channels:
        raise LayerError(
            f"'{layer.name}' returned shape {tuple(output.shape)} where {max(layer.positions, 1)} positions and "
            f"{layer.channels} channels were expected; was the network changed after it was loaded?"
        )
    return sequence[:, prefix:], sequence[:, :prefix] if prefix else None


def _sequence(x: torch.Tensor, axes: Axes) -> torch.Tensor:
    if axes is Axes.BC:
        return x.reshape(x.shape[0], 1, -1)
    if axes is Axes.BNC:
        return x
    if axes in (Axes.BCN, Axes.BCU):
        return x.transpose(1, 2)
    if axes is Axes.BCHW:
        return x.flatten(2).transpose(1, 2)
    if axes is Axes.BHWC:
        return x.flatten(1, 2)
    return (x if axes is Axes.BNHD else x.transpose(1, 2)).flatten(2)
