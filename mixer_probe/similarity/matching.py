"""Soft matching of units, after Khosla and Williams 2024, "Soft Matching Distance: A metric on
neural representations that captures single-neuron tuning", in the form of correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye_array, kron, vstack
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.inputs import CONSTANT, Features
from mixer_probe.similarity.measure import Measure, each_pair

# Beyond so many copies of a unit the assignment takes longer than the linear programme, and beyond
# so many in all its matrix takes more than half a gigabyte.
_MOST_COPIES = 8
_LARGEST_ASSIGNMENT = 8192


@dataclass(frozen=True)
class Units:
    """Units `z` [n, p] with zero mean and norm 1 over the images; constant ones are zero."""

    z: Tensor

    def take(self, order: Tensor) -> Self:
        """The same for the images in another `order` [n]."""
        return replace(self, z=self.z[order])


def soft_matching(X: Features, Y: Features) -> float:
    """Mean Pearson correlation of matched units (columns) of `X` [n, p] and `Y` [n, q], under the
    best soft matching.

    max sum_ij P_ij corr(x_i, y_j) over the transport plans P >= 0 [p, q] whose rows sum to 1 / p
    and columns to 1 / q: for p = q the best permutation, otherwise units of the wider side share
    one of the narrower. Between -1 (one unit against its negative) and 1; at least the mean of all
    correlations, which the uniform plan gives. Unchanged by permutation, positive scaling and
    translation of each unit, not by rotation. Constant units correlate 0, with themselves too:
    equal representations of which a fraction d is constant have the value 1 - d.

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN
    or infinite values."""
    return SOFT_MATCHING(X, Y)


def units(X: Tensor) -> Units:
    """The columns of `X` [n, p] as `Units`."""
    X = X / X.abs().max()
    deviation = X - X.mean(0)
    # Both norms of each unit are of the same n numbers: their ratio is the spread as a fraction of
    # the magnitude.
    norm, magnitude = deviation.norm(dim=0), X.norm(dim=0)
    z = deviation / norm
    return Units(torch.where(norm > CONSTANT * magnitude, z, 0.0))


def best_mean(values: np.ndarray) -> float:
    """Maximum of sum_ij P_ij values_ij over transport plans P between uniform weights, for `values`
    [p, q]."""
    p, q = values.shape
    size = math.lcm(p, q)
    if size > min(_LARGEST_ASSIGNMENT, _MOST_COPIES * max(p, q)):
        rows, columns = kron(eye_array(p), np.ones((1, q))), kron(np.ones((1, p)), eye_array(q))
        # In the scale of the plan times p, which keeps entries far above the tolerance of the
        # solver.
        sums = np.concatenate([np.ones(p), np.full(q, p / q)])
        result = linprog(
            -values.ravel(), A_eq=vstack([rows, columns]).tocsr(), b_eq=sums, method="highs"
        )
        if not result.success:
            raise MeasureError(f"the matching of {p} and {q} units failed: {result.message}")
        return float(-result.fun / p)
    # With the plan times lcm(p, q) all its sums are integers, so that a vertex of the polytope, and
    # with it an optimum, is a matrix of integers (total unimodularity): a permutation of lcm / p
    # copies of each row and lcm / q of each column.
    copies = values.repeat(size // p, axis=0).repeat(size // q, axis=1)
    return float(copies[linear_sum_assignment(copies, maximize=True)].mean())


SOFT_MATCHING = Measure(
    name="soft_matching",
    label="soft matching",
    about=(
        "Mean correlation of units over the images, when the units of both sides are matched as "
        "well as possible."
    ),
    source="Khosla and Williams 2024",
    invariances=("translation", "isotropic scaling", "permutation"),
    prepare=units,
    table=partial(each_pair, lambda x, y: best_mean((x.z.T @ y.z).cpu().numpy())),
    lowest=-1.0,
)
