"""`layer_identification`: known partners for planted layers."""

from __future__ import annotations

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError, UndefinedSimilarityWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.similarity.identification import layer_identification
from tests.similarity.conftest import MakeReps
from tests.tiny import tiny_models


def layers(n: int = 40, p: int = 6, count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {f"blocks.{i}": generator.normal(size=(n, p)) for i in range(count)}


def in_order(features: dict[str, np.ndarray], order: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: features[f"blocks.{i}"] for name, i in zip(features, order, strict=True)}


def test_equal_networks_are_identified_by_every_measure(make_reps: MakeReps) -> None:
    reps = make_reps(layers())
    found = layer_identification(reps, reps)
    assert found.measures == tuple(mp.similarity.MEASURES)
    assert found.best_match.shape == (len(found.measures), 2, 4)
    np.testing.assert_array_equal(found.fraction, 1)
    assert found.chance == 0.25


def test_rotated_and_noisy_layers_are_identified(make_reps: MakeReps) -> None:
    features = layers()
    generator = np.random.default_rng(1)
    turned = {}
    for name, values in features.items():
        rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
        turned[name] = values @ rotation + 0.2 * generator.normal(size=values.shape)
    found = layer_identification(
        make_reps(features, "s0"), make_reps(turned, "s1"), ["cka", "procrustes", "rsa_euclidean"]
    )
    np.testing.assert_array_equal(found.fraction, 1)
    assert [m.name for m in found.models] == ["s0", "s1"]


def test_both_directions_of_a_permutation(make_reps: MakeReps) -> None:
    features, order = layers(), (0, 2, 3, 1)
    found = layer_identification(make_reps(features), make_reps(in_order(features, order)), "cka")
    np.testing.assert_array_equal(found.best_match[0], [np.argsort(order), order])
    np.testing.assert_array_equal(found.fraction, [[0.25, 0.25]])
    frame = found.to_frame()
    assert frame[["a_to_b", "b_to_a", "both", "chance"]].to_numpy().tolist() == [[0.25] * 4]
    assert frame["n"].tolist() == [40]


def test_directions_count_apart(make_reps: MakeReps) -> None:
    """Two layers of B are copies of one of A: A's first finds its own, B's second does not."""
    features = layers(count=2)
    copies = {
        "blocks.0": features["blocks.0"],
        "blocks.1": features["blocks.0"] + 0.1 * features["blocks.1"],
    }
    found = layer_identification(make_reps(features), make_reps(copies), "cka")
    np.testing.assert_array_equal(found.best_match[0], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(found.fraction, [[1, 0.5]])
    assert found.to_frame()["both"].tolist() == [0.75]


def test_undefined_layers_are_left_out(make_reps: MakeReps) -> None:
    features = layers() | {"blocks.1": np.ones((40, 6))}
    reps = make_reps(features)
    with pytest.warns(UndefinedSimilarityWarning):
        found = layer_identification(reps, reps, "cka")
    assert found.best_match[0, 0].tolist() == [0, -1, 2, 3]
    np.testing.assert_array_equal(found.fraction, [[1, 1]])


def test_a_measure_that_is_nowhere_defined_has_no_fraction(make_reps: MakeReps) -> None:
    reps = make_reps({"blocks.0": np.ones((40, 6))})
    with pytest.warns(UndefinedSimilarityWarning):
        found = layer_identification(reps, reps, "cka")
    assert np.isnan(found.fraction).all()
    assert np.isnan(found.to_frame()["both"]).all()


def test_positions_count_on_a_grid() -> None:
    mixer, *_ = tiny_models()
    images = mp.load_images("demo", limit=30)
    reps = mp.extract(mixer, images, reduce="none")
    found = layer_identification(reps, reps, "cka", grid=2)
    assert (found.grid, found.reduce, found.n) == ((2, 2), "none", 30)
    np.testing.assert_array_equal(found.fraction, 1)


def test_other_layers_are_refused(make_reps: MakeReps) -> None:
    features = layers()
    with pytest.raises(
        MeasureError, match=r"do not have the same layers \(blocks.4\): take two seeds"
    ):
        layer_identification(make_reps(features), make_reps(layers(count=5)))
    with pytest.raises(MeasureError, match="the order"):
        layer_identification(make_reps(features), make_reps(dict(reversed(features.items()))))
    with pytest.raises(MeasureError, match="extract both in the same way"):
        layer_identification(make_reps(features), make_reps(features, reduce="prefix"))
    with pytest.raises(MeasureError, match="no measure was given"):
        layer_identification(make_reps(features), make_reps(features), [])
    with pytest.raises(MeasureError, match="unknown measure"):
        layer_identification(make_reps(features), make_reps(features), "cosine")


def test_it_is_stored(make_reps: MakeReps) -> None:
    reps = make_reps(layers())
    found = layer_identification(reps, reps, ["cka", "rsa"])
    assert to_dict(from_dict(to_dict(found))) == to_dict(found)
    assert found.labels == ("CKA (linear, unbiased)", mp.similarity.MEASURES["rsa"].label)
