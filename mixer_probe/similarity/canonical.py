"""Canonical correlation measures: mean CCA, SVCCA (Raghu et al. 2017) and PWCCA (Morcos et al.
2018).

The canonical correlations of `X` [n, p] and `Y` [n, q] are the singular values of Ux' Uy, with
orthonormal bases Ux [n, r] and Uy [n, s] of the centred columns (Bjorck and Golub 1973): every side
is factorised once, and a pair costs one small product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.inputs import Features, centred
from mixer_probe.similarity.intervals import CANONICAL
from mixer_probe.similarity.measure import Measure, each_pair

VARIANCE = 0.99
# Correlations closer than this are one correlation: within it rounding alone would pick the
# variates.
_TIED = 1e-9
# What the mean may lose by taking squares of correlations, which cost less, to first order in the
# rounding.
_LOST = 1e-14
# The same for the mean angle by which rounding turns the variates.
_LOST_TURNING = 3e-12
# Squared singular values below this fraction of the largest one are not taken from inner products.
_SHARE = 1e-4


@dataclass(frozen=True)
class Basis:
    """Orthonormal directions `U` [n, r] of the centred columns, and their `loadings` [r, p]: the
    columns are U @ loadings."""

    U: Tensor
    loadings: Tensor

    def take(self, order: Tensor) -> Self:
        """The same for the images in another `order` [n]."""
        return replace(self, U=self.U[order])


def mean_cca(X: Features, Y: Features) -> float:
    """Mean of the canonical correlations of `X` [n, p] and `Y` [n, q], over the smaller of the two
    ranks.

    In [0, 1], and unchanged by invertible linear maps of either side. 1 by necessity where a side
    has rank n - 1, thus for p >= n - 1 or q >= n - 1 in general position; for independent noise the
    squared correlations have the mean max(p, q) / (n - 1). The rank is that of
    numpy.linalg.matrix_rank, but relative to the features before centring, whose rounding it is:
    columns that are dependent only to float32 precision count as independent.

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN
    or infinite values."""
    return MEAN_CCA(X, Y)


def svcca(X: Features, Y: Features, variance: float = VARIANCE) -> float:
    """Mean canonical correlation of the leading principal components of `X` [n, p] and `Y` [n, q].

    Of each side the fewest components that explain the fraction `variance` of its variance are kept
    (Raghu et al. 2017, "SVCCA: Singular Vector Canonical Correlation Analysis"); 1 keeps all and
    gives `mean_cca`. In [0, 1]; unchanged by orthogonal maps, not by other linear ones, which
    change what leads. NaN and errors as `mean_cca`, and MeasureError for a fraction outside (0,
    1]."""
    if not 0 < variance <= 1:
        raise MeasureError(f"variance {variance} is not a fraction in (0, 1]")
    return replace(SVCCA, prepare=partial(leading_basis, variance=variance))(X, Y)


def pwcca(X: Features, Y: Features) -> float:
    """Canonical correlations of `X` [n, p] and `Y` [n, q], averaged with the weight that each has
    in `X`.

    Projection weighted CCA (Morcos et al. 2018, "Insights on representational similarity in neural
    networks with canonical correlation"): the weight of canonical variate h_i of `X` is sum_j
    |<h_i, x_j>| over the centred columns x_j. The sides are not equal: invertible linear maps of
    `Y` change nothing, but the absolute values depend on the axes of `X`, so that even rotations of
    `X` change the value. Of tied correlations (r + s - n + 1 of them are 1 where the ranks r + s
    exceed n - 1), whose variates are any basis of their span, the variates are taken along the
    principal axes of `X` in that span.

    NaN and errors as `mean_cca`."""
    return PWCCA(X, Y)


def principal(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition U [n, r], S [r], Vh [r, p] of the centred `X` [n, p], r its
    rank.

    Directions at the level of rounding are left out, as numpy.linalg.matrix_rank does."""
    U, S, Vh = torch.linalg.svd(centred(X), full_matrices=False)
    rank = int((S[0] * _rounding(X) < S).sum())
    return U[:, :rank], S[:rank], Vh[:rank]


def _rounding(X: Tensor) -> Tensor:
    """Fraction of the largest singular value of the centred `X` [n, p] that is rounding."""
    X = X / X.abs().max()
    # Relative to the values as they came, which a mean far from zero makes larger than their
    # spread.
    raised = X.norm() / (X - X.mean(0)).norm()
    rounding: Tensor = raised * max(X.shape) * torch.finfo(X.dtype).eps
    return rounding


def basis(X: Tensor) -> Basis:
    """All directions of the centred columns of `X` [n, p]."""
    if X.shape[1] < len(X):
        U, R = torch.linalg.qr(centred(X))
        # All singular values of the triangle R [p, p] must be above rounding for certain. Frobenius
        # norms bound the largest one and that of the inverse; NaN is no certainty.
        inverse = torch.linalg.solve_triangular(
            R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True
        )
        if R.norm() * inverse.norm() * _rounding(X) < 0.1:
            return Basis(U, R)
    U, S, Vh = principal(X)
    return Basis(U, S[:, None] * Vh)


def leading_basis(X: Tensor, variance: float = VARIANCE) -> Basis:
    """The fewest principal components of `X` [n, p] that explain the fraction `variance` of its
    variance."""
    if X.shape[1] < len(X):
        # From the inner products of the columns, unless these have lost some of it.
        x = centred(X)
        squares, axes = (found.flip(-1) for found in torch.linalg.eigh(x.T @ x))
        kept = _kept(squares, variance)
        if squares[kept - 1] > squares[0] * max(_SHARE, float(10 * _rounding(X)) ** 2):
            scores = x @ axes[:, :kept]
            # Orthonormal but for rounding that the smaller ones have raised, so that the triangle
            # is almost diagonal.
            triangle = torch.linalg.cholesky(scores.T @ scores).mT
            U = torch.linalg.solve_triangular(triangle, scores, upper=True, left=False)
            return Basis(U, triangle @ axes[:, :kept].T)
    U, S, Vh = principal(X)
    kept = _kept(S.square(), variance)
    return Basis(U[:, :kept], S[:kept, None] * Vh[:kept])


def _kept(squares: Tensor, variance: float) -> int:
    """How many of the squared singular values, largest first, make up the fraction `variance` of
    their sum."""
    left_out = squares.flip(0).cumsum(0).flip(0)
    # The margin is for a fraction that is met exactly, where rounding would decide.
    return int((left_out > (1 - variance) * left_out[0] * (1 + 1e-12)).sum())


def _mean_correlation(x: Basis, y: Basis) -> float:
    """Mean canonical correlation, from squares where none is so small that its root has lost
    digits."""
    matrix = x.U.T @ y.U
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    roots = torch.linalg.eigvalsh(matrix.T @ matrix).sqrt()
    lost = torch.finfo(roots.dtype).eps * roots[-1].square() * (0.5 / roots).mean()
    return float(roots.mean() if lost < _LOST else torch.linalg.svdvals(matrix).mean())


def _weighted_correlation(x: Basis, y: Basis) -> float:
    """Mean of the canonical correlations with the weights sum_j |<h_i, x_j>| of the variates h_i in
    the columns of `x`."""
    cross, found = x.U.T @ y.U, None
    if cross.shape[0] <= cross.shape[1]:
        squares, left = (part.flip(-1) for part in torch.linalg.eigh(cross @ cross.T))
        # Rounding may leave a square of zero a little below it.
        gaps = (-torch.diff(squares, append=squares.new_zeros(1))).clamp_min(0)
        # Where two squares nearly coincide, rounding would turn the variates.
        if torch.finfo(squares.dtype).eps * squares[0] * (1 / gaps).mean() < _LOST_TURNING:
            found = left, squares.sqrt()
    left, correlations = found or torch.linalg.svd(cross, full_matrices=False)[:2]
    projections = left.T @ x.loadings
    steps = correlations[:-1] - correlations[1:] > _TIED
    if not bool(steps.all()):
        groups = list(projections.tensor_split((steps.nonzero()[:, 0] + 1).tolist()))
        for i, group in enumerate(groups):
            if len(group) > 1:
                # Tied correlations: the variates along the principal axes of `x` in their span.
                _, S, Vh = torch.linalg.svd(group, full_matrices=False)
                groups[i] = S[:, None] * Vh
        projections = torch.cat(groups)
    weights = projections.abs().sum(1)
    return float(weights @ correlations / weights.sum())


MEAN_CCA = Measure(
    name="cca",
    label="mean CCA",
    about=(
        "Mean canonical correlation; 1 by necessity where a side has as many dimensions as there "
        "are images."
    ),
    source="Hotelling 1936; Kornblith et al. 2019",
    invariances=(
        "translation",
        "isotropic scaling",
        "permutation",
        "orthogonal",
        "invertible linear",
    ),
    prepare=basis,
    table=partial(each_pair, _mean_correlation),
    scale=CANONICAL,
)

SVCCA = Measure(
    name="svcca",
    label="SVCCA",
    about=(
        "Mean canonical correlation of the principal components that explain 99 % of the variance "
        "of each side."
    ),
    source="Raghu et al. 2017",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=leading_basis,
    table=partial(each_pair, _mean_correlation),
    scale=CANONICAL,
)

# Invertible maps of Y change nothing either, but those of X do, and a declared invariance holds for
# both sides.
PWCCA = Measure(
    name="pwcca",
    label="PWCCA",
    about=(
        "Canonical correlations averaged with the weight that each variate has in the channels of "
        "the first side."
    ),
    source="Morcos et al. 2018",
    invariances=("translation", "isotropic scaling", "permutation"),
    prepare=basis,
    table=partial(each_pair, _weighted_correlation),
    scale=CANONICAL,
    symmetric=False,
)
