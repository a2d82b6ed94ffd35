"""The logits of a pre-norm network as a sum over what its branches add to the residual stream.

The stream after the last block is the stream before the first plus the outputs of all branches,
exactly. What follows is affine once its norms are frozen at the statistics that they have, so that
a logit is a sum of one term per branch, of the stem, and of a constant (biases)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm import RmsNorm
from torch import Tensor, nn

from mixer_probe.core.hooks import Call
from mixer_probe.mixing.branches import Branches
from mixer_probe.models.layer import Axes
from mixer_probe.models.model import Model

_NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)
_NO_SUM = (
    "its blocks do not only add branches to one stream: there are activations after the sum, other "
    "grids, or several branches side by side"
)
_NOT_LINEAR = "what follows its last block is not linear, even with its norms frozen"


class LogitParts:
    """Takes part in forward passes, and splits the score of every image: the logit of its class
    minus the mean over classes.

    `reason` says why that is impossible, "" where it is possible. After a pass `split` gives the
    terms."""

    def __init__(self, model: Model, ends: tuple[Branches, ...]) -> None:
        blocks = [model.layer(e.block) for e in ends]
        self._last = (blocks[-1].module, blocks[-1].call)
        sums = all(
            layer.axes == Axes.BNC.name
            and e.spatial is not None
            and e.skip is None
            and e.total == layer.module
            and not e.activation
            for e, layer in zip(ends, blocks, strict=True)
        )
        self.reason = "" if sums else _NO_SUM
        inside = tuple(f"{block.path}." for block in model.structure.blocks)
        self.norms = [
            path
            for path, module in model.module.named_modules()
            if isinstance(module, _NORMS) and not path.startswith(inside)
        ]
        self._terms: list[Tensor] = []
        self._stream = self._end = torch.zeros(0)
        self._in_tail = False

    def begin(self, stream: Tensor) -> None:
        """The stream before the first block."""
        self._terms, self._in_tail, self._end = [stream.detach()], False, stream

    def given(self, stream: Tensor) -> None:
        """What a block is given: the stream that the last one returned, or this is no sum."""
        if stream is not self._end:
            self.reason = self.reason or _NO_SUM

    def add(self, branch: Tensor) -> None:
        """What a branch adds to the stream."""
        self._terms.append(branch.detach())

    def finish(self, call: Call) -> Tensor | None:
        """What a block returns; for the last one, in its place the stream and zeros, of which the
        rest of the network makes the logits and their constant."""
        self._end = call.output
        if self.reason or (call.path, call.number) != self._last:
            return None
        self._in_tail = True
        self._stream = call.output.detach().requires_grad_()
        return torch.cat([self._stream, torch.zeros_like(self._stream)])

    def frozen(self, call: Call) -> Tensor | None:
        """What a norm after the last block returns, with the scale that it has for the images."""
        if not self._in_tail or self.reason:
            return None
        x: Tensor = call.args[0]
        norm: Any = call.module
        centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
        own = centred[: len(x) // 2].detach().square().mean(-1, keepdim=True)
        scale = (own + (torch.finfo(x.dtype).eps if norm.eps is None else norm.eps)).rsqrt()
        found = centred * torch.cat([scale, scale])
        weight, bias = norm.weight, getattr(norm, "bias", None)
        found = found if weight is None else found * weight
        return found if bias is None else found + bias

    def split(self, logits: Any, classes: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """(terms [image, 1 + branch], constant [image], score [image]) of a pass, the stem first;
        None where that is impossible.

        `classes` are the images' own, None for those with the largest logit."""
        if self.reason:
            return None
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            self.reason = "it has no logits [image, class]"
            return None
        own, constant = logits.chunk(2)
        target = own.argmax(1) if classes is None else classes.to(own.device)
        scores = [one.gather(1, target[:, None])[:, 0] - one.mean(1) for one in (own, constant)]
        (gradient,) = torch.autograd.grad(scores[0].sum(), self._stream)
        wide = gradient.double()
        terms = torch.stack(
            [torch.einsum("bnc,bnc->b", wide, term.double()) for term in self._terms], 1
        )
        score, rest = (one.detach().double() for one in scores)
        away = (terms.sum(1) + rest - score).abs()
        size = terms.abs().sum(1) + rest.abs() + score.abs()
        # Rounding leaves some 1e-6 of the terms in float32.
        close = 1e-9 if own.dtype is torch.float64 else 1e-3 if own.dtype is torch.float32 else 0.1
        if not bool((away <= close * size + 1e-12).all()):
            self.reason = _NOT_LINEAR
            return None
        return terms, rest, score
