"""Mean CCA, SVCCA and PWCCA against golden values, closed forms and the textbook eigenvalue
problem."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import eigh, hadamard
from sklearn.cross_decomposition import CCA

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.canonical import (
    MEAN_CCA,
    PWCCA,
    SVCCA,
    basis,
    leading_basis,
    mean_cca,
    principal,
    pwcca,
    svcca,
)
from tests.similarity.features import features as features_of
from tests.similarity.features import notebook_features

MEASURES = [MEAN_CCA, SVCCA, PWCCA]
FUNCTIONS = [mean_cca, svcca, pwcca]


features = partial(features_of, n=60)


def textbook(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlations and variates of `X` from Cxy Cyy^-1 Cyx a = rho^2 Cxx a, for full rank and p <=
    q."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    cross = X.T @ Y
    squares, a = eigh(cross @ np.linalg.solve(Y.T @ Y, cross.T), X.T @ X)
    return np.sqrt(squares), X @ a


def components(X: np.ndarray, variance: float) -> np.ndarray:
    """Scores of the fewest principal components with that share of the variance."""
    X = X - X.mean(0)
    U, S, _ = np.linalg.svd(X, full_matrices=False)
    kept = np.searchsorted(np.cumsum(S**2) / np.sum(S**2), variance) + 1
    return U[:, :kept] * S[:kept]


@pytest.mark.parametrize("function", [mean_cca, svcca])
def test_golden_values(function):
    assert function(*notebook_features()) == pytest.approx(0.7310139587836585, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_mean_cca_is_the_eigenvalue_problem(seed):
    X, Y = features(seed)
    assert mean_cca(X, Y) == pytest.approx(textbook(X, Y)[0].mean(), abs=1e-12)
    assert mean_cca(Y, X) == pytest.approx(mean_cca(X, Y), abs=1e-13)


def test_mean_cca_is_that_of_sklearn():
    X, Y = features(3, n=200, p=4, q=5)
    U, V = CCA(n_components=4, scale=False, max_iter=10_000, tol=1e-14).fit_transform(X, Y)
    correlations = [np.corrcoef(U[:, k], V[:, k])[0, 1] for k in range(4)]
    assert mean_cca(X, Y) == pytest.approx(np.mean(correlations), abs=1e-8)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_svcca_is_cca_of_the_components(variance):
    X, Y = features(4)
    x, y = sorted((components(X, variance), components(Y, variance)), key=lambda Z: Z.shape[1])
    assert svcca(X, Y, variance) == pytest.approx(textbook(x, y)[0].mean(), abs=1e-12)


def test_svcca_with_all_the_variance_is_mean_cca():
    X, Y = features(5)
    X[:, 0] *= 1e-6
    assert svcca(X, Y, 1) == pytest.approx(mean_cca(X, Y), abs=1e-13)
    assert svcca(X, Y) != pytest.approx(mean_cca(X, Y), abs=1e-3)


def test_svcca_keeps_the_component_that_meets_the_share_exactly():
    X = hadamard(8)[:, 1:].astype(float)
    # Shares 1/2 and 1/2 of the first side; the first of its axes is the other side.
    assert svcca(X[:, :2] * [1 + 1e-9, 1], X[:, :1], 0.5) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_pwcca_is_its_definition(seed):
    X, Y = features(seed)
    correlations, variates = textbook(X, Y)
    weights = np.abs(variates.T @ (X - X.mean(0))).sum(1)
    assert pwcca(X, Y) == pytest.approx(np.average(correlations, weights=weights), abs=1e-11)


def test_pwcca_weighs_by_the_first_side():
    X, Y = features(6)
    change = np.random.default_rng(0).normal(size=(11, 11))
    assert pwcca(X, Y @ change) == pytest.approx(pwcca(X, Y), abs=1e-10)
    assert abs(pwcca(X @ change[:7, :7], Y) - pwcca(X, Y)) > 1e-3
    assert abs(pwcca(X @ np.linalg.qr(change[:7, :7])[0], Y) - pwcca(X, Y)) > 1e-3
    assert abs(pwcca(X, Y) - pwcca(Y, X)) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_pwcca_of_tied_correlations_is_unique(seed):
    """Ranks 40 + 35 beyond 59 make 16 correlations 1, whose variates only the principal axes of X
    tell apart."""
    random = np.random.default_rng(seed)
    X, Y = random.normal(size=(60, 40)), random.normal(size=(60, 35))
    order = random.permutation(60)
    others = [
        (X[order], Y[order]),
        (X, Y @ random.normal(size=(35, 35))),
        (X[:, random.permutation(40)] * 3 + 5, Y),
    ]
    for other in others:
        assert pwcca(*other) == pytest.approx(pwcca(X, Y), abs=1e-10)


@pytest.mark.parametrize("function", [mean_cca, svcca])
def test_orthonormal_columns_have_the_correlations_of_their_axes(function):
    X = hadamard(8)[:, 1:].astype(float)
    assert function(X[:, :4], X[:, :2]) == pytest.approx(1, abs=1e-14)
    assert function(X[:, :2] * [3, 1], X[:, :2] * [1, 3]) == pytest.approx(1, abs=1e-14)
    assert function(X[:, :3], X[:, 3:]) == pytest.approx(0, abs=1e-14)
    # One shared axis of two.
    assert function(X[:, :2], X[:, 1:3]) == pytest.approx(0.5, abs=1e-14)


@pytest.mark.parametrize(("n", "p", "q", "golden"), [(200, 20, 20, 0.1005), (200, 20, 50, 0.2513)])
def test_independent_noise_has_squared_correlations_of_mean_q_over_n(n, p, q, golden):
    """E tr(Px Py) = p q / (n - 1) for projections on independent subspaces of the centred
    images."""
    random = np.random.default_rng(0)
    squares = []
    for _ in range(20):
        X, Y = random.normal(size=(n, p)), random.normal(size=(n, q))
        squares.append(np.mean(textbook(X, Y)[0] ** 2))
        assert mean_cca(X, Y) <= math.sqrt(squares[-1])
    assert np.mean(squares) == pytest.approx(q / (n - 1), rel=0.03)
    assert q / (n - 1) == pytest.approx(golden, abs=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("p", "q"), [(60, 20), (20, 60), (49, 3), (60, 70)])
def test_as_many_dimensions_as_images_give_one(function, p, q):
    random = np.random.default_rng(1)
    X, Y = random.normal(size=(50, p)), random.normal(size=(50, q))
    if function is svcca:
        assert svcca(X, Y, 1) == pytest.approx(1, abs=1e-12)
    else:
        assert function(X, Y) == pytest.approx(1, abs=1e-12)


def test_mean_cca_of_linear_maps():
    X, Y = features(7)
    random = np.random.default_rng(2)
    A, B = random.normal(size=(7, 7)), random.normal(size=(11, 11))
    assert mean_cca(X @ A + 3, Y @ B - 2) == pytest.approx(mean_cca(X, Y), abs=1e-11)
    assert mean_cca(X, X @ A) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("function", [mean_cca, pwcca])
def test_duplicate_and_constant_columns_of_the_second_side_change_nothing(function):
    X, Y = features(8)
    wide = np.hstack([Y, Y[:, :4], np.full((60, 2), 0.1), Y[:, :1] + Y[:, 1:2]])
    assert function(X, wide) == pytest.approx(function(X, Y), abs=1e-11)
    assert mean_cca(wide, X) == pytest.approx(mean_cca(X, Y), abs=1e-11)


def test_dependent_columns_are_found_under_a_large_mean():
    X, Y = features(9, n=20)
    mixed = np.hstack([X, X @ np.random.default_rng(3).normal(size=(7, 3))]) + 100 * X.std()
    assert mean_cca(mixed, Y) == pytest.approx(mean_cca(X, Y), abs=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_mean_far_above_the_spread(function):
    X, Y = features(10)
    assert function(X + 100 * X.std(), Y - 100 * Y.std()) == pytest.approx(
        function(X, Y), abs=1e-10
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_equal_representations(function):
    for X in (*features(11), *features(12, n=10, p=30, q=9)):
        assert function(X, X) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_prepared_images_in_another_order(measure):
    X, Y = (torch.from_numpy(Z) for Z in features(13))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    expected = measure.table([measure.prepare(X[order])], [measure.prepare(Y)])
    taken = measure.table([measure.prepare(X).take(order)], [measure.prepare(Y)])
    torch.testing.assert_close(taken, expected, rtol=0, atol=1e-12)
    assert float(taken) < measure(X, Y)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_table_is_pair_by_pair(measure):
    A = [torch.from_numpy(Z) for Z in features(14)]
    B = [torch.from_numpy(Z) for Z in features(15, p=3, q=90)] + A[:1]
    table = measure.table([measure.prepare(X) for X in A], [measure.prepare(Y) for Y in B])
    assert table.shape == (2, 3)
    assert table.dtype == torch.float64
    expected = [[measure(X, Y) for Y in B] for X in A]
    torch.testing.assert_close(
        table, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_constant_features_give_nan(function):
    X, _ = features(16)
    assert math.isnan(function(X, np.full((60, 3), 0.1)))


@pytest.mark.parametrize("variance", [0, -0.1, 1.01, math.nan])
def test_a_share_of_variance_outside_its_range(variance):
    with pytest.raises(MeasureError, match="not a fraction"):
        svcca(*features(17), variance=variance)


@pytest.mark.parametrize("spread", [0, 3, 6, 9, 12, 15, 18])
def test_bases_are_those_of_the_singular_value_decomposition(spread):
    """Up to a spread that double precision cannot hold, where columns count as dependent."""
    random = np.random.default_rng(18)
    X = torch.from_numpy(
        random.normal(size=(80, 9))
        * np.logspace(0, -spread, 9)
        @ np.linalg.qr(random.normal(size=(9, 9)))[0]
    )
    U, S, _ = principal(X)
    found = basis(X)
    assert found.U.shape == U.shape
    torch.testing.assert_close(
        found.U.T @ found.U, torch.eye(len(S), dtype=torch.float64), rtol=0, atol=1e-13
    )
    x = (X - X.mean(0)) / (X - X.mean(0)).norm()
    torch.testing.assert_close(
        found.U @ found.loadings / found.loadings.norm(), x, rtol=0, atol=1e-13
    )
    for variance in (0.5, 0.99, 1 - 1e-8):
        leading = leading_basis(X, variance).U
        torch.testing.assert_close(
            leading @ leading.T,
            U[:, : leading.shape[1]] @ U[:, : leading.shape[1]].T,
            rtol=0,
            atol=1e-11,
        )


@pytest.mark.parametrize("small", [0.3, 1e-3, 1e-5, 1e-9, 0])
def test_small_correlations_lose_no_digits(small):
    """Two pairs of axes with known correlations, one of them small, and their variates along the
    axes of X."""
    H = hadamard(8)[:, 1:].astype(float)
    X, Y = H[:, :2] * [2, 1], np.c_[H[:, 0], small * H[:, 1] + np.sqrt(1 - small**2) * H[:, 2]]
    assert mean_cca(X, Y) == pytest.approx((1 + small) / 2, abs=1e-14)
    assert pwcca(X, Y) == pytest.approx((2 + small) / 3, abs=1e-14)
