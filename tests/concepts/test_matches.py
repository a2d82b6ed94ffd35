"""Concepts by non-negative matrix factorisation, and their matching."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from mixer_probe.concepts import DictionaryRecipe, fit_dictionary
from mixer_probe.concepts.matches import (
    concept_matches,
    dictionary_activity,
    match_concepts,
    nmf_activity,
)
from mixer_probe.core.errors import MeasureError
from tests.concepts.planted import activations, planted


def signed(images: int, draw: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse amplitudes of 6 concepts [image, cell, concept], and their sum in directions of one
    sign per channel [image, cell, channel]."""
    rng = np.random.default_rng(0)
    directions = np.kron(np.eye(6), [[1, 0.5]]) * rng.choice([-1, 1], 12)
    rng = np.random.default_rng((1, draw))
    code = rng.uniform(0.5, 1.5, (images, 16, 6)) * (rng.random((images, 16, 6)) < 0.25)
    return code, code @ directions


def test_factorisation_finds_planted_concepts_in_other_images() -> None:
    (_, seen), (code, unseen) = signed(60), signed(40, 1)
    found = nmf_activity(activations(seen), activations(unseen), 6)
    assert found.shape == (40, 16, 6)
    assert (found >= 0).all()
    correlation, pairs, null = match_concepts(code, found, 19)
    assert correlation.min() > 0.99
    assert sorted(pairs[:, 1]) == list(range(6))
    assert null.max() < 0.4


def test_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((30, 4, 4)), rng.random((30, 4, 5))
    correlation, pairs, null = match_concepts(a, b, 19)
    table = np.corrcoef(a.reshape(120, 4).T, b.reshape(120, 5).T)[:4, 4:]
    best = max(sum(table[i, j] for i, j in enumerate(order)) for order in permutations(range(5), 4))
    assert correlation.sum() == pytest.approx(best, abs=1e-12)
    np.testing.assert_allclose(correlation, table[tuple(pairs.T)], atol=1e-12)
    assert (np.diff(correlation) <= 0).all()
    assert null.shape == (19, 4)


def test_the_null_holds_for_unrelated_networks_and_not_for_equal_ones() -> None:
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        # Positions are alike in all images, so that shuffled ones correlate too.
        place = rng.normal(size=(2, 1, 4, 3))
        a, b = np.maximum(place + rng.normal(size=(2, 25, 4, 3)), 0)
        part = activations(a)
        rejected += concept_matches(part, part, (a, b), draws=19).p <= 0.05
    assert rejected <= 6
    same = concept_matches(part, part, (a, a[..., ::-1]), draws=19)
    np.testing.assert_allclose(same.correlation, 1)
    assert same.p == 1 / 20
    assert (same.shared, same.n) == (3, 25)
    assert same.mean.null < 0.9


def test_the_activity_of_atoms_is_their_code() -> None:
    parts = planted(30).parts
    recipe = DictionaryRecipe(atoms=8, active=2, epochs=1, batch_size=64)
    d = fit_dictionary(parts, recipe)
    found = dictionary_activity(d, parts, 1)
    x = d.normalised(1, parts[1].rows(np.arange(30)))
    np.testing.assert_array_equal(found.reshape(-1, 8), d.code(1, x).numpy())


def test_bad_input_is_refused_in_a_sentence() -> None:
    part = activations(signed(20)[1])
    with pytest.raises(MeasureError, match="25 concepts are more than the 24 signed channels"):
        nmf_activity(part, part, 25)
    with pytest.raises(MeasureError, match="is constant"):
        nmf_activity(replace(part, values=np.ones_like(part.values)), part)
    a = np.ones((5, 4, 3))
    with pytest.raises(MeasureError, match=r"\(5, 4\) and \(6, 4\) images and cells"):
        match_concepts(a, np.ones((6, 4, 3)))
    with pytest.raises(MeasureError, match="3 draws give no 95 % quantile"):
        match_concepts(a, a, 3)
