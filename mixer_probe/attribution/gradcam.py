"""Grad-CAM (Selvaraju et al. 2017) for feature maps and for token sequences alike.

map = ReLU(sum_c w_c A_c) with A_c the layer's channel c over its positions and w_c the mean over
positions of the gradient of the target's logit by A_c. What a position is comes from `Layer`:
prefix tokens are left out, whatever the memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

from mixer_probe.attribution.network import (
    last_block,
    patch_grid,
    target_sum,
    tokens_read,
    values_and_gradients,
)
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import MeasureError
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


def default_layer(model: Model) -> Layer:
    """The last block whose positions move the logits.

    After its last block a network that reads a class token ignores every patch; the block before
    still feeds attention. Raises MeasureError for a network without a grid."""
    for run in reversed(model.structure.runs):
        layer = model.layer(run.name)
        if layer.grid and tokens_read(model, layer)[0]:
            return layer
    patch_grid(model)
    # No block moves a logit: `attribute` reports that every gradient is zero.
    return last_block(model)


def gradcam_layer(model: Model, name: str | None) -> Layer:
    """The layer called `name`, or `default_layer`.

    Raises LayerError for an unknown name and MeasureError for a layer without a grid or whose
    positions move no logit."""
    if name is None:
        return default_layer(model)
    layer = model.layer(name)
    if layer.grid is None:
        why = "is pooled" if not layer.positions else "has positions that form no grid"
        raise MeasureError(
            f"Grad-CAM needs a spatial map, and '{layer.name}' {why}; "
            f"'{default_layer(model).name}' works"
        )
    if not tokens_read(model, layer)[0]:
        other = default_layer(model)
        if tokens_read(model, other)[0]:
            raise MeasureError(
                f"no patch of '{layer.name}' affects a logit, because {model.name} uses only its "
                f"class token there; '{other.name}' works"
            )
    return layer


def gradcam_maps(
    model: Model, layer: Layer, x: Tensor, targets: Tensor, relu: bool = True
) -> Tensor:
    """Grad-CAM [B, rows, columns] on the layer's own grid."""
    place = layer.module, layer.call
    pair = values_and_gradients(model, [place], x, target_sum(targets))[0]
    activations, gradients = (positions_and_prefix(t, layer)[0] for t in pair)
    maps = (activations * gradients.mean(1, keepdim=True)).sum(-1)
    assert layer.grid is not None
    maps = maps.reshape(len(x), *layer.grid)
    return torch.relu(maps) if relu else maps
