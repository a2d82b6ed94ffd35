"""`Measure`: a similarity of two representations, and what it declares about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from mixer_probe.similarity.hsic import MINIMUM_IMAGES
from mixer_probe.similarity.inputs import Features, checked_pair
from mixer_probe.similarity.intervals import FISHER, Scale

Invariance = Literal[
    "translation", "isotropic scaling", "permutation", "orthogonal", "invertible linear"
]
P = TypeVar("P")


@dataclass(frozen=True)
class Measure:
    """A measure of representations `X` [n, p] and `Y` [n, q] whose rows are the same images.

    `prepare` does the work that one side needs alone, on raw float64 features that are finite and
    not constant; what it gives can `take` its images in another order. `table` gives the values
    [La, Lb] of prepared layers of one network with those of another. `invariances` are the changes
    of either side that leave the value as it is (permutation: of the channels); the tests check
    each of them, and show that no other holds. `best` is the value of equal representations and one
    end of the range from `lowest` to `highest`: the upper one for a similarity, the lower one for a
    distance. A measure that is not `symmetric` answers for "Y from X". One that is `pairwise` makes
    n x n numbers per layer. One whose values are inner products, up to `finish`, of symmetric
    matrices [n, n] of the layers gives these by `matrix`: all shifts of the images then cost little
    more than one. The interval is symmetric on `scale`, by default Fisher's z; `no_interval` says
    why there is none."""

    name: str
    label: str
    about: str
    source: str
    invariances: tuple[Invariance, ...]
    prepare: Callable[[Tensor], Any]
    table: Callable[[Sequence[Any], Sequence[Any]], Tensor]
    best: float = 1.0
    lowest: float = 0.0
    highest: float = 1.0
    symmetric: bool = True
    minimum_images: int = MINIMUM_IMAGES
    pairwise: bool = False
    matrix: Callable[[Any], Tensor] | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    scale: Scale = FISHER
    no_interval: str = ""

    @property
    def larger_is_closer(self) -> bool:
        """Whether larger values mean more alike."""
        return self.best == self.highest

    @property
    def direction(self) -> int:
        """1 if larger values mean more alike, else -1: values times this compare like
        similarities."""
        return 1 if self.larger_is_closer else -1

    def __call__(self, X: Features, Y: Features) -> float:
        """The value for one pair; NaN if a side is constant.

        Raises MeasureError for other than two axes, different n, too few images, NaN or infinite
        values."""
        x, y = checked_pair(X, Y, self.minimum_images)
        if x is None or y is None:
            return float("nan")
        return float(self.table([self.prepare(x)], [self.prepare(y)])[0, 0])

    def all_pairs(self, features: Sequence[Features]) -> np.ndarray:
        """The values [k, k] of every pair of k representations of the same images, each prepared
        once: the mean of both directions where the measure is not symmetric. NaN and errors are as
        for a single pair."""
        sides = [checked_pair(X, features[0], self.minimum_images)[0] for X in features]
        known = [i for i, side in enumerate(sides) if side is not None]
        prepared = [self.prepare(side) for side in sides if side is not None]
        values = np.full((len(sides), len(sides)), np.nan)
        if known:
            values[np.ix_(known, known)] = self.table(prepared, prepared).cpu().numpy()
        mean: np.ndarray = (values + values.T) / 2
        return mean


def each_pair(value: Callable[[P, P], float], a: Sequence[P], b: Sequence[P]) -> Tensor:
    """The `value` of every pair of prepared layers of two sides, [La, Lb]."""
    return torch.tensor([[value(x, y) for y in b] for x in a], dtype=torch.float64)


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
