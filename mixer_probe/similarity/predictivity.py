"""How well one representation predicts another linearly: in-sample R² of Kornblith et al. 2019, and
cross-validated ridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.linear.ridge import eigen
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
    """Fraction of the variance of `Y` [n, q] that least squares with intercept explains from `X`
    [n, p], in-sample.

    |Ux' Y|_F^2 / |Y|_F^2 with the centred Y and an orthonormal basis Ux of the centred X (R²_LR of
    Kornblith et al. 2019). In [0, 1], and 1 by necessity for p >= n - 1 in general position:
    `linear_predictivity` has held-out images instead. Invertible linear maps of `X` change nothing.

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN
    or infinite values."""
    x, y = checked_pair(X, Y, MINIMUM_IMAGES)
    if x is None or y is None:
        return float("nan")
    y = centred(y)
    return float((principal(x)[0].T @ y).square().sum() / y.square().sum())


@checked(MeasureError)
def linear_predictivity(
    X: Features, Y: Features, folds: int = FOLDS, penalties: Sequence[float] = PENALTIES
) -> float:
    """R² of `Y` [n, q] predicted from `X` [n, p] by ridge regression with intercept, on held-out
    images.

    1 - SSE / SST over all held-out images and all columns, SST being about the means of the
    training images: at most 1, and below 0 where `X` predicts worse than those means. The folds are
    the same for every call with that n. `penalties` are relative to the mean squared singular value
    of the centred training X; each fold takes the one with the least generalised cross-validation
    error of all columns together (Golub, Heath and Wahba 1979), and the held-out images have no
    say. Equal representations give 1 only as the penalty goes to 0: with the smallest default one
    it is above 0.999 for n well above p, but far from 1 for n below p, where held-out images lie
    outside the span of the others.

    Unchanged by translation, isotropic scaling and orthogonal maps of either side. NaN if a side is
    constant. Raises MeasureError for other than two axes, different n, n < folds, NaN or infinite
    values, fewer than two folds, and penalties that are not positive."""
    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise MeasureError(f"penalties {tuple(penalties)} are not all positive")
    prepare = partial(split, folds=folds, penalties=tuple(penalties))
    return replace(PREDICTIVITY, prepare=prepare, minimum_images=max(folds, MINIMUM_IMAGES))(X, Y)


@dataclass(frozen=True)
class Folds:
    """Features [n, p] by fold: `parts` are those of each fold [m, p] less their `means` [k, p].

    Sums over several folds are made of these: one far image then costs the other folds no
    digits."""

    parts: tuple[Tensor, ...]
    means: Tensor

    @classmethod
    def of(cls, x: Tensor, folds: int) -> Self:
        """The rows of `x` [n, p], in the folds of `fold_of_each`."""
        fold = fold_of_each(len(x), folds)
        parts = torch.split(x[fold.argsort(stable=True).to(x.device)], fold.bincount().tolist())
        means = torch.stack([part.mean(0) for part in parts])
        return cls(tuple(part - mean for part, mean in zip(parts, means)), means)

    @cached_property
    def sizes(self) -> Tensor:
        """Images of each fold [k]."""
        return self.means.new_tensor([len(part) for part in self.parts])

    def training(self, held: int) -> list[int]:
        """The folds besides the one that is held out."""
        return [fold for fold in range(len(self.parts)) if fold != held]

    @cached_property
    def between(self) -> tuple[Tensor, ...]:
        """For each fold the means [k - 1, p] of the others about the mean of all their images,
        times the roots of their sizes."""
        others = [self.training(held) for held in range(len(self.parts))]
        return tuple(
            (self.means[o] - centre) * self.sizes[o, None].sqrt()
            for o, centre in zip(others, self._centres)
        )

    @cached_property
    def shifts(self) -> Tensor:
        """Mean of each fold about that of the images of all others [k, p]."""
        return self.means - self._centres

    @cached_property
    def _centres(self) -> Tensor:
        """For each fold the mean of the images of all others [k, p]."""
        others = [self.training(held) for held in range(len(self.parts))]
        return torch.stack([self.sizes[o] @ self.means[o] / self.sizes[o].sum() for o in others])


@dataclass(frozen=True)
class Targets:
    """Several layers side by side, to be predicted together: `y` of [n, q] with the `layer` [q] of
    each column."""

    y: Folds
    layer: Tensor

    @classmethod
    def of(cls, layers: Sequence[Split]) -> Self:
        """The columns of all layers."""
        every = [layer.by_fold for layer in layers]
        parts = tuple(torch.cat(columns, 1) for columns in zip(*(y.parts for y in every)))
        widths = torch.tensor([y.means.shape[1] for y in every])
        layer = torch.arange(len(layers)).repeat_interleave(widths).to(parts[0].device)
        return cls(Folds(parts, torch.cat([y.means for y in every], 1)), layer)

    @cached_property
    def indicator(self) -> Tensor:
        """1 where a column belongs to a layer [L, q], else 0."""
        return torch.nn.functional.one_hot(self.layer).T.to(self.y.means.dtype)

    @cached_property
    def _powers(self) -> Tensor:
        """Sum of squares [k, L] about the mean of each fold."""
        return torch.stack([self.indicator @ part.square().sum(0) for part in self.y.parts])

    @cached_property
    def held(self) -> Tensor:
        """Sum of squares [k, L] of the held-out images of each fold about the mean of the
        others."""
        return self._powers + self.y.sizes[:, None] * (self.y.shifts.square() @ self.indicator.T)

    @cached_property
    def training(self) -> Tensor:
        """Sum of squares [k, L] of the training images for each fold about their mean."""
        between = torch.stack([self.indicator @ means.square().sum(0) for means in self.y.between])
        return (
            torch.stack(
                [self._powers[self.y.training(held)].sum(0) for held in range(len(between))]
            )
            + between
        )


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on the training images of all folds but `held`, up to the choice of penalty
    and what it predicts.

    `axes` [p, r] are the principal axes of the centred training features, `squares` [r] their
    squared singular values, `scores` [m, r] the held-out images on those axes about their own mean,
    which is at `shift` [r], `spare` the dimensions that the axes leave to the training images, and
    `penalties` [k] the choices."""

    held: int
    squares: Tensor
    axes: Tensor
    scores: Tensor
    shift: Tensor
    spare: int
    penalties: Tensor

    @classmethod
    def of(
        cls, x: Folds, held: int, gram: Tensor, rounding: float, penalties: Sequence[float]
    ) -> Self:
        """The regression from `x`, given the `gram` [p, p] of the training images and what of it
        may be `rounding`."""
        squares, axes = eigen(gram, rounding)
        spare = sum(len(x.parts[fold]) for fold in x.training(held)) - 1 - len(squares)
        choices = squares.new_tensor(penalties) * squares.mean()
        return cls(held, squares, axes, x.parts[held] @ axes, x.shifts[held] @ axes, spare, choices)

    def errors(self, targets: Targets, products: Tensor) -> Tensor:
        """Squared error [L] on the held-out images, from the `products` [q, p] of targets and
        features in training."""
        coefficients = products @ self.axes
        penalty = self.penalties[
            self._generalised_cross_validation(coefficients, targets).argmin(1)
        ]
        coefficients /= (self.squares + penalty[:, None])[targets.layer]
        predicted = self.scores @ coefficients.T
        left = torch.sub(targets.y.parts[self.held], predicted, out=predicted).square_().sum(0)
        shift = targets.y.shifts[self.held] - coefficients @ self.shift
        return targets.indicator @ (left + len(self.scores) * shift.square())

    def _generalised_cross_validation(self, projections: Tensor, targets: Targets) -> Tensor:
        """|(I - H) Y|_F^2 / tr(I - H)^2 of each layer and penalty [L, k], from the products [q, r]
        of targets and scores."""
        power = targets.indicator @ projections.square() / self.squares
        # Where the axes span all that the intercept leaves, the rest is exactly 0, and the small
        # penalties hang on that.
        rest = (
            (targets.training[self.held] - power.sum(1)).clamp_min(0)
            if self.spare
            else power.new_zeros(len(power))
        )
        left = self.penalties[:, None] / (self.squares + self.penalties[:, None])
        return (rest[:, None] + power @ left.square().T) / (self.spare + left.sum(1)).square()


@dataclass(frozen=True)
class Split:
    """Centred features `x` [n, r] in any orthonormal axes, with the folds that the position of an
    image alone decides."""

    x: Tensor
    folds: int
    penalties: tuple[float, ...]

    def take(self, order: Tensor) -> Self:
        """The same for the images in another `order` [n]; the folds stay, thus other images are
        held out together."""
        return replace(self, x=self.x[order])

    @cached_property
    def by_fold(self) -> Folds:
        """The features of each fold."""
        return Folds.of(self.x, self.folds)

    @cached_property
    def ridges(self) -> tuple[Ridge, ...]:
        """The regression of each fold, factorised when this side first has to predict."""
        x = self.by_fold
        grams = enumerate(_training_products(x, x))
        # The squares have the rounding of all images together, which is small beside every default
        # penalty.
        rounding = torch.finfo(self.x.dtype).eps * float(self.x.square().sum())
        return tuple(Ridge.of(x, held, gram, rounding, self.penalties) for held, gram in grams)

    def errors(self, targets: Targets) -> Tensor:
        """Squared error [k, L] of each layer on the held-out images of each fold, as predicted from
        this one."""
        products = _training_products(targets.y, self.by_fold)
        return torch.stack(
            [ridge.errors(targets, of_fold) for ridge, of_fold in zip(self.ridges, products)]
        )


def _training_products(y: Folds, x: Folds) -> list[Tensor]:
    """Y'X [q, p] over the training images for each fold, centred on their means."""
    parts = [of_y.T @ of_x for of_y, of_x in zip(y.parts, x.parts)]
    # For each fold the sum of the others, by additions alone.
    before = list(accumulate(parts[:-1], torch.add))
    after = list(accumulate(parts[:0:-1], torch.add))[::-1]
    within = [after[0], *map(torch.add, before, after[1:]), before[-1]]
    return [
        products.addmm_(of_y.T, of_x) for products, of_y, of_x in zip(within, y.between, x.between)
    ]


def fold_of_each(n: int, folds: int) -> Tensor:
    """Fold [n] of each of `n` images: assigned in turn along a fixed random order."""
    fold = torch.empty(n, dtype=torch.int64)
    fold[torch.randperm(n, generator=torch.Generator().manual_seed(_SEED))] = (
        torch.arange(n) % folds
    )
    return fold


def split(X: Tensor, folds: int = FOLDS, penalties: tuple[float, ...] = PENALTIES) -> Split:
    """`X` [n, p] centred, in at most n axes: neither the predictor's axes nor those of what is
    predicted matter."""
    return Split(compact(X), folds, penalties)


def _predicted_from_first(a: Sequence[Split], b: Sequence[Split]) -> Tensor:
    targets = Targets.of(b)
    residual = torch.stack([x.errors(targets).sum(0) for x in a])
    return 1 - residual / targets.held.sum(0)


PREDICTIVITY = Measure(
    name="predictivity",
    label="linear R² (B from A)",
    about=(
        "Variance of the second representation that ridge regression on the first explains, on "
        "held-out images."
    ),
    source="Kornblith et al. 2019, here cross-validated; Golub, Heath and Wahba 1979",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=split,
    table=_predicted_from_first,
    lowest=float("-inf"),
    symmetric=False,
    minimum_images=FOLDS,
    no_interval="which images are held out together changes with every image that is left out",
)

PREDICTIVITY_REVERSE = replace(
    PREDICTIVITY,
    name="predictivity_reverse",
    label="linear R² (A from B)",
    about=(
        "Variance of the first representation that ridge regression on the second explains, on "
        "held-out images."
    ),
    table=lambda a, b: _predicted_from_first(b, a).T,
)
