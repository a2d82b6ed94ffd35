"""Soft matching against all permutations, the transport linear programme and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from scipy.optimize import OptimizeResult, linprog

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity import matching
from mixer_probe.similarity.matching import SOFT_MATCHING, best_mean, soft_matching
from tests.similarity.features import features


def correlations(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return np.corrcoef(X, Y, rowvar=False)[: X.shape[1], X.shape[1] :]


def transport(values: np.ndarray) -> float:
    """The linear programme with dense constraints, in the scale of the plan."""
    p, q = values.shape
    constraints = np.zeros((p + q, p, q))
    for i in range(p):
        constraints[i, i] = 1
    for j in range(q):
        constraints[p + j, :, j] = 1
    sums = [1 / p] * p + [1 / q] * q
    return -float(linprog(-values.ravel(), A_eq=constraints.reshape(p + q, -1), b_eq=sums).fun)


@pytest.mark.parametrize("seed", range(3))
def test_equally_many_units_take_the_best_permutation(seed):
    X, Y = features(seed, p=6, q=6)
    values = correlations(X, Y)
    best = max(
        np.mean([values[i, j] for i, j in enumerate(order)])
        for order in itertools.permutations(range(6))
    )
    assert soft_matching(X, Y) == pytest.approx(best, abs=1e-13)


@pytest.mark.parametrize(
    ("p", "q"), [(1, 5), (2, 6), (4, 6), (6, 4), (7, 11), (12, 8), (9, 10), (11, 23)]
)
def test_unequally_many_units_take_the_best_plan(p, q):
    X, Y = features(1, p=p, q=q)
    expected = transport(correlations(X, Y))
    assert soft_matching(X, Y) == pytest.approx(expected, abs=1e-9)
    assert soft_matching(Y, X) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("p", "q"), [(5, 5), (4, 6), (10, 12), (30, 40)])
def test_assignment_and_linear_programme_agree(p, q, monkeypatch):
    values = np.random.default_rng(2).normal(size=(p, q))
    assigned = best_mean(values)
    monkeypatch.setattr(matching, "_LARGEST_ASSIGNMENT", 0)
    assert best_mean(values) == pytest.approx(assigned, abs=1e-10)


@pytest.mark.parametrize(("p", "q"), [(7, 11), (4, 6)])
def test_wide_layers_without_a_small_multiple(p, q, monkeypatch):
    monkeypatch.setattr(matching, "_LARGEST_ASSIGNMENT", 8)
    X, Y = features(3, p=p, q=q)
    assert soft_matching(X, Y) == pytest.approx(transport(correlations(X, Y)), abs=1e-9)


def test_a_failed_linear_programme(monkeypatch):
    monkeypatch.setattr(matching, "_LARGEST_ASSIGNMENT", 0)
    stopped = OptimizeResult(success=False, message="time limit reached")
    monkeypatch.setattr(matching, "linprog", lambda *_, **__: stopped)
    with pytest.raises(MeasureError, match="matching of 2 and 3 units failed: time limit"):
        best_mean(np.ones((2, 3)))


def test_permuted_scaled_and_shifted_units_are_the_same():
    X, _ = features(4)
    random = np.random.default_rng(5)
    moved = (X * random.uniform(0.1, 10, size=7) + random.normal(size=7))[:, random.permutation(7)]
    assert soft_matching(X, moved) == pytest.approx(1, abs=1e-12)
    assert soft_matching(X, X) == pytest.approx(1, abs=1e-12)
    assert soft_matching(X, np.hstack([X, X, X])) == pytest.approx(1, abs=1e-12)


def test_closed_forms():
    X = hadamard(8)[:, 1:].astype(float)
    assert soft_matching(X[:, :3], X[:, 3:6]) == pytest.approx(0, abs=1e-15)
    # One of two units is shared.
    assert soft_matching(X[:, :2], X[:, 1:3]) == pytest.approx(0.5, abs=1e-15)
    # Each of four units holds 1/4, of which the two that are shared find their own.
    assert soft_matching(X[:, :4], X[:, :2]) == pytest.approx(0.5, abs=1e-15)
    # 1/3 of the first meets itself in full, and so does 1/3 of the second.
    assert soft_matching(X[:, :3], X[:, :2]) == pytest.approx(2 / 3, abs=1e-15)
    # Both units of the rotation correlate 1 / sqrt(2) with what they mix, one of them with the
    # sign.
    turned = X[:, :2] @ np.array([[1, 1], [1, -1]])
    assert soft_matching(X[:, :2], turned) == pytest.approx(math.sqrt(0.5), abs=1e-15)


def test_a_unit_against_its_negative_is_the_lowest_value():
    X, _ = features(6, p=1)
    assert soft_matching(X, -2 * X) == pytest.approx(-1, abs=1e-14)


def test_no_plan_is_worse_than_the_uniform_one():
    X, Y = features(7)
    assert soft_matching(X, Y) > correlations(X, Y).mean()


def test_constant_units_correlate_zero():
    X, _ = features(8, p=6)
    wide = np.hstack([X, np.tile([0.1, 1e9 / 7], (40, 1))])
    assert soft_matching(wide, wide) == pytest.approx(6 / 8, abs=1e-12)


def test_duplicate_units_share_their_match():
    X, Y = features(9, p=6, q=6)
    assert soft_matching(np.repeat(X, 2, axis=1), Y) == pytest.approx(
        soft_matching(X, Y), abs=1e-12
    )


def test_more_units_than_images():
    X, Y = features(10, n=12, p=30, q=20)
    assert soft_matching(X, Y) == pytest.approx(transport(correlations(X, Y)), abs=1e-9)


def test_mean_far_above_the_spread():
    X, Y = features(11)
    assert soft_matching(X + 100 * X.std(0), Y - 100 * Y.std()) == pytest.approx(
        soft_matching(X, Y), abs=1e-11
    )


@pytest.mark.parametrize("q", [7, 11])
def test_prepared_images_in_another_order(q):
    X, Y = (torch.from_numpy(Z) for Z in features(12, q=q))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = SOFT_MATCHING.table([SOFT_MATCHING.prepare(X[order])], [SOFT_MATCHING.prepare(Y)])
    taken = SOFT_MATCHING.table([SOFT_MATCHING.prepare(X).take(order)], [SOFT_MATCHING.prepare(Y)])
    torch.testing.assert_close(taken, expected, rtol=0, atol=1e-12)
    assert float(taken) < soft_matching(X, Y)


def test_table_is_pair_by_pair():
    A = [torch.from_numpy(Z) for Z in features(13)]
    B = [torch.from_numpy(Z) for Z in features(14, p=3, q=90)] + A[:1]
    table = SOFT_MATCHING.table(
        [SOFT_MATCHING.prepare(X) for X in A], [SOFT_MATCHING.prepare(Y) for Y in B]
    )
    assert table.shape == (2, 3)
    assert table.dtype == torch.float64
    expected = torch.tensor([[soft_matching(X, Y) for Y in B] for X in A], dtype=torch.float64)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-12)


def test_constant_features_give_nan():
    X, _ = features(15)
    assert math.isnan(soft_matching(X, np.full((40, 3), 0.1)))
