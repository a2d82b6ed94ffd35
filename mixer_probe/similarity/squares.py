"""Representations as symmetric matrices over pairs of images, and measures that are inner products of such matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Square:
    """A symmetric `matrix` [n, n] of norm 1 over pairs of images."""

    matrix: Tensor

    def take(self, order: Tensor) -> Self:
        """The same for the images in another `order` [n]."""
        order = order.to(self.matrix.device)
        return type(self)(self.matrix.index_select(0, order).index_select(1, order))


def matrix_of(square: Square) -> Tensor:
    """The matrix [n, n], as `Measure.matrix` gives it."""
    return square.matrix


def inner_products(a: Sequence[Square], b: Sequence[Square]) -> Tensor:
    """Inner products [La, Lb] of the matrices of two sides."""
    left, right = (torch.stack([square.matrix.flatten() for square in side]) for side in (a, b))
    return left @ right.T
