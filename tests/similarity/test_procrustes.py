"""Procrustes distance and angle against golden values, closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard, orthogonal_procrustes

from mixer_probe.similarity.procrustes import (
    ANGULAR_PROCRUSTES,
    PROCRUSTES,
    angular_procrustes,
    compact,
    procrustes,
)
from tests.similarity.features import features, notebook_features

MEASURES = [PROCRUSTES, ANGULAR_PROCRUSTES]


def rotation(p: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(p, p)))[0]


def residual(X: np.ndarray, Y: np.ndarray) -> float:
    """|X Q - Y| with the rotation of scipy, the narrower side filled up with zeros."""
    width = max(X.shape[1], Y.shape[1])
    X, Y = (np.pad(Z - Z.mean(0), ((0, 0), (0, width - Z.shape[1]))) for Z in (X, Y))
    X, Y = X / np.linalg.norm(X), Y / np.linalg.norm(Y)
    return float(np.linalg.norm(X @ orthogonal_procrustes(X, Y)[0] - Y))


def test_golden_values():
    X, Y = notebook_features()
    assert procrustes(X, Y) == pytest.approx(0.7262846403362411, abs=1e-12)
    assert procrustes(X, Y) ** 2 == pytest.approx(0.527489378788343, abs=1e-12)
    assert angular_procrustes(X, Y) == pytest.approx(0.7432764761208088, abs=1e-12)


@pytest.mark.parametrize(("p", "k"), [(4, 1), (4, 2), (4, 3), (7, 1)])
def test_orthonormal_columns_against_some_of_them(p, k):
    X = hadamard(8)[:, 1:].astype(float)
    assert procrustes(X[:, :p], X[:, :k]) ** 2 == pytest.approx(2 - 2 * math.sqrt(k / p), abs=1e-14)
    assert angular_procrustes(X[:, :p], X[:, :k]) == pytest.approx(
        math.acos(math.sqrt(k / p)), abs=1e-14
    )


def test_disjoint_columns_are_as_far_as_can_be():
    X = hadamard(8)[:, 1:].astype(float)
    assert procrustes(X[:, :3], X[:, 3:]) ** 2 == pytest.approx(2, abs=1e-14)
    assert angular_procrustes(X[:, :3], X[:, 3:]) == pytest.approx(math.pi / 2, abs=1e-14)


@pytest.mark.parametrize(
    ("n", "p", "q"), [(40, 7, 11), (40, 11, 7), (40, 8, 8), (20, 50, 3), (20, 50, 70)]
)
def test_distance_is_what_the_rotation_of_scipy_leaves(n, p, q):
    X, Y = features(0, n, p, q)
    assert procrustes(X, Y) == pytest.approx(residual(X, Y), abs=1e-12)
    assert procrustes(Y, X) == pytest.approx(procrustes(X, Y), abs=1e-13)


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("extra", [0, 4])
def test_small_distances_keep_their_digits(size, extra):
    """Orthonormal columns with one of them turned by a small angle out of their span: |X'Y|_* = 1 -
    (1 - cos) / 3."""
    H = hadamard(8)[:, 1:].astype(float)
    X = H[:, :3]
    Y = X.copy()
    Y[:, 0] = X[:, 0] * math.cos(size) + H[:, 3] * math.sin(size)
    expected = 2 * math.sin(size / 2) / math.sqrt(3)
    value = procrustes(X, np.hstack([Y @ rotation(3), np.zeros((8, extra))]))
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("smallest", [-1, -4, -8, -12])
@pytest.mark.parametrize(("n", "p"), [(100, 20), (20, 60)])
def test_equal_shapes_have_distance_zero(n, p, smallest):
    X = np.random.default_rng(1).normal(size=(n, p)) * np.logspace(0, smallest, p)
    for Y in (X, 3 * X @ rotation(p), np.hstack([X, np.zeros((n, 2))]), X[:, ::-1] + 1):
        assert procrustes(X, Y) < 1e-12
        assert angular_procrustes(X, Y) < 1e-12


def test_the_angle_belongs_to_the_distance():
    X, Y = features(2)
    assert procrustes(X, Y) ** 2 == pytest.approx(
        2 - 2 * math.cos(angular_procrustes(X, Y)), abs=1e-13
    )


def test_triangle_inequality_of_the_angle():
    random = np.random.default_rng(3)
    X = random.normal(size=(30, 4))
    Y = X + random.normal(size=(30, 4))
    Z = Y[:, :3] + random.normal(size=(30, 3))
    for distance in (procrustes, angular_procrustes):
        assert distance(X, Z) <= distance(X, Y) + distance(Y, Z)


def test_compact_keeps_inner_products():
    X = torch.from_numpy(features(4, n=20, p=50)[0])
    x = compact(X)
    assert x.shape == (20, 20)
    centred = X - X.mean(0)
    expected = centred @ centred.T / centred.square().mean()
    torch.testing.assert_close(x @ x.T, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("distance", [procrustes, angular_procrustes])
def test_mean_far_above_the_spread(distance):
    X, Y = features(5)
    assert distance(X + 100 * X.std(), Y - 100 * Y.std()) == pytest.approx(
        distance(X, Y), abs=1e-12
    )


@pytest.mark.parametrize("distance", [procrustes, angular_procrustes])
def test_constant_columns_change_nothing_and_duplicates_are_a_rotation(distance):
    X, Y = features(6)
    assert distance(np.hstack([X, np.full((40, 3), 0.1)]), Y) == pytest.approx(
        distance(X, Y), abs=1e-12
    )
    # Two copies of a column are one of sqrt(2) times its length.
    assert distance(np.hstack([X, X]), X) < 1e-12


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
@pytest.mark.parametrize("p", [7, 50])
def test_prepared_images_in_another_order(measure, p):
    X, Y = (torch.from_numpy(Z) for Z in features(7, p=p))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = measure.table([measure.prepare(X[order])], [measure.prepare(Y)])
    taken = measure.table([measure.prepare(X).take(order)], [measure.prepare(Y)])
    torch.testing.assert_close(taken, expected, rtol=0, atol=1e-12)
    assert float(taken) > measure(X, Y)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_table_is_pair_by_pair(measure):
    A = [torch.from_numpy(Z) for Z in features(8)]
    B = [torch.from_numpy(Z) for Z in features(9, p=3, q=90)] + A[:1]
    table = measure.table([measure.prepare(X) for X in A], [measure.prepare(Y) for Y in B])
    assert table.shape == (2, 3)
    assert table.dtype == torch.float64
    expected = [[measure(X, Y) for Y in B] for X in A]
    torch.testing.assert_close(
        table, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13
    )


def test_constant_features_give_nan():
    X, _ = features(10)
    assert math.isnan(procrustes(X, np.full((40, 3), 0.1)))
