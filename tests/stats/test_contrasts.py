"""Intervals of means and differences over few seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from mixer_probe.stats.contrasts import contrast


def test_a_mean_has_students_interval() -> None:
    x = np.array([0.61, 0.64, 0.66])
    value, low, high = contrast([x], [1.0])
    expected = ttest_1samp(x, 0).confidence_interval(0.95)
    assert value == pytest.approx(x.mean())
    assert (float(low), float(high)) == pytest.approx(tuple(expected))


def test_a_difference_has_welchs_interval() -> None:
    a, b = np.array([0.61, 0.64, 0.66]), np.array([0.3, 0.5, 0.45, 0.35])
    value, low, high = contrast([a, b], [-1.0, 1.0])
    expected = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert value == pytest.approx(b.mean() - a.mean())
    assert (float(low), float(high)) == pytest.approx(tuple(expected))


def test_values_are_independent_along_the_first_axes() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 3))
    value, low, high = contrast([x, x + 1], [-1.0, 1.0])
    one = contrast([x[1, 2], x[1, 2] + 1], [-1.0, 1.0])
    assert value.shape == (2, 4)
    assert np.allclose([value[1, 2], low[1, 2], high[1, 2]], one)


@pytest.mark.parametrize("weights", [(1.0,), (-1.0, 1.0), (1.0, -1.0, -1.0, 1.0)])
def test_intervals_of_three_seeds_hold_the_truth(weights: tuple[float, ...]) -> None:
    random = np.random.default_rng(len(weights))
    # Arms that differ in their spread.
    samples = [(1 + i) * random.normal(size=(20_000, 3)) for i in range(len(weights))]
    _, low, high = contrast(samples, weights)
    assert 0.94 <= float(((low <= 0) & (high >= 0)).mean()) <= 0.985


def test_one_seed_and_equal_values_have_no_interval() -> None:
    assert np.isnan(contrast([np.array([0.5])], [1.0])[1])
    assert np.isnan(contrast([np.array([0.5, 0.5, 0.5])], [1.0])[1])
