"""Nearest class mean: scikit-learn's, leave-one-out by brute force, and closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixer_probe.core.errors import MeasureError
from mixer_probe.linear.classifier import ProbePath
from mixer_probe.probing import linear_probe
from mixer_probe.probing.centroid import CentroidProbe, centroid_path


def labelled(n: int, seed: int, p: int = 5, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.choice(
        classes, size=n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    )
    y[:classes] = np.arange(classes)
    return 2 * random.normal(size=(n, p)) * np.arange(1, p + 1) + random.normal(size=(classes, p))[
        y
    ] + 50, y


@pytest.mark.parametrize("standardize", [False, True])
def test_it_is_scikit_learn(standardize):
    (X, y), (new, _) = labelled(90, 0), labelled(40, 1)
    scaler = StandardScaler().fit(X) if standardize else StandardScaler(with_std=False).fit(X)
    reference = NearestCentroid().fit(scaler.transform(X), y)
    path = centroid_path(X, y, standardize=standardize)
    assert isinstance(path, ProbePath)
    np.testing.assert_array_equal(path.predict(new)[0], reference.predict(scaler.transform(new)))
    np.testing.assert_allclose(path.means, reference.centroids_, atol=1e-10)


def test_cosine_by_the_definition():
    (X, y), (new, _) = labelled(60, 2), labelled(20, 3)
    means = np.array([X[y == c].mean(axis=0) for c in range(3)])
    expected = [[x @ m / np.sqrt((x @ x) * (m @ m)) for m in means] for x in new]
    np.testing.assert_allclose(
        centroid_path(X, y, metric="cosine").scores(new)[0], expected, atol=1e-12
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_leave_one_out_is_brute_force(metric):
    X, y = labelled(40, 4)
    X, y = np.vstack([X, X[:1] + 1]), np.append(y, 7)
    path = centroid_path(X, y, metric=metric)
    right = []
    for i in range(len(y)):
        rest = centroid_path(np.delete(X, i, 0), np.delete(y, i), metric=metric)
        right.append(rest.predict(X[i : i + 1])[0, 0] == y[i])
    # The last image is the only one of its class.
    assert not right[-1]
    assert path.left_out_accuracy()[0] == np.mean(right)
    assert 0.2 < np.mean(right) < 1
    assert np.isneginf(path.leave_one_out_scores()[-1, -1])


def test_two_gaussians_reach_the_bayes_accuracy():
    random = np.random.default_rng(5)
    y = np.arange(8000) % 2
    X = random.normal(size=(8000, 4)) + 2 * y[:, None] * np.eye(4)[0]
    probe = CentroidProbe().fit(X[:4000], y[:4000])
    assert probe.score(X[4000:], y[4000:]) == pytest.approx(norm.cdf(1), abs=0.015)


def test_degenerate_columns_are_quiet():
    X, y = labelled(30, 6)
    X[:, 1], X[:, 2] = 0.1, X[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in ("euclidean", "cosine"):
            path = centroid_path(X, y, metric=metric, standardize=True)
            assert np.isfinite(path.scores(X)).all()
        new = X + np.array([0, 100, 0, 0, 0])
        # A column without variance says nothing about new images either.
        np.testing.assert_array_equal(
            centroid_path(X, y, standardize=True).predict(new),
            centroid_path(X, y, standardize=True).predict(X),
        )


def test_refusals_are_one_sentence():
    X, y = labelled(20, 7)
    with pytest.raises(MeasureError, match="nothing to choose"):
        centroid_path(X, y, [1.0])
    with pytest.raises(MeasureError, match="unknown metric 'city'; known: euclidean, cosine"):
        centroid_path(X, y, metric="city")
    with pytest.raises(MeasureError, match="there is one class: 0"):
        centroid_path(X, np.zeros(20, dtype=int))
    with pytest.raises(ValueError, match="infinity"):
        centroid_path(np.where(X > 50, np.inf, X), y)


def test_linear_probe_takes_it(make_reps):
    X, y = labelled(120, 8)
    train = make_reps({"a": X[:80]}, y[:80], "train")
    result = linear_probe(train, make_reps({"a": X[80:]}, y[80:], "test"), method="centroid")
    np.testing.assert_array_equal(result.predicted, centroid_path(X[:80], y[:80]).predict(X[80:]))
    assert np.isnan(result.chosen[0])
    assert result.path_frame().chosen.all()


@parametrize_with_checks(
    [CentroidProbe(), CentroidProbe("cosine"), CentroidProbe(standardize=True)]
)
def test_scikit_learn_takes_the_estimator(estimator, check):
    check(estimator)
