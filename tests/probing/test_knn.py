"""Nearest neighbours: by hand, against plain loops and scikit-learn, ties, and leaving each image
out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixer_probe.core.errors import MeasureError
from mixer_probe.linear.classifier import ProbePath
from mixer_probe.probing import knn, linear_probe
from mixer_probe.probing.knn import DEFAULT_K, KNNProbe, knn_path

T = 0.07


def labelled(n: int, seed: int, p: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(3, size=n)
    y[:3] = [0, 1, 2]
    return random.normal(size=(n, p)) + np.eye(3, p)[y] + 0.5, y


def votes(
    query: np.ndarray, X: np.ndarray, y: np.ndarray, k: int, temperature: float = T
) -> np.ndarray:
    """The definition, in plain Python: each class's share of the votes."""
    similarity = [float(query @ x / np.sqrt((query @ query) * (x @ x))) for x in X]
    nearest = sorted(range(len(X)), key=lambda i: (-similarity[i], i))[:k]
    totals = [
        sum(np.exp(similarity[i] / temperature) for i in nearest if y[i] == c) for c in range(3)
    ]
    return np.array(totals) / sum(totals)


@pytest.mark.parametrize("block", [1, 4, 40])
def test_it_is_the_definition_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(knn, "at_once", lambda _bytes_each: block)
    (X, y), (new, _) = labelled(40, 0), labelled(11, 1)
    path = knn_path(X, y, [1, 3, 10, 39])
    assert isinstance(path, ProbePath)
    for i, k in enumerate((1, 3, 10, 39)):
        expected = np.array([votes(query, X, y, k) for query in new])
        np.testing.assert_allclose(np.exp(path.scores(new)[i]), expected, atol=1e-12)
        np.testing.assert_array_equal(path.predict(new)[i], expected.argmax(axis=1))
        others = [
            votes(X[j], np.delete(X, j, 0), np.delete(y, j), k).argmax() == y[j] for j in range(40)
        ]
        assert path.left_out_accuracy()[i] == np.mean(others)


def test_it_is_scikit_learn_with_these_weights():
    (X, y), (new, _) = labelled(200, 2), labelled(50, 3)
    path = knn_path(X, y, [7])
    reference = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / T)
    ).fit(X, y)
    np.testing.assert_allclose(
        np.exp(path.scores(new)[0]), reference.predict_proba(new), atol=1e-10
    )
    distance, index = reference.kneighbors(new)
    found, similarity = path.neighbours(new, 7)
    np.testing.assert_array_equal(found, index)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-12)


def test_by_hand():
    # Cosines to (1, 0): 1, 0.6 and 0.8 (and -1).
    X = np.array([[2.0, 0], [3, 4], [8, 6], [-1, 0]])
    path = knn_path(X, np.array([0, 1, 1, 0]), [2, 3], temperature=0.5)
    e = np.exp
    expected = [
        e(0.8 / 0.5) / (e(1 / 0.5) + e(0.8 / 0.5)),
        1 / (1 + e(1 / 0.5) / (e(0.8 / 0.5) + e(0.6 / 0.5))),
    ]
    np.testing.assert_allclose(np.exp(path.scores([[5.0, 0]])[:, 0, 1]), expected, atol=1e-12)


def test_of_equally_near_images_the_first_comes_first():
    X = np.array([[1.0, 0], [2, 0], [3, 0], [0, 1], [0, 2]])
    y = np.array([1, 0, 0, 2, 2])
    path = knn_path(X, y, [1, 2, 3])
    # One to one is a tie, which the first class wins.
    np.testing.assert_array_equal(path.predict([[7.0, 0]])[:, 0], [1, 0, 0])
    np.testing.assert_array_equal(path.neighbours([[0.1, 0]], 3)[0], [[0, 1, 2]])
    # Without itself, an image with copies has them as neighbours: 0 -> 1, 1 -> 0, 2 -> 0, 3 -> 4, 4
    # -> 3.
    assert path.left_out_accuracy()[0] == 2 / 5


def test_an_image_is_no_neighbour_of_itself():
    X, y = np.random.default_rng(0).normal(size=(300, 5)), np.arange(300) % 3
    assert knn_path(X, y, [1]).predict(X)[0].tolist() == y.tolist()
    assert knn_path(X, y, [1]).left_out_accuracy()[0] == pytest.approx(1 / 3, abs=0.09)


def test_some_images_are_enough_to_choose():
    X, y = labelled(200, 5)
    part = knn_path(X, y, [3], left_out=60)
    assert len(part.left) == 60
    right = [
        votes(X[j], np.delete(X, j, 0), np.delete(y, j), 3).argmax() == y[j] for j in part.left
    ]
    assert part.left_out_accuracy()[0] == np.mean(right)


def test_length_does_not_matter_and_extreme_temperatures_are_numbers():
    (X, y), (new, _) = labelled(60, 6), labelled(9, 7)
    scale = np.random.default_rng(0).uniform(0.1, 10, size=(60, 1))
    np.testing.assert_allclose(
        knn_path(scale * X, y).scores(1e150 * new), knn_path(X, y).scores(new), atol=1e-9
    )
    cold, warm = (knn_path(X, y, [1, 59], temperature=t).predict(new) for t in (1e-5, 1e5))
    np.testing.assert_array_equal(cold[0], cold[1])
    assert (warm[1] == np.bincount(y).argmax()).all()


def test_centred_features_are_told_apart_by_more_than_their_mean():
    X, y = labelled(60, 8)
    np.testing.assert_allclose(
        knn_path(X + 100, y, centre=True).scores(X[:5] + 100),
        knn_path(X, y, centre=True).scores(X[:5]),
        atol=1e-9,
    )


def test_degenerate_features_are_quiet():
    y = np.arange(12) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        path = knn_path(np.zeros((12, 4)), y, [1, 6])
        # Equally far from all: the first k vote.
        np.testing.assert_array_equal(path.predict(np.ones((2, 4))), 0)
        path.left_out_accuracy()
        knn_path(np.full((12, 4), 3.3), y).predict(np.zeros((1, 4)))


def test_refusals_are_one_sentence():
    X, y = labelled(10, 0)
    for k in ([0], [2.5], [10], []):
        with pytest.raises(MeasureError, match="whole numbers from 1 to 9"):
            knn_path(X, y, k)
    with pytest.raises(MeasureError, match="at least two classes, but there is one class: 2"):
        knn_path(X, np.full(10, 2))
    with pytest.raises(MeasureError, match="must be positive"):
        knn_path(X, y, temperature=0)
    with pytest.raises(ValueError, match="NaN"):
        knn_path(np.full((10, 2), np.nan), y)
    assert knn_path(X, y).values.tolist() == [k for k in DEFAULT_K if k < 10]


def test_linear_probe_takes_it(make_reps):
    X, y = labelled(150, 9)
    train = make_reps({"a": X[:100]}, y[:100], "train")
    result = linear_probe(
        train, make_reps({"a": X[100:]}, y[100:], "test"), method="knn", values=[1, 5, 20]
    )
    path = knn_path(X[:100], y[:100], [1, 5, 20])
    assert result.to_frame().k[0] == result.chosen[0]
    np.testing.assert_array_equal(result.path_left_out[0], path.left_out_accuracy())


@parametrize_with_checks([KNNProbe(), KNNProbe([1, 3]), KNNProbe(None, centre=True)])
def test_scikit_learn_takes_the_estimator(estimator, check):
    check(estimator)


def test_the_estimator_chooses_as_the_path():
    (X, y), (new, _) = labelled(120, 10), labelled(30, 11)
    path = knn_path(X, y, [1, 5, 20, 60])
    probe = KNNProbe([1, 5, 20, 60]).fit(X, y)
    accuracy = path.left_out_accuracy()
    assert probe.k_ == path.k[np.flatnonzero(accuracy == accuracy.max())[-1]]
    chosen = int(np.flatnonzero(path.k == probe.k_)[0])
    np.testing.assert_allclose(probe.predict_proba(new), np.exp(path.scores(new)[chosen]))
    assert KNNProbe(500).fit(X, y).k_ == 120
    np.testing.assert_array_equal(path.scores(torch.from_numpy(new)), path.scores(new))
