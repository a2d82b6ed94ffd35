"""CKA and HSIC against their definitions, closed forms and published values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity import cka, hsic
from tests.similarity.features import features, notebook_features

ESTIMATORS = ["unbiased", "biased"]
METHODS = ["moments", "gram"]
# Demo notebook of Kornblith et al. 2019 (google-research/representation_similarity),
# np.random.seed(1337); the digits beyond the notebook's five were computed from the definitions in
# float64.
NOTEBOOK = {
    ("biased", "linear"): (0.5576132566117589, 0.55761),
    ("biased", "rbf"): (0.6548311822614982, 0.65483),
    ("unbiased", "linear"): (0.513456489505526, 0.51346),
}
NOTEBOOK_HSIC = {"biased": 11.87835726918598, "unbiased": 9.895955787045914}


def rotation(p: int, random: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(random.normal(size=(p, p)))[0]


def gram(X: np.ndarray) -> np.ndarray:
    return X @ X.T


@pytest.mark.parametrize(("estimator", "kernel"), NOTEBOOK)
def test_values_of_the_published_notebook(estimator, kernel):
    exact, printed = NOTEBOOK[estimator, kernel]
    value = cka(*notebook_features(), estimator=estimator, kernel=kernel)
    assert value == pytest.approx(exact, abs=1e-12)
    assert value == pytest.approx(printed, abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hsic_of_the_notebook_features(estimator):
    X, Y = (Z - Z.mean(0) for Z in notebook_features())
    assert hsic(gram(X), gram(Y), estimator) == pytest.approx(NOTEBOOK_HSIC[estimator], abs=1e-11)


def test_unbiased_hsic_is_the_u_statistic():
    """Song et al. 2012, eq. 3: the mean over all ordered 4-tuples of different images."""
    X, Y = features(0, n=7)
    K, L = gram(X), gram(Y)
    tuples = itertools.permutations(range(7), 4)
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in tuples]
    assert hsic(K, L) == pytest.approx(np.mean(terms), rel=1e-12)


def test_unbiased_hsic_is_the_matrix_formula():
    """Song et al. 2012, eq. 4."""
    X, Y = features(1)
    n = len(X)
    K, L = gram(X), gram(Y)
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    one = np.ones(n)
    value = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    value = (value - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))
    assert hsic(K, L) == pytest.approx(value, rel=1e-12)


def test_biased_hsic_is_the_trace():
    X, Y = features(2)
    H = np.eye(len(X)) - 1 / len(X)
    expected = np.trace(gram(X) @ H @ gram(Y) @ H) / (len(X) - 1) ** 2
    assert hsic(gram(X), gram(Y), "biased") == pytest.approx(expected, rel=1e-12)


def test_mean_over_all_permutations_is_zero_unbiased():
    X, Y = features(3, n=6, p=3, q=4)
    K, L = gram(X), gram(Y)
    values = [hsic(K, L[np.ix_(p, p)]) for p in map(list, itertools.permutations(range(6)))]
    assert len(values) == 720
    assert abs(np.mean(values)) < 1e-13 * np.std(values)


def test_mean_over_all_permutations_biased():
    X, Y = (Z - Z.mean(0) for Z in features(3, n=6, p=3, q=4))
    K, L = gram(X), gram(Y)
    values = [
        hsic(K, L[np.ix_(p, p)], "biased") for p in map(list, itertools.permutations(range(6)))
    ]
    assert np.mean(values) == pytest.approx(np.trace(K) * np.trace(L) / 5**3, rel=1e-12)


def test_mean_over_all_subsets_of_four_is_the_full_value():
    X, Y = features(4, n=6, p=3, q=4)
    K, L = gram(X), gram(Y)
    subsets = [np.ix_(s, s) for s in map(list, itertools.combinations(range(6), 4))]
    assert np.mean([hsic(K[s], L[s]) for s in subsets]) == pytest.approx(hsic(K, L), rel=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("p", "k"), [(4, 1), (4, 2), (4, 3), (7, 1)])
def test_orthonormal_columns_against_some_of_them(p, k, method):
    X = hadamard(8)[:, 1:].astype(float)
    value = cka(X[:, :p], X[:, :k], estimator="biased", method=method)
    assert value == pytest.approx(math.sqrt(k / p), abs=1e-14)


def test_two_diagonal_scalings_of_orthonormal_columns():
    X = hadamard(8)[:, 1:3].astype(float)
    # Squared weights (9, 1) and (1, 9): 18 / 82.
    value = cka(X * [3, 1], X * [1, 3], estimator="biased")
    assert value == pytest.approx(18 / 82, abs=1e-14)


def test_disjoint_orthonormal_columns():
    X = hadamard(8)[:, 1:].astype(float)
    assert cka(X[:, :3], X[:, 3:], estimator="biased") == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("p", "q"), [(5, 9), (39, 40), (60, 3), (70, 90)])
def test_moments_and_gram_agree(estimator, p, q):
    X, Y = features(5, n=40, p=p, q=q)
    forms = [
        cka(X, Y, estimator=estimator, method=method) for method in ("moments", "gram", "auto")
    ]
    assert max(forms) - min(forms) < 1e-12


@given(
    seed=st.integers(0, 2**32 - 1),
    estimator=st.sampled_from(ESTIMATORS),
    kernel=st.sampled_from(["linear", "rbf"]),
)
@settings(max_examples=40, deadline=None)
def test_declared_invariances(seed, estimator, kernel):
    random = np.random.default_rng(seed)
    n, p, q = random.integers(5, 30), random.integers(1, 20), random.integers(1, 20)
    X, Y = features(seed, int(n), int(p), int(q))
    options = {"estimator": estimator, "kernel": kernel}
    value = cka(X, Y, **options)
    moved = 10.0 ** random.uniform(-3, 3) * X @ rotation(p, random) + random.normal(size=p)
    order = random.permutation(n)
    assert cka(moved, Y, **options) == pytest.approx(value, abs=1e-8)
    assert cka(moved, X, **options) == pytest.approx(1, abs=1e-8)
    assert cka(Y, X, **options) == pytest.approx(value, abs=1e-10)
    assert cka(X[order], Y[order], **options) == pytest.approx(value, abs=1e-10)
    assert value <= 1 + 1e-10
    assert estimator == "unbiased" or value >= -1e-12


def test_not_invariant_to_other_linear_maps():
    X, _ = features(6)
    assert cka(X, X @ np.diag([10, 1, 1, 1, 1, 1, 1])) < 0.98


@pytest.mark.parametrize(("n", "p", "q"), [(100, 10, 10), (64, 768, 768), (256, 768, 768)])
def test_independent_noise(n, p, q):
    """Biased CKA is sqrt(pq / ((p + n)(q + n))), 0.75 at n=256, p=768; unbiased CKA 0 +- sqrt(2) /
    n."""
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=(n, p)), random.normal(size=(n, q))) for _ in range(12)]
    biased = [cka(X, Y, estimator="biased") for X, Y in pairs]
    unbiased = [cka(X, Y) for X, Y in pairs]
    expected = math.sqrt(p * q / ((p + n) * (q + n)))
    error = 4 * math.sqrt(2 / len(pairs)) / n
    assert np.mean(biased) == pytest.approx(expected, abs=error)
    assert np.mean(unbiased) == pytest.approx(0, abs=error)
    assert min(unbiased) < 0 < max(unbiased)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("ratio", [10, 30, 100])
def test_mean_far_above_the_spread_in_float32(ratio, estimator, method):
    X, Y = features(7, n=200, p=64, q=48)
    value = cka(X, Y, estimator=estimator)
    shifted = [(Z + ratio * Z.std()).astype(np.float32) for Z in (X, Y)]
    assert cka(*shifted, estimator=estimator, method=method) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_magnitudes(scale):
    X, Y = features(8)
    assert cka((X * scale).astype(np.float32), Y) == pytest.approx(cka(X, Y), abs=1e-6)


def test_torch_and_half_precision_input():
    X, Y = features(9)
    tensor = torch.from_numpy(X).requires_grad_()
    assert cka(tensor, Y) == cka(X, Y)
    half = torch.from_numpy(X).to(torch.bfloat16)
    assert cka(half, Y) == cka(half.float().numpy(), Y)


def test_input_is_left_alone():
    X, Y = features(10)
    X.flags.writeable = False
    before = Y.copy()
    cka(X, Y)
    np.testing.assert_array_equal(Y, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("values", [[0.0], [0.1], [-3.3e-12, 1e-13], [0.1, 0.7, 1 / 3, 1e9 / 7]])
def test_constant_features_give_nan(values, estimator, method):
    """Also where the mean of equal numbers is not exactly that number."""
    X, _ = features(11)
    assert math.isnan(cka(X, np.tile(values, (40, 1)), estimator=estimator, method=method))


def test_equally_similar_images_give_nan():
    """One-hot features: every pair of images is equally far, so there is no geometry to compare."""
    X, _ = features(12, n=12)
    for method in METHODS:
        assert math.isnan(cka(X, np.eye(12), method=method))


def test_rbf_with_an_outlier_keeps_the_small_distances():
    X, Y = features(14)
    Y[0] = 1e6
    grams = []
    for Z in (X, Y):
        distances = ((Z[:, None] - Z[None]) ** 2).sum(-1)
        grams.append(np.exp(-distances / (2 * 0.5**2 * np.median(distances))))
    K, L = grams
    expected = hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))
    assert cka(X, Y, kernel="rbf") == pytest.approx(expected, abs=1e-10)


def test_rbf_of_mostly_equal_images_gives_nan():
    X, _ = features(13)
    Y = np.zeros((40, 2))
    Y[0] = 1
    assert math.isnan(cka(X, Y, kernel="rbf"))


@pytest.mark.parametrize(
    ("X", "Y", "options", "message"),
    [
        (np.zeros((5, 2, 3)), np.zeros((5, 2)), {}, r"X has shape \(5, 2, 3\).*flatten"),
        (np.zeros((5, 2)), np.zeros(5), {}, r"Y has shape \(5,\)"),
        (np.zeros((5, 2)), np.zeros((5, 0)), {}, r"Y has shape \(5, 0\)"),
        (np.zeros((5, 2)), np.zeros((6, 2)), {}, "X has 5 images and Y has 6"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {}, "3 images are too few"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), {}, "X contains 10 values that are NaN"),
        (np.zeros((5, 2)), np.array([[np.inf]] * 5), {}, "Y contains 5 values"),
        (np.zeros((5, 2)), np.zeros((5, 2)), {"estimator": "unbaised"}, "known: unbiased, biased"),
        (np.zeros((5, 2)), np.zeros((5, 2)), {"kernel": "cosine"}, "unknown kernel 'cosine'"),
        (
            np.zeros((5, 2)),
            np.zeros((5, 2)),
            {"kernel": "rbf", "method": "moments"},
            "no moments form",
        ),
        (np.zeros((5, 2)), np.zeros((5, 2)), {"bandwidth": 0.0}, "bandwidth"),
    ],
)
def test_bad_input(X, Y, options, message):
    with pytest.raises(MeasureError, match=message):
        cka(X, Y, **options)


def test_bad_grams():
    with pytest.raises(MeasureError, match="Gram matrix"):
        hsic(np.zeros((5, 4)), np.zeros((5, 5)))
    with pytest.raises(MeasureError, match="K has 5 images and L has 6"):
        hsic(np.zeros((5, 5)), np.zeros((6, 6)))
