"""Ridge classifiers of one training set for every penalty, from the eigenvalues of its scatter matrix.

With Z [n, p] the scaled features and T [n, k] the centred targets, Z'Z = B diag(e) B' gives
W(l2) = B diag(1 / (e + l2)) B'Z'T for all l2 at once. The leverage of an image in the fit is h = 1/n + |B'z|^2 weighted by
1 / (e + l2), and its score by the fit to all others is t - (t - f) / (1 - h), with the fitted score f (Allen 1974, PRESS;
Hastie, Tibshirani and Friedman 2009, eq. 7.52). Nothing here needs the features but those of the images that are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.probing.path import choose, decided_class

if TYPE_CHECKING:
    from mixer_probe.probing.ridge import RidgeProbe

_FULL = ("float64", "int64", "int32")
# Numbers of one block of scores; larger blocks leave the processor's cache for nothing.
_BLOCK = 2**22
# Numbers of weights that are made for all penalties at once, whatever the size of the basis.
_WEIGHTS = 2**24


@dataclass(frozen=True)
class ColumnScaling:
    """Column means and scales [p] of the training images.

    The scale of a constant column is infinite, so that it becomes 0 for new images too."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, standardize: bool, eps: float = float(np.finfo(float).eps)) -> ColumnScaling:
        """From means and variances [p] (over n) of features that are exact to `eps`, the scale a deviation or one."""
        deviation = variance.clamp(min=0).sqrt()
        # Equal numbers have a deviation of some units in the last place of their mean.
        constant = deviation <= 10 * eps * mean.abs()
        return cls(mean, torch.where(constant, torch.inf, deviation if standardize else torch.ones_like(deviation)))

    def apply(self, X: Tensor) -> Tensor:
        """Float64 features `X` [n, p] centred and scaled, in place."""
        return X.sub_(self.mean).div_(self.scale)


def block_of(X: Any, rows: slice | np.ndarray, device: torch.device | None = None) -> Tensor:
    """A float64 copy of some rows of `X` [n, p], an array or a tensor; on the device of a tensor unless told."""
    if not isinstance(X, Tensor):
        return torch.from_numpy(np.array(X[rows], dtype=np.float64)).to(device or "cpu")
    part = X.detach()[rows]
    if part.device.type == "mps":
        # That device has no float64.
        part = part.cpu()
    return part.to(device or part.device, torch.float64, copy=True)


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices that cover `n` rows, each of so many rows that `width` numbers a row are a block."""
    size = max(64, _BLOCK // max(1, width))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r], ascending, and eigenvectors [d, r] of a Gram matrix [d, d], which is destroyed; no rounded zeros."""
    if gram.device.type == "cpu":
        values, vectors = map(torch.from_numpy, linalg.eigh(gram.numpy(), driver="evd", overwrite_a=True, check_finite=False))
    else:
        values, vectors = torch.linalg.eigh(gram)
    zero = len(values) * np.finfo(float).eps * float(values[-1].clamp(min=0))
    keep = int((values <= zero).sum())
    return values[keep:], vectors[:, keep:]


def gram(X: Tensor) -> Tensor:
    """X'X, [p, p] of X [n, p]."""
    # NumPy multiplies a matrix with its own transpose in half the time; torch does not.
    return torch.from_numpy(X.numpy().T @ X.numpy()) if X.device.type == "cpu" else X.T @ X


def column_scaling(X: Any, standardize: bool, device: torch.device) -> ColumnScaling:
    """Means and deviations of the columns of `X` [n, p], in float64 and two passes."""
    n, p = X.shape
    mean = torch.zeros(p, dtype=torch.float64, device=device)
    for rows in blocks(n, p):
        mean += block_of(X, rows, device).sum(0) / n
    variance = torch.zeros_like(mean)
    for rows in blocks(n, p):
        variance += block_of(X, rows, device).sub_(mean).square_().sum(0) / n
    return ColumnScaling.of(mean, variance, standardize, resolution(X))


def resolution(X: Any) -> float:
    """The relative size of a last digit of `X`: that of float32 for narrower types too."""
    return float(np.finfo(np.float64 if str(X.dtype).endswith(_FULL) else np.float32).eps)


def decomposed(Z: Tensor, dual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Nonzero eigenvalues e [r] of Z'Z, their vectors B [p, r] and ZB [n, r] for scaled `Z` [n, p]; from ZZ' if `dual`."""
    if not dual:
        values, basis = eigen(gram(Z))
        return values, basis, Z @ basis
    values, vectors = eigen(gram(Z.T))
    # Singular vectors and values: Z = V diag(root) B'.
    root = values.sqrt()
    return values, (Z.T @ vectors).div_(root), vectors * root


@dataclass(frozen=True)
class LeftOut:
    """Training images whose left-out scores can be had: B'z of each [s, r], and its label [s]."""

    projected: Tensor
    labels: Tensor


@dataclass(frozen=True)
class RidgePath:
    """Ridge classifiers of one training set for every penalty `l2` [m]; a `ProbePath`.

    For r nonzero eigenvalues: `basis` B [p, r] orthonormal, `eigenvalues` e [r], `targets` B'Z'T [r, k], `intercept` [k]; k is 1
    for two classes, whose columns mirror each other. `n` images were fitted, of them `left` may be left out.
    Leave-one-out is exact for the scaling of the whole training set: each image is left out of the regression and of the
    intercept, not of the standard deviations."""

    l2: np.ndarray
    classes: np.ndarray
    scaling: ColumnScaling
    standardize: bool
    n: int
    basis: Tensor
    eigenvalues: Tensor
    targets: Tensor
    intercept: Tensor
    left: LeftOut | None = None

    @property
    def name(self) -> str:
        """ "l2"."""
        return "l2"

    @property
    def values(self) -> np.ndarray:
        """The penalties."""
        return self.l2

    def coefficients(self, l2: float) -> Tensor:
        """W(l2) [p, k], in units of the scaled features."""
        return self.basis @ (self.targets / (self.eigenvalues + l2)[:, None])

    def scores(self, X: Any) -> np.ndarray:
        """Scores [m, n, K] of new images `X` [n, p]; those of two classes are opposite."""
        parts = [self._two_sided(self._scores(block_of(X, rows, self.basis.device))) for rows in self._rows(len(X))]
        return np.concatenate([part.transpose(0, 1).cpu().numpy() for part in parts], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]."""
        parts = [argmax(self._scores(block_of(X, rows, self.basis.device))) for rows in self._rows(len(X))]
        return np.asarray(self.classes[np.concatenate(parts).T])

    def left_out_accuracy(self) -> np.ndarray:
        """Share of the images that may be left out that the fit to all others gets right, for every penalty [m].

        Raises MeasureError if no image was kept for that."""
        left = self._kept()
        right = np.zeros(len(self.l2))
        for rows in self._rows(len(left.labels)):
            part = LeftOut(left.projected[rows], left.labels[rows])
            right += (argmax(self._left_out(part)) == part.labels.cpu().numpy()[:, None]).sum(axis=0)
        return right / len(left.labels)

    leave_one_out_accuracy = left_out_accuracy

    def leave_one_out_scores(self, l2: float) -> np.ndarray:
        """Scores [s, k] by the fits to all others, with k = 1 for two classes (positive for the second).

        Raises MeasureError if no image was kept for that."""
        left = self._kept()
        fitted, leverage = (part[:, 0] for part in self._fitted(left, torch.tensor([l2], dtype=torch.float64)))
        targets = one_hot(left.labels, len(self.classes))
        scores = targets - (targets - fitted) / (1 - leverage)[:, None]
        return np.asarray(scores.cpu().numpy())

    def probe(self, l2: float) -> RidgeProbe:
        """The fitted classifier for one penalty, on the path or off it."""
        from mixer_probe.probing.ridge import probe_of

        return probe_of(self, l2)

    def best_l2(self) -> float:
        """The penalty with the highest left-out accuracy; of equals the largest, the simplest model."""
        ascending = np.argsort(self.l2)
        return float(self.l2[ascending][choose(self.left_out_accuracy()[ascending])])

    def _kept(self) -> LeftOut:
        if self.left is None:
            raise MeasureError("no training images were kept to be held out: give some as left_out")
        return self.left

    def _rows(self, n: int) -> Iterator[slice]:
        return blocks(n, max(len(self.l2) * len(self.intercept), len(self.scaling.mean)))

    def _solved(self, l2: Tensor) -> Tensor:
        """diag(1 / (e + l2)) B'Z'T for every penalty, [r, m, k]."""
        return self.targets[:, None, :] / (self.eigenvalues[:, None] + l2)[:, :, None]

    def _scores(self, X: Tensor) -> Tensor:
        """Scores [n, m, k] of float64 features [n, p], which are destroyed."""
        weights = self._weights()
        Z = self.scaling.apply(X)
        # Features much wider than the training set is large are projected first.
        scores = Z @ weights if weights is not None else (Z @ self.basis) @ self._solved(self._l2).flatten(1)
        return scores.view(len(X), len(self.l2), -1).add_(self.intercept)

    @property
    def _l2(self) -> Tensor:
        return torch.from_numpy(self.l2).to(self.eigenvalues)

    def _weights(self) -> Tensor | None:
        """W of all penalties [p, m * k], made once; None where that is large and larger than the basis."""
        if "_made" not in self.__dict__:
            p, r = self.basis.shape
            small = len(self.l2) * len(self.intercept) <= max(r, _WEIGHTS // p)
            made = self.basis @ self._solved(self._l2).flatten(1) if small else None
            object.__setattr__(self, "_made", made)
        found: Tensor | None = self.__dict__["_made"]
        return found

    def _fitted(self, left: LeftOut, l2: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [s, m, k] of training images by the fit to all, and their leverages [s, m]."""
        l2 = l2.to(self.eigenvalues)
        scores = (left.projected @ self._solved(l2).flatten(1)).view(len(left.labels), len(l2), -1).add_(self.intercept)
        # A whole share of 1 is left to rounding where the fit goes through its images.
        leverage = (1 / self.n + left.projected.square() @ (1 / (self.eigenvalues[:, None] + l2))).clamp(max=1 - 1e-12)
        return scores, leverage

    def _left_out(self, left: LeftOut) -> Tensor:
        """Left-out scores [s, m, k] times 1 - h, which does not change their order: f - h t."""
        scores, leverage = self._fitted(left, self._l2)
        if scores.shape[-1] == 1:
            return scores.sub_((leverage * (2.0 * left.labels - 1)[:, None])[:, :, None])
        # f - h t is f + h but for the own class, where it is f - h: 2 h less beside the others.
        own = left.labels[:, None, None].expand(-1, scores.shape[1], 1)
        return scores.scatter_add_(2, own, -2 * leverage[:, :, None])

    def _two_sided(self, scores: Tensor) -> Tensor:
        return torch.cat([-scores, scores], dim=-1) if scores.shape[-1] == 1 else scores


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """+1 for the class and -1 elsewhere [..., k], float64; one column for two classes, which mirror each other."""
    hot = torch.full((*labels.shape, classes), -1.0, dtype=torch.float64, device=labels.device)
    hot.scatter_(-1, labels[..., None], 1.0)
    return hot[..., 1:] if classes == 2 else hot


def argmax(scores: Tensor) -> np.ndarray:
    """`decided_class` of scores [..., k] on any device."""
    # On the CPU NumPy is several times faster here.
    if scores.device.type == "cpu":
        return decided_class(scores.numpy())
    best = scores[..., 0] > 0 if scores.shape[-1] == 1 else scores.argmax(-1)
    return np.asarray(best.long().cpu().numpy())


def checked_penalties(l2: Any) -> np.ndarray:
    """Penalties as a float64 array [m]. Raises MeasureError unless they are positive and finite, and there are some."""
    penalties = np.asarray(l2, dtype=np.float64)
    if penalties.ndim != 1 or len(penalties) == 0 or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise MeasureError(f"l2 must be a list of positive numbers, got {l2}")
    return penalties


def default_l2(n: int) -> np.ndarray:
    """15 penalties, two a decade from 1e-4 n to 1e3 n, because Z'Z of standardised features grows with n."""
    return np.asarray(n * np.logspace(-4, 3, 15))
