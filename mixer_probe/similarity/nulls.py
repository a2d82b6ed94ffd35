"""What a similarity reads when the images of one side are shuffled: the floor that a value has to clear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixer_probe.errors import MeasureError
from mixer_probe.results import storable

_LEVEL = 0.95


@storable
@dataclass(frozen=True)
class Null:
    """Null distribution of a matrix of similarities over random pairings of the images, the same for every
    cell.

    `mean` and `quantile95` are [La, Lb]; `maximum` [permutations] is the largest cell of the matrix under
    each pairing, to compare with when the best pair of layers was picked. Quantiles are order statistics:
    under independence a value is above `quantile95` with probability at most 5 %, whatever its distribution
    (Phipson and Smyth 2010)."""

    mean: np.ndarray
    quantile95: np.ndarray
    permutations: int
    maximum: np.ndarray

    @property
    def maximum95(self) -> float:
        """What the largest cell stays below in 95 % of the pairings."""
        return float(upper_quantile(self.maximum))


def upper_quantile(values: np.ndarray, level: float = _LEVEL) -> np.ndarray:
    """The order statistic over axis 0 that a further exchangeable value exceeds with at most 1 - level."""
    rank = math.ceil(level * (len(values) + 1))
    quantile: np.ndarray = np.sort(values, axis=0)[rank - 1]
    return quantile


def check_permutations(permutations: int) -> None:
    """Raise MeasureError for a count that allows no 95 % quantile; 0 means no null."""
    fewest = math.ceil(_LEVEL / (1 - _LEVEL) - 1e-9)
    if permutations != 0 and permutations < fewest:
        raise MeasureError(f"{permutations} permutations give no 95 % quantile: take {fewest} or more, or 0")


@dataclass(frozen=True)
class Pairings:
    """Pairings of n images: image order[i] of one side with image order[i + shift] of the other.

    `order` [n] is a random circular order and `shifts` [s] the distances in it. The shifts of one order form
    a group, so that a test over them keeps its level as one over all permutations does (Hemerik and Goeman
    2018)."""

    order: Tensor
    shifts: Tensor

    def partners(self) -> Tensor:
        """For every shift the image of the other side that each image is paired with, [s, n]."""
        n = len(self.order)
        places = (torch.arange(n) + self.shifts[:, None]) % n
        partners = torch.empty_like(places)
        partners[:, self.order] = self.order[places]
        return partners


def draw_pairings(n: int, permutations: int, seed: int) -> list[Pairings]:
    """The true pairing of `n` images and then `permutations` random ones, up to n - 1 of them from one
    order."""
    generator = np.random.default_rng(seed)
    drawn: list[Pairings] = []
    while not drawn or permutations > 0:
        order = torch.from_numpy(generator.permutation(n))
        shifts = 1 + torch.from_numpy(generator.permutation(n - 1))[:permutations]
        permutations -= len(shifts)
        if not drawn:
            shifts = torch.cat([shifts.new_zeros(1), shifts])
        drawn.append(Pairings(order, shifts))
    return drawn


def null_of(values: np.ndarray) -> Null | None:
    """The null from values [permutations, La, Lb] under random pairings; None without any."""
    if len(values) == 0:
        return None
    finite = np.where(np.isnan(values), -np.inf, values)
    maximum = finite.max(axis=(1, 2))
    return Null(
        mean=values.mean(axis=0),
        quantile95=upper_quantile(values),
        permutations=len(values),
        maximum=np.where(np.isinf(maximum), np.nan, maximum),
    )
