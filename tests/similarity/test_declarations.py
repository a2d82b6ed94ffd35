"""What every measure declares about itself, checked on the registry: invariances, range, symmetry,
`take`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity.measure import Invariance, Measure
from mixer_probe.similarity.registry import MEASURES, find_measure

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
# More images than channels, and fewer: n, p, q.
SHAPES = [(60, 7, 9), (30, 48, 36)]
SEEDS = range(3)
EXACT = 1e-9
# Ridge regression shrinks even a representation that predicts itself; its documentation promises
# this much.
TOLERANCE_OF_BEST = {"predictivity": 1e-3, "predictivity_reverse": 1e-3}
# The folds go by the position of an image, so another order of all images is another split.
DEPENDS_ON_ORDER = {"predictivity", "predictivity_reverse"}


def features(seed: int, n: int = 60, p: int = 7, q: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Dependent features of uneven spread and a mean of about their spread."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, p)) * random.uniform(0.3, 3, size=p)
    Y = X @ random.normal(size=(p, q)) / np.sqrt(p) + random.normal(size=(n, q)) * random.uniform(
        0.3, 2, size=q
    )
    return X + random.normal(size=p), np.tanh(Y) + random.normal(size=q)


def rotation(p: int, random: np.random.Generator) -> np.ndarray:
    """A random orthogonal matrix, by a coin flip with a reflection."""
    Q = np.linalg.qr(random.normal(size=(p, p)))[0]
    Q[:, 0] *= random.choice([-1, 1])
    return Q


def translated(X: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return X + 5 * X.std(0) * random.normal(size=X.shape[1])


def scaled(X: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return X * 10 ** random.uniform(-3, 3)


def permuted(X: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return X[:, random.permutation(X.shape[1])]


def rotated(X: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return X @ rotation(X.shape[1], random)


def mapped(X: np.ndarray, random: np.random.Generator) -> np.ndarray:
    p = X.shape[1]
    return X @ rotation(p, random) @ np.diag(random.uniform(0.3, 3, size=p)) @ rotation(p, random)


CHANGES: dict[Invariance, Change] = {
    "translation": translated,
    "isotropic scaling": scaled,
    "permutation": permuted,
    "orthogonal": rotated,
    "invertible linear": mapped,
}


def effects(measure: Measure, change: Change) -> list[float]:
    """By how much the value moves when X, Y and both are changed."""
    found = []
    for seed in SEEDS:
        for shape in SHAPES:
            X, Y = features(seed, *shape)
            random = np.random.default_rng([seed, 1])
            before, x, y = measure(X, Y), change(X, random), change(Y, random)
            found += [abs(measure(*pair) - before) for pair in ((x, Y), (X, y), (x, y))]
    return found


def test_every_invariance_has_a_change():
    assert set(CHANGES) == set(get_args(Invariance))


@every_measure
@pytest.mark.parametrize("invariance", CHANGES)
def test_declared_invariances_hold_and_no_others_do(measure, invariance):
    found = effects(measure, CHANGES[invariance])
    assert np.isfinite(found).all()
    if invariance in measure.invariances:
        assert max(found) < EXACT
    else:
        assert max(found) > 1e-3


@every_measure
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_equal_representations_have_the_best_value(measure, seed, side):
    X = features(seed)[side]
    assert measure(X, X) == pytest.approx(
        measure.best, abs=TOLERANCE_OF_BEST.get(measure.name, EXACT)
    )
    assert measure.best in (measure.lowest, measure.highest)


@every_measure
@pytest.mark.parametrize("shape", SHAPES)
def test_values_lie_in_the_range_and_differ_from_the_best(measure, shape):
    for seed in SEEDS:
        X, Y = features(seed, *shape)
        noise = np.random.default_rng([seed, 2]).normal(size=Y.shape)
        for value in (measure(X, Y), measure(X, noise), measure(X, X)):
            assert measure.lowest - 1e-12 <= value <= measure.highest + 1e-12


@every_measure
def test_dependent_representations_are_closer_than_independent_ones(measure):
    for seed in SEEDS:
        X, Y = features(seed)
        # As in any permutation test, only the pairing of the images differs.
        strange = Y[np.random.default_rng([seed, 3]).permutation(len(Y))]
        assert measure.direction * measure(X, Y) > measure.direction * measure(X, strange)


@every_measure
def test_symmetry_is_as_declared(measure):
    pairs = [features(seed, *shape) for seed in SEEDS for shape in SHAPES]
    differences = [abs(measure(X, Y) - measure(Y, X)) for X, Y in pairs]
    if measure.symmetric:
        assert max(differences) < 1e-12
    else:
        assert max(differences) > 1e-3


def prepared(measure: Measure, *features: np.ndarray) -> list:
    return [measure.prepare(torch.from_numpy(X)) for X in features]


@every_measure
@pytest.mark.parametrize("shape", SHAPES)
def test_taking_an_order_is_preparing_reordered_images(measure, shape):
    X, Y = features(0, *shape)
    order = np.random.default_rng(0).permutation(len(X))
    moved = [side.take(torch.from_numpy(order)) for side in prepared(measure, X, Y)]
    fixed = prepared(measure, Y, X)
    expected = measure.table(prepared(measure, X[order], Y[order]), fixed)
    torch.testing.assert_close(measure.table(moved, fixed), expected, rtol=0, atol=EXACT)
    # As the second side too, and the sides that were moved are as they were.
    expected = measure.table(fixed, prepared(measure, X[order], Y[order]))
    torch.testing.assert_close(measure.table(fixed, moved), expected, rtol=0, atol=EXACT)


@every_measure
def test_pairwise_measures_have_a_number_for_each_pair_of_images(measure):
    prepared = vars(measure.prepare(torch.from_numpy(features(0)[0]))).values()
    # Neighbourhoods are kept as a sparse matrix of all pairs.
    kept = [math.prod(value.shape) for value in prepared if hasattr(value, "shape")]
    assert measure.pairwise == (max(kept) >= 60 * 59 / 2)


@every_measure
def test_a_table_holds_the_values_of_the_pairs(measure):
    X, Y = features(1)
    sides = [X, Y, X[:, :3]], [Y, np.c_[X, Y]]
    table = measure.table(*(prepared(measure, *side) for side in sides))
    expected = [[measure(a, b) for b in sides[1]] for a in sides[0]]
    assert table.dtype == torch.float64
    np.testing.assert_allclose(table.numpy(), expected, rtol=0, atol=1e-12)


@every_measure
def test_the_order_of_the_images_does_not_matter(measure):
    if measure.name in DEPENDS_ON_ORDER:
        pytest.skip("another order of the images is another split into folds")
    for seed in SEEDS:
        X, Y = features(seed)
        order = np.random.default_rng([seed, 4]).permutation(len(X))
        assert measure(X[order], Y[order]) == pytest.approx(measure(X, Y), abs=EXACT)


@every_measure
def test_a_constant_side_has_no_value(measure):
    X, Y = features(2)
    constant = np.full_like(Y, 0.1)
    assert np.isnan(
        [measure(X, constant), measure(constant.copy(), X), measure(constant, constant)]
    ).all()


@every_measure
def test_impossible_input_is_refused(measure):
    X, Y = features(2)
    with pytest.raises(MeasureError, match="60 images and Y has 59"):
        measure(X, Y[1:])
    fewest = measure.minimum_images
    with pytest.raises(MeasureError, match=f"{fewest - 1} images are too few"):
        measure(X[: fewest - 1], Y[: fewest - 1])
    assert not np.isinf(measure(X[:fewest], Y[:fewest]))
    with pytest.raises(MeasureError, match="1 values that are NaN or infinite"):
        measure(X, np.where(Y[3, 4] == Y, np.nan, Y))
    with pytest.raises(MeasureError, match="shape"):
        measure(X[None], Y)


def test_measures_are_found_by_name():
    assert all(
        find_measure(name) is measure and measure.name == name for name, measure in MEASURES.items()
    )
    with pytest.raises(MeasureError, match="procrustes"):
        find_measure("procrusts")


@every_measure
def test_measures_say_what_they_are(measure):
    assert measure.label
    assert measure.source
    assert measure.about
    assert len({other.label for other in MEASURES.values()}) == len(MEASURES)
