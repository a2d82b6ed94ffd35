"""RSA against scipy's distances and rank correlation, published cases and degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import rankdata, spearmanr

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.distances import (
    RSA,
    RSA_EUCLIDEAN,
    centred_ranks,
    rsa,
    sample_dissimilarities,
    squared_distances,
)
from tests.similarity.features import notebook_features
from tests.similarity.features import shifted_features as features

# Computed from the definitions in float64 on the features of Kornblith et al.'s demo notebook.
NOTEBOOK = {"correlation": 0.4724396737630472, "euclidean": 0.4929646966980301}
DISTANCES = list(NOTEBOOK)


def independent(X: np.ndarray, Y: np.ndarray, distance: str) -> float:
    return float(spearmanr(pdist(X, distance), pdist(Y, distance)).statistic)


@pytest.mark.parametrize("distance", DISTANCES)
def test_value_of_the_published_features(distance):
    assert rsa(*notebook_features(), distance=distance) == pytest.approx(
        NOTEBOOK[distance], abs=1e-12
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    "shape", [{}, {"n": 4}, {"n": 30, "p": 200, "q": 50}, {"n": 25, "p": 31, "q": 3}]
)
def test_equals_scipy(distance, shape):
    X, Y = features(3, **shape)
    assert rsa(X, Y, distance=distance) == pytest.approx(independent(X, Y, distance), abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_mean_of_hundred_standard_deviations_costs_no_precision(distance):
    X, Y = features(4, n=60)
    X, Y = X + 100 * X.std() * np.sign(X[0]), Y + 100 * Y.std() * np.sign(Y[0])
    expected = spearmanr(*(_exact_distances(side, distance) for side in (X, Y))).statistic
    assert rsa(X, Y, distance=distance) == pytest.approx(float(expected), abs=1e-9)


def _exact_distances(X: np.ndarray, distance: str) -> np.ndarray:
    exact = X.astype(np.longdouble)
    if distance == "correlation":
        exact = exact - exact.mean(1, keepdims=True)
        exact = exact / np.sqrt((exact**2).sum(1, keepdims=True))
    i, j = np.triu_indices(len(X), 1)
    return ((exact[i] - exact[j]) ** 2).sum(1).astype(np.float64)


@pytest.mark.parametrize("distance", DISTANCES)
def test_repeated_images_tie(distance):
    X, Y = features(5, n=30)
    twice = np.r_[X, X[:12]], np.r_[Y, Y[:12]]
    # scipy's correlation distance of equal rows is rounding, of either sign.
    ties = [np.where(pdist(side, distance) < 1e-12, 0, pdist(side, distance)) for side in twice]
    assert rsa(*twice, distance=distance) == pytest.approx(
        float(spearmanr(*ties).statistic), abs=1e-12
    )


def test_two_channels_correlate_fully_or_not_at_all():
    X = features(3)[0][:, :2]
    higher = (X[:, 0] > X[:, 1])[:, None]
    other = np.c_[higher, ~higher, 2 * higher].astype(float)
    assert rsa(X, other) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_equal_distances_share_a_rank_whatever_the_rounding(seed):
    random = np.random.default_rng(seed)
    X = random.integers(0, 2, size=(40, 12)).astype(float)
    rotated = X @ np.linalg.qr(random.normal(size=(12, 12)))[0] + random.normal(size=12)
    Y = random.normal(size=(40, 5))
    assert rsa(rotated, X, distance="euclidean") == pytest.approx(1, abs=1e-12)
    assert rsa(rotated, Y, distance="euclidean") == pytest.approx(
        independent(X, Y, "sqeuclidean"), abs=1e-12
    )


def test_an_outlier_does_not_round_the_distances_of_the_others():
    X, Y = features(6)
    X[0] += 1e9
    assert rsa(X, Y, distance="euclidean") == pytest.approx(
        independent(X, Y, "euclidean"), abs=1e-12
    )


@pytest.mark.parametrize("shift", [0, 1e3])
def test_squared_distances_are_those_of_scipy(shift):
    X = np.random.default_rng(7).normal(size=(50, 20))
    X[-1] = X[0] + 1e-7
    distances = squared_distances(torch.from_numpy(X + shift)).numpy()
    np.testing.assert_allclose(
        distances[np.triu_indices(50, 1)], pdist(X + shift, "sqeuclidean"), rtol=1e-9
    )
    assert (distances == distances.T).all()
    assert (distances.diagonal() == 0).all()


@pytest.mark.parametrize("measure", [RSA, RSA_EUCLIDEAN], ids=["correlation", "euclidean"])
def test_ranks_of_reordered_images(measure):
    X, Y = (torch.from_numpy(side) for side in features(8))
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    moved, fresh = measure.prepare(X).take(order), measure.prepare(X[order])
    torch.testing.assert_close(moved.matrix, fresh.matrix, rtol=0, atol=1e-14)
    assert moved.matrix.square().sum() == pytest.approx(1, abs=1e-12)
    table = measure.table([moved, measure.prepare(Y)], [fresh])
    assert table[0, 0] == pytest.approx(1, abs=1e-12)
    assert table[1, 0] == pytest.approx(measure(X[order], Y), abs=1e-12)


def test_undefined_values():
    X, Y = features(9)
    blank = X.copy()
    blank[3] = 5.0
    assert np.isnan(rsa(blank, Y))
    assert np.isfinite(rsa(blank, Y, distance="euclidean"))
    assert np.isnan(rsa(X[:, :1], Y))
    assert np.isfinite(rsa(X[:, :1], Y, distance="euclidean"))
    assert np.isnan(rsa(np.eye(40), Y, distance="euclidean"))
    assert np.isnan(rsa(np.ones_like(X), Y))


def test_an_undefined_layer_leaves_the_other_cells():
    X, Y = (torch.from_numpy(side) for side in features(9))
    table = RSA.table([RSA.prepare(X[:, :1]), RSA.prepare(X)], [RSA.prepare(Y)])
    assert torch.isnan(table[:, 0]).tolist() == [True, False]


def test_correlation_distances_see_rotation_and_translation():
    X, Y = features(10)
    rotated = X @ np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    assert abs(rsa(rotated, Y) - rsa(X, Y)) > 1e-2
    assert abs(rsa(X + np.arange(7), Y) - rsa(X, Y)) > 1e-2
    assert rsa(X + 3.0, Y) == pytest.approx(rsa(X, Y), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("distance", DISTANCES)
def test_extreme_units(distance, scale):
    X, Y = features(11)
    assert rsa(scale * X, Y, distance=distance) == pytest.approx(
        rsa(X, Y, distance=distance), abs=1e-12
    )


def test_errors():
    X, Y = features(12)
    with pytest.raises(MeasureError, match="euclidean"):
        rsa(X, Y, distance="euclid")  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="40 images and Y has 39"):
        rsa(X, Y[1:])


@pytest.mark.parametrize("levels", [1, 3, 50, 10**12])
def test_ranks_are_those_of_scipy(levels):
    values = np.random.default_rng(13).integers(levels, size=200)
    ranks = rankdata(values)
    np.testing.assert_array_equal(centred_ranks(values), ranks - ranks.mean())


@pytest.mark.parametrize("measure", [RSA, RSA_EUCLIDEAN], ids=["correlation", "euclidean"])
def test_values_are_inner_products_of_the_matrices(measure):
    a, b = (measure.prepare(torch.from_numpy(side)) for side in features(14))
    A, B = measure.matrix(a), measure.matrix(b)
    assert torch.equal(A, A.T)
    assert (A.diagonal() == 0).all()
    assert float((A * B).sum()) == pytest.approx(float(measure.table([a], [b])), abs=1e-13)


def test_sampled_dissimilarities_are_one_less_the_correlation():
    X, Y = features(3)
    frame = sample_dissimilarities(X, Y, n_pairs=50)
    assert len(frame) == 50
    assert not frame[["i", "j"]].duplicated().any()
    assert (frame["i"] < frame["j"]).all()
    for row in frame.itertuples():
        assert row.distance_a == pytest.approx(1 - np.corrcoef(X[row.i], X[row.j])[0, 1])
        assert row.distance_b == pytest.approx(1 - np.corrcoef(Y[row.i], Y[row.j])[0, 1])
    whole = sample_dissimilarities(X, Y, n_pairs=10**6)
    assert len(whole) == len(X) * (len(X) - 1) / 2
    assert spearmanr(whole["distance_a"], whole["distance_b"]).statistic == pytest.approx(rsa(X, Y))
    with pytest.raises(MeasureError, match="the same images"):
        sample_dissimilarities(X, Y[:-1])
