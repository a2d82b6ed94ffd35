"""`model_similarity`: values by hand, the tree, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord, from_dict, to_dict
from mixer_probe.similarity.matrix import SimilarityMatrix, plain_layers
from mixer_probe.similarity.nulls import Null
from mixer_probe.similarity.summary import model_similarity
from tests.similarity.conftest import MakeReps


def record(name: str) -> ModelRecord:
    return ModelRecord(name, "mixer", True, "made by hand", name * 8, 1)


def matrix(
    a: str,
    b: str,
    values: Sequence[Sequence[float]],
    null_mean: float | None = None,
    **fields: object,
) -> SimilarityMatrix:
    found = np.array(values, dtype=float)
    sides = [plain_layers({f"layer{i}": 4 for i in range(size)}) for size in found.shape]
    null = (
        None
        if null_mean is None
        else Null(np.full(found.shape, null_mean), np.ones(found.shape), 20, np.ones(20))
    )
    made = SimilarityMatrix(
        found,
        *sides,
        record(a),
        record(b),
        None,
        "cka",
        "unbiased",
        "linear",
        50,
        (4,) * len(found),
        (4,) * len(found[0]),
        null,
        "gram",
        "mean",
        0,
    )
    return replace(made, **fields)


def test_a_pair_is_the_mean_of_the_best_of_all_layers() -> None:
    found = model_similarity([matrix("a", "b", [[0.1, 0.9, 0.3], [0.2, 0.4, 0.0]])])
    # Best of the rows 0.9, 0.4; of the columns 0.2, 0.9, 0.3.
    value = (0.9 + 0.4 + 0.2 + 0.9 + 0.3) / 5
    np.testing.assert_allclose(found.values, [[1, value], [value, 1]])
    assert not found.calibrated
    assert (found.label, found.n) == ("CKA (linear, unbiased)", 50)


def test_the_direction_of_a_matrix_does_not_matter() -> None:
    values = np.array([[0.1, 0.9, 0.3], [0.2, 0.4, 0.0]])
    one, other = (
        model_similarity([m]) for m in (matrix("a", "b", values), matrix("b", "a", values.T))
    )
    np.testing.assert_allclose(one.values, other.values)


def test_values_are_calibrated_by_the_null() -> None:
    found = model_similarity([matrix("a", "b", [[0.6, 0.2], [0.2, 0.4]], null_mean=0.2)])
    assert found.calibrated
    assert found.values[0, 1] == pytest.approx((0.5 + 0.25 + 0.5 + 0.25) / 4)


def test_undefined_layers_are_left_out() -> None:
    nan = float("nan")
    assert model_similarity([matrix("a", "b", [[0.6, nan], [nan, nan]])]).values[
        0, 1
    ] == pytest.approx(0.6)
    assert np.isnan(model_similarity([matrix("a", "b", [[nan]])]).values[0, 1])


def test_distances_are_turned_into_similarities(make_reps: MakeReps) -> None:
    generator = np.random.default_rng(0)
    features = {f"layer{i}": generator.normal(size=(40, 5)) for i in range(3)}
    a, b = make_reps(features, "a"), make_reps({k: 3 * v + 1 for k, v in features.items()}, "b")
    for permutations in (0, 20):
        equal = model_similarity(
            [mp.compare(a, b, "procrustes", permutations=permutations, resamples=0)]
        )
        assert equal.values[0, 1] == pytest.approx(1, abs=1e-6)
    raw = matrix("a", "b", [[0.5]], measure="procrustes", estimator="", kernel="")
    assert model_similarity([raw]).values[0, 1] == pytest.approx(1 - 0.5 / 2**0.5)


def test_unrelated_networks_are_near_0_when_calibrated(make_reps: MakeReps) -> None:
    generator = np.random.default_rng(0)
    a, b = (make_reps({"layer": generator.normal(size=(60, 100))}, name) for name in "ab")
    biased = mp.compare(a, b, estimator="biased")
    # Biased CKA of noise is about sqrt(pq / ((p + n)(q + n))) = 0.6.
    assert biased.values[0, 0] > 0.55
    assert abs(model_similarity([biased]).values[0, 1]) < 0.1


def test_missing_pairs_are_nan_and_make_no_tree() -> None:
    found = model_similarity([matrix("a", "b", [[0.5]]), matrix("b", "c", [[0.5]])])
    assert [m.name for m in found.models] == ["a", "b", "c"]
    assert np.isnan(found.values[0, 2])
    assert np.isnan(found.values[2, 0])
    assert found.order.tolist() == [0, 1, 2]
    assert found.linkage.shape == (0, 4)


def test_networks_with_themselves_are_left_out() -> None:
    found = model_similarity([matrix("a", "a", [[0.3]]), matrix("a", "b", [[0.5]])])
    np.testing.assert_allclose(found.values, [[1, 0.5], [0.5, 1]])


def test_the_tree_joins_what_is_close() -> None:
    """Average linkage by hand: a-c at 0.1, b-d at 0.2, and both at the mean of the four other
    distances."""
    values = {"ab": 0.3, "ac": 0.9, "ad": 0.2, "bc": 0.25, "bd": 0.8, "cd": 0.35}
    found = model_similarity([matrix(*pair, [[value]]) for pair, value in values.items()])
    heights = [0.1, 0.2, 1 - np.mean([0.3, 0.2, 0.25, 0.35])]
    np.testing.assert_allclose(found.linkage[:, 2], heights)
    names = "".join(found.models[i].name for i in found.order)
    # Within the two pairs the leaves are turned so that c and d, the closest of the rest, stand
    # side by side.
    assert names in ("acdb", "bdca")


def test_what_does_not_belong_into_one_table_is_refused() -> None:
    ab = matrix("a", "b", [[0.5]])
    with pytest.raises(MeasureError, match="b and a are compared twice"):
        model_similarity([ab, matrix("b", "a", [[0.5]])])
    with pytest.raises(MeasureError, match="no matrix compares two different networks"):
        model_similarity([matrix("a", "a", [[1.0]])])
    with pytest.raises(MeasureError, match="does not say of which networks"):
        model_similarity([replace(ab, model_a=None)])
    for what, other in (
        ("measures", matrix("a", "c", [[0.5]], measure="rsa")),
        ("measures", matrix("a", "c", [[0.5]], estimator="biased")),
        ("numbers of images", matrix("a", "c", [[0.5]], n=60)),
        ("grids", matrix("a", "c", [[0.5]], grid=(7, 7))),
        ("nulls", matrix("a", "c", [[0.5]], null_mean=0.1)),
    ):
        with pytest.raises(MeasureError, match=f"different {what}"):
            model_similarity([ab, other])


def test_summaries_are_tables_and_are_stored() -> None:
    found = model_similarity([matrix(*pair, [[0.5]]) for pair in ("ab", "ac", "bc")])
    assert found.to_frame().to_numpy().tolist() == [
        ["a", "b", 0.5],
        ["a", "c", 0.5],
        ["b", "c", 0.5],
    ]
    assert to_dict(from_dict(to_dict(found))) == to_dict(found)
