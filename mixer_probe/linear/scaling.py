"""Features in float64, block by block, and their standardisation by the training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.memory import ROWS, at_once, slices

_FULL = ("float64", "int64", "int32")


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices that cover `n` rows, in blocks of at most 4 million numbers for `width` numbers per
    row."""
    # A block and what is computed of it, in float64.
    return slices(n, min(ROWS, at_once(2 * 8 * width, least=64)))


def block_of(X: Any, rows: slice | np.ndarray, device: torch.device | None = None) -> Tensor:
    """A float64 copy of some rows of `X` [n, p], an array, `Rows` of one or a tensor; by default on
    the device of the tensor."""
    if not isinstance(X, Tensor):
        return torch.from_numpy(np.array(X[rows], dtype=np.float64)).to(device or "cpu")
    part = X.detach()[rows]
    if part.device.type == "mps":
        # Metal has no float64.
        part = part.cpu()
    return part.to(device or part.device, torch.float64, copy=True)


def resolution(X: Any) -> float:
    """Relative size of the last digit of `X`: that of float32 for narrower types too."""
    return float(np.finfo(np.float64 if str(X.dtype).endswith(_FULL) else np.float32).eps)


@dataclass(frozen=True)
class ColumnScaling:
    """Column means and scales [p] of the training images.

    The scale of a constant column is infinite, so that the column becomes 0 for new images too."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(
        cls,
        mean: Tensor,
        variance: Tensor,
        standardize: bool,
        eps: float = float(np.finfo(float).eps),
    ) -> ColumnScaling:
        """From means and variances [p] (over n) of features that are exact to `eps`; the scale is
        the deviation, or 1."""
        deviation = variance.clamp(min=0).sqrt()
        # Equal numbers have a deviation of some units in the last place of their mean.
        constant = deviation <= 10 * eps * mean.abs()
        return cls(
            mean,
            torch.where(
                constant, torch.inf, deviation if standardize else torch.ones_like(deviation)
            ),
        )

    @classmethod
    def of_columns(
        cls, X: Any, standardize: bool = True, device: torch.device | None = None
    ) -> ColumnScaling:
        """Of the columns of `X` [n, p], in float64 and two passes."""
        n, p = X.shape
        mean = torch.zeros(p, dtype=torch.float64, device=device)
        for rows in blocks(n, p):
            mean += block_of(X, rows, device).sum(0) / n
        variance = torch.zeros_like(mean)
        for rows in blocks(n, p):
            variance += block_of(X, rows, device).sub_(mean).square_().sum(0) / n
        return cls.of(mean, variance, standardize, resolution(X))

    def apply(self, X: Tensor) -> Tensor:
        """Float64 features `X` [n, p] centred and scaled, in place."""
        return X.sub_(self.mean).div_(self.scale)
