"""p-values and the null of the largest, and what intervals say of data that hold none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixer_probe.core.errors import MeasureError
from mixer_probe.stats import (
    check_permutations,
    crossed_interval,
    delta_interval,
    max_null,
    max_p,
    mean_interval,
    median_interval,
    permutation_p,
    upper_quantile,
    wilson_interval,
)


def test_p_values_count_the_draws_that_reach_the_value() -> None:
    draws = np.array([[0.0, 5.0], [1.0, 6.0], [2.0, np.nan]])
    np.testing.assert_allclose(permutation_p([1.0, 7.0], draws), [3 / 4, 2 / 4])
    np.testing.assert_allclose(permutation_p([-1.0, 5.5], draws, direction=-1), [1 / 4, 3 / 4])
    assert np.isnan(permutation_p(np.nan, draws[:, 0]))


@pytest.mark.parametrize("m", [19, 99])
def test_p_values_of_null_values_are_uniform(m: int) -> None:
    values = np.random.default_rng(0).normal(size=(1 + m, 20_000))
    p = permutation_p(values[0], values[1:])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.01)


def test_the_largest_of_a_family_is_compared_with_the_largest() -> None:
    draws = np.random.default_rng(1).normal(size=(1000, 200, 12))
    np.testing.assert_array_equal(max_null(draws[:, 0], 1), draws[:, 0].max(1))
    np.testing.assert_array_equal(max_null(draws[:, 0], 1, direction=-1), draws[:, 0].min(1))
    # 200 data sets, of each the largest of 12: one in twenty is called significant, and by the null
    # of each alone nearly half.
    null = np.random.default_rng(2).normal(size=(999, 12))
    picked = np.array([max_p(values, null).min() for values in draws[0]])
    alone = np.array([permutation_p(values, null).min() for values in draws[0]])
    assert (picked <= 0.05).mean() <= 0.08
    assert (alone <= 0.05).mean() > 0.3


def test_members_that_are_not_defined_are_left_out() -> None:
    draws = np.array([[np.nan, 1.0], [np.nan, np.nan], [3.0, 2.0]])
    np.testing.assert_array_equal(max_null(draws, 1), [1, np.nan, 3])
    np.testing.assert_array_equal(max_null(draws[None], (1, 2)), [3])


def test_quantiles_are_order_statistics() -> None:
    assert upper_quantile(np.arange(1.0, 100)) == 95
    assert upper_quantile(np.arange(1.0, 100), direction=-1) == 5
    check_permutations(0)
    check_permutations(19)
    with pytest.raises(
        MeasureError, match="18 permutations give no 95 % quantile: take 19 or more, or 0"
    ):
        check_permutations(18)


def test_without_skewness_the_interval_is_that_of_student() -> None:
    values = np.array([[-3.0, -1, 0, 1, 3], [2.0, 4, 6, 8, 10]])
    _, low, high = mean_interval(values)
    expected = stats.t.interval(0.95, 4, values.mean(1), values.std(1, ddof=1) / 5**0.5)
    np.testing.assert_allclose([low, high], expected, atol=1e-12)
    expected = stats.t.interval(0.9, 4, values.mean(1), values.std(1, ddof=1) / 5**0.5)
    np.testing.assert_allclose(mean_interval(values.T, 0, 0.9)[1:], expected, atol=1e-12)


def test_the_transform_takes_the_skewness_out() -> None:
    """Its bounds are where Hall's cubic of the standardised mean is Student's quantile."""
    values = np.random.default_rng(3).exponential(size=30)
    mean, low, high = mean_interval(values)
    spread = values.std(ddof=1)
    skew = ((values - mean) ** 3).mean() / spread**3
    for bound, side in ((low, 1), (high, -1)):
        x = (mean - bound) / spread
        cubic = x + skew * x**2 / 3 + skew**2 * x**3 / 27 + skew / 180
        assert cubic == pytest.approx(side * stats.t.ppf(0.975, 29) / 30**0.5, rel=1e-9)


def test_limits_bound_what_was_never_seen() -> None:
    unseen = wilson_interval(0, 20)[1]
    found = mean_interval(np.full((2, 20), [[1.0], [0.25]]), limits=(0, 1))
    np.testing.assert_allclose(found[1], [1 - unseen, 0.25 - 0.25 * unseen])
    np.testing.assert_allclose(found[2], [1, 0.25 + 0.75 * unseen])
    assert mean_interval([0.1, 0.9, 0.95], limits=(0, 1))[2] == 1
    np.testing.assert_allclose(
        delta_interval(0.5, np.zeros(20), limits=(-1, 1)), [0.5 - 1.5 * unseen, 0.5 + 0.5 * unseen]
    )
    np.testing.assert_allclose(
        crossed_interval(np.zeros((3, 20)), limits=(-1, 1))[1:], [-unseen, unseen]
    )


@pytest.mark.parametrize(
    "bounds",
    [
        mean_interval([0.4])[1:],
        mean_interval([1.0, 1.0, 1.0])[1:],
        mean_interval([0.1 + 0.2, 0.3, 0.3])[1:],
        mean_interval([0.2, np.nan, np.inf])[1:],
        mean_interval(np.empty(0))[1:],
        delta_interval(0.5, np.zeros(4)),
        crossed_interval(np.ones((1, 6)))[1:],
        crossed_interval(np.ones((3, 6)))[1:],
        median_interval(np.arange(5.0)),
    ],
)
def test_data_that_hold_no_interval_have_none(bounds: tuple[float, float]) -> None:
    assert np.isnan(bounds).all()


def test_values_that_are_not_defined_are_left_out_of_a_mean() -> None:
    values = np.array([0.1, np.nan, 0.4, 0.7, np.inf])
    np.testing.assert_allclose(mean_interval(values), mean_interval([0.1, 0.4, 0.7]))


def test_the_interval_of_a_median_lies_between_order_statistics() -> None:
    """Hettmansperger and Sheather's interpolation, between the two pairs of order statistics whose
    levels enclose 95 %."""
    assert median_interval(np.arange(1, 16)) == pytest.approx((4.3735, 11.6265), abs=1e-4)
    for n in (6, 7, 15, 40):
        low, high = median_interval(np.arange(1, n + 1))
        assert low + high == pytest.approx(n + 1)
        outer, inner = (
            1 - 2 * stats.binom.cdf(k - 1, n, 0.5) for k in (np.floor(low), np.ceil(low))
        )
        assert inner <= 0.95 <= outer
