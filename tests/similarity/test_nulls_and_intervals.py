"""The null's exact moments, its sample, and how often intervals hold the truth."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from mixer_probe.errors import MeasureError
from mixer_probe.results import from_dict, to_dict
from mixer_probe.similarity import StreamingCKA, cka, compare
from mixer_probe.similarity.allpairs import Grams, Settings, cka_of_halves
from mixer_probe.similarity.inputs import centred
from mixer_probe.similarity.intervals import draw_halves
from mixer_probe.similarity.nulls import permutation_moments

ESTIMATORS = ["unbiased", "biased"]


def uneven(seed: int, n: int, p: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, p)) ** 3 * random.uniform(0.2, 3, size=p)


def related(seed: int, n: int, p: int = 20, q: int = 30, strength: float = 0.5) -> tuple[np.ndarray, np.ndarray, float]:
    """Gaussian features of n images, and the CKA |Sxy|^2 / (|Sxx| |Syy|) of the distribution that they come from."""
    M = np.random.default_rng(0).normal(size=(p, q)) * strength / np.sqrt(p)
    variance_x, noise = 1 / np.arange(1, p + 1), 1 / np.arange(1, q + 1)
    Sxy = np.diag(variance_x) @ M
    Syy = M.T @ Sxy + np.diag(noise)
    truth = (Sxy**2).sum() / np.sqrt((variance_x**2).sum() * (Syy**2).sum())
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, p)) * np.sqrt(variance_x)
    return X, X @ M + random.normal(size=(n, q)) * np.sqrt(noise), float(truth)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_moments_of_the_null_are_those_over_all_pairings(estimator, kernel):
    n = 6
    X, Y = uneven(1, n, 3), uneven(2, n, 2)
    all_pairings = [cka(X, Y[list(p)], estimator=estimator, kernel=kernel) for p in itertools.permutations(range(n))]
    settings = Settings(estimator, kernel, 0.5)
    sides = (Grams([centred(torch.from_numpy(side))], settings).traces() for side in (X, Y))
    mean, sd = permutation_moments(n, estimator, *sides)
    assert float(mean) == pytest.approx(np.mean(all_pairings), abs=1e-12)
    assert float(sd) == pytest.approx(np.std(all_pairings), abs=1e-12)


def test_moments_and_gram_matrices_give_the_same_traces():
    X, Y = uneven(3, 50, 4), uneven(4, 50, 70)
    stream = StreamingCKA(hold=False)
    for rows in (slice(0, 20), slice(20, 50)):
        stream.update({"x": X[rows] + 7}, {"y": Y[rows]})
    of_moments = permutation_moments(50, "biased", *stream._moments.traces())
    settings = Settings("biased", "linear", 0.5)
    grams = [Grams([centred(torch.from_numpy(side))], settings).traces() for side in (X, Y)]
    for one, other in zip(of_moments, permutation_moments(50, "biased", *grams), strict=True):
        assert float(one) == pytest.approx(float(other), abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_halves_read_what_those_images_alone_read(estimator, kernel):
    sides = [[uneven(seed, 21, p) for seed, p in side] for side in (((5, 3), (6, 30)), ((7, 4),))]
    layers = [[centred(torch.from_numpy(X)) for X in side] for side in sides]
    halves = draw_halves(21, 30, seed=1)
    found = cka_of_halves(*(Grams(side, Settings(estimator, kernel, 0.5)) for side in layers), halves)
    for r in (0, 11, 29):
        rows = np.flatnonzero(halves[:, r])
        assert len(rows) == 10
        for i, X in enumerate(sides[0]):
            options = {"estimator": estimator}
            if kernel == "linear":
                assert float(found[r, i, 0]) == pytest.approx(cka(X[rows], sides[1][0][rows], **options), abs=1e-12)
    # The bandwidth of the RBF kernel stays that of all images.
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("n", "strength"), [(60, 0.5), (200, 0.5), (200, 2.0)])
def test_ninety_five_percent_intervals_hold_the_truth_as_often(make_reps, n, strength):
    inside = []
    for seed in range(200):
        X, Y, truth = related(seed, n, strength=strength)
        interval = compare(make_reps({"x": X}), make_reps({"y": Y}), permutations=0, seed=seed).interval
        inside.append(interval.low[0, 0] <= truth <= interval.high[0, 0])
    # Two standard deviations of a binomial count are 3 %.
    assert 0.90 <= np.mean(inside) <= 0.99


def test_the_interval_from_a_sample_is_as_wide_as_that_of_all_images(make_reps, monkeypatch):
    X, Y, _ = related(0, 1600)
    runs = make_reps({"x": X}), make_reps({"y": Y})
    whole = compare(*runs, resamples=400)
    monkeypatch.setattr("mixer_probe.similarity.comparison.SAMPLE", 400)
    part = compare(*runs, resamples=400)
    assert part.values == pytest.approx(whole.values, abs=1e-12)
    widths = [float(m.interval.high[0, 0] - m.interval.low[0, 0]) for m in (whole, part)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)
    assert part.interval.method == "halves of 400 of 1600 images, scaled"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_null_from_a_sample_is_that_of_all_images(make_reps, monkeypatch, estimator):
    widths = (5, 40)
    a = make_reps({f"a{p}": uneven(p, 900, p) for p in widths})
    b = make_reps({f"b{p}": uneven(p + 1, 900, p) for p in widths})
    options = {"estimator": estimator, "permutations": 2000, "resamples": 0}
    whole = compare(a, b, **options)
    monkeypatch.setattr("mixer_probe.similarity.comparison.SAMPLE", 150)
    for method in ("gram", "moments"):
        part = compare(a, b, **options, method=method)
        sd = math.sqrt(2 / (900 * 897))
        np.testing.assert_allclose(part.null.mean, whole.null.mean, rtol=0, atol=0.15 * sd)
        np.testing.assert_allclose(part.null.quantile95, whole.null.quantile95, rtol=0, atol=0.4 * sd)
        assert part.null.maximum95 == pytest.approx(whole.null.maximum95, abs=0.5 * sd)
        assert "150 of 900 images" in part.null.method


def test_calibrated_values_are_0_by_chance_and_1_for_equal_layers(make_reps):
    X, Y, _ = related(3, 100)
    a = make_reps({"x": X, "y": Y})
    for measure in ("cka", "procrustes", "rsa", "cca"):
        matrix = compare(a, a, measure, permutations=39)
        np.testing.assert_allclose(np.diag(matrix.calibrated), 1, atol=1e-6)
        np.testing.assert_allclose(
            matrix.calibrated[0, 1],
            (matrix.values[0, 1] - matrix.null.mean[0, 1]) / (matrix.definition.best - matrix.null.mean[0, 1]),
        )
        shuffled = make_reps({"y": Y[np.random.default_rng(0).permutation(100)]})
        assert abs(compare(a, shuffled, measure, permutations=39).calibrated[0, 0]) < 0.15


def test_the_null_of_the_best_partner_is_that_of_a_maximum(make_reps):
    a = make_reps({f"a{i}": uneven(i, 60, 5) for i in range(6)})
    b = make_reps({f"b{i}": uneven(i + 10, 60, 5) for i in range(9)})
    for measure, direction in (("cka", 1), ("procrustes", -1)):
        null = compare(a, b, measure, permutations=60, resamples=0).null
        assert null.row_maximum.shape == (60, 6)
        assert null.column_maximum.shape == (60, 9)
        np.testing.assert_array_equal((direction * null.row_maximum).max(1), direction * null.maximum)
        assert (direction * null.row_maximum95 >= direction * null.quantile95.max(1)).mean() > 0.5
        assert null.direction == direction


def test_distances_below_their_null_count_as_closer(make_reps):
    X, Y, _ = related(1, 80, strength=3.0)
    noise = uneven(9, 80, 6)
    matrix = compare(make_reps({"x": X}), make_reps({"y": Y, "noise": noise}), "procrustes")
    np.testing.assert_array_equal(matrix.above_null, [[True, False]])
    assert matrix.values[0, 0] < matrix.null.quantile95[0, 0] < matrix.null.mean[0, 0]


@pytest.mark.parametrize("measure", ["cka", "rsa"])
def test_too_few_images_for_halves_give_no_interval(make_reps, measure):
    a = make_reps({"x": uneven(1, 7, 3)})
    matrix = compare(a, a, measure)
    assert matrix.interval is None
    assert matrix.to_frame().low.isna().all()


def test_interval_and_null_survive_storing(make_reps):
    X, Y, _ = related(1, 40)
    matrix = compare(make_reps({"x": X}), make_reps({"y": Y}))
    back = from_dict(to_dict(matrix))
    assert back.to_frame().equals(matrix.to_frame())
    np.testing.assert_array_equal(back.null.row_maximum, matrix.null.row_maximum)


def test_too_few_draws_are_refused(make_reps):
    stream = StreamingCKA()
    stream.update({"x": uneven(1, 30, 3)}, {"y": uneven(2, 30, 3)})
    with pytest.raises(MeasureError, match="5 resamples give no 95 % interval: take 20 or more, or 0"):
        stream.compute(resamples=5)


@pytest.mark.parametrize("measure", ["cca", "svcca", "pwcca", "predictivity", "procrustes", "cka"])
def test_calibrated_values_of_more_features_than_images_are_nan_with_one_warning(make_reps, measure):
    rng = np.random.default_rng(0)
    wide = [make_reps({f"l{i}": rng.standard_normal((12, 40)) for i in range(2)}) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matrix = compare(*wide, measure, permutations=19, resamples=0)
    said = [str(w.message) for w in caught if "calibrated" in str(w.message)]
    saturated = np.abs(matrix.definition.best - matrix.null.mean) < 1e-6
    assert len(said) == int(saturated.any())
    np.testing.assert_array_equal(np.isnan(matrix.calibrated), saturated | np.isnan(matrix.values))
    assert not np.isinf(matrix.calibrated).any()
