"""Online codes: lengths by hand, the uniform code, labels that are random or given away."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.probing.controls import control_task, random_groupings
from mixer_probe.probing.mdl import (
    FRACTIONS,
    block_ends,
    control_code,
    logistic_probabilities,
    online_code,
)


def test_blocks_of_voita_and_titov():
    np.testing.assert_array_equal(
        block_ends(FRACTIONS, 1000), [1, 2, 4, 8, 16, 32, 62, 125, 250, 500, 1000]
    )
    np.testing.assert_array_equal(block_ends(FRACTIONS, 100), [1, 2, 3, 6, 12, 25, 50, 100])
    for wrong in ((), (0.5,), (0.0, 1.0), (0.5, 0.2, 1.0), (0.5, 2.0)):
        with pytest.raises(MeasureError, match="ascend"):
            block_ends(wrong, 100)


def test_one_block_is_the_uniform_code(make_reps):
    reps = make_reps(
        {"layer": np.random.default_rng(0).normal(size=(90, 4))}, np.arange(90) % 3, "train"
    )
    code = online_code(reps, fractions=(1.0,))
    assert code.uniform == pytest.approx(90 * math.log2(3))
    np.testing.assert_allclose(code.bits, code.uniform)
    assert code.compression[0] == 1


def test_a_code_by_hand(make_reps):
    # Constant features leave the intercepts, which give the frequencies so far; unseen classes have
    # 1 / (t + K) each. Whatever the order, the price of a label depends on the counts before its
    # block alone.
    y = np.array([0, 0, 1, 2, 0, 0, 1, 0])
    reps = make_reps({"constant": np.full((8, 3), 0.1)}, y, "train")
    code = online_code(reps, fractions=(1 / 8, 0.5, 1.0), orders=5, seed=3)
    random = np.random.default_rng(3)
    for order in range(5):
        labels = y[random.permutation(8)]
        first = math.log2(3)
        counts = np.bincount(labels[:1], minlength=3)
        second = sum(-math.log2(2 / 4 if counts[k] else 1 / 4) for k in labels[1:4])
        counts = np.bincount(labels[:4], minlength=3)
        unseen = int((counts == 0).sum())
        third = sum(
            -math.log2(counts[k] / 4 * (7 - unseen) / 7 if counts[k] else 1 / 7) for k in labels[4:]
        )
        np.testing.assert_allclose(code.block_bits[0, order], [first, second, third], rtol=1e-4)
    assert (code.ends, code.classes, code.n) == ((1, 4, 8), 3, 8)


def test_penalties_are_mixed_by_their_code_of_the_blocks_before(make_reps):
    # Bits that the penalties .1, 1, 10 an image would cost, one row a block, given out by a probe
    # that knows them.
    prices = np.array([[3.0, 1, 2], [1, 5, 2], [0, 9, 1], [7, 7, 7]])
    blocks = iter(prices)

    def told(X, y, l2, X_new):
        np.testing.assert_allclose(l2, np.array([0.1, 1, 10]) * len(X))
        return np.broadcast_to(
            -np.log(2.0) * next(blocks)[:, None, None] / len(X_new), (3, len(X_new), 2)
        )

    y = np.tile([0, 1], 16)
    reps = make_reps({"layer": np.zeros((32, 1))}, y, "train")
    seed = next(
        s for s in range(99) if len(set(y[np.random.default_rng(s).permutation(32)[:2]])) == 2
    )
    code = online_code(
        reps,
        fractions=(2 / 32, 4 / 32, 8 / 32, 0.5, 1),
        l2=(10, 1, 0.1),
        orders=1,
        seed=seed,
        probabilities=told,
    )
    # By hand: weights of a third each, then of the last block's likelihoods with a tenth shared out
    # evenly.
    weights, by_hand, heaviest = np.full(3, 1 / 3), [2.0], [10.0]
    for row in prices:
        joint = weights * 2.0**-row
        by_hand.append(-np.log2(joint.sum()))
        weights = 0.9 * joint / joint.sum() + 0.1 / 3
        heaviest.append(np.array([0.1, 1, 10])[weights.argmax()])
    np.testing.assert_allclose(code.block_bits[0, 0], by_hand)
    np.testing.assert_allclose(code.l2[0, 0], heaviest[:-1])


def test_random_labels_do_not_compress(make_reps):
    random = np.random.default_rng(1)
    features = {"narrow": random.normal(size=(200, 5)), "wide": random.normal(size=(200, 250))}
    code = online_code(make_reps(features, random.integers(0, 4, 200), "train"), orders=2)
    assert (code.compression < 1.01).all()
    assert (code.compression > 0.85).all()


def test_labels_that_are_given_away_compress(make_reps):
    y = np.random.default_rng(2).integers(0, 4, 300)
    features = {
        "given": np.eye(4)[y],
        "half": np.eye(4)[y // 2],
        "noisy": np.eye(4)[y] + np.random.default_rng(3).normal(size=(300, 4)),
    }
    code = online_code(make_reps(features, y, "train"), fractions=(0.01, 0.05, 0.2, 1), orders=2)
    assert code.compression[0] > 10
    # Knowing which half leaves one bit of two: at most 2.
    assert 1.7 < code.compression[1] < 2
    assert 1 < code.compression[2] < code.compression[1]
    assert ((code.low <= code.compression) & (code.compression <= code.high)).all()
    frame = code.to_frame()
    assert frame.last_block[1] == pytest.approx(1, abs=0.05)
    assert from_dict(to_dict(code)).to_frame().equals(frame)


def test_probabilities_are_the_optimum_of_the_penalised_likelihood():
    random = np.random.default_rng(4)
    X, y = random.normal(size=(60, 3)), random.integers(0, 3, 60)
    log = logistic_probabilities(X, y, np.array([60.0]), X)[0]
    np.testing.assert_allclose(np.exp(log).sum(axis=1), 1)
    # At the optimum the intercepts make the mean probabilities the frequencies, and X'(P - Y) = -l2
    # W, W being what makes log P.
    residual = np.exp(log) - np.eye(3)[y]
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-4)
    W = -X.T @ residual / 60
    scores = X @ W
    scores -= scores.mean(axis=1, keepdims=True)
    centred = log - log.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        centred - centred.mean(axis=0), scores - scores.mean(axis=0), atol=1e-3
    )


def test_controls_cost_more_than_what_the_features_mean(make_reps):
    names = tuple("abcdef")
    groups = {k: "x" if k in "abc" else "y" for k in names}
    y = np.tile(np.arange(6), 60)
    random = np.random.default_rng(5)
    features = {
        "group": (y < 3)[:, None] + 0.01 * random.normal(size=(360, 2)),
        "noise": random.normal(size=(360, 2)),
    }
    reps = make_reps(features, y, "train")
    reps.class_names = names
    code = control_code(reps, groups, controls=4, fractions=(0.01, 0.05, 0.2, 0.5, 1))
    np.testing.assert_array_equal(code.controls, random_groupings(code.semantic, 4, 0)[0])
    # A grouping of threes that mixes the two: given the group, a label costs H(1/3) = .918 bits.
    entropy = -(math.log2(1 / 3) / 3 + 2 * math.log2(2 / 3) / 3)
    assert code.to_frame().control_bits[0] / 360 == pytest.approx(entropy, abs=0.08)
    assert code.compression[0] > 10
    assert code.gap[0] > 0.8
    assert abs(code.gap[1]) < 0.05
    assert code.uniform == 360
    assert online_code(reps, groups=groups, fractions=(0.01, 0.1, 1), orders=1).compression[0] > 10
    assert from_dict(to_dict(code)).to_frame().equals(code.to_frame())


def test_selectivity_and_code_length_order_features_alike(make_reps):
    # The group is given; the class shows more and more, and with it every control grouping.
    names, y = tuple("abcdef"), np.tile(np.arange(6), 40)
    groups = {k: "x" if k in "abc" else "y" for k in names}
    sides = []
    for split, seed in (("train", 6), ("test", 7)):
        noise = np.random.default_rng(seed).normal(size=(240, 7))
        clear = np.column_stack([8.0 * (y < 3), np.zeros((240, 6))])
        layers = {
            f"class x {a}": clear + np.column_stack([np.zeros(240), a * np.eye(6)[y]]) + noise
            for a in (0.0, 2.0, 4.0, 8.0)
        }
        sides.append(make_reps(layers, y, split))
        sides[-1].class_names = names
    selectivity = control_task(*sides, groups, controls=5).selectivity
    code = control_code(sides[0], groups, controls=5, fractions=(0.02, 0.1, 0.3, 1))
    assert (np.diff(selectivity) < 0).all()
    assert (np.diff(code.gap) < 0).all()
    # Compression of the classes themselves goes the other way: it asks how much is there, not what
    # is easy.
    compression = online_code(sides[0], fractions=(0.02, 0.1, 0.3, 1), orders=1).compression
    assert (np.diff(compression) > 0).all()


def test_what_cannot_be_coded(make_reps):
    y = np.arange(30) % 3
    reps = make_reps({"good": np.eye(3)[y], "bad": np.full((30, 1), np.inf)}, y, "train")
    with pytest.warns(NonFiniteWarning, match="no code given layer 'bad': 30 of its features"):
        code = online_code(reps, orders=1)
    assert np.isnan(code.bits[1]).all()
    assert np.isfinite(code.bits[0]).all()
    with pytest.raises(MeasureError, match="positive"):
        online_code(reps, l2=[0.0])
    with pytest.raises(MeasureError, match="orders is a whole number"):
        online_code(reps, orders=0)
    reps.labels = np.zeros(30, int)
    with pytest.raises(ImagesError, match="one class"):
        online_code(reps)
    reps.labels = None
    with pytest.raises(ImagesError, match="no labels"):
        online_code(reps)
