"""Paired shares: counts, Tango's interval, McNemar's test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from mixer_probe.stats import difference_interval, mcnemar, paired_counts
from mixer_probe.stats.proportions import score

Z = 1.959963984540054


def test_counts_of_pairs() -> None:
    a = np.array([1, 1, 1, 0, 0, 1, 0], bool)
    b = np.array([1, 0, 1, 1, 0, 0, 0], bool)
    assert paired_counts(a, b).tolist() == [2, 2, 1, 2]
    assert paired_counts(a[None], np.stack([a, ~a, b])).tolist() == [
        [4, 0, 0, 3],
        [0, 4, 3, 0],
        [2, 2, 1, 2],
    ]


def constrained_score(b: int, c: int, n: int, difference: float) -> float:
    """The score statistic with the likelihood maximised numerically under p(b) - p(c) =
    difference."""

    def loss(fraction: float) -> float:
        rest = max(1 - 2 * fraction - difference, 1e-300)
        return -(
            b * np.log(max(fraction + difference, 1e-300))
            + c * np.log(max(fraction, 1e-300))
            + (n - b - c) * np.log(rest)
        )

    low, high = max(0.0, -difference), (1 - difference) / 2
    fraction = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    ).x
    return (b - c - n * difference) / np.sqrt(n * (2 * fraction + difference - difference**2))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (30, 31, 200), (1, 0, 20), (5, 40, 90)])
def test_the_score_is_that_of_the_constrained_likelihood(b: int, c: int, n: int) -> None:
    counts = np.array([n - b - c, b, c, 0])
    for difference in (-0.5, -0.1, 0.0, 0.07, 0.3):
        assert score(counts, np.array(difference)) == pytest.approx(
            constrained_score(b, c, n, difference), rel=1e-5, abs=1e-6
        )


def test_the_interval_is_where_the_score_is_z() -> None:
    counts = np.array([[20, 12, 2, 16], [100, 30, 31, 39], [5, 0, 9, 6]])
    low, high = difference_interval(counts)
    np.testing.assert_allclose(score(counts, low), Z, rtol=1e-9)
    np.testing.assert_allclose(score(counts, high), -Z, rtol=1e-9)
    difference = (counts[:, 1] - counts[:, 2]) / counts.sum(1)
    assert ((low < difference) & (difference < high)).all()


def test_two_that_never_differ_have_an_interval_of_known_width() -> None:
    """With no discordant image the statistic is -sqrt(n d / (1 - d)), so the bounds are +-z^2 / (n
    + z^2)."""
    low, high = difference_interval(np.array([700, 0, 0, 300]))
    np.testing.assert_allclose(
        [low, high], [-(Z**2) / (1000 + Z**2), Z**2 / (1000 + Z**2)], rtol=1e-9
    )


def test_turning_the_pair_round_turns_the_interval_round() -> None:
    low, high = difference_interval(np.array([[20, 12, 2, 16], [20, 2, 12, 16]]))
    np.testing.assert_allclose([low[0], high[0]], [-high[1], -low[1]], atol=1e-12)


def test_the_interval_covers_what_it_says() -> None:
    """All tables of 25 images with their exact probabilities: coverage near 95 %."""
    n, fractions = 25, np.array([0.5, 0.2, 0.1, 0.2])
    tables = np.array(
        [(n - b - c, b, c, 0) for b, c in itertools.product(range(n + 1), repeat=2) if b + c <= n]
    )
    chances = stats.multinomial.pmf(
        tables[:, :3], n, [fractions[0] + fractions[3], fractions[1], fractions[2]]
    )
    low, high = difference_interval(tables)
    assert chances.sum() == pytest.approx(1)
    assert 0.93 < chances[(low <= 0.1) & (high >= 0.1)].sum() < 0.97


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (12, 2), (2, 12), (0, 9)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(np.array([3, b, c, 4])) == pytest.approx(expected, rel=1e-12)
