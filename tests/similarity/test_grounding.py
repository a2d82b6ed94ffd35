"""Grounded tests: scores against cases worked by hand, p-values against all permutations, and
planted groups, orders and agreements."""

from __future__ import annotations

from itertools import combinations, permutations, product
from math import factorial

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity import MEASURES
from mixer_probe.similarity.grounding import (
    Outcome,
    exchanges,
    grounded_tests,
    group_scores,
    group_tests,
    layer_order_test,
    order_correlation,
    output_test,
    random_precision,
)
from tests.similarity.features import features

# Three groups of three seeds each.
GROUPS, SEEDS = np.repeat(["a", "b", "c"], 3), np.tile([0, 1, 2], 3)


def symmetric(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return x + x.swapaxes(-1, -2)


# -- scores ----------------------------------------------------------------------------------------


def test_scores_of_two_groups_of_two_by_hand() -> None:
    """Of group a the one pair, 0.7, is third of five: below 0.9 and 0.8, above 0.4 and 0.3. Of
    group b the pair, 0.95, is the first."""
    values = np.zeros((4, 4))
    for i, j, x in ((0, 1, 0.7), (2, 3, 0.95), (0, 2, 0.9), (0, 3, 0.8), (1, 2, 0.4), (1, 3, 0.3)):
        values[i, j] = values[j, i] = x
    auprc, conformity = group_scores(values, np.array(list("aabb")), np.ones((4, 4), bool))
    assert auprc == pytest.approx((1 / 3 + 1) / 2)
    assert conformity == pytest.approx((2 / 4 + 1) / 2)


def test_ties_count_half_and_precision_is_that_of_all_that_are_tied() -> None:
    values, groups = np.ones((4, 4)), np.array(list("aabb"))
    auprc, conformity = group_scores(values, groups, np.ones((4, 4), bool))
    assert (auprc, conformity) == (pytest.approx(1 / 5), 0.5)


def test_pairs_of_one_seed_are_not_compared() -> None:
    values, compared = symmetric(9, 9), SEEDS[:, None] != SEEDS
    other = np.where(compared, values, 100.0)
    found = group_scores(values, GROUPS, compared)
    np.testing.assert_array_equal(found, group_scores(other, GROUPS, compared))
    # The conformity rate is the area under the ROC curve of the same pairs.
    i, j = np.nonzero(np.triu(compared, 1))
    areas = []
    for group in "abc":
        own = (GROUPS[i] == group) | (GROUPS[j] == group)
        areas.append(roc_auc_score((GROUPS[i] == GROUPS[j])[own], values[i, j][own]))
    assert found[1] == pytest.approx(np.mean(areas))


def test_a_similarity_that_is_not_defined_has_no_scores() -> None:
    values = symmetric(9, 9)
    values[0, 4] = values[4, 0] = np.nan
    assert np.isnan(group_scores(values, GROUPS, SEEDS[:, None] != SEEDS)).all()


@pytest.mark.parametrize(("positives", "total"), [(1, 1), (1, 4), (3, 3), (2, 6), (4, 7)])
def test_the_precision_of_a_random_order_is_the_mean_over_all_orders(
    positives: int, total: int
) -> None:
    score = np.arange(total)
    found = [
        average_precision_score(np.isin(score, own), score)
        for own in combinations(range(total), positives)
    ]
    assert random_precision(positives, total) == pytest.approx(np.mean(found))


# -- the null of groups ----------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "seeds"), [(2, 2), (2, 4), (3, 3), (3, 4)])
def test_exchanges_are_all_other_partitions_each_once(groups: int, seeds: int) -> None:
    names, blocks = np.repeat(np.arange(groups), seeds), np.tile(np.arange(seeds), groups)
    found = exchanges(names, blocks)
    assert len(found) == factorial(groups) ** (seeds - 1) - 1
    partitions = {tuple(map(tuple, np.equal.outer(own, own))) for own in (names, *found)}
    assert len(partitions) == len(found) + 1
    for own in found:
        assert all(sorted(own[blocks == b]) == list(range(groups)) for b in range(seeds))


def test_of_too_many_exchanges_random_ones_are_drawn() -> None:
    names, blocks = np.repeat(np.arange(3), 6), np.tile(np.arange(6), 3)
    found = exchanges(names, blocks)
    assert found.shape == (999, 18)
    # In each seed every network is in every group a third of the time.
    own = found[:, blocks == 5]
    assert (own == 1).mean(0) == pytest.approx([1 / 3] * 3, abs=0.05)
    np.testing.assert_array_equal(found, exchanges(names, blocks))


@pytest.mark.parametrize(
    ("groups", "seeds"), [([0, 0, 1], [0, 1, 0]), ([0, 1], [0, 0]), ([0, 1, 0, 1], [0, 0, 0, 1])]
)
def test_other_designs_are_refused(groups: list[int], seeds: list[int]) -> None:
    with pytest.raises(MeasureError, match="one network of each group for each of them"):
        exchanges(np.array(groups), np.array(seeds))


def planted(distance: float) -> np.ndarray:
    """Similarities [measure, layer, network, network] of one measure that knows the groups, if they
    have this distance, and of one that knows the seeds alone."""
    random = np.random.default_rng(1)
    points = random.normal(size=(2, 9, 4))
    points[0, :, 0] += distance * np.repeat([0, 1, 2], 3)
    points[1, :, 0] += distance * SEEDS
    return -np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)[:, None]


def test_groups_that_are_far_apart_have_the_smallest_p_of_their_design() -> None:
    auprc, conformity = group_tests("toy", planted(50.0), GROUPS, SEEDS)
    found = grounded_tests(["cka", "rsa"], [auprc, conformity], "8 images")
    assert found.values[0].tolist() == [1, 1]
    assert found.smallest_p.tolist() == [1 / 36] * 2
    assert found.p_corrected[0].tolist() == [1 / 36] * 2
    assert found.passed.tolist() == [[True, True], [False, False]]
    assert found.chances.tolist() == [pytest.approx(random_precision(3, 15)), 0.5]
    assert (found.statistics, found.n.tolist()) == (("AUPRC", "conformity rate"), [9, 9])


def test_chance_is_what_the_draws_are_on_average() -> None:
    """Over all exchanges every pair of networks of two seeds is in one group in a third of them."""
    draws = np.array([own[:, None] == own for own in (GROUPS, *exchanges(GROUPS, SEEDS))])
    np.testing.assert_allclose(draws.mean(0)[SEEDS[:, None] != SEEDS], 1 / 3)
    outcome = group_tests("toy", symmetric(2, 1, 9, 9), GROUPS, SEEDS)[1]
    assert outcome.draws.mean() == pytest.approx(0.5, abs=0.05)


# -- layers and outputs ----------------------------------------------------------------------------


def test_similarities_that_fall_with_distance_are_in_order() -> None:
    distance = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert order_correlation(np.exp(-distance)) == 1
    assert order_correlation(distance.astype(float)) == -1
    assert order_correlation(np.ones((5, 5))) == 0
    assert np.isnan(order_correlation(np.full((5, 5), np.nan)))


def test_the_order_is_the_mean_of_rank_correlations_by_hand() -> None:
    values = symmetric(4, 4)
    # Layers 0 and 1 have two or more after them, 2 and 3 two or more before them.
    parts = [(0, [1, 2, 3]), (1, [2, 3]), (2, [1, 0]), (3, [2, 1, 0])]
    expected = [-spearmanr(values[i, own], range(len(own))).statistic for i, own in parts]
    assert order_correlation(values) == pytest.approx(np.mean(expected))


def test_the_null_of_the_order_has_all_orders_and_no_reverse() -> None:
    values = symmetric(2, 3, 5, 5)
    outcome = layer_order_test(values)
    every = [values[..., o, :][..., o] for o in map(list, permutations(range(5)))]
    expected = np.sort([order_correlation(v).mean(1) for v in every], axis=0)
    found = np.sort(np.r_[outcome.values[None], outcome.draws].repeat(2, axis=0), axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(layer_order_test(values, most=20).draws) == 20
    with pytest.raises(MeasureError, match="2 layers have no order"):
        layer_order_test(values[..., :2, :2])


def test_outputs_are_correlated_with_similarity_over_pairs() -> None:
    agreement, noise = symmetric(12, 12), symmetric(12, 12, seed=1)
    pairs = np.triu_indices(12, 1)
    values = np.stack([np.exp(agreement), noise, np.ones((12, 12))])
    outcome = output_test(values, agreement, draws=199)
    assert outcome.values[0] == pytest.approx(1)
    assert outcome.values[1] == pytest.approx(spearmanr(noise[pairs], agreement[pairs]).statistic)
    found = grounded_tests(["cka", "rsa", "cca"], [outcome], "8 images")
    assert found.p[0, 0] == 1 / 200
    assert not found.passed[1:].any()
    # Where all networks are equally similar nothing is defined.
    assert np.isnan([found.values[2, 0], found.p[2, 0], found.p_corrected[2, 0]]).all()


# -- p-values --------------------------------------------------------------------------------------


def test_p_values_and_their_correction_by_hand() -> None:
    """Of four draws none reaches 0.9, one 0.6; for the larger of both measures two do."""
    draws = np.array([[0.1, 0.7], [0.8, 0.2], [0.3, 0.3], [0.2, 0.1]])
    outcome = Outcome("toy", "rank correlation", np.array([0.9, 0.6]), draws, 0.0, 5)
    found = grounded_tests(["cka", "rsa"], [outcome], "")
    assert found.p[:, 0].tolist() == [1 / 5, 2 / 5]
    assert found.p_corrected[:, 0].tolist() == [1 / 5, 3 / 5]
    assert found.nulls[:, 0] == pytest.approx([0.35, 0.325])
    frame = found.to_frame()
    assert frame.columns.tolist()[:4] == ["measure", "test", "statistic", "value"]
    assert frame["p_corrected"].tolist() == [1 / 5, 3 / 5]


@pytest.mark.parametrize("name", MEASURES)
def test_all_pairs_are_those_of_the_measure(name: str) -> None:
    X, Y = features(0, 12, 4, 3)
    sides = [X, Y, np.c_[X, Y][:, :5], np.ones_like(X)]
    found, measure = MEASURES[name].all_pairs(sides), MEASURES[name]
    for i, j in product(range(3), repeat=2):
        both = [measure(sides[i], sides[j]), measure(sides[j], sides[i])]
        assert found[i, j] == pytest.approx(np.mean(both), abs=1e-9)
    assert np.isnan(found[3]).all()
    assert np.isnan(found[:, 3]).all()
