"""Control tasks and random labels: counted groupings, planted groups, chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.images.bundled import CIFAR10_CLASSES
from mixer_probe.probing.controls import (
    CIFAR10_GROUPS,
    control_task,
    count_groupings,
    random_groupings,
    random_label_probe,
    selectivity_intervals,
)
from mixer_probe.stats import wilson_interval

NAMES = tuple("abcdef")
GROUPS = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "y", "f": "y"}
GROUP = np.array([0, 0, 0, 1, 1, 1])


def sides(make_reps, make, n=(240, 240), names=NAMES):
    """Train and test with the features that `make(labels, random)` gives."""
    found = []
    for size, split, seed in zip(n, ("train", "test"), (0, 1), strict=True):
        y = np.arange(size) % len(names)
        reps = make_reps(make(y, np.random.default_rng(seed)), y, split)
        reps.class_names = names
        found.append(reps)
    return found


def test_groupings_are_counted_as_enumeration_does():
    for grouping in ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1]):
        parts = {
            frozenset(frozenset(np.flatnonzero(np.array(p) == g)) for g in set(p))
            for p in itertools.permutations(grouping)
        }
        assert count_groupings(np.array(grouping)) == len(parts)
    assert count_groupings(np.array([0] * 6 + [1] * 4)) == 210


def test_controls_are_different_groupings_of_the_same_sizes():
    semantic = np.array([0, 0, 1, 1, 2, -1])
    drawn, exhaustive = random_groupings(semantic, 5, seed=0)
    assert not exhaustive
    assert (drawn[:, 5] == -1).all()
    parts = [
        frozenset(frozenset(np.flatnonzero(row == g)) for g in range(3))
        for row in [semantic, *drawn]
    ]
    assert len(set(parts)) == 6
    assert all(sorted(np.bincount(row[:5])) == [1, 2, 2] for row in drawn)
    everything, exhaustive = random_groupings(semantic, 100, seed=1)
    assert exhaustive
    assert len(everything) == 14  # 5! / (2! 2! 1!) / 2! - 1


def test_features_that_hold_only_the_group_are_selective(make_reps):
    # A semantic group is read without error. In a control, a group of three classes holds one or
    # two of x, and the best a reader of the group can do is to be right for two classes of every
    # three: 2/3 whichever control it is.
    train, test = sides(
        make_reps,
        lambda y, random: {"group": GROUP[y][:, None] + 0.01 * random.normal(size=(len(y), 2))},
    )
    result = control_task(train, test, GROUPS, controls=50)
    assert result.exhaustive
    assert len(result.controls) == 9
    assert result.accuracy[0] == 1
    np.testing.assert_allclose(result.control_accuracy, 2 / 3, atol=1e-12)
    assert result.selectivity[0] == pytest.approx(1 / 3)
    assert result.relative_selectivity[0] == pytest.approx(1)
    # Every image is right under 6 of the 9 controls: how many others would not be has Wilson's
    # bound of none of n.
    unseen = wilson_interval(0, result.n_test)[1]
    bounds = (1 / 3 - 4 / 3 * unseen, 1 / 3 + 2 / 3 * unseen)
    assert (result.selectivity_low[0], result.selectivity_high[0]) == pytest.approx(bounds)
    np.testing.assert_allclose(result.chance, 0.5)


def test_features_that_hold_the_class_are_not_selective(make_reps):
    train, test = sides(
        make_reps,
        lambda y, random: {"class": np.eye(6)[y] + 0.01 * random.normal(size=(len(y), 6))},
    )
    result = control_task(train, test, GROUPS)
    assert result.accuracy[0] == 1
    assert (result.control_accuracy == 1).all()
    unseen = wilson_interval(0, result.n_test)[1]
    found = (result.selectivity[0], result.selectivity_low[0], result.selectivity_high[0])
    assert found == pytest.approx((0, -unseen, unseen), abs=1e-12)
    assert np.isnan(result.relative_selectivity[0])


def test_features_of_noise_have_no_selectivity(make_reps):
    train, test = sides(
        make_reps,
        lambda y, random: {f"noise.{i}": random.normal(size=(len(y), 5)) for i in range(20)},
    )
    result = control_task(train, test, GROUPS)
    inside = (result.selectivity_low <= 0) & (result.selectivity_high >= 0)
    assert inside.sum() >= 17


def test_each_grouping_is_the_ridge_classifier_of_scikit_learn(make_reps):
    groups = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z", "f": "z"}

    def make(y, random):
        return {
            "layer": np.random.default_rng(9).normal(size=(6, 8))[y]
            + 1.5 * random.normal(size=(len(y), 8))
        }

    train, test = sides(make_reps, make)
    result = control_task(train, test, groups, controls=4)
    scaler = StandardScaler().fit(train["layer"])
    Z, new = scaler.transform(train["layer"]), scaler.transform(test["layer"])
    for task, grouping in enumerate([result.semantic, *result.controls]):
        probe = RidgeClassifier(alpha=result.l2[0, task]).fit(Z, grouping[train.labels])
        accuracy = (probe.predict(new) == grouping[test.labels]).mean()
        assert accuracy == [result.accuracy[0], *result.control_accuracy[0]][task]


def test_the_interval_covers(make_reps):
    # Accuracy .9 on the grouping and .7 on each control by independent coins: selectivity .2, of
    # errors .2 / .3.
    random = np.random.default_rng(3)
    inside = relative = 0
    for _ in range(200):
        right = np.column_stack([random.random(200) < 0.9, random.random((200, 10)) < 0.7])
        (low, high), (relative_low, relative_high) = selectivity_intervals(right, exhaustive=False)
        inside += low <= 0.2 <= high
        relative += relative_low <= 2 / 3 <= relative_high
    assert 0.92 <= inside / 200 <= 0.99
    assert 0.92 <= relative / 200 <= 0.99


def test_cifar_has_animals_and_vehicles(make_reps):
    train, test = sides(
        make_reps,
        lambda y, random: {"noise": random.normal(size=(len(y), 3))},
        names=CIFAR10_CLASSES,
    )
    result = control_task(train, test)
    assert result.groups == ("vehicle", "animal")
    assert sorted(CIFAR10_GROUPS.values()) == ["animal"] * 6 + ["vehicle"] * 4
    assert result.chance[0] == 0.6
    frame = result.to_frame()
    assert frame.control_chance[0] == pytest.approx(0.6)
    assert from_dict(to_dict(result)).to_frame().equals(frame)


def test_a_twin_and_a_layer_that_is_not_finite(make_reps):
    train, test = sides(
        make_reps, lambda y, random: {"good": np.eye(6)[y], "bad": np.full((len(y), 2), np.nan)}
    )
    twins = []
    for reps in (train, test):
        noise = {k: np.random.default_rng(8).normal(size=(240, 3)) for k in ("good", "bad")}
        twin = make_reps(noise, reps.labels, reps.images.split, trained=False)
        twin.class_names = NAMES
        twins.append(twin)
    with pytest.warns(NonFiniteWarning, match="layer 'bad'"):
        result = control_task(train, test, GROUPS, untrained=tuple(twins))
    assert np.isnan(result.selectivity[1])
    assert result.to_frame().trained.tolist() == [True, True, False, False]


def test_groupings_that_cannot_be(make_reps):
    train, test = sides(make_reps, lambda y, random: {"noise": random.normal(size=(len(y), 3))})
    with pytest.raises(ImagesError, match=r"no grouping of the classes a, b, c, \.\.\. is known"):
        control_task(train, test)
    with pytest.raises(ImagesError, match="the class 'g', which no image has"):
        control_task(train, test, {**GROUPS, "g": "x"})
    with pytest.raises(ImagesError, match="no group for 2 classes, the first is 'e'"):
        control_task(train, test, {k: GROUPS[k] for k in "abcd"})
    with pytest.raises(MeasureError, match="6 classes in 1 groups"):
        control_task(train, test, dict.fromkeys(NAMES, "x"))
    with pytest.raises(MeasureError, match="6 classes in 6 groups"):
        control_task(train, test, {k: k for k in NAMES})
    with pytest.raises(MeasureError, match="controls is a whole number, 1 or more, not 0"):
        control_task(train, test, GROUPS, controls=0)
    train.class_names = None
    with pytest.raises(ImagesError, match="have no names"):
        control_task(train, test, GROUPS)
    test.labels = None
    with pytest.raises(ImagesError, match="no labels"):
        control_task(train, test, GROUPS)


def test_random_labels_are_at_chance_and_memorised(make_reps):
    def make(y, random):
        return {
            "class": np.eye(6)[y],
            "wide": random.normal(size=(len(y), 400)) + np.eye(6, 400)[y] * 9,
        }

    train, test = sides(make_reps, make)
    result = random_label_probe(train, test, draws=10)
    assert result.at_chance.all()
    np.testing.assert_allclose(result.expected, 1 / 6, atol=0.01)
    # 400 features fit any labels of 240 images; six classes fit 1 in 6 and a little.
    assert (result.memorised[1] == 1).all()
    assert (result.memorised[0] < 0.35).all()
    assert from_dict(to_dict(result)).to_frame().equals(result.to_frame())


def test_expected_accuracy_of_unbalanced_random_labels(make_reps):
    # Features of noise and labels 9:1 make the probe say the frequent class always: .9 right, not
    # one half.
    train, test = sides(make_reps, lambda y, random: {"noise": random.normal(size=(len(y), 3))})
    for reps in (train, test):
        reps.labels = (np.arange(240) % 10 == 0).astype(int)
    result = random_label_probe(train, test)
    assert result.expected[0] == pytest.approx(0.9)
    assert result.accuracy[0] == pytest.approx(0.9)
    with pytest.raises(MeasureError, match="draws is a whole number, 1 or more, not 0"):
        random_label_probe(train, test, draws=0)
