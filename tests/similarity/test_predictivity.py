"""Linear predictivity against least squares, sklearn's ridge regression and the hat matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from sklearn.linear_model import LinearRegression, Ridge

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.predictivity import (
    PENALTIES,
    PREDICTIVITY,
    PREDICTIVITY_REVERSE,
    Split,
    Targets,
    fold_of_each,
    linear_predictivity,
    linear_regression_r2,
)
from tests.similarity.features import features as features_of
from tests.similarity.features import notebook_features

MEASURES = [PREDICTIVITY, PREDICTIVITY_REVERSE]


features = partial(features_of, n=60)


def gcv(X: np.ndarray, Y: np.ndarray, penalty: float) -> float:
    """n |(I - H) Y|^2 / tr(I - H)^2 with the hat matrix H of the intercept and the ridge."""
    x = X - X.mean(0)
    hat = 1 / len(X) + x @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T)
    left = np.eye(len(X)) - hat
    return float(np.sum((left @ Y) ** 2) / np.trace(left) ** 2)


def by_hand(X: np.ndarray, Y: np.ndarray, folds: int, penalties: tuple[float, ...]) -> float:
    """Cross-validated ridge with sklearn, the penalty of each fold from the hat matrix of its
    training images."""
    fold = fold_of_each(len(X), folds).numpy()
    residual = total = 0.0
    for k in range(folds):
        x, y, held = X[fold != k], Y[fold != k], fold == k
        singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
        unit = np.mean(singular[: min(len(x) - 1, x.shape[1])] ** 2)
        best = min(penalties, key=lambda penalty: gcv(x, y, penalty * unit))
        model = Ridge(alpha=best * unit, solver="svd").fit(x, y)
        residual += np.sum((Y[held] - model.predict(X[held])) ** 2)
        total += np.sum((Y[held] - y.mean(0)) ** 2)
    return 1 - residual / total


def test_golden_values_in_sample():
    X, Y = notebook_features()
    assert linear_regression_r2(X, Y) == pytest.approx(0.5677425705377123, abs=1e-12)
    assert linear_regression_r2(Y, X) == pytest.approx(0.5634752416529546, abs=1e-12)


def test_in_sample_r2_is_that_of_least_squares():
    X, Y = features(0)
    predicted = LinearRegression().fit(X, Y).predict(X)
    expected = 1 - np.sum((Y - predicted) ** 2) / np.sum((Y - Y.mean(0)) ** 2)
    assert linear_regression_r2(X, Y) == pytest.approx(expected, abs=1e-12)


def test_in_sample_closed_forms():
    X = hadamard(8)[:, 1:].astype(float)
    assert linear_regression_r2(X[:, :3], X[:, 3:]) == pytest.approx(0, abs=1e-14)
    assert linear_regression_r2(X[:, :2], X[:, :3] * [3, 1, 2]) == pytest.approx(10 / 14, abs=1e-14)
    assert linear_regression_r2(np.random.default_rng(0).normal(size=(8, 20)), X) == pytest.approx(
        1, abs=1e-12
    )
    assert math.isnan(linear_regression_r2(X, np.ones((8, 2))))


@pytest.mark.parametrize(
    ("n", "p", "q"), [(60, 7, 11), (43, 20, 3), (40, 31, 5), (40, 32, 5), (30, 80, 40)]
)
@pytest.mark.parametrize("folds", [2, 5])
def test_cross_validation_by_hand(n, p, q, folds):
    X, Y = features(1, n=n, p=p, q=q)
    # Penalties that the hat matrix, which is inverted without its spectrum, can bear.
    penalties = tuple(10.0**power for power in range(-3, 5))
    expected = by_hand(X, Y, folds, penalties)
    assert linear_predictivity(X, Y, folds, penalties) == pytest.approx(expected, abs=1e-9)


def test_default_is_five_folds_and_the_long_path():
    X, Y = features(2)
    assert linear_predictivity(X, Y) == pytest.approx(by_hand(X, Y, 5, PENALTIES), abs=1e-9)
    assert PREDICTIVITY(X, Y) == linear_predictivity(X, Y)


def test_tiny_penalties_of_more_channels_than_images():
    """Both sides of the cross-validation ratio go to 0 with the penalty: rounding may not turn the
    choice to the mean."""
    random = np.random.default_rng(17)
    X = random.normal(size=(40, 60))
    Y = X @ random.normal(size=(60, 5))
    best = linear_predictivity(X, Y, 5, (1e-11,))
    assert best > 0.3
    assert linear_predictivity(X, Y, 5, (1e-11, 1e4)) == pytest.approx(best, abs=1e-9)


def test_folds_are_a_partition_of_even_sizes():
    fold = fold_of_each(23, 5)
    assert sorted(torch.bincount(fold).tolist()) == [4, 4, 5, 5, 5]
    assert torch.equal(fold, fold_of_each(23, 5))
    assert fold.tolist() != [i % 5 for i in range(23)]


def test_no_held_out_image_has_a_say_in_its_own_prediction():
    """Other values of the held-out images of a fold change neither the coefficients nor the
    penalty."""
    X, Y = (torch.from_numpy(Z) for Z in features(3))
    side, other = PREDICTIVITY.prepare(X), PREDICTIVITY.prepare(Y)
    held = fold_of_each(60, 5) == 0
    values, totals = [], []
    for step in (0, 10, 20):
        targets = Targets.of([replace(other, x=other.x + step * held[:, None])])
        values.append(float(side.errors(targets)[0, 0]))
        totals.append(float(targets.held[0, 0]))
    residual, moved, twice = values
    q = int(held.sum()) * Y.shape[1]
    # The second difference of |r + 10 t|^2 in t is 200 q as long as the predictions, and so the
    # residuals r, stay.
    assert twice - 2 * moved + residual == pytest.approx(200 * q, rel=1e-10)
    assert totals[0] > residual


def test_equal_representations_of_full_rank():
    X, Y = features(4, n=300, p=30, q=40)
    for Z in (X, Y):
        assert linear_predictivity(Z, Z) > 1 - 1e-6
        assert linear_predictivity(Z, Z) <= 1


def test_independent_noise_predicts_nothing():
    random = np.random.default_rng(5)
    for p in (20, 200, 1000):
        value = linear_predictivity(random.normal(size=(200, p)), random.normal(size=(200, 30)))
        assert -0.05 < value < 0.02


def test_a_signal_of_known_strength():
    """Y = X + noise of equal power: R² is 1/2, less p / n of the estimation."""
    random = np.random.default_rng(6)
    X = random.normal(size=(2000, 10))
    Y = X + random.normal(size=X.shape)
    assert linear_predictivity(X, Y) == pytest.approx(0.5, abs=0.02)


def test_more_than_a_linear_map_is_lost_in_one_direction():
    X = np.random.default_rng(7).normal(size=(200, 6))
    assert linear_predictivity(X, X[:, :2]) > 0.999
    assert linear_predictivity(X[:, :2], X) < 0.5


@pytest.mark.parametrize("p", [7, 100])
def test_rotations_scales_and_shifts_of_either_side(p):
    X, Y = features(8, p=p)
    random = np.random.default_rng(9)
    x = 3 * X @ np.linalg.qr(random.normal(size=(p, p)))[0] + 100 * X.std()
    y = 0.1 * Y @ np.linalg.qr(random.normal(size=(11, 11)))[0] - 100 * Y.std()
    assert linear_predictivity(x, y) == pytest.approx(linear_predictivity(X, Y), abs=1e-9)
    assert linear_regression_r2(x, y) == pytest.approx(linear_regression_r2(X, Y), abs=1e-11)


def test_duplicate_and_constant_columns():
    X, Y = features(10)
    assert linear_predictivity(np.hstack([X, np.full((60, 2), 0.1)]), Y) == pytest.approx(
        linear_predictivity(X, Y), abs=1e-11
    )
    # All columns twice are a rotation of sqrt(2) X.
    assert linear_predictivity(np.hstack([X, X]), Y) == pytest.approx(
        linear_predictivity(X, Y), abs=1e-9
    )
    assert linear_regression_r2(np.hstack([X, X[:, :3]]), Y) == pytest.approx(
        linear_regression_r2(X, Y), abs=1e-12
    )


def test_features_that_are_constant_in_training():
    """One image alone differs: without it in training the prediction is the mean."""
    X, Y = np.zeros((20, 3)), features(11, n=20)[1]
    X[4, 0] = 1
    held = fold_of_each(20, 5)[4]
    side, other = (PREDICTIVITY.prepare(torch.from_numpy(Z)) for Z in (X, Y))
    targets = Targets.of([other])
    assert float(side.errors(targets)[held, 0]) == pytest.approx(
        float(targets.held[held, 0]), rel=1e-12
    )
    assert math.isfinite(linear_predictivity(X, Y))
    assert math.isfinite(linear_predictivity(Y, X))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
@pytest.mark.parametrize("p", [7, 100])
def test_prepared_images_in_another_order(measure, p):
    X, Y = (torch.from_numpy(Z) for Z in features(12, p=p))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    prepared = measure.prepare(X)
    before = measure.table([prepared], [measure.prepare(Y)])
    expected = measure.table([measure.prepare(X[order])], [measure.prepare(Y)])
    taken = measure.table([prepared.take(order)], [measure.prepare(Y)])
    torch.testing.assert_close(taken, expected, rtol=0, atol=1e-10)
    assert float(taken) < float(before)


def test_tables_are_pair_by_pair_and_transposed():
    A = [torch.from_numpy(Z) for Z in features(13)]
    B = [torch.from_numpy(Z) for Z in features(14, p=3, q=90)] + A[:1]
    for measure in MEASURES:
        table = measure.table([measure.prepare(X) for X in A], [measure.prepare(Y) for Y in B])
        assert table.shape == (2, 3)
        assert table.dtype == torch.float64
        expected = torch.tensor([[measure(X, Y) for Y in B] for X in A], dtype=torch.float64)
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-12)
    assert PREDICTIVITY_REVERSE(A[0], B[0]) == pytest.approx(PREDICTIVITY(B[0], A[0]), abs=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds is a whole number, 2 or more, not 1"),
        ({"folds": 61}, "60 images are too few"),
        ({"penalties": ()}, "not all positive"),
        ({"penalties": (1.0, 0.0)}, "not all positive"),
        ({"penalties": (math.nan,)}, "not all positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(MeasureError, match=message):
        linear_predictivity(*features(15), **options)


def test_constant_features_give_nan():
    X, _ = features(16)
    assert math.isnan(linear_predictivity(X, np.full((60, 3), 0.1)))
    assert math.isnan(linear_predictivity(np.full((60, 3), 0.1), X))


@pytest.mark.parametrize("folds", [2, 5])
def test_a_far_image_costs_the_other_folds_no_digits(folds):
    Y = features(17)[1]
    Y[4] += 1e6
    fold = fold_of_each(60, folds).numpy()
    layers = [Y - Y.mean(0), (Y - Y.mean(0))[:, :3]]
    targets = Targets.of([Split(torch.from_numpy(Z), folds, PENALTIES) for Z in layers])
    for k in range(folds):
        for layer, Z in enumerate(layers):
            mean = Z[fold != k].mean(0)
            assert float(targets.training[k, layer]) == pytest.approx(
                np.sum((Z[fold != k] - mean) ** 2), rel=1e-9
            )
            assert float(targets.held[k, layer]) == pytest.approx(
                np.sum((Z[fold == k] - mean) ** 2), rel=1e-9
            )
