"""What a similarity reads when the images of one side are shuffled: the floor that a value has to
clear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.result import storable
from mixer_probe.similarity.hsic import Estimator
from mixer_probe.stats import max_null, upper_quantile


@storable
@dataclass(frozen=True)
class Null:
    """Null distribution of a matrix of similarities over random pairings of the images, the same
    for every cell.

    `mean` and `quantile95` are [La, Lb]; 95 % of the pairings are not closer than `quantile95`,
    which is the lower 5 % quantile where smaller values mean more alike. `maximum` [permutations]
    is the closest cell of the matrix under each pairing, to compare with when the best pair of
    layers was picked; `row_maximum` [permutations, La] and `column_maximum` [permutations, Lb] are
    the same for the best match of one layer. Quantiles are order statistics: under independence a
    value is beyond `quantile95` with probability at most 5 %, whatever its distribution (Phipson
    and Smyth 2010). `method` says which images were paired."""

    mean: Annotated[np.ndarray, "layer_a", "layer_b"]
    quantile95: Annotated[np.ndarray, "layer_a", "layer_b"]
    permutations: int
    maximum: Annotated[np.ndarray, "permutation"]
    row_maximum: Annotated[np.ndarray | None, "permutation", "layer_a"] = None
    column_maximum: Annotated[np.ndarray | None, "permutation", "layer_b"] = None
    direction: int = 1
    method: str = "random pairings of all images"

    @property
    def maximum95(self) -> float:
        """What the closest cell stays within in 95 % of the pairings."""
        return float(upper_quantile(self.maximum, direction=self.direction))

    @property
    def row_maximum95(self) -> np.ndarray | None:
        """As `maximum95` for the best match of each layer of A, [La]."""
        return (
            None
            if self.row_maximum is None
            else upper_quantile(self.row_maximum, direction=self.direction)
        )


@dataclass(frozen=True)
class Pairings:
    """Pairings of n images: image order[i] of one side with image order[i + shift] of the other.

    `order` [n] is a random circular order and `shifts` [s] the distances in it. The shifts of one
    order form a group, so that a test over them keeps its level as one over all permutations does
    (Hemerik and Goeman 2018)."""

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
    """The true pairing of `n` images and then `permutations` random ones, up to n - 1 of them from
    one order."""
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


def null_of(
    values: np.ndarray, direction: int = 1, method: str = "random pairings of all images"
) -> Null | None:
    """The null from values [permutations, La, Lb] under random pairings; None without any."""
    if len(values) == 0:
        return None
    return Null(
        mean=values.mean(axis=0),
        quantile95=upper_quantile(values, direction=direction),
        permutations=len(values),
        maximum=max_null(values, (1, 2), direction),
        row_maximum=max_null(values, (2,), direction),
        column_maximum=max_null(values, (1,), direction),
        direction=direction,
        method=method,
    )


@dataclass(frozen=True)
class Traces:
    """What the first two moments of the permutation null of biased CKA need of the centred Gram
    matrices K of the layers of one side: tr K, |K|^2 and the sum of squares of K's diagonal, [L]
    each."""

    trace: Tensor
    power: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, grams: Sequence[Tensor]) -> Traces:
        """From centred Gram matrices [n, n]."""
        trace = torch.stack([K.trace() for K in grams])
        power = torch.stack([K.square().sum() for K in grams])
        return cls(trace, power, torch.stack([K.diagonal().square().sum() for K in grams]))


def permutation_moments(
    n: int, estimator: Estimator, a: Traces, b: Traces
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [La, Lb] of CKA over all n! pairings of the images, exactly.

    Unbiased: 0 and sqrt(2 / (n (n - 3))) whatever the features are, since all rows and the diagonal
    of U-centred Gram matrices are 0. Biased: the moments of the RV coefficient of Kazi-Aoual et al.
    1995 (Computational Statistics & Data Analysis 20, "Refined approximations to permutation tests
    for multivariate inference")."""
    if estimator == "unbiased":
        zero = torch.zeros(len(a.trace), len(b.trace), dtype=torch.float64)
        return zero, torch.full_like(zero, math.sqrt(2 / (n * (n - 3))))
    norm = torch.outer(a.power, b.power)
    mean = torch.outer(a.trace, b.trace) / (n - 1) / norm.sqrt()
    common = torch.outer(_spread(a, n), _spread(b, n)) * 2 / ((n - 1) ** 2 * (n + 1) * (n - 2))
    peaks = torch.outer(_peaks(a, n), _peaks(b, n)) / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return mean, ((common + peaks) / norm).clamp_min(0).sqrt()


def _spread(side: Traces, n: int) -> Tensor:
    return (n - 1) * side.power - side.trace**2


def _peaks(side: Traces, n: int) -> Tensor:
    return n * (n + 1) * side.diagonal - (n - 1) * (side.trace**2 + 2 * side.power)


def rescaled(
    drawn: Tensor, of_sample: tuple[Tensor, Tensor], of_all: tuple[Tensor, Tensor]
) -> Tensor:
    """Null values [s, La, Lb] of a sample of the images moved to the exact mean and standard
    deviation for all images."""
    return of_all[0] + (drawn - of_sample[0]) / of_sample[1] * of_all[1]
