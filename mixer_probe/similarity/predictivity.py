"""How well one representation predicts another linearly: in-sample R² of Kornblith et al. 2019, and cross-validated ridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self

import torch
from torch import Tensor

from mixer_probe.errors import MeasureError
from mixer_probe.similarity.canonical import principal
from mixer_probe.similarity.hsic import MINIMUM_IMAGES
from mixer_probe.similarity.inputs import Features, centred, checked_pair
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.procrustes import compact

FOLDS = 5
# Relative to the mean squared singular value: from almost least squares to almost the mean.
PENALTIES = tuple(10.0**power for power in range(-6, 5))
_SEED = 0


def linear_regression_r2(X: Features, Y: Features) -> float:
    """Share of the variance of `Y` [n, q] that least squares with intercept explains from `X` [n, p], in-sample.

    |Ux' Y|_F^2 / |Y|_F^2 with the centred Y and an orthonormal basis Ux of the centred X (R²_LR of Kornblith et al. 2019). In
    [0, 1], and 1 by necessity for p >= n - 1 in general position: `linear_predictivity` has held-out images instead. Invertible
    linear maps of `X` change nothing.

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN or infinite values."""
    x, y = checked_pair(X, Y, MINIMUM_IMAGES)
    if x is None or y is None:
        return float("nan")
    y = centred(y)
    return float((principal(x)[0].T @ y).square().sum() / y.square().sum())


def linear_predictivity(X: Features, Y: Features, folds: int = FOLDS, penalties: Sequence[float] = PENALTIES) -> float:
    """R² of `Y` [n, q] predicted from `X` [n, p] by ridge regression with intercept, on held-out images.

    1 - SSE / SST over all held-out images and all columns, SST being about the means of the training images: at most 1, and
    below 0 where `X` predicts worse than those means. The folds are the same for every call with that n. `penalties` are
    relative to the mean squared singular value of the centred training X; each fold takes the one with the least generalised
    cross-validation error of all columns together (Golub, Heath and Wahba 1979), and the held-out images have no say. Equal
    representations give 1 only as the penalty goes to 0: with the smallest default one it is above 0.999 for n well above p, but
    far from 1 for n below p, where held-out images lie outside the span of the others.

    Unchanged by translation, isotropic scaling and orthogonal maps of either side. NaN if a side is constant. Raises
    MeasureError for other than two axes, different n, n < folds, NaN or infinite values, fewer than two folds, and penalties
    that are not positive."""
    if folds < 2:
        raise MeasureError(f"{folds} folds leave no images to train on: take at least 2")
    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise MeasureError(f"penalties {tuple(penalties)} are not all positive")
    prepare = partial(split, folds=folds, penalties=tuple(penalties))
    return replace(PREDICTIVITY, prepare=prepare, minimum_images=max(folds, MINIMUM_IMAGES))(X, Y)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on the training images `train` [m] of one fold, up to the choice of penalty and what it predicts.

    `axes` [p, r] are the principal axes of the centred training features, `squares` [r] their squared singular values,
    `scores` [m, r] and `held_scores` [n - m, r] the training and the held-out images on those axes, and `penalties` [k]
    the choices."""

    train: Tensor
    held: Tensor
    squares: Tensor
    scores: Tensor
    held_scores: Tensor
    penalties: Tensor

    def errors(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error on the held-out images of `y` [n, q], and that of the means of the training images."""
        mean = y[self.train].mean(0)
        target, held = y[self.train] - mean, y[self.held] - mean
        products = self.scores.T @ target
        penalty = self.penalties[self._generalised_cross_validation(products, target).argmin()]
        predicted = self.held_scores @ (products / (self.squares + penalty)[:, None])
        return (held - predicted).square().sum(), held.square().sum()

    def _generalised_cross_validation(self, products: Tensor, target: Tensor) -> Tensor:
        """|(I - H) Y|_F^2 / tr(I - H)^2 of each penalty [k], from the `products` [r, q] of scores and centred `target`."""
        power = products.square().sum(1) / self.squares
        spare = len(target) - 1 - len(self.squares)
        # Where the axes span all that the intercept leaves, the rest is exactly 0, and the small penalties hang on that.
        rest = (target.square().sum() - power.sum()).clamp_min(0) if spare else power.new_zeros(())
        left = self.penalties[:, None] / (self.squares + self.penalties[:, None])
        return (rest + left.square() @ power) / (spare + left.sum(1)).square()


@dataclass(frozen=True)
class Split:
    """Centred features `x` [n, r] in any orthonormal axes, with the folds that the position of an image alone decides."""

    x: Tensor
    folds: int
    penalties: tuple[float, ...]

    def take(self, order: Tensor) -> Self:
        """The same for the images in another `order` [n]; the folds stay, thus other images are held out together."""
        return replace(self, x=self.x[order])

    @cached_property
    def ridges(self) -> tuple[Ridge, ...]:
        """The regression of each fold, factorised when this side first has to predict."""
        fold = fold_of_each(len(self.x), self.folds).to(self.x.device)
        return tuple(self._ridge(fold == k) for k in range(self.folds))

    def _ridge(self, held: Tensor) -> Ridge:
        mean = self.x[~held].mean(0)
        train, test = self.x[~held] - mean, self.x[held] - mean
        squares, axes = torch.linalg.eigh(train.T @ train)
        # The squares have the rounding of all images together, which is small beside every default penalty.
        kept = squares > torch.finfo(squares.dtype).eps * self.x.square().sum()
        squares, axes = squares[kept], axes[:, kept]
        penalties = squares.new_tensor(self.penalties) * squares.mean()
        return Ridge((~held).nonzero()[:, 0], held.nonzero()[:, 0], squares, train @ axes, test @ axes, penalties)


def fold_of_each(n: int, folds: int) -> Tensor:
    """Fold [n] of each of `n` images: dealt out in turn along a fixed random order."""
    fold = torch.empty(n, dtype=torch.int64)
    fold[torch.randperm(n, generator=torch.Generator().manual_seed(_SEED))] = torch.arange(n) % folds
    return fold


def split(X: Tensor, folds: int = FOLDS, penalties: tuple[float, ...] = PENALTIES) -> Split:
    """`X` [n, p] centred, in at most n axes: neither the predictor's axes nor those of what is predicted matter."""
    return Split(compact(X), folds, penalties)


def _predicted_from_first(a: Sequence[Split], b: Sequence[Split]) -> Tensor:
    return torch.tensor([[_r2(x, y) for y in b] for x in a], dtype=torch.float64)


def _predicted_from_second(a: Sequence[Split], b: Sequence[Split]) -> Tensor:
    return _predicted_from_first(b, a).T


def _r2(x: Split, y: Split) -> float:
    errors = [ridge.errors(y.x) for ridge in x.ridges]
    residual, total = (sum(map(float, column)) for column in zip(*errors))
    return 1 - residual / total


PREDICTIVITY = Measure(
    name="predictivity",
    label="linear R² (B from A)",
    about="Variance of the second representation that ridge regression on the first explains, on held-out images.",
    source="Kornblith et al. 2019, here cross-validated; Golub, Heath and Wahba 1979",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=split,
    table=_predicted_from_first,
    lowest=float("-inf"),
    symmetric=False,
    minimum_images=FOLDS,
)

PREDICTIVITY_REVERSE = replace(
    PREDICTIVITY,
    name="predictivity_reverse",
    label="linear R² (A from B)",
    about="Variance of the first representation that ridge regression on the second explains, on held-out images.",
    table=_predicted_from_second,
)
