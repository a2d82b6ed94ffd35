"""Grad-CAM (Selvaraju et al. 2017) for feature maps and for token sequences alike.

map = ReLU(sum_c w_c A_c) with A_c the layer's channel c over its positions and w_c the mean over positions of the gradient of the
target's logit by A_c. What a position is comes from `Layer`: prefix tokens are left out, whatever the memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

from mixer_probe.attribution.network import chosen, last_block, patch_grid, tokens_read, values_and_gradients
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import MeasureError
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


def gradcam_layer(model: Model, name: str | None) -> Layer:
    """The layer asked for, or the last block whose positions move the logits.

    After its last block a network that reads a class token ignores every patch; the block before still feeds attention.
    Raises LayerError for an unknown name and MeasureError for a layer or network without a grid, and for a layer whose positions
    are not read."""
    if name is not None:
        layer = model.layer(name)
        _check(model, layer)
        return layer
    for run in reversed(model.structure.runs):
        layer = model.layer(run.name)
        if layer.grid and tokens_read(model, layer)[0]:
            return layer
    patch_grid(model)
    # No block moves a logit: whoever asked hears that every gradient is zero.
    return last_block(model)


def _check(model: Model, layer: Layer) -> None:
    if layer.grid is None:
        why = "is pooled" if not layer.positions else "has positions that form no grid"
        raise MeasureError(f"Grad-CAM needs a spatial map, and '{layer.name}' {why}; {_instead(model)} works")
    if not tokens_read(model, layer)[0] and tokens_read(model, last_block_before(model))[0]:
        raise MeasureError(
            f"no patch of '{layer.name}' affects a logit, because {model.name} uses only its class token there; "
            f"{_instead(model)} works"
        )


def last_block_before(model: Model) -> Layer:
    """The layer that Grad-CAM takes by itself."""
    return gradcam_layer(model, None)


def _instead(model: Model) -> str:
    return f"'{last_block_before(model).name}'"


def gradcam(model: Model, layer: Layer, x: Tensor, targets: Tensor, relu: bool = True) -> Tensor:
    """[B, rows, columns] on the layer's own grid."""
    place = layer.module, layer.call
    value, gradient = values_and_gradients(model, [place], x, lambda logits: chosen(logits, targets).sum())[0]
    activations, gradients = (positions_and_prefix(t, layer)[0] for t in (value, gradient))
    maps = (activations * gradients.mean(1, keepdim=True)).sum(-1)
    assert layer.grid is not None
    maps = maps.reshape(len(x), *layer.grid)
    return torch.relu(maps) if relu else maps
