"""Intervals of accuracy: closed forms, and the share of simulated data sets whose truth they
cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm, t
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from mixer_probe.core.errors import MeasureError
from mixer_probe.probing import (
    RidgeProbe,
    balanced_interval,
    combined_interval,
    few_shot_probe,
    images_interval,
    paired_interval,
    seeds_interval,
    wilson_interval,
)
from mixer_probe.probing.scores import accuracy, balanced_accuracy, class_accuracy


def covered(low: np.ndarray, high: np.ndarray, truth: float | np.ndarray) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


def answers(
    seeds: int, n: int, spread: tuple[float, float], random: np.random.Generator, sets: int
) -> tuple[np.ndarray, float]:
    """Right answers [sets, seeds, n] of a model with effects of seed and image, and their exact
    mean."""
    level, (between, within) = 0.8, spread
    effects = (
        level
        + between * random.normal(size=(sets, seeds, 1))
        + within * random.normal(size=(sets, 1, n))
    )
    return random.normal(size=(sets, seeds, n)) < effects, float(
        norm.cdf(level / np.sqrt(1 + between**2 + within**2))
    )


def test_accuracies_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    y = random.choice(3, 90, p=[0.7, 0.2, 0.1])
    predicted = random.integers(3, size=(4, 90))
    for i in range(4):
        assert accuracy(predicted, y)[i] == pytest.approx(accuracy_score(y, predicted[i]))
        assert balanced_accuracy(predicted, y)[i] == pytest.approx(
            balanced_accuracy_score(y, predicted[i])
        )
    fraction, counts = class_accuracy(predicted == y, y)
    assert counts.tolist() == np.bincount(y).tolist()
    assert fraction[2, 1] == pytest.approx((predicted[2, y == 1] == 1).mean())


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (10, 10), (823, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_that_of_scipy(right, n, confidence):
    expected = binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(right, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_of_arrays():
    low, high = wilson_interval(np.array([0, 7]), 10)
    assert (low[1], high[1]) == wilson_interval(7, 10)
    assert low[0] == 0
    for right, n in ((11, 10), (-1, 10), (0, 0)):
        with pytest.raises(MeasureError, match=f"{right} of {n} is no proportion"):
            wilson_interval(right, n)


@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.977])
def test_wilson_covers_the_truth_in_exactly_these_cases(fraction):
    # No simulation: the share of all outcomes of 1,000 images, weighted by their probability.
    right = np.arange(1001)
    inside = np.array(
        [low <= fraction <= high for low, high in (wilson_interval(int(k), 1000) for k in right)]
    )
    assert 0.94 < binom.pmf(right, 1000, fraction)[inside].sum() < 0.96


@pytest.mark.parametrize("distance", [1.0, 2.0, 4.0])
def test_probes_cover_their_own_accuracy_over_200_data_sets(distance):
    random, truth = np.random.default_rng(int(distance)), []
    for _ in range(200):
        y = np.arange(60) % 2
        probe = RidgeProbe().fit(
            random.normal(size=(60, 3)) + distance * y[:, None] * np.eye(3)[0], y
        )
        # The accuracy of a plane on two Gaussians is known.
        weights = probe.coef_[0] / probe.scale_
        offset, length = probe.intercept_[0] - weights @ probe.mean_, np.linalg.norm(weights)
        truth.append(
            (norm.cdf(-offset / length) + norm.cdf((offset + distance * weights[0]) / length)) / 2
        )
    assert np.mean(truth) == pytest.approx(norm.cdf(distance / 2), abs=0.02)
    # Each is tested on 400 images in 50 different draws.
    right = random.binomial(400, truth, size=(50, 200))
    assert 0.93 <= covered(*wilson_interval(right, 400), np.array(truth)) <= 0.97


@pytest.mark.parametrize("spread", [(0.3, 0.0), (0.2, 0.7), (0.3, 0.7)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_combined_intervals_cover_the_mean_over_seeds_and_images(seeds, spread):
    right, truth = answers(seeds, 300, spread, np.random.default_rng(seeds), 2000)
    assert 0.93 <= covered(*combined_interval(right), truth) <= 0.97


@pytest.mark.parametrize("spread", [(0.0, 0.0), (0.0, 1.0), (0.1, 0.7)])
@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_combined_intervals_are_never_too_narrow(seeds, spread):
    right, truth = answers(
        seeds,
        300,
        (0.0 if seeds == 1 else spread[0], spread[1]),
        np.random.default_rng(seeds),
        2000,
    )
    low, high = combined_interval(right)
    assert covered(low, high, truth) >= 0.93


@pytest.mark.parametrize("seeds", [1, 4])
def test_intervals_over_images_cover_the_accuracy_of_these_classifiers(seeds):
    random = np.random.default_rng(8)
    level = 0.9 + 0.4 * random.normal(size=(2000, seeds, 1))
    right = random.normal(size=(2000, seeds, 300)) < level + 0.8 * random.normal(
        size=(2000, 1, 300)
    )
    truth = norm.cdf(level / np.sqrt(1 + 0.8**2)).mean(axis=(1, 2))
    assert 0.93 <= covered(*images_interval(right), truth) <= 0.97


def test_one_classifier_has_the_interval_of_wilson():
    right = np.arange(200)[None] < 130
    for interval in (combined_interval, images_interval):
        assert interval(right) == pytest.approx(wilson_interval(130, 200), abs=1e-12)
        low, high = interval(np.ones((3, 50), dtype=bool))
        assert (low, high) == pytest.approx(wilson_interval(50, 50))


def test_seeds_interval_is_that_of_student():
    found = np.array([[0.5, 0.6, 0.7], [0.2, 0.2, 0.2]])
    low, high = seeds_interval(found)
    expected = t.interval(0.95, 2, found[0].mean(), found[0].std(ddof=1) / np.sqrt(3))
    assert (low[0], high[0]) == pytest.approx(expected)
    # Three that are the same say nothing of their spread.
    assert (low[1], high[1]) == pytest.approx(
        (0.2 - 0.2 * wilson_interval(0, 3)[1], 0.2 + 0.8 * wilson_interval(0, 3)[1])
    )
    assert np.isnan(seeds_interval(found[:, :1])).all()
    random = np.random.default_rng(0)
    drawn = 0.6 + 0.05 * random.normal(size=(2000, 3))
    assert 0.93 <= covered(*seeds_interval(drawn), 0.6) <= 0.97


def test_balanced_intervals_cover_over_simulated_data_sets():
    random = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [300, 60, 40])
    fractions = np.array([0.95, 0.7, 0.5])
    predicted = np.where(random.random((2000, 400)) < fractions[y], y, 3)
    low, high = balanced_interval(predicted, y)
    assert 0.93 <= covered(low, high, fractions.mean()) <= 0.97
    assert 0.92 <= covered(low[:200], high[:200], fractions.mean()) <= 0.98
    # Of one class it is that of Wilson.
    one = balanced_interval(predicted[:1, :300], y[:300])
    assert (one[0][0], one[1][0]) == pytest.approx(
        wilson_interval(int((predicted[0, :300] == 0).sum()), 300)
    )


def test_paired_differences():
    random = np.random.default_rng(4)
    hard = random.normal(size=(200, 200))
    better, worse = (random.normal(size=(200, 200)) * 0.5 < level - hard for level in (1.0, 0.7))
    truth = norm.cdf(1.0 / np.sqrt(1.25)) - norm.cdf(0.7 / np.sqrt(1.25))
    found = np.array([paired_interval(a, b) for a, b in zip(better, worse, strict=True)])
    np.testing.assert_allclose(found[:, 0], better.mean(axis=1) - worse.mean(axis=1), atol=1e-12)
    assert 0.92 <= covered(found[:, 1], found[:, 2], truth) <= 0.98
    # Narrower than two intervals that do not know of each other.
    apart = [np.diff(wilson_interval(int(part[0].sum()), 200))[0] for part in (better, worse)]
    assert found[0, 2] - found[0, 1] < 0.9 * np.hypot(*apart)
    with pytest.raises(MeasureError, match="200 and 199 images"):
        paired_interval(better[0], worse[0, 1:])


def test_few_shot_intervals_cover_the_accuracy_of_the_protocol(make_reps):
    distance, shots, seeds = 2.0, 5, 4
    random = np.random.default_rng(5)

    def draw(n: int, split: str, sets: int):
        y = np.arange(n) % 2
        X = random.normal(size=(sets, n, 2)) + distance * y[:, None] * np.eye(2)[0]
        # One data set a layer: all of them in one call.
        return make_reps({f"set-{i}": part for i, part in enumerate(X)}, y, split)

    result = few_shot_probe(draw(1000, "train", 200), draw(300, "test", 200), (shots,), seeds)
    # The mean over far more draws, tested on other images.
    many = few_shot_probe(draw(1000, "train", 40), draw(1000, "test", 40), (shots,), 50)
    assert 0.93 <= covered(result.low[:, 0], result.high[:, 0], many.accuracy.mean()) <= 0.98
