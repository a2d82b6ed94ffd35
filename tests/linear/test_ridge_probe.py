"""The ridge probe against scikit-learn, brute force and its own other form."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixer_probe.core.errors import MeasureError
from mixer_probe.linear import RidgeProbe, default_l2, ridge_path
from mixer_probe.linear.stratification import stratified

SIZES = [(60, 8, 2), (60, 8, 5), (40, 90, 2), (40, 90, 4), (50, 50, 3)]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def problem(n: int, p: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of uneven scale and far-off means that tell the classes partly; a seed draws other
    images."""
    columns, rows = np.random.default_rng(99), np.random.default_rng(seed)
    centres, scale = columns.normal(size=(classes, p)), 10 ** columns.uniform(-2, 2, p)
    y = np.arange(n) % classes
    return (centres[y] * 0.5 + rows.normal(size=(n, p))) * scale + 100 * columns.normal(size=p), y


def one_hot(y: np.ndarray) -> np.ndarray:
    hot = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    return hot[:, 1:] if hot.shape[1] == 2 else hot


def columns(scores: np.ndarray) -> np.ndarray:
    return scores.reshape(len(scores), -1)


@parametrize_with_checks([RidgeProbe(), RidgeProbe(l2=10.0, standardize=False, form="dual")])
def test_it_is_a_scikit_learn_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.parametrize(("n", "p", "classes"), SIZES)
@pytest.mark.parametrize("l2", [1e-3, 1.0, 40.0, 1e5])
def test_equal_to_ridge_of_scikit_learn(n, p, classes, l2):
    X, y = problem(n, p, classes)
    new = problem(30, p, classes, seed=1)[0]
    scaler = StandardScaler().fit(X)
    reference = Ridge(alpha=l2, solver="svd").fit(scaler.transform(X), one_hot(y))
    probe = RidgeProbe(l2).fit(X, y)
    expected = columns(reference.predict(scaler.transform(new)))
    np.testing.assert_allclose(columns(probe.decision_function(new)), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(probe.coef_, np.atleast_2d(reference.coef_), rtol=0, atol=1e-9)
    np.testing.assert_allclose(probe.intercept_, reference.intercept_, rtol=0, atol=1e-10)


@pytest.mark.parametrize("classes", [2, 4])
def test_same_classes_as_the_ridge_classifier(classes):
    X, y = problem(60, 8, classes)
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    new = problem(200, 8, classes, seed=1)[0]
    reference = RidgeClassifier(alpha=3.0).fit(X, names)
    probe = RidgeProbe(3.0, standardize=False).fit(X, names)
    np.testing.assert_array_equal(probe.predict(new), reference.predict(new))


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(("n", "p", "classes"), SIZES)
def test_primal_is_dual(n, p, classes, standardize):
    X, y = problem(n, p, classes)
    X = StandardScaler().fit_transform(X)
    primal, dual = (
        RidgeProbe(5.0, standardize=standardize, form=f).fit(X, y) for f in ("primal", "dual")
    )
    np.testing.assert_allclose(
        primal.decision_function(X), dual.decision_function(X), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(primal.coef_, dual.coef_, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize(("n", "p", "classes"), SIZES)
def test_leave_one_out_is_brute_force(n, p, classes, form):
    X, y = problem(n, p, classes)
    Z, T = StandardScaler().fit_transform(X), one_hot(y)
    path = ridge_path(X, y, [0.1, 10.0, 1e4], form=form)
    for l2, accuracy in zip(path.l2, path.leave_one_out_accuracy(), strict=True):
        left = [np.delete(np.arange(n), i) for i in range(n)]
        fits = [Ridge(alpha=l2, solver="svd").fit(Z[rows], T[rows]) for rows in left]
        brute = np.concatenate([columns(fit.predict(Z[i : i + 1])) for i, fit in enumerate(fits)])
        np.testing.assert_allclose(path.leave_one_out_scores(l2), brute, rtol=0, atol=1e-9)
        predicted = brute.argmax(1) if classes > 2 else (brute[:, 0] > 0).astype(int)
        assert accuracy == (predicted == y).mean()


@pytest.mark.parametrize(("n", "p", "classes"), SIZES)
def test_the_path_is_every_probe(n, p, classes):
    X, y = problem(n, p, classes)
    names = np.array(["ant", "bee", "cat", "dog", "elk"])[y]
    new = problem(70, p, classes, seed=1)[0]
    path = ridge_path(X, names, default_l2(n))
    predicted = path.predict(new)
    for i, l2 in enumerate(path.l2):
        alone = RidgeProbe(l2).fit(X, names)
        np.testing.assert_array_equal(predicted[i], alone.predict(new))
        taken = RidgeProbe.of(path, l2)
        np.testing.assert_allclose(taken.coef_, alone.coef_, rtol=1e-9, atol=1e-12)
        assert taken.get_params()["l2"] == l2


def test_of_equal_penalties_the_largest_is_taken():
    X = np.concatenate([np.full((20, 1), -1.0), np.full((20, 1), 1.0)])
    path = ridge_path(X, np.repeat([0, 1], 20), [1.0, 100.0, 10.0])
    np.testing.assert_array_equal(path.leave_one_out_accuracy(), 1)
    assert path.best_l2() == 100


@pytest.mark.parametrize("value", [0.1, 1e9 / 7])
@pytest.mark.parametrize("l2", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_constant_and_duplicate_columns(form, l2, value):
    X, y = problem(50, 6, 3)
    new = problem(40, 6, 3, seed=1)[0]
    plain = RidgeProbe(l2, form=form).fit(X, y).decision_function(new)
    constant = np.full((50, 1), value)
    # A column that was constant in training says nothing, whatever it is later.
    with_constant = RidgeProbe(l2, form=form).fit(np.hstack([X, constant]), y)
    later = np.hstack([new, value * np.random.default_rng(0).normal(size=(40, 1))])
    np.testing.assert_allclose(with_constant.decision_function(later), plain, rtol=0, atol=1e-8)
    # Two copies share the weight: the same as one with half the penalty.
    twice = (
        RidgeProbe(l2, form=form).fit(np.hstack([X, X]), y).decision_function(np.hstack([new, new]))
    )
    half = RidgeProbe(l2 / 2, form=form).fit(X, y).decision_function(new)
    np.testing.assert_allclose(twice, half, rtol=0, atol=1e-8)


def test_only_constant_columns_give_the_most_frequent_class():
    y = np.array([0, 1, 1, 2, 1])
    np.testing.assert_array_equal(
        RidgeProbe().fit(np.ones((5, 3)), y).predict(np.zeros((2, 3))), [1, 1]
    )


def test_no_penalty_is_least_squares_of_smallest_norm():
    X, y = problem(20, 50, 3)
    probe = RidgeProbe(0.0).fit(X, y)
    np.testing.assert_allclose(probe.decision_function(X), one_hot(y), rtol=0, atol=1e-9)
    Z = StandardScaler().fit_transform(X)
    expected = np.linalg.pinv(Z, rcond=1e-10) @ (one_hot(y) - one_hot(y).mean(0))
    np.testing.assert_allclose(probe.coef_.T, expected, rtol=0, atol=1e-9)


def test_mean_far_above_the_spread_in_float32():
    X, y = problem(100, 10, 3)
    X = StandardScaler().fit_transform(X)
    expected = RidgeProbe().fit(X, y).decision_function(X)
    far = (X + 100).astype(np.float32)
    np.testing.assert_allclose(
        RidgeProbe().fit(far, y).decision_function(far), expected, rtol=0, atol=1e-4
    )


def test_in_pipelines_and_searches():
    X, y = problem(90, 8, 3)
    pipeline = make_pipeline(StandardScaler(), RidgeProbe())
    search = GridSearchCV(pipeline, {"ridgeprobe__l2": [0.1, 10.0]}).fit(X, y)
    assert search.best_score_ == cross_val_score(search.best_estimator_, X, y).mean()
    parameters = {"l2": 3.0, "standardize": False, "form": "dual"}
    assert clone(RidgeProbe(**parameters)).get_params() == parameters


@pytest.mark.parametrize("l2", [[], [0.0], [1.0, -1.0], [np.nan], [np.inf], 3.0])
def test_penalties_without_leave_one_out_are_refused(l2):
    with pytest.raises(MeasureError, match="positive numbers"):
        ridge_path(*problem(20, 3, 2), l2)


def test_bad_training_sets():
    X, _ = problem(20, 3, 2)
    with pytest.raises(MeasureError, match="one class: 7"):
        RidgeProbe().fit(X, np.full(20, 7))
    with pytest.raises(MeasureError, match="negative"):
        RidgeProbe(-1.0).fit(X, np.arange(20) % 2)
    with pytest.raises(ValueError, match="NaN"):
        ridge_path(np.full((20, 3), np.nan), np.arange(20) % 2, [1.0])


@pytest.mark.parametrize(("n", "p", "classes"), SIZES)
def test_primal_is_dual_and_scikit_learn_over_the_whole_path(n, p, classes):
    X, y = problem(n, p, classes)
    scaler = StandardScaler().fit(X)
    Z, new = scaler.transform(X), problem(30, p, classes, seed=1)[0]
    paths = [ridge_path(X, y, default_l2(n), form=form) for form in ("primal", "dual")]
    primal, dual = (path.scores(new) for path in paths)
    np.testing.assert_allclose(primal, dual, rtol=0, atol=1e-10)
    np.testing.assert_allclose(*(path.left_out_accuracy() for path in paths), rtol=0, atol=1 / n)
    hot = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)
    for l2, found in zip(default_l2(n), primal, strict=True):
        expected = Ridge(alpha=l2, solver="svd").fit(Z, hot).predict(scaler.transform(new))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_path_in_place_of_a_penalty():
    X, y = problem(80, 12, 3)
    new = problem(50, 12, 3, seed=1)[0]
    path = ridge_path(X, y, default_l2(80))
    for l2, best in ((None, path.best_l2()), ([1e5, 3.0, 3.0], None)):
        probe = RidgeProbe(l2).fit(X, y)
        best = ridge_path(X, y, l2).best_l2() if best is None else best
        assert probe.l2_ == best
        np.testing.assert_array_equal(probe.predict(new), RidgeProbe(best).fit(X, y).predict(new))
    with pytest.raises(MeasureError, match="positive numbers"):
        RidgeProbe([0.0, 1.0]).fit(X, y)


def test_some_images_are_left_out():
    X, y = problem(120, 9, 3)
    every = ridge_path(X, y, [1.0, 50.0])
    some = ridge_path(X, y, [1.0, 50.0], left_out=30)
    rows = stratified(y, 30)
    np.testing.assert_array_equal(some.scores(X), every.scores(X))
    np.testing.assert_allclose(
        some.leave_one_out_scores(50.0), every.leave_one_out_scores(50.0)[rows], rtol=0, atol=1e-12
    )
    wide = problem(40, 90, 3)
    dual = ridge_path(*wide, [5.0], left_out=12)
    expected = ridge_path(*wide, [5.0]).leave_one_out_scores(5.0)[stratified(wide[1], 12)]
    np.testing.assert_allclose(dual.leave_one_out_scores(5.0), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_a_column_that_only_rounding_changes_is_constant(dtype, form):
    X, y = problem(60, 4, 3)
    X, eps = StandardScaler().fit_transform(X), np.finfo(dtype).eps
    rounding = 0.7 * (1 + eps * np.random.default_rng(0).integers(-1, 2, size=60))
    with_column = np.hstack([X, rounding[:, None]]).astype(dtype)
    probe = RidgeProbe(form=form).fit(with_column, y)
    assert np.isinf(probe.scale_).tolist() == [False] * 4 + [True]
    expected = RidgeProbe(form=form).fit(X, y).decision_function(X)
    np.testing.assert_allclose(probe.decision_function(with_column), expected, rtol=0, atol=1e-4)
