"""Attention rollout and gradient-weighted attention of ViTs.

Rollout (Abnar and Zuidema 2020): the product over blocks, last to first, of (mean over heads of A +
I) / 2. Gradient-weighted attention (Chefer et al. 2021, "Generic attention-model explainability",
self-attention rule): R = I, then for every block R <- R + mean over heads of ReLU(A * dy/dA) R,
with y the target's logit. Of the resulting matrix [token, token] the rows are averaged that the
network reads after its last block (the class token, or all patches, found by a gradient), and of
the columns those of the patches remain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixer_probe.attribution.network import (
    Place,
    last_block,
    logits_of,
    record_outputs,
    target_sum,
    tokens_read,
    values_and_gradients,
)
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.switches import unfused
from mixer_probe.models.layer import Axes
from mixer_probe.models.model import Model

_ALTERNATIVES = "'gradcam' and 'integrated_gradients' work for every family"


def attention_places(model: Model) -> list[Place]:
    """Where the attention matrix of each call of a block passes: (path of its attn_drop, call).

    Raises MeasureError for a network without one attention matrix over all its tokens per block."""
    if model.family != "vit":
        raise MeasureError(
            f"{model.name} is a {model.family} and has no attention; {_ALTERNATIVES}"
        )
    places, structure = [], model.structure
    for run in structure.runs:
        attention, layer = getattr(run.block.module, "attn", None), structure.find(run.name)
        # The matrix passes once per call of the attention, also where the trace recorded a fused
        # kernel instead.
        calls = structure.parts(run, ("attn",))
        over_tokens = layer.axes == Axes.BNC.name and layer.grid is not None
        explicit = isinstance(getattr(attention, "attn_drop", None), nn.Module) and hasattr(
            attention, "fused_attn"
        )
        if not (over_tokens and explicit and len(calls) == 1):
            raise MeasureError(
                f"'{run.name}' of {model.name} ({type(run.block.module).__name__}) has no single "
                f"attention matrix over all tokens; {_ALTERNATIVES}"
            )
        path, call = calls[0]
        places.append((f"{path}.attn_drop", call))
    return places


class ReadOut:
    """Reduces a token matrix to a map: the mean of the rows that the logits read, on the grid of
    its columns."""

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


def rollout(model: Model, read: ReadOut, x: Tensor) -> Tensor:
    """Attention rollout [B, rows, columns]: each row of the product sums to 1 over all tokens,
    whatever the class."""
    places = attention_places(model)
    with torch.no_grad(), unfused(model.module), record_outputs(model.module, places) as attention:
        logits_of(model, x)
    product = _eye_like(_square(attention[places[0]], model))
    for place in places:
        mean = _square(attention[place], model).mean(1)
        product = ((mean + _eye_like(attention[place])) / 2) @ product
    return read(product)


def relevance(model: Model, read: ReadOut, x: Tensor, targets: Tensor) -> Tensor:
    """Gradient-weighted attention [B, rows, columns], non-negative, without the identity of the
    recursion."""
    places = attention_places(model)
    with unfused(model.module):
        found = values_and_gradients(model, places, x, target_sum(targets))
    total = eye = _eye_like(_square(found[0][0], model))
    for attention, gradient in found:
        weighted = torch.relu(attention * gradient).mean(1)
        total = total + weighted @ total
    return read(total - eye)


def _square(attention: Tensor, model: Model) -> Tensor:
    if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2]:
        shape = tuple(attention.shape)
        raise MeasureError(
            f"the attention of {model.name} is {shape}, not [image, head, token, token]; "
            f"{_ALTERNATIVES}"
        )
    return attention


def _eye_like(attention: Tensor) -> Tensor:
    n = attention.shape[-1]
    return torch.eye(n, device=attention.device, dtype=attention.dtype).expand(len(attention), n, n)
