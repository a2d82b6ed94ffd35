"""Attention rollout and gradient-weighted attention of ViTs.

Rollout (Abnar and Zuidema 2020): the product over blocks, last to first, of (mean over heads of A + I) / 2.
Gradient-weighted attention (Chefer et al. 2021, "Generic attention-model explainability", self-attention rule): R = I, then for
every block R <- R + mean over heads of ReLU(A * dy/dA) R, with y the target's logit.
Of the resulting matrix [token, token] the rows are averaged that the network reads after its last block (the class token, or all
patches, found by a gradient), and the columns of the patches are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixer_probe.attribution.network import (
    chosen,
    last_block,
    logits_of,
    tapped,
    tokens_read,
    values_and_gradients,
)
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.switches import unfused
from mixer_probe.models.layer import Axes
from mixer_probe.models.model import Model
from mixer_probe.models.structure import BlockRun

_INSTEAD = "'gradcam' and 'integrated_gradients' work for every family"


def attention_places(model: Model) -> list[tuple[str, int]]:
    """Where the attention matrix of each call of a block passes: (path of its attn_drop, call).

    Raises MeasureError for a network without one matrix over all its tokens a block."""
    if model.family != "vit":
        raise MeasureError(f"{model.name} is a {model.family} and has no attention; {_INSTEAD}")
    return [_place(model, run) for run in model.structure.runs]


def _place(model: Model, run: BlockRun) -> tuple[str, int]:
    attention = getattr(run.block.module, "attn", None)
    layer = model.layer(run.name)
    drop = getattr(attention, "attn_drop", None)
    # The matrix passes once per call of the attention, also where the trace saw a fused kernel instead.
    calls = model.structure.parts(run, ("attn",))
    if (
        layer.axes != Axes.BNC.name
        or layer.grid is None
        or not isinstance(drop, nn.Module)
        or not hasattr(attention, "fused_attn")
        or len(calls) != 1
    ):
        raise MeasureError(
            f"'{run.name}' of {model.name} ({type(run.block.module).__name__}) has no single attention matrix over all tokens; "
            f"{_INSTEAD}"
        )
    path, call = calls[0]
    return f"{path}.attn_drop", call


class ReadOut:
    """Which rows of a token matrix become the map, and the grid of its columns."""

    def __init__(self, model: Model) -> None:
        layer = last_block(model)
        self._rows = torch.from_numpy(tokens_read(model, layer)[1])
        self._prefix = layer.prefix_tokens
        assert layer.grid is not None
        self._grid = layer.grid

    def __call__(self, matrix: Tensor) -> Tensor:
        """[B, rows, columns] of the grid from [B, token, token]."""
        rows = matrix[:, self._rows.to(matrix.device)].mean(1)
        return rows[:, self._prefix :].reshape(len(matrix), *self._grid)


def attention_rollout(model: Model, read: ReadOut, x: Tensor) -> Tensor:
    """[B, rows, columns], every row of the product summing to 1 over all tokens; of no class in particular."""
    places = attention_places(model)
    with torch.no_grad(), unfused(model.module), tapped(model.module, places) as caught:
        logits_of(model, x)
    product = _eye_like(_square(caught[places[0]], model))
    for place in places:
        mean = _square(caught[place], model).mean(1)
        product = ((mean + _eye_like(caught[place])) / 2) @ product
    return read(product)


def gradient_attention(model: Model, read: ReadOut, x: Tensor, targets: Tensor) -> Tensor:
    """[B, rows, columns], non-negative; the identity that stands for the tokens themselves is left out."""
    places = attention_places(model)
    with unfused(model.module):
        found = values_and_gradients(model, places, x, lambda logits: chosen(logits, targets).sum())
    relevance = eye = _eye_like(_square(found[0][0], model))
    for attention, gradient in found:
        weighted = torch.relu(attention * gradient).mean(1)
        relevance = relevance + weighted @ relevance
    return read(relevance - eye)


def _square(attention: Tensor, model: Model) -> Tensor:
    if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2]:
        shape = tuple(attention.shape)
        raise MeasureError(f"the attention of {model.name} is {shape}, not [image, head, token, token]; {_INSTEAD}")
    return attention


def _eye_like(attention: Tensor) -> Tensor:
    n = attention.shape[-1]
    return torch.eye(n, device=attention.device, dtype=attention.dtype).expand(len(attention), n, n)
