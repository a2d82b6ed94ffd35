"""Distance correlation against its definition in plain loops, closed forms and degenerate input."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.distances import DISTANCE_CORRELATION, distance_correlation
from tests.similarity.features import shifted_features as features_of

features = partial(features_of, n=30)


def distances(X: np.ndarray) -> list[list[float]]:
    return [[math.dist(a, b) for b in X] for a in X]


def distance_covariance(a: list[list[float]], b: list[list[float]]) -> float:
    """dCov^2 as S1 + S2 - 2 S3 of Szekely et al. 2007, a form without double centring."""
    n = len(a)
    first = math.fsum(a[i][j] * b[i][j] for i in range(n) for j in range(n)) / n**2
    second = math.fsum(map(math.fsum, a)) * math.fsum(map(math.fsum, b)) / n**4
    third = math.fsum(math.fsum(a[i]) * math.fsum(b[i]) for i in range(n)) / n**3
    return first + second - 2 * third


def by_definition(X: np.ndarray, Y: np.ndarray) -> float:
    a, b = distances(X), distances(Y)
    variances = distance_covariance(a, a) * distance_covariance(b, b)
    return math.sqrt(distance_covariance(a, b) / math.sqrt(variances))


@pytest.mark.parametrize("shape", [{}, {"n": 4}, {"n": 20, "p": 60, "q": 25}, {"p": 1, "q": 1}])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(seed, shape):
    X, Y = features(seed, **shape)
    assert distance_correlation(X, Y) == pytest.approx(by_definition(X, Y), abs=1e-10)


def test_independent_binary_variables():
    # All four combinations equally often: the empirical variables are independent, so dCov is 0.
    X, Y = np.array([[0.0], [0], [1], [1]]), np.array([[0.0], [1], [0], [1]])
    assert distance_correlation(X, Y) == pytest.approx(0, abs=1e-7)


def test_two_binary_variables():
    # Cells 3, 1, 1, 3: for binary variables dCor^2 is the square of phi, dCor = |phi| = 1/2.
    X, Y = np.repeat([0.0, 1], 4)[:, None], np.array([0.0, 0, 0, 1, 0, 1, 1, 1])[:, None]
    assert distance_correlation(X, Y) == pytest.approx(abs(np.corrcoef(X.T, Y.T)[0, 1]), abs=1e-12)


def test_sees_dependence_without_correlation():
    x = np.linspace(-1, 1, 41)[:, None]
    assert distance_correlation(x, x**2) > 0.4


def test_a_mean_of_hundred_standard_deviations_costs_no_precision():
    X, Y = features(4)
    shifted = distance_correlation(X + 100 * X.std(), Y - 100 * Y.std())
    assert shifted == pytest.approx(distance_correlation(X, Y), abs=1e-12)


def test_repeated_images():
    X, Y = features(5, n=20)
    twice = np.r_[X, X], np.r_[Y, Y]
    assert distance_correlation(*twice) == pytest.approx(distance_correlation(X, Y), abs=1e-12)


def test_distances_of_reordered_images():
    X, Y = (torch.from_numpy(side) for side in features(6))
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    moved, fresh = (
        DISTANCE_CORRELATION.prepare(X).take(order),
        DISTANCE_CORRELATION.prepare(X[order]),
    )
    torch.testing.assert_close(moved.matrix, fresh.matrix, rtol=0, atol=1e-14)
    table = DISTANCE_CORRELATION.table([moved, DISTANCE_CORRELATION.prepare(Y)], [fresh])
    assert table[0, 0] == pytest.approx(1, abs=1e-12)
    assert table[1, 0] == pytest.approx(distance_correlation(X[order], Y), abs=1e-12)


def test_wide_noise_reads_close_to_one():
    random = np.random.default_rng(7)
    assert (
        distance_correlation(random.normal(size=(20, 5000)), random.normal(size=(20, 5000))) > 0.95
    )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_units(scale):
    X, Y = features(8)
    assert distance_correlation(scale * X, Y) == pytest.approx(
        distance_correlation(X, Y), abs=1e-12
    )


def test_undefined_values_and_errors():
    X, Y = features(9)
    assert math.isnan(distance_correlation(np.ones_like(X), Y))
    with pytest.raises(MeasureError, match="3 images are too few"):
        distance_correlation(X[:3], Y[:3])


def test_values_are_roots_of_inner_products_of_the_matrices():
    measure = DISTANCE_CORRELATION
    a, b = (measure.prepare(torch.from_numpy(side)) for side in features(10))
    A, B = measure.matrix(a), measure.matrix(b)
    torch.testing.assert_close(A, A.T, rtol=0, atol=1e-15)
    assert float(measure.finish((A * B).sum())) == pytest.approx(
        float(measure.table([a], [b])), abs=1e-13
    )
    assert measure.finish(torch.tensor(-1e-17)) == 0
