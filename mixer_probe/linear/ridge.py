"""Ridge regression of any number of targets for every penalty, from one eigendecomposition.

With Z [n, p] the scaled features and T [n, k] the centred targets, Z'Z = B diag(e) B' gives W(l2) =
B diag(1 / (e + l2)) B'Z'T for all l2 at once. The leverage of an image z in the fit is h = 1/n +
|B'z|^2 weighted by 1 / (e + l2), and its prediction by the fit to all others is t - (t - f) / (1 -
h), with the fitted value f (Allen 1974, PRESS; Hastie, Tibshirani and Friedman 2009, eq. 7.52).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.linear.scaling import ColumnScaling, block_of


def gram(X: Tensor) -> Tensor:
    """X'X, [p, p] of X [n, p]."""
    # NumPy multiplies a matrix with its own transpose in half the time; torch does not.
    return torch.from_numpy(X.numpy().T @ X.numpy()) if X.device.type == "cpu" else X.T @ X


def eigen(gram: Tensor, zero: float | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r], ascending, and eigenvectors [d, r] of a Gram matrix [d, d], which is
    overwritten.

    Eigenvalues up to `zero` are left out, by default those that are rounding of the largest."""
    if gram.device.type == "cpu":
        values, vectors = map(
            torch.from_numpy,
            linalg.eigh(gram.numpy(), driver="evd", overwrite_a=True, check_finite=False),
        )
    else:
        values, vectors = torch.linalg.eigh(gram)
    if zero is None:
        zero = len(values) * np.finfo(float).eps * float(values[-1].clamp(min=0))
    first = int((values <= zero).sum())
    return values[first:], vectors[:, first:]


@dataclass(frozen=True)
class Ridge:
    """Ridge regressions of k targets on n images for every penalty.

    For r nonzero eigenvalues: `basis` B [p, r] orthonormal, `eigenvalues` e [r], `targets` B'Z'T
    [r, k]; `intercept` [k] is the mean of the targets, which is not penalised."""

    scaling: ColumnScaling
    basis: Tensor
    eigenvalues: Tensor
    targets: Tensor
    intercept: Tensor
    n: int

    @classmethod
    def of(
        cls, X: Any, targets: Tensor, standardize: bool = True, *, dual: bool
    ) -> tuple[Ridge, Tensor]:
        """The regressions of `targets` [n, k] on features `X` [n, p], and the projected training
        images ZB [n, r].

        The eigenvalues are those of Z'Z [p, p], or of ZZ' [n, n] if `dual`."""
        scaling = ColumnScaling.of_columns(X, standardize, targets.device)
        Z = scaling.apply(block_of(X, slice(None), targets.device))
        if dual:
            values, vectors = eigen(gram(Z.T))
            # Singular vectors and values: Z = V diag(root) B'.
            root = values.sqrt()
            basis, projected = (Z.T @ vectors).div_(root), vectors * root
        else:
            values, basis = eigen(gram(Z))
            projected = Z @ basis
        none = values.new_empty(0)
        return cls(scaling, basis, values, none, none, len(Z)).with_targets(
            projected, targets
        ), projected

    def with_targets(self, projected: Tensor, targets: Tensor) -> Ridge:
        """Regressions of other `targets` [n, k] on the same images, of which ZB [n, r] is
        `projected`."""
        intercept = targets.mean(0)
        return replace(self, targets=projected.T @ (targets - intercept), intercept=intercept)

    def project(self, X: Any, rows: slice | np.ndarray = slice(None)) -> Tensor:
        """Images in the basis, B'z [s, r], for some rows of features `X` [n, p]."""
        return self.scaling.apply(block_of(X, rows, self.basis.device)) @ self.basis

    def coefficients(self, l2: float) -> Tensor:
        """W(l2) [p, k], in units of the scaled features."""
        return self.basis @ (self.targets / (self.eigenvalues + l2)[:, None])

    def solved(self, l2: Tensor) -> Tensor:
        """diag(1 / (e + l2)) B'Z'T for every penalty, [r, m, k]."""
        return self.targets[:, None, :] / (self.eigenvalues[:, None] + l2)[:, :, None]

    def fitted(self, projected: Tensor, l2: Tensor) -> Tensor:
        """Predictions [s, m, k] for `projected` images [s, r] by the fits with penalties `l2`
        [m]."""
        weights = self.solved(l2).flatten(1)
        return (projected @ weights).view(len(projected), len(l2), -1).add_(self.intercept)

    def leverage(self, projected: Tensor, l2: Tensor) -> Tensor:
        """Leverages [s, m] of `projected` training images [s, r] in the fits with penalties `l2`
        [m]."""
        leverage = 1 / self.n + projected.square() @ (1 / (self.eigenvalues[:, None] + l2))
        # Where the fit goes through its images, whether the leverage is 1 is left to rounding.
        return leverage.clamp(max=1 - 1e-12)

    def left_out(self, projected: Tensor, targets: Tensor, l2: Tensor) -> Tensor:
        """Predictions [s, m, k] of `projected` training images [s, r] with `targets` [s, k] by the
        fits to all others.

        Exact for the scaling of the whole training set: an image is left out of the regression and
        of the intercept, not of the standard deviations."""
        T = targets[:, None]
        return T - (T - self.fitted(projected, l2)) / (1 - self.leverage(projected, l2))[:, :, None]


def checked_penalties(l2: Any, name: str = "l2") -> np.ndarray:
    """Penalties as a float64 array [m]. Raises MeasureError unless they are positive and finite,
    and there are some."""
    penalties = np.asarray(l2, dtype=np.float64)
    if (
        penalties.ndim != 1
        or len(penalties) == 0
        or not (np.isfinite(penalties) & (penalties > 0)).all()
    ):
        raise MeasureError(f"{name} must be a list of positive numbers, got {l2}")
    return penalties


def default_l2(n: int) -> np.ndarray:
    """15 penalties, two per decade from 1e-4 n to 1e3 n, because Z'Z of standardised features grows
    with n."""
    return np.asarray(n * np.logspace(-4, 3, 15))
