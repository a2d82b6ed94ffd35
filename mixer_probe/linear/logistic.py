"""Multinomial logistic regression for every penalty and layer at once, by preconditioned L-BFGS in
torch.

Minimises sum_i -log p(y_i | z_i) + l2 / 2 |W|^2 over weights W and intercepts that are not
penalised, z the features standardised by the training images: scikit-learn's LogisticRegression(C=1
/ l2) on StandardScaler's output, for two classes too (one column of weights). The solver works in
the eigenvectors of Z'Z, where the ridge solution is its first step.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from mixer_probe.core.errors import MeasureError, UnconvergedWarning
from mixer_probe.core.memory import RESIDENT, at_once
from mixer_probe.core.switches import plain_modes
from mixer_probe.core.validate import check_seed, checked
from mixer_probe.linear.classifier import (
    LinearClassifier,
    PenaltyPath,
    check_two,
    checked_classes,
    decided_class,
    last_best,
)
from mixer_probe.linear.lbfgs import Minimum, minimise
from mixer_probe.linear.multinomial import Design, Loss, StartingHessian, starting_point
from mixer_probe.linear.ridge import checked_penalties
from mixer_probe.linear.scaling import ColumnScaling, blocks
from mixer_probe.linear.stratification import left_out_folds

Solver = Literal["torch", "sklearn"]
Precision = Literal["mixed", "float64"]

# Relative rounding of a sum of losses.
_NOISE = {torch.float32: 1e-6, torch.float64: 1e-12}
# A gradient that float32 products resolve in any case, and iterations without progress after which
# they do not.
_FLOAT32_GRADIENT = 5e-6
_PATIENCE = {torch.float32: 20, torch.float64: None}


@checked(MeasureError)
@dataclass(frozen=True)
class LogisticSettings:
    """How logistic regressions are fitted.

    `tol` bounds the largest entry of the gradient of the mean loss, by weights of standardised
    features (for p > n, in their principal axes) and intercepts, as in scikit-learn; its 1e-4 would
    stop this solver before small penalties have any effect. `precision` "mixed" multiplies in
    float32 as long as that resolves the gradient, and ends with float64; "float64" always does.
    `device` None is that of the features. `together` solves all penalties at once (None: on a GPU),
    else one starts from those before. `solver` "sklearn" is the reference implementation, on the
    CPU in float64."""

    standardize: bool = True
    solver: Solver = "torch"
    tol: float = 1e-5
    max_iter: int = 1000
    precision: Precision = "mixed"
    device: str | None = None
    together: bool | None = None

    def __post_init__(self) -> None:
        if not self.tol > 0:
            raise MeasureError(f"tol is a number above 0, not {self.tol}")

    def place(self, X: Any) -> torch.device:
        """The device of the computation for features `X`; the CPU in place of Metal, which has no
        float64."""
        given = self.device or (X.device if isinstance(X, Tensor) else "cpu")
        device = torch.device(given)
        return torch.device("cpu") if device.type == "mps" else device


@dataclass(frozen=True)
class LogisticFit:
    """Logistic regressions of one training set for m penalties: `coef` [m, C, p] in units of the
    standardised features, `intercept` [m, C]; C is K, or 1 for two classes (the logit of the
    second). `mean` and `scale` [p] standardise, the scale of a constant column is infinite.
    `gradient_norm`, `iterations` and `converged` [m] say how the solver ended."""

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    gradient_norm: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray


@dataclass(frozen=True)
class LogisticPath(PenaltyPath, LogisticFit):
    """Logistic regressions of one training set for every penalty `l2` [m], ascending; a
    `ProbePath`.

    The penalty is chosen on images left out, `folds` and `seed` as in `left_out_folds`; the fits
    without them are made when `left_out_accuracy` is asked for."""

    l2: np.ndarray
    classes: np.ndarray
    settings: LogisticSettings
    folds: int | None
    seed: int
    train: tuple[Any, np.ndarray] = field(repr=False)
    _left_out: list[np.ndarray] = field(default_factory=list, init=False, repr=False, compare=False)

    def logits(self, X: Any) -> np.ndarray:
        """Logits [m, n, C] of new images `X` [n, p], before the softmax."""
        m, columns, p = self.coef.shape
        weights = np.ascontiguousarray((self.coef / self.scale).reshape(m * columns, p).T)
        shift = self.intercept.ravel() - self.mean @ weights
        parts = [_rows(X, rows) @ weights + shift for rows in blocks(len(X), max(m * columns, p))]
        return np.concatenate(parts).reshape(len(X), m, columns).transpose(1, 0, 2)

    def scores(self, X: Any) -> np.ndarray:
        """Log-probabilities [m, n, K] of new images `X` [n, p]."""
        return _log_probabilities(self.logits(X))

    def predict(self, X: Any) -> np.ndarray:
        """Predicted classes [m, n] of new images `X` [n, p]."""
        return np.asarray(self.classes[decided_class(self.logits(X))])

    def left_out_accuracy(self) -> np.ndarray:
        """Accuracy [m] on the left-out training images, by fits without them; computed once.

        Raises MeasureError where classes have too few images for that."""
        if self._left_out:
            return self._left_out[0]
        X, y = self.train
        folds = left_out_folds(y, self.folds, self.seed)
        right = np.zeros(len(self.l2))
        for rows in folds:
            rest = np.setdiff1d(np.arange(len(y)), rows)
            # A fit from the start: one that began at the fit to all images would know those left
            # out.
            part = _paths([X[rest]], y[rest], self.l2, self.settings, None, 0)[0]
            right += (part.predict(X[rows]) == y[rows]).sum(axis=1)
        self._left_out.append(right / sum(map(len, folds)))
        return self._left_out[0]

    def best_l2(self) -> float:
        """The penalty with the highest left-out accuracy; of equals the largest, the simplest
        model."""
        return float(self.l2[last_best(self.left_out_accuracy())])


class LogisticProbe(LinearClassifier):
    """Multinomial logistic regression with an l2 penalty; a scikit-learn estimator.

    Minimises the sum over images of -log p(class) plus l2 / 2 |W|^2, W the weights of the features
    standardised by the training images (`standardize=False`: centred only), with intercepts that
    are not penalised: scikit-learn's LogisticRegression(C=1 / l2). A list of penalties, or None for
    `default_logistic_l2`, is a path: the penalty with the highest accuracy on left-out training
    images is taken (`folds`, `seed`: see `left_out_folds`), of equals the largest. The other
    arguments are those of `LogisticSettings`.

    After `fit`: `classes_` [K], `coef_` [K, p] (one row for two classes) in units of the
    standardised features, `intercept_`, `mean_` and `scale_` [p] (infinite for constant columns),
    `l2_`, `n_iter_` [1], `gradient_norm_`, `n_features_in_`."""

    def __init__(
        self,
        l2: float | Sequence[float] | None = 1.0,
        *,
        standardize: bool = True,
        solver: Solver = "torch",
        tol: float = 1e-5,
        max_iter: int = 1000,
        precision: Precision = "mixed",
        device: str | None = None,
        folds: int | None = None,
        seed: int = 0,
    ) -> None:
        self.l2 = l2
        self.standardize = standardize
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.precision = precision
        self.device = device
        self.folds = folds
        self.seed = seed

    def fit(self, X: Any, y: Any) -> LogisticProbe:
        """Fit to features `X` [n, p] and classes `y` [n].

        Raises ValueError for what scikit-learn refuses (NaN, sparse input, ...), one class, and
        penalties that are not positive. UnconvergedWarning where `max_iter` or rounding ended the
        solver."""
        X, y = _checked(self, X, y)
        check_seed(self.seed, MeasureError)
        penalties = _penalties(self.l2, len(y))
        settings = LogisticSettings(
            self.standardize, self.solver, self.tol, self.max_iter, self.precision, self.device
        )
        path = _paths([X], y, penalties, settings, self.folds, self.seed)[0]
        return self.take(
            path, 0 if len(penalties) == 1 else int(last_best(path.left_out_accuracy()))
        )

    @classmethod
    def of(cls, path: LogisticPath, l2: float) -> LogisticProbe:
        """The fitted classifier of a path for one of its penalties. Raises MeasureError for
        another."""
        found = np.flatnonzero(path.l2 == l2)
        if not len(found):
            raise MeasureError(
                f"l2={l2} is not on the path: {', '.join(f'{value:.6g}' for value in path.l2)}"
            )
        return cls(l2).take(path, int(found[0]))

    def take(self, path: LogisticPath, i: int) -> LogisticProbe:
        """This estimator, fitted: with the attributes of the fit for penalty i of a path."""
        self.classes_ = path.classes
        self.mean_, self.scale_ = path.mean, path.scale
        self.coef_, self.intercept_ = path.coef[i], path.intercept[i]
        self.l2_ = float(path.l2[i])
        self.n_iter_ = path.iterations[i : i + 1]
        self.gradient_norm_ = float(path.gradient_norm[i])
        self.n_features_in_ = len(self.mean_)
        return self

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log-probabilities of the classes, [n, K]."""
        logits = self.decision_function(X)
        return _log_probabilities(logits if logits.ndim == 2 else logits[:, None])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, [n, K]."""
        return np.asarray(np.exp(self.predict_log_proba(X)))


def default_logistic_l2(n: int) -> np.ndarray:
    """11 penalties, two a decade from 1e-4 n to 10 n, because the loss is a sum over `n` images."""
    return np.asarray(n * np.logspace(-4, 1, 11))


@checked(MeasureError)
def logistic_path(
    X: Any,
    y: Any,
    l2: Sequence[float] | np.ndarray | None = None,
    *,
    folds: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> LogisticPath:
    """Logistic regressions of features `X` [n, p], an array or tensor, on classes `y` [n], for
    every penalty of `l2`.

    `l2` None is `default_logistic_l2`; `settings` are those of `LogisticSettings`, `folds` and
    `seed` of `left_out_folds`.

    Raises MeasureError if a penalty is not positive or there is one class, and ValueError for input
    that scikit-learn refuses. UnconvergedWarning where `max_iter` or rounding ended the solver."""
    chosen = LogisticSettings(**settings)
    X, labels = _checked(LogisticProbe(), X, y)
    return _paths([X], labels, _penalties(l2, len(labels)), chosen, folds, seed)[0]


@checked(MeasureError)
def logistic_paths(
    layers: Sequence[Any],
    y: Any,
    l2: Sequence[float] | np.ndarray | None = None,
    *,
    folds: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> list[LogisticPath]:
    """`logistic_path` of several layers of the same images, each [n, p]: those of one width are
    solved in one batch.

    Raises as `logistic_path`."""
    chosen = LogisticSettings(**settings)
    checked = [_checked(LogisticProbe(), X, y) for X in layers]
    if not checked:
        return []
    labels = checked[0][1]
    return _paths([X for X, _ in checked], labels, _penalties(l2, len(labels)), chosen, folds, seed)


def _penalties(l2: Any, n: int) -> np.ndarray:
    """The path, ascending; a single penalty is a path of one."""
    return default_logistic_l2(n) if l2 is None else np.unique(checked_penalties(np.atleast_1d(l2)))


def _checked(probe: LogisticProbe, X: Any, y: Any) -> tuple[Any, np.ndarray]:
    """Features and classes; a tensor on another device than the CPU stays there."""
    if not isinstance(X, Tensor) or X.device.type == "cpu":
        return checked_classes(
            probe, X.detach().numpy() if isinstance(X, Tensor) else X, y, [np.float64, np.float32]
        )
    y = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    if X.ndim != 2 or len(X) != len(y):
        raise MeasureError(
            f"X has shape {tuple(X.shape)} for {len(y)} labels, but [image, feature] is needed"
        )
    if not torch.isfinite(X).all():
        raise MeasureError("X holds values that are NaN or infinite")
    check_classification_targets(y)
    check_two(np.unique(y))
    return X.detach(), y


def _paths(
    layers: Sequence[Any],
    y: np.ndarray,
    l2: np.ndarray,
    settings: LogisticSettings,
    folds: int | None,
    seed: int,
) -> list[LogisticPath]:
    """The paths of several layers; consecutive layers of one width are solved at once, as many as
    fit into memory."""
    classes, labels = np.unique(y, return_inverse=True)
    groups: list[list[Any]] = []
    for X in layers:
        n, p = X.shape
        if (
            groups
            and groups[-1][0].shape == X.shape
            and len(groups[-1]) < at_once(4 * n * min(n, p), RESIDENT)
        ):
            groups[-1].append(X)
        else:
            groups.append([X])
    fits: list[LogisticFit] = []
    for group in groups:
        if settings.solver == "sklearn":
            fits += [_reference_fit(X, labels, l2, settings) for X in group]
            continue
        with plain_modes():
            device = settings.place(group[0])
            target, designs = (
                torch.from_numpy(labels).to(device),
                [Design.of(X, settings.standardize, device) for X in group],
            )
            # For p > n the variables are as many as the rank, which can differ.
            alike = len({design.variables for design in designs}) == 1
            for batch in [designs] if alike else [[design] for design in designs]:
                fits += _Batch(tuple(batch), target, l2, settings).solve()
    late = sorted({float(value) for fit in fits for value in l2[~fit.converged]})
    if late:
        worst = max(float(fit.gradient_norm.max()) for fit in fits)
        message = (
            f"logistic regression did not reach tol={settings.tol:g} for l2 = "
            f"{', '.join(f'{value:.3g}' for value in late)} (gradient {worst:.1e}): raise max_iter "
            "or tol, or take a larger l2"
        )
        warnings.warn(message, UnconvergedWarning, stacklevel=4)
    return [
        LogisticPath(
            l2=l2,
            classes=classes,
            settings=settings,
            folds=folds,
            seed=seed,
            train=(X, y),
            **vars(fit),
        )
        for X, fit in zip(layers, fits, strict=True)
    ]


class _Batch:
    """Designs of as many variables with all penalties."""

    def __init__(
        self,
        designs: tuple[Design, ...],
        labels: Tensor,
        l2: np.ndarray,
        settings: LogisticSettings,
    ) -> None:
        self.designs, self.labels, self.settings = designs, labels, settings
        self.l2 = torch.from_numpy(l2).to(labels.device) / designs[0].n
        classes = int(labels.max()) + 1
        start, self.spread = starting_point(labels, classes, designs[0].variables)
        self.columns = len(self.spread)
        self.start = start.expand(len(designs), -1)
        given = settings.together
        self.together = labels.device.type == "cuda" if given is None else given

    def solve(self) -> list[LogisticFit]:
        """The fits of each design."""
        m = len(self.l2)
        if self.together:
            found = self._minimise(self.start[:, None].expand(-1, m, -1).flatten(0, 1), self.l2)
        else:
            minima: list[Minimum] = []
            # From the largest penalty, whose solution is near the start.
            for j in range(m - 1, -1, -1):
                start = minima[-1].x if minima else self.start
                if len(minima) > 1:
                    # On the line, over log l2, through the solutions of the two penalties before.
                    next_, last, before = self.l2[j : j + 3].log()
                    start = start + ((next_ - last) / (last - before)).clamp(max=2) * (
                        start - minima[-2].x
                    )
                minima.append(self._minimise(start, self.l2[j : j + 1]))
            columns = zip(*(vars(part).values() for part in minima[::-1]), strict=True)
            found = Minimum(*(torch.stack(parts, dim=1).flatten(0, 1) for parts in columns))
        fits = []
        for i, design in enumerate(self.designs):
            rows = slice(i * m, (i + 1) * m)
            parts = found.x[rows].view(m, -1, self.columns)
            coef = torch.stack([design.weights(V).T for V in parts[:, :-1]])
            # A common shift of the intercepts changes no probability; scikit-learn's sum to 0 as
            # well.
            bias = parts[:, -1] - (parts[:, -1].mean(1, keepdim=True) if self.columns > 1 else 0)
            ends = (found.gradient_norm[rows], found.iterations[rows], found.converged[rows])
            numbers = (design.scaling.mean, design.scaling.scale, coef, bias, *ends)
            fits.append(LogisticFit(*(part.cpu().numpy() for part in numbers)))
        return fits

    def _minimise(self, start: Tensor, l2: Tensor) -> Minimum:
        """Of all designs with the penalties `l2`; float64 has the last word."""
        inverse = StartingHessian.of(self.designs, self.spread, l2)
        first: Minimum | None = None
        if self.settings.precision == "mixed":
            # A little more than is asked for, so that float64 need only confirm it.
            tol = max(0.9 * self.settings.tol, _FLOAT32_GRADIENT)
            first = self._run(start, inverse, l2, torch.float32, tol, self.settings.max_iter)
            start = first.x
        used = int(first.iterations.max()) if first else 0
        last = self._run(
            start,
            inverse,
            l2,
            torch.float64,
            self.settings.tol,
            max(0, self.settings.max_iter - used),
        )
        iterations = last.iterations + first.iterations if first else last.iterations
        return Minimum(last.x, last.value, last.gradient_norm, iterations, last.converged)

    def _run(
        self,
        start: Tensor,
        inverse: StartingHessian,
        l2: Tensor,
        dtype: torch.dtype,
        tol: float,
        max_iter: int,
    ) -> Minimum:
        loss = Loss(self.designs, self.labels, self.columns, l2, dtype)
        return minimise(
            loss,
            start,
            inverse,
            tol=tol,
            max_iter=max_iter,
            noise=_NOISE[dtype],
            patience=_PATIENCE[dtype],
        )


def _reference_fit(
    X: Any, labels: np.ndarray, l2: np.ndarray, settings: LogisticSettings
) -> LogisticFit:
    """scikit-learn's L-BFGS in float64, for one penalty after another."""
    scaling = ColumnScaling.of_columns(X, settings.standardize)
    mean, scale = scaling.mean.numpy(), scaling.scale.numpy()
    Z = (_rows(X, slice(None)) - mean) / scale
    coefs, biases, norms, iterations, converged = [], [], [], [], []
    for penalty in l2:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", ConvergenceWarning)
            model = LogisticRegression(
                C=1 / penalty, tol=settings.tol, max_iter=settings.max_iter
            ).fit(Z, labels)
        coef, bias = model.coef_, model.intercept_
        # The gradient of the mean loss that `tol` bounds, by weights [C, p] and intercepts [C].
        errors = np.exp(_log_probabilities(Z @ coef.T + bias))[:, -len(bias) :]
        errors -= labels[:, None] == (np.arange(len(bias)) if len(bias) > 1 else 1)
        gradient = np.column_stack(
            [errors.T @ Z / len(Z) + penalty / len(Z) * coef, errors.mean(axis=0)]
        )
        coefs.append(coef)
        biases.append(bias)
        norms.append(float(np.abs(gradient).max()))
        iterations.append(int(model.n_iter_[0]))
        converged.append(
            not any(issubclass(warning.category, ConvergenceWarning) for warning in raised)
        )
    ends = (np.array(norms), np.array(iterations), np.array(converged))
    return LogisticFit(mean, scale, np.stack(coefs), np.stack(biases), *ends)


def _rows(X: Any, rows: slice) -> np.ndarray:
    """Some rows of an array or tensor as a float64 array."""
    part = X[rows].detach().cpu() if isinstance(X, Tensor) else X[rows]
    return np.asarray(part, dtype=np.float64)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [..., K] of logits [..., C]; a single one is that of the second of two
    classes."""
    both = (
        np.concatenate([np.zeros_like(logits), logits], axis=-1)
        if logits.shape[-1] == 1
        else logits
    )
    top = both.max(axis=-1, keepdims=True)
    return np.asarray(both - top - np.log(np.exp(both - top).sum(axis=-1, keepdims=True)))
