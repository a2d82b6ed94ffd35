"""Sentences on two networks: where they differ most, which layers correspond, and a value with its
interval and null."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.result import ModelRecord
from mixer_probe.similarity import SimilarityMatrix, best_matches
from mixer_probe.similarity.findings import (
    correspondence_sentence,
    difference_sentence,
    pair_sentences,
    value_text,
)
from tests.similarity.conftest import MakeReps
from tests.similarity.features import undefined_matrix


def pair(make_reps: MakeReps, measure: str) -> SimilarityMatrix:
    """Layers that drift apart with depth: layer i of the second network is that of the first, and i
    parts of noise."""
    generator = np.random.default_rng(0)
    a = {f"a{i}": generator.normal(size=(60, 5)) for i in range(4)}
    b = {
        f"b{i}": values + i * generator.normal(size=values.shape)
        for i, values in enumerate(a.values())
    }
    left, right = make_reps(a, "first"), make_reps(b, "second")
    right.model = ModelRecord("second", "cnn", True, "made by hand", "1" * 64, 1)
    return mp.compare(left, right, measure, permutations=19, resamples=20)


@pytest.mark.parametrize("measure", ["cka", "procrustes"])
def test_the_layer_whose_best_match_is_least_alike(make_reps: MakeReps, measure: str) -> None:
    matrix = pair(make_reps, measure)
    assert matrix.interval is not None
    best = matrix.values.min(axis=1) if measure == "procrustes" else matrix.values.max(axis=1)
    i = int(best.argmax() if measure == "procrustes" else best.argmin())
    assert i == 3
    matches = best_matches(matrix)
    assert matches.least_similar == i
    j = matches.best_match[i]
    said = difference_sentence(matrix, matches)
    assert (
        "first and second differ most at depth 1.00 of first (a3): even its best match in second, "
        f"b{j}" in said
    )
    low, high = matrix.interval.low[i, j], matrix.interval.high[i, j]
    assert (
        f"{matrix.label} {best[i]:.2f} [{low:.2f}, {high:.2f}] (n = 60, 95 % null of a best match"
        in said
    )
    assert "a0 with b0, a1 with b1" in correspondence_sentence(matches)
    assert f"; {int(matches.above.sum())} of 4 are above chance" in correspondence_sentence(matches)
    assert pair_sentences(matrix)[:2] == [said, correspondence_sentence(matches)]


def test_equal_layers_have_no_depth_of_largest_difference(make_reps: MakeReps) -> None:
    features = np.random.default_rng(0).normal(size=(40, 5))
    left, right = (
        make_reps({"a0": features, "a1": 2 * features}, "first"),
        make_reps({"b0": features}, "second"),
    )
    matrix = mp.compare(left, right, permutations=19, resamples=20)
    assert "1.00 to 1.00 (n = 40), with no significant difference" in difference_sentence(
        matrix, best_matches(matrix)
    )


def test_nothing_is_said_of_a_network_with_itself(make_reps: MakeReps) -> None:
    reps = make_reps({"a0": np.random.default_rng(0).normal(size=(20, 5))})
    matrix = mp.compare(reps, reps, permutations=0, resamples=0)
    assert matrix.of_one_network
    assert pair_sentences(matrix) == []


def test_no_sentence_where_nothing_is_defined() -> None:
    matrix = undefined_matrix()
    matches = best_matches(matrix)
    assert matches.least_similar is None
    assert difference_sentence(matrix, matches) == correspondence_sentence(matches) == ""
    assert value_text(matrix) == "not defined (n = 3)"
    known = replace(matrix, values=np.array([[0.314], [0.5]]))
    assert value_text(known) == "0.31, n = 3"


def test_a_value_with_its_interval_and_null(make_reps: MakeReps) -> None:
    matrix = pair(make_reps, "cka")
    assert matrix.interval is not None
    assert matrix.null is not None
    value, low, high = (x[1, 2] for x in (matrix.values, matrix.interval.low, matrix.interval.high))
    mean, q95 = matrix.null.mean[1, 2], matrix.null.quantile95[1, 2]
    expected = (
        f"{value:.2f} [{low:.2f}, {high:.2f}], null {mean:.2f} on average and {q95:.2f} at 95 %, n "
        "= 60"
    )
    assert value_text(matrix, 1, 2) == expected.replace("-0.00, n", "0.00, n").replace(
        "null -0.00", "null 0.00"
    )
