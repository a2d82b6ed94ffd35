"""Logistic probes: the optimum of scikit-learn's, the solver by itself, batches of layers and
penalties, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixer_probe.core.errors import MeasureError, UnconvergedWarning
from mixer_probe.linear.classifier import ProbePath
from mixer_probe.linear.lbfgs import minimise
from mixer_probe.linear.logistic import (
    LogisticProbe,
    default_logistic_l2,
    logistic_path,
    logistic_paths,
)
from mixer_probe.linear.multinomial import Design, Loss, exact_float32, losses_and_errors
from mixer_probe.linear.stratification import left_out_folds

PATH = (0.3, 3.0, 30.0, 3000.0)
# Newton's method, so that the reference is no L-BFGS either.
REFERENCE = {"solver": "newton-cg", "tol": 1e-10, "max_iter": 10_000}


def labelled(
    n: int, p: int, classes: int, seed: int = 0, fractions: tuple[float, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, in features of very different scales, far from zero."""
    random = np.random.default_rng(seed)
    y = random.choice(classes, size=n, p=fractions)
    y[:classes] = np.arange(classes)
    X = (
        random.normal(size=(n, p)) @ random.normal(size=(p, p))
        + 2 * random.normal(size=(classes, p))[y]
    )
    return X * np.geomspace(1e-3, 1e3, p) + 10, y


CASES = {
    "three classes": labelled(150, 12, 3),
    "two classes": labelled(120, 8, 2),
    "more features than images": labelled(40, 90, 4),
    "more features, two classes": labelled(30, 60, 2),
    "as many features as images": labelled(30, 30, 3),
    "unbalanced": labelled(300, 10, 4, fractions=(0.9, 0.05, 0.03, 0.02)),
}


def degenerate(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Duplicate, constant and proportional columns."""
    X, y = labelled(n, p, 3)
    X[:, 1], X[:, 2], X[:, 3], X[:, 4] = X[:, 0], 7.3, 0, 2 * X[:, 0]
    return X, y


# -- the optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "float64"}, {"together": True}, {"solver": "sklearn"}], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_optimum_of_scikit_learn(case, settings):
    X, y = CASES[case]
    # scikit-learn's L-BFGS gives up where the loss stalls in its digits.
    exact = settings.get("solver") != "sklearn"
    path = logistic_path(X, y, PATH, tol=1e-9 if exact else 1e-7, max_iter=5000, **settings)
    scaler = StandardScaler().fit(X)
    new = labelled(50, X.shape[1], 2, seed=9)[0]
    for i, l2 in enumerate(PATH):
        reference = LogisticRegression(C=1 / l2, **REFERENCE).fit(scaler.transform(X), y)
        tolerance = 1e-5 if exact else 1e-4
        np.testing.assert_allclose(path.coef[i], reference.coef_, atol=tolerance)
        np.testing.assert_allclose(path.intercept[i], reference.intercept_, atol=tolerance)
        np.testing.assert_allclose(
            np.exp(path.scores(new)[i]),
            reference.predict_proba(scaler.transform(new)),
            atol=tolerance,
        )


@pytest.mark.parametrize("case", CASES)
def test_the_default_tolerance_gives_its_probabilities(case):
    X, y = CASES[case]
    loose, tight = logistic_path(X, y), logistic_path(X, y, tol=1e-9, max_iter=5000)
    np.testing.assert_allclose(np.exp(loose.scores(X)), np.exp(tight.scores(X)), atol=0.01)
    assert (loose.gradient_norm <= 1e-5).all()
    assert loose.converged.all()


@pytest.mark.parametrize("distance", [1, 2, 4])
def test_two_gaussians_reach_the_bayes_accuracy(distance):
    random = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        y = np.arange(4000) % 2
        X = random.normal(size=(4000, 5))
        X[:, 0] += distance * y
        sides.append((X, y))
    probe = LogisticProbe(l2=1.0).fit(*sides[0])
    assert probe.score(*sides[1]) == pytest.approx(norm.cdf(distance / 2), abs=0.015)
    # The logit of two Gaussians of unit variance is the distance times the feature.
    assert (probe.coef_ / probe.scale_)[0, 0] == pytest.approx(distance, rel=0.15)


def test_a_huge_penalty_leaves_the_shares_of_the_classes():
    X, y = CASES["unbalanced"]
    fractions = np.bincount(y) / len(y)
    path = logistic_path(X, y, [1e9], tol=1e-8)
    np.testing.assert_allclose(
        np.exp(path.scores(X))[0], np.tile(fractions, (len(X), 1)), atol=1e-4
    )
    np.testing.assert_allclose(
        path.intercept[0], np.log(fractions) - np.log(fractions).mean(), atol=1e-4
    )


def test_without_standardisation_it_is_scikit_learn_on_centred_features():
    X, y = labelled(100, 6, 3)
    X /= X.std(axis=0).max()
    path = logistic_path(X, y, [0.1], standardize=False, tol=1e-9)
    reference = LogisticRegression(C=10, **REFERENCE).fit(X - X.mean(axis=0), y)
    np.testing.assert_allclose(path.coef[0], reference.coef_, atol=1e-4)


def test_log_probabilities_of_certain_images_are_finite_numbers():
    X, y = labelled(80, 5, 3)
    scores = logistic_path(X, y, [1e-3], max_iter=5000).scores(1e6 * X)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(np.exp(scores).sum(axis=-1), 1)


# -- the loss and the solver -----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("n", "p"), [(40, 6), (10, 25)])
def test_the_gradient_is_that_of_the_definition(n, p, classes):
    X, y = labelled(n, p, classes)
    design = Design.of(X, True, torch.device("cpu"))
    columns = 1 if classes == 2 else classes
    l2 = torch.tensor([0.1, 2.0], dtype=torch.float64)
    loss = Loss((design, design), torch.from_numpy(y), columns, l2, torch.float64)
    which = torch.tensor([0, 3])
    x = torch.randn(2, (design.variables + 1) * columns, dtype=torch.float64, requires_grad=True)
    value, gradient = loss(x.detach(), which)
    Z = torch.from_numpy((X - X.mean(0)) / X.std(0))
    for i, problem in enumerate(which.tolist()):
        W = x[i].view(design.variables + 1, columns)
        logits = Z @ design.weights(W[:-1]) + W[-1]
        logits = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 2 else logits
        defined = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
        defined = defined + l2[problem % 2] / 2 * design.weights(W[:-1]).square().sum()
        assert value[i].item() == pytest.approx(defined.item(), rel=1e-12)
        (expected,) = torch.autograd.grad(defined, x)
        np.testing.assert_allclose(gradient[i], expected[i], atol=1e-11)


def test_losses_of_extreme_logits():
    logits = torch.tensor([[[1000.0]], [[-1000.0]]], dtype=torch.float64)
    losses, errors = losses_and_errors(logits, torch.tensor([0, 0]))
    assert losses.flatten().tolist() == [1000, 0]
    assert errors.flatten().tolist() == [1, 0]


def test_many_quadratics_reach_their_closed_forms():
    random = torch.Generator().manual_seed(0)
    root = torch.randn(7, 20, 20, generator=random, dtype=torch.float64)
    A = root @ root.transpose(1, 2) * torch.logspace(-3, 3, 7, dtype=torch.float64)[
        :, None, None
    ] + torch.eye(20)
    b = torch.randn(7, 20, generator=random, dtype=torch.float64)
    evaluated = []

    def quadratic(x, which):
        evaluated.append(len(which))
        Ax = torch.einsum("aij,aj->ai", A[which], x)
        return (x * (Ax / 2 - b[which])).sum(1), Ax - b[which]

    diagonal = 1 / A.diagonal(dim1=1, dim2=2)
    found = minimise(
        quadratic,
        torch.zeros(7, 20, dtype=torch.float64),
        lambda g, which: diagonal[which] * g,
        tol=1e-9,
        max_iter=500,
    )
    np.testing.assert_allclose(found.x, torch.linalg.solve(A, b), atol=1e-7)
    assert found.converged.all()
    # Those that are done are evaluated no more.
    assert len(set(found.iterations.tolist())) > 1
    assert sum(evaluated) < 7 * len(evaluated)


def test_a_batch_is_what_each_problem_finds_alone():
    def rosenbrock(x, which):
        scale = (which + 1.0) * 10
        a, b = 1 - x[:, 0], x[:, 1] - x[:, 0] ** 2
        gradient = torch.stack([-2 * a - 4 * scale * x[:, 0] * b, 2 * scale * b], 1)
        return a**2 + scale * b**2, gradient

    start = torch.tensor([[-1.2, 1.0]] * 4, dtype=torch.float64)
    together = minimise(rosenbrock, start, lambda g, _: g, tol=1e-8, max_iter=500)
    np.testing.assert_allclose(together.x, 1, atol=1e-6)
    for i in range(4):
        alone = minimise(
            lambda x, _, i=i: rosenbrock(x, torch.tensor([i])),
            start[:1],
            lambda g, _: g,
            tol=1e-8,
            max_iter=500,
        )
        assert alone.iterations.item() == together.iterations[i].item()
        np.testing.assert_allclose(alone.x[0], together.x[i], atol=1e-12)


def test_a_problem_that_cannot_be_solved_ends_and_says_so():
    def objective(x, which):
        value = torch.where(which == 0, x.square().sum(1), torch.nan)
        return value, 2 * x

    start = torch.ones(2, 3, dtype=torch.float64)
    found = minimise(objective, start, lambda g, _: g, tol=1e-9, max_iter=50)
    assert found.converged.tolist() == [True, False]
    assert minimise(objective, start, lambda g, _: g, tol=1e-9, max_iter=0).iterations.tolist() == [
        0,
        0,
    ]


def test_tf32_is_off_inside_and_as_it_was_outside():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# -- layers and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
def test_layers_in_a_batch_are_what_each_is_alone(together):
    y = labelled(60, 5, 3)[1]
    layers = [
        labelled(60, p, 3, seed)[0].astype(np.float32) for seed, p in enumerate((8, 8, 5, 80, 80))
    ]
    layers[4][:, 1:40] = layers[4][:, :1]
    paths = logistic_paths(layers, y, PATH, tol=1e-8, together=together)
    for X, path in zip(layers, paths, strict=True):
        alone = logistic_path(X, y, PATH, tol=1e-8, precision="float64")
        np.testing.assert_allclose(path.coef, alone.coef, atol=1e-4)
        np.testing.assert_allclose(path.left_out_accuracy(), alone.left_out_accuracy())


def test_a_tensor_is_what_the_array_is():
    X, y = labelled(60, 8, 3)
    np.testing.assert_array_equal(
        logistic_path(torch.from_numpy(X), y).coef, logistic_path(X, y).coef
    )


def test_a_path_is_sorted_and_gives_its_probes():
    X, y = CASES["three classes"]
    path = logistic_path(X, y, [30.0, 3.0, 3.0])
    assert isinstance(path, ProbePath)
    assert path.values.tolist() == [3, 30]
    assert path.scores(X).shape == (2, len(X), 3)
    probe = LogisticProbe.of(path, 30.0)
    np.testing.assert_array_equal(probe.predict(X), path.predict(X)[1])
    np.testing.assert_allclose(probe.predict_log_proba(X), path.scores(X)[1], atol=1e-10)
    with pytest.raises(MeasureError, match="not on the path"):
        LogisticProbe.of(path, 4.0)
    np.testing.assert_allclose(default_logistic_l2(100), 100 * 10.0 ** np.arange(-4, 1.1, 0.5))


@pytest.mark.parametrize("folds", [None, 4])
def test_left_out_accuracy_is_that_of_refitting_without(folds):
    X, y = CASES["three classes"]
    path = logistic_path(X, y, PATH, folds=folds, seed=3, tol=1e-8)
    right = np.zeros(len(PATH))
    total = 0
    for rows in left_out_folds(y, folds, 3):
        rest = np.setdiff1d(np.arange(len(y)), rows)
        scaler = StandardScaler().fit(X[rest])
        total += len(rows)
        for i, l2 in enumerate(PATH):
            model = LogisticRegression(C=1 / l2, **REFERENCE).fit(
                scaler.transform(X[rest]), y[rest]
            )
            right[i] += (model.predict(scaler.transform(X[rows])) == y[rows]).sum()
    np.testing.assert_allclose(path.left_out_accuracy(), right / total)
    assert total == (len(y) if folds else 30)
    accuracy = path.left_out_accuracy()
    assert path.best_l2() == max(
        l2 for l2, fraction in zip(PATH, accuracy, strict=True) if fraction == accuracy.max()
    )
    assert LogisticProbe(PATH, folds=folds, seed=3, tol=1e-8).fit(X, y).l2_ == path.best_l2()


def test_folds_hold_every_image_once_and_classes_their_fraction():
    y = np.repeat([0, 1, 2], [50, 30, 1])
    folds = left_out_folds(y, 5)
    assert sorted(np.concatenate(folds).tolist()) == list(range(80))
    assert all(
        abs((y[rows] == 0).sum() - 10) <= 1 and abs((y[rows] == 1).sum() - 6) <= 1 for rows in folds
    )
    once = left_out_folds(y, seed=1)[0]
    assert 15 <= len(once) <= 17
    assert 2 not in y[once]
    with pytest.raises(MeasureError, match="too few training images"):
        left_out_folds(np.arange(5))
    with pytest.raises(MeasureError, match="folds is a whole number, 2 or more, not 1"):
        left_out_folds(y, 1)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 8), (20, 50)])
def test_degenerate_columns_are_right_and_quiet(shape):
    X, y = degenerate(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = logistic_path(X, y, PATH, tol=1e-9, max_iter=5000)
        path.left_out_accuracy()
    # Columns without variance do nothing; scikit-learn's StandardScaler makes them 0 too.
    Z = StandardScaler().fit_transform(X)
    for i, l2 in enumerate(PATH):
        reference = LogisticRegression(C=1 / l2, **REFERENCE).fit(Z, y)
        np.testing.assert_allclose(path.coef[i], reference.coef_, atol=1e-5)
    assert (path.coef[:, :, 2:4] == 0).all()
    np.testing.assert_allclose(path.coef[:, :, 0], path.coef[:, :, 4], atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 4), (5, 9)])
def test_features_that_are_all_constant_give_the_most_frequent_class(shape):
    y = np.arange(shape[0]) % 3 % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = logistic_path(np.full(shape, 3.3, dtype=np.float32), y, PATH)
        assert (path.predict(np.full((4, shape[1]), 5.0)) == 0).all()
    np.testing.assert_allclose(
        np.exp(path.scores(np.zeros((1, shape[1]))))[:, 0, 1], y.mean(), atol=1e-4
    )


def test_refusals_are_one_sentence():
    X, y = labelled(30, 4, 3)
    with pytest.raises(MeasureError, match="at least two classes, but there is one class: 1"):
        logistic_path(X, np.ones(30, dtype=int))
    with pytest.raises(ValueError, match="contains NaN"):
        logistic_path(np.where(X > 0, np.nan, X), y)
    with pytest.raises(MeasureError, match="positive numbers"):
        LogisticProbe(0.0).fit(X, y)
    with pytest.raises(MeasureError, match="unknown solver 'saga'; known: torch, sklearn"):
        LogisticProbe(solver="saga").fit(X, y)
    with pytest.raises(MeasureError, match="unknown precision 'float16'"):
        logistic_path(X, y, precision="float16")
    with pytest.raises(MeasureError, match="tol is a number above 0"):
        logistic_path(X, y, tol=0)


@pytest.mark.parametrize("solver", ["torch", "sklearn"])
def test_a_fit_that_was_cut_short_warns(solver):
    X, y = CASES["three classes"]
    with pytest.warns(
        UnconvergedWarning, match=r"did not reach tol=1e-07 for l2 = 0\.001"
    ) as caught:
        logistic_path(X, y, [0.001, 1e6], max_iter=3, tol=1e-7, solver=solver)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@parametrize_with_checks(
    [LogisticProbe(), LogisticProbe(None), LogisticProbe([0.1, 10.0], solver="sklearn")]
)
def test_scikit_learn_takes_the_estimator(estimator, check):
    check(estimator)


def test_it_works_in_pipelines_and_searches():
    X, y = CASES["three classes"]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticProbe()), {"logisticprobe__l2": list(PATH)}, cv=3
    )
    search.fit(X, np.array(["cat", "dog", "frog"])[y])
    assert search.predict(X[:3]).dtype.kind == "U"
    assert clone(LogisticProbe(3.0, tol=1e-3)).get_params()["tol"] == 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_finds_the_same_optimum(case):
    X, y = CASES[case]
    cpu = logistic_path(X, y, PATH, tol=1e-8)
    gpu = logistic_path(torch.from_numpy(X).cuda(), y, PATH, tol=1e-8)
    np.testing.assert_allclose(gpu.coef, cpu.coef, atol=1e-4)
    np.testing.assert_allclose(gpu.left_out_accuracy(), cpu.left_out_accuracy(), atol=0.04)
