"""Shared neighbours against scikit-learn, the definitions in plain loops, and chance."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.neighbours import (
    JACCARD,
    MUTUAL_KNN,
    clamp_outliers,
    mutual_knn,
    nearest_images,
    neighbourhood_jaccard,
    neighbourhoods,
)
from tests.similarity.features import notebook_features
from tests.similarity.features import shifted_features as features_of

# The features of Kornblith et al.'s demo notebook, cosine neighbours without the clamp.
NOTEBOOK = 0.279


features = partial(features_of, n=60)


def neighbours(X: np.ndarray, k: int) -> list[set[int]]:
    """By scikit-learn, which counts every image as its own first neighbour."""
    found = (
        NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute")
        .fit(X)
        .kneighbors(X, return_distance=False)
    )
    return [set(row) - {i} for i, row in enumerate(found)]


def clamped(X: np.ndarray, q: float = 0.95) -> np.ndarray:
    """The released code of Huh et al. 2024 in words: sort all absolute values, take number int(q
    n), cut there."""
    limit = sorted(abs(float(value)) for value in X.flat)[int(q * X.size)]
    return np.array([[min(max(value, -limit), limit) for value in row] for row in X])


def fraction(a: list[set[int]], b: list[set[int]]) -> float:
    return float(np.mean([len(i & j) / len(i) for i, j in zip(a, b, strict=True)]))


def jaccard(a: list[set[int]], b: list[set[int]]) -> float:
    return float(np.mean([len(i & j) / len(i | j) for i, j in zip(a, b, strict=True)]))


def test_value_of_the_published_features():
    X, Y = notebook_features()
    assert mutual_knn(X, Y, clamp=None) == pytest.approx(NOTEBOOK, abs=1e-12)
    # With the clamp, from its definition in plain loops.
    assert mutual_knn(X, Y) == pytest.approx(
        fraction(neighbours(clamped(X), 10), neighbours(clamped(Y), 10)), abs=1e-12
    )
    assert mutual_knn(X, Y) == MUTUAL_KNN(X, Y) != pytest.approx(NOTEBOOK, abs=1e-3)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("shape", [{}, {"n": 30, "p": 200, "q": 50}, {"p": 3, "q": 2}])
def test_equals_scikit_learn(shape, k):
    X, Y = features(1, **shape)
    a, b = neighbours(X, k), neighbours(Y, k)
    assert mutual_knn(X, Y, k=k, clamp=None) == pytest.approx(fraction(a, b), abs=1e-12)
    assert neighbourhood_jaccard(X, Y, k=k) == pytest.approx(jaccard(a, b), abs=1e-12)
    assert mutual_knn(X, Y, k=k) == pytest.approx(
        fraction(neighbours(clamped(X), k), neighbours(clamped(Y), k)), abs=1e-12
    )


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.999])
def test_clamp_is_the_one_of_the_paper(quantile):
    X = features(2)[0]
    np.testing.assert_array_equal(
        clamp_outliers(torch.from_numpy(X), quantile).numpy(), clamped(X, quantile)
    )


def test_the_clamp_removes_a_massive_activation():
    X, Y = features(3, p=40, q=40)
    Y = X + 0.01 * Y
    Y[:, 0] = 1000 * np.random.default_rng(0).normal(size=60)
    assert mutual_knn(X, Y) > mutual_knn(X, Y, clamp=None) + 0.2


def test_a_mean_of_hundred_standard_deviations_costs_no_precision():
    X, Y = (side + 100 * side.std() for side in features(4))
    units = [
        (side / np.sqrt((side**2).sum(1, keepdims=True)))
        for side in (X.astype(np.longdouble), Y.astype(np.longdouble))
    ]
    a, b = (
        [set(np.argsort(((u - row) ** 2).sum(1))[:11]) - {i} for i, row in enumerate(u)]
        for u in units
    )
    assert mutual_knn(X, Y, clamp=None) == pytest.approx(fraction(a, b), abs=1e-12)
    assert neighbourhood_jaccard(X, Y) == pytest.approx(jaccard(a, b), abs=1e-12)


def test_chance_is_k_of_all_others():
    # Over all n cyclic pairings but the true one every pair of images meets once, so the mean needs
    # no sampling.
    n, k = 40, 10
    a, b = (MUTUAL_KNN.prepare(torch.from_numpy(side)) for side in features(5, n=n))
    places = torch.arange(n)
    orders = [
        torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in range(2000)
    ]
    values = [MUTUAL_KNN.table([a], [b.take(order)])[0, 0].item() for order in (places, *orders)][
        1:
    ]
    assert np.mean(values) == pytest.approx(
        k / (n - 1), abs=4 * np.std(values) / np.sqrt(len(values))
    )


def test_chance_over_all_permutations_is_exact():
    X, Y = (torch.from_numpy(side) for side in features(6, n=6))
    a, b = (neighbourhoods(side, k=2, clamp=None) for side in (X, Y))
    values = [
        MUTUAL_KNN.table([a], [b.take(torch.tensor(order))])[0, 0].item()
        for order in itertools.permutations(range(6))
    ]
    assert np.mean(values) == pytest.approx(2 / 5, abs=1e-12)


def test_chance_of_independent_noise():
    # numbers.json's case: n = 500, k = 10, chance 0.02004, standard deviation of one value about
    # 0.0024 over draws.
    random = np.random.default_rng(0)
    values = [
        mutual_knn(random.normal(size=(500, 8)), random.normal(size=(500, 8))) for _ in range(10)
    ]
    assert np.mean(values) == pytest.approx(10 / 499, abs=4 * 0.0024 / np.sqrt(10))


@pytest.mark.parametrize("measure", [MUTUAL_KNN, JACCARD], ids=["mutual k-NN", "Jaccard"])
@pytest.mark.parametrize("tied", [False, True])
def test_neighbourhoods_of_reordered_images(measure, tied):
    X, Y = (torch.from_numpy(side) for side in features(7))
    X = X.sign() if tied else X
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    moved, fresh = measure.prepare(X).take(order), measure.prepare(X[order])
    np.testing.assert_allclose(moved.members.toarray(), fresh.members.toarray(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(moved.members.sum(axis=1), 10)
    table = measure.table([moved, measure.prepare(Y)], [fresh])
    assert table[0, 0] == pytest.approx(1, abs=1e-12)
    assert table[1, 0] == pytest.approx(measure(X[order], Y), abs=1e-12)


def test_ties_share_the_last_places():
    # Four directions with five images each: four certain neighbours, and one place among the five
    # of the next direction.
    angles = np.repeat([0.0, 0.1, 1.5, 1.7], 5)
    X = torch.from_numpy(np.c_[np.cos(angles), np.sin(angles)] * np.linspace(1, 2, 20)[:, None])
    members = neighbourhoods(X, k=5, clamp=None).members.toarray()
    assert members[0] == pytest.approx([0, 1, 1, 1, 1] + 5 * [0.2] + 10 * [0])


def test_repeated_images_find_each_other():
    X, Y = features(8, n=30)
    twice = np.r_[X, X], np.r_[Y, Y]
    assert mutual_knn(*twice, k=1, clamp=None) == pytest.approx(1)
    a, b = neighbours(X, 4), neighbours(Y, 4)
    # Itself again, then both copies of each of the four neighbours.
    assert mutual_knn(*twice, k=9, clamp=None) == pytest.approx(
        (1 + 8 * fraction(a, b)) / 9, abs=1e-12
    )


def test_many_ties_make_no_agreement():
    random = np.random.default_rng(9)
    X, Y = ((random.uniform(size=(200, 8)) < 0.2).astype(float) for _ in range(2))
    shuffled = [mutual_knn(X, Y[random.permutation(200)], clamp=None) for _ in range(20)]
    assert mutual_knn(X, Y, clamp=None) == pytest.approx(
        np.mean(shuffled), abs=4 * np.std(shuffled)
    )
    # One side that ties throughout knows nothing of neighbours: chance, whatever the order of the
    # images.
    lone = np.zeros((200, 1))
    lone[-1] = 1
    assert mutual_knn(lone, random.normal(size=(200, 3)), clamp=None, k=5) != 0
    halves = np.repeat([[-1.0], [1.0]], 100, axis=0)
    assert mutual_knn(halves, random.normal(size=(200, 3)), clamp=None) == pytest.approx(
        10 / 199, abs=0.01
    )


def test_undefined_values():
    X, Y = features(10)
    sparse = np.where(np.random.default_rng(0).uniform(size=X.shape) < 0.02, X, 0)
    assert np.isnan(mutual_knn(sparse, Y))
    assert np.isfinite(mutual_knn(sparse, Y, clamp=None))
    assert np.isnan(neighbourhood_jaccard(abs(X[:, :1]), Y))
    assert np.isfinite(neighbourhood_jaccard(X[:, :1], Y))
    assert np.isnan(neighbourhood_jaccard(np.eye(60), Y))
    assert np.isnan(mutual_knn(np.ones_like(X), Y))


def test_an_undefined_layer_leaves_the_other_cells():
    X, Y = (torch.from_numpy(side) for side in features(10))
    for measure in (MUTUAL_KNN, JACCARD):
        table = measure.table(
            [measure.prepare(X[:, :1].abs()), measure.prepare(X)], [measure.prepare(Y)]
        )
        assert torch.isnan(table[:, 0]).tolist() == [True, False]


def test_a_blank_image_is_no_neighbour_and_has_all_equally():
    X = features(11)[0]
    X[0] = 0
    members = neighbourhoods(torch.from_numpy(X), k=10, clamp=None).members.toarray()
    assert members[0, 1:] == pytest.approx(10 / 59)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_units(scale):
    X, Y = features(12)
    assert mutual_knn(scale * X, Y) == pytest.approx(mutual_knn(X, Y), abs=1e-12)
    rows = np.where(np.arange(60) % 2, scale, 1)[:, None]
    assert neighbourhood_jaccard(rows * X, Y) == pytest.approx(
        neighbourhood_jaccard(X, Y), abs=1e-12
    )


def test_nearest_images_are_those_of_mutual_knn_in_order():
    X, Y = features(13)
    found = nearest_images(X)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(found, nearest_images(Y), strict=True)]
    assert np.mean(shared) / 10 == pytest.approx(mutual_knn(X, Y))
    # By the definition: outliers cut, cosines, the nearest first, never the image itself.
    cut = np.sort(np.abs(X).ravel())[int(0.95 * X.size)]
    unit = np.clip(X, -cut, cut)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_array_equal(
        found, np.argsort(3 * np.eye(len(unit)) - unit @ unit.T, axis=1)[:, :10]
    )
    plain = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = np.argsort(3 * np.eye(len(plain)) - plain @ plain.T, axis=1)[:, :4]
    np.testing.assert_array_equal(nearest_images(X, k=4, clamp=None), expected)
    with pytest.raises(MeasureError, match="10 images are too few for 10 neighbours"):
        nearest_images(X[:10])
    with pytest.raises(MeasureError, match="clamp"):
        nearest_images(X, clamp=2.0)


def test_errors():
    X, Y = features(13)
    with pytest.raises(MeasureError, match="11 images are too few: this measure needs at least 12"):
        mutual_knn(X[:11], Y[:11])
    assert 0 <= mutual_knn(X[:12], Y[:12]) <= 1
    assert 0 <= neighbourhood_jaccard(X[:5], Y[:5], k=3) <= 1
    for k in (0, -1):
        with pytest.raises(MeasureError, match="1 or more"):
            neighbourhood_jaccard(X, Y, k=k)
    for clamp in (0, 1, 2.0, float("nan")):
        with pytest.raises(MeasureError, match="clamp"):
            mutual_knn(X, Y, clamp=clamp)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_sparse_memberships_are_the_definition(levels):
    """Fewer levels make more ties; each row is compared with its sorted cosines."""
    X = np.random.default_rng(14).integers(1, levels + 1, size=(40, 3)).astype(float)
    members = neighbourhoods(torch.from_numpy(X), k=5, clamp=None).members.toarray()
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    for i, row in enumerate(units @ units.T):
        row[i] = -np.inf
        last = np.sort(row)[-5]
        sure, tied = row > last + 1e-13, abs(row - last) <= 1e-13
        assert members[i] == pytest.approx(sure + tied * (5 - sure.sum()) / tied.sum())
