"""The null's exact moments, its sample, and how often intervals hold the truth."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, t

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.similarity import MEASURES, StreamingCKA, cka, compare
from mixer_probe.similarity.allpairs import Grams, Settings, jackknife_variances, leading_fractions
from mixer_probe.similarity.inputs import centred
from mixer_probe.similarity.intervals import Scale, cka_interval, draw_groups, group_interval
from mixer_probe.similarity.nulls import permutation_moments
from mixer_probe.stats import upper_quantile
from tests.stats import measured
from tests.stats import related as simulated

ESTIMATORS = ["unbiased", "biased"]


def uneven(seed: int, n: int, p: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, p)) ** 3 * random.uniform(0.2, 3, size=p)


def related(
    seed: int, n: int, p: int = 20, q: int = 30, strength: float = 0.5
) -> tuple[np.ndarray, np.ndarray, float]:
    """Gaussian features of n images, and the CKA |Sxy|^2 / (|Sxx| |Syy|) of the distribution that
    they come from."""
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
    all_pairings = [
        cka(X, Y[list(p)], estimator=estimator, kernel=kernel)
        for p in itertools.permutations(range(n))
    ]
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
def test_the_jackknife_is_that_of_the_values_without_each_image(estimator):
    n = 21
    sides = [[uneven(seed, n, p) for seed, p in side] for side in (((5, 3), (6, 30)), ((7, 4),))]
    grams = [
        Grams([centred(torch.from_numpy(X)) for X in side], Settings(estimator, "linear", 0.5))
        for side in sides
    ]
    found = jackknife_variances(*grams, n)
    for i, X in enumerate(sides[0]):
        without = [
            cka(np.delete(X, k, 0), np.delete(sides[1][0], k, 0), estimator=estimator)
            for k in range(n)
        ]
        assert float(found[i, 0]) == pytest.approx((n - 1) * np.var(without), rel=1e-9)


def test_the_interval_of_compare_is_that_of_the_simulation(make_reps):
    # One beyond its null, one not.
    for strength, beyond in ((1.0, True), (0.0, False)):
        x, y = simulated.draw(np.random.default_rng(1), 1, 40, "three", strength)
        matrix = compare(make_reps({"x": x[0]}), make_reps({"y": y[0]}))
        K, L = simulated.unit_grams(x), simulated.unit_grams(y)
        numbers = (
            (K * L).sum((1, 2)),
            simulated.variances(K, L),
            simulated.leading(K, L),
            matrix.null.quantile95[0],
        )
        expected = cka_interval(*numbers, "unbiased", 40, 40)
        assert (matrix.values[0, 0] > matrix.null.quantile95[0, 0]) == beyond
        np.testing.assert_allclose(matrix.interval.low[0], expected.low, rtol=1e-3)
        np.testing.assert_allclose(matrix.interval.high[0], expected.high, rtol=1e-3)


@pytest.mark.parametrize("measure", measured.VALUES)
def test_the_interval_of_a_measure_by_compare_is_that_of_the_simulation(make_reps, measure):
    x, y = simulated.draw(np.random.default_rng(1), 1, 60, "three", None)
    matrix = compare(make_reps({"x": x[0]}), make_reps({"y": y[0]}), measure, permutations=20)
    value, expected = measured.intervals(np.random.default_rng(0), measure, x, y)
    np.testing.assert_allclose(matrix.values[0], value, rtol=1e-9)
    # Of canonical correlations the spread of the null is taken off, which is of other pairings
    # here.
    rtol = 1e-4 if MEASURES[measure].scale.canonical else 1e-7
    np.testing.assert_allclose(
        [matrix.interval.low[0], matrix.interval.high[0]], [expected.low, expected.high], rtol=rtol
    )


def test_an_interval_reaches_past_the_mean_of_its_null_unless_the_value_is_beyond_it():
    random = np.random.default_rng(3)
    for name, strength in (("cca", 0.0), ("procrustes", 0.0), ("cca", 0.6), ("procrustes", 0.6)):
        x, y = simulated.draw(random, 200, 50, "three", strength)
        measure, values = MEASURES[name], measured.VALUES[name]
        value, found = measured.intervals(np.random.default_rng(0), name, x, y)
        orders = np.random.default_rng(0)
        null = np.array([values(x, y[:, orders.permutation(50)]) for _ in range(20)])
        middle = measure.scale.back(measure.scale.of(null).mean(0))
        beyond = measure.direction * value > measure.direction * upper_quantile(
            null, direction=measure.direction
        )
        assert 0 < beyond.sum() < 200
        inside = (found.low < middle) & (middle < found.high)
        assert not (inside & beyond).any()
        assert ((found.low <= middle) & (middle <= found.high) | beyond).all()


def test_every_measure_has_an_interval_that_is_simulated_or_says_why_it_has_none():
    without = {name for name, measure in MEASURES.items() if measure.no_interval}
    assert set(measured.VALUES) == set(MEASURES) - without - {"cka"}


def test_the_interval_of_biased_cka_by_compare_is_that_of_the_simulation(make_reps):
    x, y = simulated.draw(np.random.default_rng(1), 1, 40, "three", None)
    matrix = compare(make_reps({"x": x[0]}), make_reps({"y": y[0]}), estimator="biased")
    value, expected = measured.biased_cka_intervals(x, y)
    np.testing.assert_allclose(matrix.values[0], value, rtol=1e-9)
    np.testing.assert_allclose(
        [matrix.interval.low[0], matrix.interval.high[0]], [expected.low, expected.high], rtol=1e-9
    )


def test_cka_with_a_gaussian_kernel_says_why_it_has_no_interval(make_reps):
    a = make_reps({"x": uneven(1, 60, 5)})
    for interval in (compare(a, a, "cka_rbf").interval, compare(a, a, kernel="rbf").interval):
        assert np.isnan([interval.low, interval.high]).all()
        assert interval.method.startswith("none: the jackknife covers 87 to 92 %")


@pytest.mark.parametrize("measure", ["cca", "pwcca"])
def test_no_interval_where_leaving_out_images_makes_equal(make_reps, measure):
    random = np.random.default_rng(0)
    a, b = (make_reps({"x": random.normal(size=(60, 57))}) for _ in range(2))
    matrix = compare(a, b, measure, permutations=0)
    assert matrix.values[0, 0] < 0.999
    assert np.isnan([matrix.interval.low[0, 0], matrix.interval.high[0, 0]]).all()


@pytest.mark.parametrize("measure", measured.VALUES)
def test_equal_representations_have_an_interval_of_no_width_by_any_measure(make_reps, measure):
    X = uneven(1, 60, 5)
    matrix = compare(make_reps({"x": X}), make_reps({"y": 3 * X}), measure, permutations=0)
    np.testing.assert_allclose(
        [matrix.interval.low, matrix.interval.high], np.stack([matrix.values] * 2), atol=1e-12
    )


def test_leading_shares_are_the_largest_eigenvalues_of_the_normed_gram_matrices():
    grams = Grams(
        [centred(torch.from_numpy(uneven(1, 30, p))) for p in (1, 4)],
        Settings("unbiased", "linear", 0.5),
    )
    expected = [float(torch.linalg.eigvalsh(grams.unit(i))[-1]) for i in (0, 1)]
    np.testing.assert_allclose(leading_fractions(grams).numpy(), expected, rtol=0.02)


def test_groups_are_left_out_once_each():
    left = draw_groups(50, 20, 3, 4)
    assert [len(rows) for rows in left] == [47] * 10 + [48] * 10
    np.testing.assert_array_equal(np.bincount(torch.cat(left)), np.full(50, 19))
    assert len(draw_groups(55, 100, 0, 4)) == 55
    assert draw_groups(49, 20, 0, 4) == []
    assert draw_groups(50, 0, 0, 4) == []


def test_the_interval_of_a_mean_by_groups_is_that_of_student():
    # Of equal groups the values without one each are the mean less a nineteenth of how far that
    # group is from it.
    groups = np.random.default_rng(2).normal(size=(20, 1, 1))
    mean = groups.mean(0)
    without = mean - (groups - mean) / 19
    plain = Scale(np.asarray, np.asarray, np.inf)
    found = group_interval(
        mean, without, np.zeros((0, 1, 1)), np.full((1, 1), np.nan), 1, (-5, 5), plain
    )
    half = (
        t.ppf(0.975, min(19, 40 / (kurtosis(groups[:, 0, 0], fisher=False) - 1)))
        * groups.std(ddof=1)
        / 20**0.5
    )
    np.testing.assert_allclose(
        [found.low[0, 0], found.high[0, 0]], [mean[0, 0] - half, mean[0, 0] + half], rtol=1e-9
    )


def test_an_interval_of_cka_holds_0_if_and_only_if_the_null_does(make_reps):
    random = np.random.default_rng(5)
    X = {f"x{i}": random.normal(size=(40, p)) for i, p in enumerate((1, 2, 3, 8) * 5)}
    Y = {
        f"y{i}": random.normal(size=(40, p)) + 0.2 * X["x0"] for i, p in enumerate((1, 2, 3, 8) * 5)
    }
    matrix = compare(make_reps(X), make_reps(Y))
    np.testing.assert_array_equal(matrix.above_null, matrix.interval.low > 0)
    assert 10 < matrix.above_null.sum() < 200
    assert (matrix.interval.low <= matrix.values).all()
    assert (matrix.interval.high >= np.maximum(matrix.values, 0)).all()
    assert matrix.interval.high.max() <= 1


def test_equal_representations_have_an_interval_of_no_width(make_reps):
    X = uneven(1, 30, 5)
    interval = compare(make_reps({"x": X}), make_reps({"y": 3 * X - 1})).interval
    assert interval.low[0, 0] == pytest.approx(1, abs=1e-12)
    assert interval.high[0, 0] == pytest.approx(1, abs=1e-12)


def test_measures_of_neighbours_say_why_they_have_no_interval(make_reps):
    a = make_reps({"x": uneven(1, 40, 5)})
    for measure in ("mutual_knn", "jaccard"):
        interval = compare(a, a, measure).interval
        assert np.isnan([interval.low, interval.high]).all()
        assert interval.method.startswith(
            "none: an image that is left out moves the neighbourhoods of many others"
        )
        assert compare(a, a, measure, resamples=0).interval is None
    interval = compare(a, a, "rsa").interval
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.method.startswith("none: an image that is nearly the same in all channels")


def test_the_interval_from_a_sample_is_as_wide_as_that_of_all_images(make_reps, monkeypatch):
    X, Y, _ = related(0, 1600)
    runs = make_reps({"x": X}), make_reps({"y": Y})
    whole = compare(*runs)
    monkeypatch.setattr("mixer_probe.similarity.engine.SAMPLE", 400)
    part = compare(*runs)
    assert part.values == pytest.approx(whole.values, abs=1e-12)
    widths = [float(m.interval.high[0, 0] - m.interval.low[0, 0]) for m in (whole, part)]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)
    assert part.interval.method == "jackknife over 400 of 1600 images, scaled"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_null_from_a_sample_is_that_of_all_images(make_reps, monkeypatch, estimator):
    widths = (5, 40)
    a = make_reps({f"a{p}": uneven(p, 900, p) for p in widths})
    b = make_reps({f"b{p}": uneven(p + 1, 900, p) for p in widths})
    options = {"estimator": estimator, "permutations": 2000, "resamples": 0}
    whole = compare(a, b, **options)
    monkeypatch.setattr("mixer_probe.similarity.engine.SAMPLE", 150)
    for method in ("gram", "moments"):
        part = compare(a, b, **options, method=method)
        sd = math.sqrt(2 / (900 * 897))
        np.testing.assert_allclose(part.null.mean, whole.null.mean, rtol=0, atol=0.15 * sd)
        np.testing.assert_allclose(
            part.null.quantile95, whole.null.quantile95, rtol=0, atol=0.4 * sd
        )
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
            (matrix.values[0, 1] - matrix.null.mean[0, 1])
            / (matrix.definition.best - matrix.null.mean[0, 1]),
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
        np.testing.assert_array_equal(
            (direction * null.row_maximum).max(1), direction * null.maximum
        )
        assert (direction * null.row_maximum95 >= direction * null.quantile95.max(1)).mean() > 0.5
        assert null.direction == direction


def test_distances_below_their_null_count_as_closer(make_reps):
    X, Y, _ = related(1, 80, strength=3.0)
    noise = uneven(9, 80, 6)
    matrix = compare(make_reps({"x": X}), make_reps({"y": Y, "noise": noise}), "procrustes")
    np.testing.assert_array_equal(matrix.above_null, [[True, False]])
    assert matrix.values[0, 0] < matrix.null.quantile95[0, 0] < matrix.null.mean[0, 0]


@pytest.mark.parametrize(("measure", "n"), [("cka", 19), ("rsa_euclidean", 49)])
def test_too_few_images_give_no_interval(make_reps, measure, n):
    a = make_reps({"x": uneven(1, n, 3)})
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
    with pytest.raises(
        MeasureError, match="5 resamples give no 95 % interval: take 20 or more, or 0"
    ):
        stream.compute(resamples=5)


@pytest.mark.parametrize("measure", ["cca", "svcca", "pwcca", "predictivity", "procrustes", "cka"])
def test_calibrated_values_of_more_features_than_images_are_nan_with_one_warning(
    make_reps, measure
):
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
