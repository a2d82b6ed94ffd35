"""Error consistency: planted errors, bounds by brute force, the null by counting."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from mixer_probe.core.errors import MeasureError, UndefinedInvarianceWarning
from mixer_probe.core.result import load_results, save_results
from mixer_probe.images import PatchShuffle
from mixer_probe.invariance import error_consistency, expected_agreement, kappa, kappa_bounds
from mixer_probe.stats import wilson_interval
from tests.invariance.planted import answers, answers_right


def made(*rights: np.ndarray, **named: str) -> list:
    return [answers_right(np.atleast_2d(r), name=f"net-{k}", **named) for k, r in enumerate(rights)]


def test_two_identical_networks_have_kappa_one() -> None:
    right = np.random.default_rng(0).random(400) < 0.7
    found = error_consistency(made(right, right))
    assert found.kappa[0, 0, 1] == 1
    assert found.high[0, 0, 1] == found.most[0, 0, 1] == found.fraction_of_most[0, 0, 1] == 1
    # No image tells them apart: how many others would has Wilson's bound of none of 400.
    assert found.low[0, 0, 1] == pytest.approx(1 - 2 * wilson_interval(0, 400)[1])


def test_opposite_networks_are_at_the_least_kappa() -> None:
    right = np.arange(100) < 50
    found = error_consistency(made(right, ~right))
    assert found.kappa[0, 0, 1] == found.least[0, 0, 1] == -1
    assert found.fraction_of_most[0, 0, 1] == -1


def test_kappa_is_cohens() -> None:
    random = np.random.default_rng(1)
    rights = random.random((4, 300)) < np.array([[0.9], [0.5], [0.7], [0.2]])
    found = error_consistency(made(*rights))
    for i in range(4):
        for j in range(4):
            assert found.kappa[0, i, j] == pytest.approx(
                cohen_kappa_score(rights[i], rights[j]), abs=1e-12
            )


@pytest.mark.parametrize("n", [7, 12])
def test_bounds_of_kappa_by_brute_force(n: int) -> None:
    """For every two numbers of right answers, all overlaps that are possible."""
    for a in range(n + 1):
        for b in range(n + 1):
            overlaps = range(max(0, a + b - n), min(a, b) + 1)
            p, q = np.array(a / n), np.array(b / n)
            values = [
                float(kappa(np.array((n - a - b + 2 * k) / n), expected_agreement(p, q)))
                for k in overlaps
            ]
            low, high = kappa_bounds(p, q)
            if {a, b} <= {0, n}:
                # Always right or always wrong: one of them always, kappa 0, or both alike, which is
                # not defined.
                assert math.isnan(high) == (a == b)
                continue
            assert low == pytest.approx(min(values), abs=1e-12)
            assert high == pytest.approx(max(values), abs=1e-12)


def test_different_accuracies_cannot_reach_one() -> None:
    low, high = kappa_bounds(np.array(0.9), np.array(0.6))
    assert high == pytest.approx((0.7 - 0.58) / (1 - 0.58))
    assert low == pytest.approx((0.5 - 0.58) / (1 - 0.58))


def test_the_null_is_counted_exactly() -> None:
    """Of all ways to choose b right images, how many share k with the first network's a."""
    n, a, b = 30, 20, 12
    found = error_consistency(made(np.arange(n) < a, np.arange(n) < b))
    fraction = {
        k: math.comb(a, k) * math.comb(n - a, b - k) / math.comb(n, b) for k in range(2, 13)
    }
    expected = expected_agreement(np.array(a / n), np.array(b / n))
    values = {k: float(kappa(np.array((n - a - b + 2 * k) / n), expected)) for k in fraction}
    low, high = found.null_low[0, 0, 1], found.null_high[0, 0, 1]
    assert any(low == pytest.approx(v) for v in values.values())
    assert sum(fraction[k] for k, v in values.items() if low - 1e-9 <= v <= high + 1e-9) >= 0.95
    assert sum(fraction[k] for k, v in values.items() if v < low - 1e-9) <= 0.025
    assert sum(fraction[k] for k, v in values.items() if v > high + 1e-9) <= 0.025


def test_independent_errors_have_kappa_zero_within_interval_and_null() -> None:
    random = np.random.default_rng(2)
    rights = random.random((30, 500)) < random.uniform(0.4, 0.9, (30, 1))
    found = error_consistency(made(*rights))
    pairs = np.triu_indices(30, 1)
    assert abs(found.kappa[0][pairs].mean()) < 0.01
    covered = (found.low[0][pairs] <= 0) & (found.high[0][pairs] >= 0)
    inside = (found.null_low[0][pairs] <= found.kappa[0][pairs]) & (
        found.kappa[0][pairs] <= found.null_high[0][pairs]
    )
    # 435 pairs that share networks: 95 % within a few points.
    assert covered.mean() > 0.91
    assert inside.mean() > 0.91


def test_shared_errors_are_found_and_matrices_are_symmetric() -> None:
    random = np.random.default_rng(3)
    hard, coin = random.random(2000) < 0.3, random.random((3, 2000))
    found = error_consistency(made(*[np.where(hard, c < 0.3, c < 0.9) for c in coin]))
    off = ~np.eye(3, dtype=bool)
    assert (found.low[0][off] > found.null_high[0][off]).all()
    for part in (
        found.kappa,
        found.low,
        found.high,
        found.null_low,
        found.null_high,
        found.least,
        found.most,
    ):
        np.testing.assert_array_equal(part[0], part[0].T)


def test_the_interval_has_the_width_of_kappas_standard_error() -> None:
    """Cohen's large-sample standard error for equal accuracies of one half: sqrt(1 - kappa^2) /
    sqrt(n)."""
    random = np.random.default_rng(4)
    first = random.random(5000) < 0.5
    second = np.where(random.random(5000) < 0.75, first, ~first)
    found = error_consistency(made(first, second))
    width = found.high[0, 0, 1] - found.low[0, 0, 1]
    assert width == pytest.approx(2 * 1.96 * math.sqrt((1 - 0.5**2) / 5000), rel=0.1)


def test_networks_without_errors_have_no_kappa() -> None:
    some = np.arange(40) < 30
    with pytest.warns(UndefinedInvarianceWarning, match="NaN, the first on undistorted images"):
        found = error_consistency(made(np.ones(40, bool), np.ones(40, bool), some))
    assert np.isnan(found.kappa[0, :2, :2]).all()
    assert found.kappa[0, 0, 2] == 0
    assert np.isfinite(found.kappa[0, 2, 2])


def test_distortions_have_their_own_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    right, distortions = random.random((3, 2, 200)) < 0.6, (PatchShuffle(2),)
    found = error_consistency(
        [answers_right(r, distortions, name=f"net-{k}") for k, r in enumerate(right)]
    )
    assert found.labels == ("none", "patches shuffled, 2×2")
    np.testing.assert_allclose(found.kappa[1], error_consistency(made(*right[:, 1])).kappa[0])
    frame = found.to_frame()
    assert len(frame) == 2 * 3
    again = load_results(save_results([found], tmp_path / "r.json"))[0]
    assert again.to_frame().equals(frame)


def test_above_chance() -> None:
    right = np.stack([np.arange(100) % 10 < 9, np.arange(100) % 10 < 1])
    found = error_consistency(
        [answers_right(right, (PatchShuffle(2),), name=name) for name in "ab"]
    )
    assert found.above_chance.tolist() == [[True, True], [False, False]]


def test_only_the_same_images_and_distortions_can_be_compared() -> None:
    right = np.arange(20) < 12
    one, two = made(right, right)
    with pytest.raises(MeasureError, match="there is one"):
        error_consistency([one])
    with pytest.raises(MeasureError, match="different images"):
        error_consistency([one, replace(two, images=replace(two.images, fingerprint="x"))])
    with pytest.raises(MeasureError, match="different distortions"):
        error_consistency(
            [one, answers(np.stack([two.predicted[0]] * 2), two.labels, (PatchShuffle(2),))]
        )
