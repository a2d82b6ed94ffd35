"""Moments of classes: ridge from them is ridge from the features, in whatever parts and order these
came."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mixer_probe.core.errors import MeasureError
from mixer_probe.linear import RidgeMoments, default_l2, ridge_path
from mixer_probe.linear.stratification import stratified


def problem(n: int, p: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, p))
    return centres[y] + random.normal(size=(n, p)) * 10 ** np.linspace(-1, 1, p), y


def moments_of(X, y, size: int = 32) -> RidgeMoments:
    moments = RidgeMoments()
    for start in range(0, len(y), size):
        moments.update(X[start : start + size], y[start : start + size])
    return moments


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardize", [True, False])
def test_equal_to_ridge_of_scikit_learn_over_the_path(classes, standardize):
    X, y = problem(200, 12, classes)
    new = problem(50, 12, classes, seed=1)[0]
    scaler = StandardScaler(with_std=standardize).fit(X)
    path = moments_of(X, y).compute(standardize=standardize)
    np.testing.assert_array_equal(path.values, default_l2(200))
    scores = path.scores(new)
    assert scores.shape == (15, 50, classes)
    hot = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)
    for l2, found in zip(path.values, scores, strict=True):
        reference = Ridge(alpha=l2, solver="svd").fit(scaler.transform(X), hot)
        np.testing.assert_allclose(
            found, reference.predict(scaler.transform(new)), rtol=0, atol=1e-9
        )
    np.testing.assert_array_equal(path.predict(new), path.scores(new).argmax(-1))


def test_merged_in_any_order_they_are_the_same():
    X, y = problem(300, 10, 5)
    X += 1000
    # Parts that lie far apart, of different sizes, each without some of the classes.
    order = np.argsort(y, kind="stable")
    parts = np.split(order, [20, 150, 151])
    new = problem(40, 10, 5, seed=1)[0] + 1000
    expected = ridge_path(X, y, default_l2(300)).scores(new)
    for arrangement in itertools.permutations(parts):
        merged = RidgeMoments()
        for rows in arrangement:
            merged.merge(moments_of(X[rows], y[rows]))
        assert (merged.n, merged.p) == (300, 10)
        np.testing.assert_array_equal(merged.counts, 60)
        np.testing.assert_allclose(merged.compute().scores(new), expected, rtol=0, atol=1e-10)
    pairs = moments_of(X[parts[0]], y[parts[0]]), moments_of(X[parts[2]], y[parts[2]])
    pairs[0].merge(moments_of(X[parts[1]], y[parts[1]]))
    pairs[1].merge(moments_of(X[parts[3]], y[parts[3]]))
    before = pairs[1].n
    pairs[0].merge(pairs[1])
    assert pairs[1].n == before
    np.testing.assert_allclose(pairs[0].compute().scores(new), expected, rtol=0, atol=1e-10)


def test_a_mean_a_million_times_the_spread():
    X, y = problem(300, 6, 3)
    expected = moments_of(X, y).compute().scores(X)
    far = moments_of(X + 1e6, y, 7).compute().scores(X + 1e6)
    np.testing.assert_allclose(far, expected, rtol=0, atol=1e-7)


def test_images_left_out_of_the_fit_to_all():
    X, y = problem(80, 7, 3)
    rows = stratified(y, 20)
    path = moments_of(X, y).compute([0.5, 20.0, 900.0], left_out=(X[rows], y[rows]))
    Z, hot = StandardScaler().fit_transform(X), np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    for l2, accuracy in zip(path.values, path.left_out_accuracy(), strict=True):
        fits = [
            Ridge(alpha=l2, solver="svd").fit(np.delete(Z, i, 0), np.delete(hot, i, 0))
            for i in rows
        ]
        brute = np.concatenate([fit.predict(Z[[i]]) for i, fit in zip(rows, fits, strict=True)])
        np.testing.assert_allclose(path.leave_one_out_scores(l2), brute, rtol=0, atol=1e-10)
        assert accuracy == (brute.argmax(1) == y[rows]).mean()
    with pytest.raises(MeasureError, match="no training images were kept"):
        moments_of(X, y).compute().left_out_accuracy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_arrays_and_names_of_classes(dtype):
    X, y = problem(60, 5, 3)
    names = np.array(["cat", "dog", "frog"])[y]
    tensor = torch.from_numpy(X).to(dtype)
    path = moments_of(tensor, names).compute([1.0, 10.0])
    expected = ridge_path(tensor.double().numpy(), names, [1.0, 10.0])
    np.testing.assert_allclose(
        path.scores(tensor), expected.scores(tensor.numpy()), rtol=0, atol=1e-10
    )
    np.testing.assert_array_equal(path.predict(tensor), expected.predict(tensor.numpy()))
    assert set(path.predict(tensor).ravel()) == {"cat", "dog", "frog"}


def test_a_stratified_sample_has_of_every_class_its_fraction():
    y = np.repeat([0, 1, 2], [600, 300, 100])
    assert np.bincount(y[stratified(y, 100)]).tolist() == [60, 30, 10]
    small = stratified(y, 50, seed=3)
    assert set(small) <= set(stratified(y, 100, seed=3))
    assert (np.diff(small) > 0).all()


def test_batches_that_do_not_fit():
    X, y = problem(40, 5, 2)
    moments = moments_of(X, y)
    with pytest.raises(MeasureError, match="4 features here and 5 before"):
        moments.update(X[:, :4], y)
    with pytest.raises(MeasureError, match=r"shapes \(40, 5\) and \(39,\)"):
        moments.update(X, y[1:])
    with pytest.raises(MeasureError, match="4 features cannot be merged"):
        moments.merge(moments_of(X[:, :4], y))
    with pytest.raises(MeasureError, match="at least two classes, but there is one class: 1"):
        moments_of(X, np.ones(40, dtype=int)).compute()
    with pytest.raises(MeasureError, match="at least two classes, but there are none"):
        RidgeMoments().compute([1.0])
    with pytest.raises(MeasureError, match="positive"):
        moments.compute([0.0])
    X[3, 2] = np.nan
    with pytest.raises(MeasureError, match="NaN or infinite"):
        moments_of(X, y).compute()


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("classes", [2, 5])
def test_one_penalty_has_the_solution_of_the_path(standardize, classes):
    random = np.random.default_rng(3)
    X, y = random.normal(size=(90, 12)) * np.arange(1, 13), random.integers(classes, size=90)
    moments = RidgeMoments()
    moments.update(X, y)
    path = moments.compute([0.5], standardize=standardize)
    found = moments.solve(0.5, standardize)
    np.testing.assert_allclose(found.coefficients, path.ridge.coefficients(0.5), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.intercept, path.ridge.intercept)


@pytest.mark.parametrize("l2", [0.0, 1e-300])
def test_features_that_depend_on_each_other_have_the_solution_of_smallest_norm(l2):
    random = np.random.default_rng(4)
    X, y = random.normal(size=(60, 6)), random.integers(3, size=60)
    moments = RidgeMoments()
    moments.update(np.concatenate([X, X], axis=1), y)
    Z = np.tile(X - X.mean(axis=0), 2)
    targets = 2.0 * np.eye(3)[y] - 1
    expected = np.linalg.pinv(Z) @ (targets - targets.mean(axis=0))
    np.testing.assert_allclose(
        moments.solve(l2, standardize=False).coefficients, expected, rtol=0, atol=1e-10
    )
