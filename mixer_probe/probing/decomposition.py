"""Ridge regression of any targets on a feature matrix in memory, with the leverages of all its rows.

With Z [n, p] the scaled features and T the centred targets, Z'Z = Q diag(e) Q' gives W(l2) = Q diag(1 / (e + l2)) Q'Z'T for
all l2 at once; for p > n the same follows from ZZ'. `solution` has the same for classes, from moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import linalg

Form = Literal["auto", "primal", "dual"]


@dataclass(frozen=True)
class Scaling:
    """Column means and scales [p] of the training images.

    The scale of a constant column is infinite, so that it becomes 0 for new images too."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, standardize: bool) -> Scaling:
        """Means of `X` [n, p], and its standard deviations (over n) or ones."""
        mean = X.mean(axis=0)
        deviation = X.std(axis=0)
        # Equal numbers have a deviation of some units in the last place of their mean.
        constant = deviation <= 10 * np.finfo(float).eps * np.abs(mean)
        scale = deviation if standardize else np.ones_like(deviation)
        return cls(mean, np.where(constant, np.inf, scale))

    def apply(self, X: np.ndarray) -> np.ndarray:
        """`X` [n, p] centred and scaled."""
        scaled: np.ndarray = (X - self.mean) / self.scale
        return scaled


@dataclass(frozen=True)
class Decomposition:
    """Ridge regression of centred targets on centred features for any l2, from one eigendecomposition.

    For r nonzero eigenvalues: W(l2) = `basis` [p, r] diag(1 / (`eigenvalues` + l2)) `targets` [r, k]; the fit
    on the training images has `fitted` [n, r] in place of the basis, and its leverages are
    `leverage` [n, r] times 1 / (eigenvalues + l2)."""

    basis: np.ndarray
    eigenvalues: np.ndarray
    targets: np.ndarray
    fitted: np.ndarray
    leverage: np.ndarray

    @classmethod
    def of(cls, Z: np.ndarray, T: np.ndarray, form: Form = "auto") -> Decomposition:
        """Decompose Z'Z (primal) or ZZ' (dual), by default the smaller; Z [n, p], T [n, k]."""
        dual = form == "dual" or (form == "auto" and Z.shape[1] > Z.shape[0])
        values, vectors = _eigen(Z @ Z.T if dual else Z.T @ Z)
        if dual:
            fitted = vectors * values
            return cls(Z.T @ vectors, values, vectors.T @ T, fitted, vectors * fitted)
        fitted = Z @ vectors
        return cls(vectors, values, fitted.T @ T, fitted, fitted**2)

    def coefficients(self, l2: float) -> np.ndarray:
        """W(l2) [p, k]."""
        weights: np.ndarray = self.basis @ self.solved(l2)
        return weights

    def solved(self, l2: float) -> np.ndarray:
        """diag(1 / (eigenvalues + l2)) targets, [r, k]."""
        solved: np.ndarray = self.targets / (self.eigenvalues + l2)[:, None]
        return solved


def _eigen(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [r] and eigenvectors [d, r] of a Gram matrix [d, d], without rounded zeros."""
    values, vectors = linalg.eigh(gram)
    keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0)
    return values[keep], vectors[:, keep]
