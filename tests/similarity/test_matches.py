"""`best_matches`: known partners, their order, and the null of the same maximum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import UndefinedSimilarityWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.similarity.matches import LayerMatches, best_matches, tau_p
from mixer_probe.similarity.streaming import StreamingCKA
from mixer_probe.similarity.views import order_of
from tests.similarity.conftest import MakeReps

ORDER = (2, 0, 3, 1)


def noise(layers: int, n: int = 40, p: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {f"layer{i}": generator.normal(size=(n, p)) for i in range(layers)}


def in_order(features: dict[str, np.ndarray], order: tuple[int, ...]) -> dict[str, np.ndarray]:
    names = list(features)
    return {f"place{place}": features[names[i]] for place, i in enumerate(order)}


def same(a: LayerMatches, b: LayerMatches) -> bool:
    return to_dict(a) == to_dict(b)


@pytest.mark.parametrize("measure", ["cka", "procrustes", "rsa"])
def test_a_network_matches_itself_layer_by_layer(make_reps: MakeReps, measure: str) -> None:
    reps = make_reps(noise(5))
    found = best_matches(mp.compare(reps, reps, measure))
    assert found.best_match.tolist() == [0, 1, 2, 3, 4]
    assert (found.tau, found.monotone) == (pytest.approx(1), True)
    assert found.above.all()
    np.testing.assert_allclose(found.value, 0 if measure == "procrustes" else 1, atol=1e-6)


@pytest.mark.parametrize("measure", ["cka", "procrustes"])
def test_layers_in_another_order_are_found(make_reps: MakeReps, measure: str) -> None:
    features = noise(4)
    found = best_matches(
        mp.compare(make_reps(features), make_reps(in_order(features, ORDER)), measure)
    )
    partner = np.argsort(ORDER)
    assert found.best_match.tolist() == partner.tolist() == [1, 3, 0, 2]
    pairs = [np.sign(partner[j] - partner[i]) for i in range(4) for j in range(i + 1, 4)]
    assert found.tau == pytest.approx(sum(pairs) / 6)
    assert not found.monotone


def test_layers_that_share_a_partner_are_still_in_order(make_reps: MakeReps) -> None:
    a = noise(3)
    a["layer2"] = a["layer1"]
    found = best_matches(mp.compare(make_reps(a), make_reps(noise(2))))
    assert found.best_match.tolist() == [0, 1, 1]
    assert found.monotone
    # Two of three pairs agree and one is tied in B only: 2 / sqrt(3 * 2).
    assert found.tau == pytest.approx(2 / 6**0.5)


def test_values_and_nulls_are_those_of_the_cell(make_reps: MakeReps) -> None:
    matrix = mp.compare(make_reps(noise(3)), make_reps(noise(4, seed=1)))
    found = best_matches(matrix)
    assert matrix.null is not None
    for i, j in enumerate(found.best_match):
        assert found.value[i] == matrix.values[i].max() == matrix.values[i, j]
    np.testing.assert_array_equal(found.null95, matrix.null.row_maximum95)
    np.testing.assert_array_equal(found.above, found.value > found.null95)


def test_a_distance_is_above_its_null_where_it_is_smaller(make_reps: MakeReps) -> None:
    a, b = noise(3, n=60), noise(3, n=60, seed=1)
    b["layer2"] = a["layer0"] + 0.1 * b["layer2"]
    found = best_matches(mp.compare(make_reps(a), make_reps(b), "procrustes"))
    assert found.best_match[0] == 2
    assert found.above[0]
    assert found.value[0] < found.null95[0]


def test_undefined_layers_have_no_partner(make_reps: MakeReps) -> None:
    a = noise(3) | {"layer1": np.ones((40, 6))}
    with pytest.warns(UndefinedSimilarityWarning):
        matrix = mp.compare(make_reps(a), make_reps(noise(3)))
    found = best_matches(matrix)
    assert found.best_match.tolist() == [0, -1, 2]
    assert np.isnan([found.value[1], found.null95[1]]).all()
    assert not found.above[1]
    assert (found.tau, found.monotone) == (pytest.approx(1), True)
    frame = found.to_frame()
    assert (
        frame["layer_b"].isna().tolist() == frame["depth_b"].isna().tolist() == [False, True, False]
    )
    assert frame["layer_b"].tolist()[::2] == ["layer0", "layer2"]


def test_no_layer_with_a_partner(make_reps: MakeReps) -> None:
    with pytest.warns(UndefinedSimilarityWarning):
        matrix = mp.compare(make_reps({"flat": np.ones((40, 6))}), make_reps(noise(2)))
    found = best_matches(matrix)
    assert found.best_match.tolist() == [-1]
    assert np.isnan(found.tau)


def test_without_null(make_reps: MakeReps) -> None:
    reps = make_reps(noise(3))
    found = best_matches(mp.compare(reps, reps, permutations=0, resamples=0))
    assert np.isnan(found.null95).all()
    assert not found.above.any()


def test_the_null_knows_that_the_best_was_picked() -> None:
    """Independent layers: a row's best of ten is beyond its null in about 5 % of the rows, not in
    the 40 % of one cell's null."""
    above = []
    for seed in range(50):
        accumulator = StreamingCKA(seed=seed)
        sides = (noise(3, n=30, seed=2 * seed), noise(10, n=30, seed=2 * seed + 1))
        accumulator.update(*sides)
        found = best_matches(accumulator.compute())
        above.append(found.above)
    # 150 rows, those of one matrix not independent: 5 % is 7.5.
    assert 1 <= np.sum(above) <= 18


def test_matches_are_stored(make_reps: MakeReps) -> None:
    found = best_matches(mp.compare(make_reps(noise(3)), make_reps(noise(4, seed=1))))
    assert same(from_dict(to_dict(found)), found)
    assert found.to_frame().shape == (3, 7)


@pytest.mark.parametrize(
    "partner, p",
    [
        ([0, 1], 1 / 2),
        ([0, 1, 2], 1 / 6),
        ([0, 1, 2, 3], 1 / 24),
        ([1, 0, 2, 3], 4 / 24),
        # Of the 3 places that the one late match can have, one is as late.
        ([0, 0, 1], 1 / 3),
        ([3, 2, 1, 0], 1),
    ],
)
def test_an_order_of_layers_has_the_chance_of_all_orders(partner: list[int], p: float) -> None:
    assert tau_p(np.array(partner)) == pytest.approx(p)


def test_orders_of_many_layers_are_drawn() -> None:
    rng = np.random.default_rng(0)
    assert tau_p(np.arange(12)) == pytest.approx(1 / 10_000)
    found = [tau_p(rng.permutation(8)) <= 0.05 for _ in range(150)]
    assert np.mean(found) <= 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


@pytest.mark.parametrize("layers, climbs", [(2, False), (3, False), (5, True)])
def test_few_layers_in_order_do_not_climb(make_reps: MakeReps, layers: int, climbs: bool) -> None:
    reps = make_reps(noise(layers))
    found = best_matches(mp.compare(reps, reps))
    assert found.monotone
    assert found.climbs == climbs


def test_matches_of_shuffled_images_do_not_climb(make_reps: MakeReps) -> None:
    """Five layers in the right order, none of them above its null."""
    matrix = mp.compare(make_reps(noise(5)), make_reps(noise(5, seed=1)), permutations=999)
    found = replace(
        best_matches(matrix), tau_p=1 / 120, above=np.array([True, False, False, False, False])
    )
    assert not found.climbs
    assert "has no significant order by depth" in order_of(found)
