"""From one data set to another: classes by name, confusion, accuracy a class, calibration."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.metrics import confusion_matrix as reference

from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.result import ImagesRecord, from_dict, to_dict
from mixer_probe.probing import linear_probe, wilson_interval
from mixer_probe.probing.controls import control_task
from mixer_probe.probing.predictions import best_temperature, calibration, confusion_matrix
from mixer_probe.probing.transfer import matched, transfer_probe


def data_set(
    make_reps,
    name: str,
    names: tuple[str, ...],
    seed: int,
    n: int = 90,
    used: tuple[str, ...] | None = None,
):
    """Images of one-hot features by the name of their class, with noise, all with the same ids."""
    random = np.random.default_rng(seed)
    used = used or names
    label = np.array([names.index(used[i % len(used)]) for i in range(n)])
    axes = {"ape": 0, "bee": 1, "cow": 2, "dog": 3}
    X = np.eye(4)[[axes[names[k]] for k in label]] + 0.05 * random.normal(size=(n, 4))
    reps = make_reps({"layer": X}, label, "train")
    reps.class_names = names
    reps.images = ImagesRecord(name, "", n, len(names), str(seed) * 64)
    return reps


def test_classes_are_matched_by_name_not_by_index(make_reps):
    a = data_set(make_reps, "photos", ("ape", "bee", "cow"), 1)
    b = data_set(make_reps, "sketches", ("cow", "ape"), 2)
    assert a.ids == b.ids
    result = transfer_probe(a, b)
    assert result.accuracy[0] == 1
    assert (result.images_train.name, result.images_test.name) == ("photos", "sketches")
    assert result.class_names == ("ape", "bee", "cow")
    np.testing.assert_array_equal(np.unique(result.labels), [0, 2])
    assert transfer_probe(a, b, l2=[0.5]).chosen[0] == 0.5


def test_any_probe_transfers(make_reps):
    names = ("ape", "bee", "cow", "dog")
    a, b = data_set(make_reps, "photos", names, 1), data_set(make_reps, "sketches", names[::-1], 2)
    groups = {"ape": "x", "bee": "x", "cow": "y", "dog": "y"}
    assert transfer_probe(a, b, probe=control_task, groups=groups).accuracy[0] == 1
    assert linear_probe(*matched(b, a)).accuracy[0] == 1


def test_a_class_without_images_in_train_is_not_known(make_reps):
    a = data_set(make_reps, "photos", ("ape", "bee", "cow"), 1, used=("ape", "bee"))
    b = data_set(make_reps, "sketches", ("ape", "bee", "cow", "dog"), 2)
    with pytest.raises(
        ImagesError, match=r"\(sketches\) have 2 classes that .* do not have: 'cow', 'dog'"
    ):
        transfer_probe(a, b)
    only = data_set(make_reps, "sketches", ("ape", "bee", "cow", "dog"), 2, used=("ape",))
    assert transfer_probe(a, only).accuracy[0] == 1


def test_what_cannot_be_matched(make_reps):
    a, b = (
        data_set(make_reps, "photos", ("ape", "bee"), 1),
        data_set(make_reps, "sketches", ("ape", "bee"), 2),
    )
    with pytest.raises(ImagesError, match="same images"):
        matched(a, a)
    b.class_names = None
    with pytest.raises(ImagesError, match=r"classes of the test images .sketches. have no names"):
        matched(a, b)
    a.class_names = None
    np.testing.assert_array_equal(matched(a, b)[1].labels, b.labels)
    b.labels = b.labels + 1
    with pytest.raises(ImagesError, match=r"have 1 class that .* do not have: '2'"):
        matched(a, b)
    b.labels = None
    with pytest.raises(ImagesError, match="no labels"):
        matched(a, b)


@pytest.fixture
def probe(make_reps):
    sides = []
    for n, split, seed in ((150, "train", 0), (120, "test", 1)):
        y = np.random.default_rng(seed).choice([0, 1, 2], size=n, p=[0.6, 0.3, 0.1])
        X = np.eye(3)[y] * 1.5 + np.random.default_rng(seed + 9).normal(size=(n, 3))
        sides.append(make_reps({"layer": X, "bad": np.full((n, 1), np.nan)}, y, split))
    with pytest.warns(UserWarning, match="'bad'"):
        return linear_probe(*sides), sides


def test_confusion_and_accuracy_a_class(probe):
    result, _ = probe
    found = confusion_matrix(result)
    np.testing.assert_array_equal(found.counts[0], reference(result.labels, result.predicted[0]))
    assert found.counts[1].sum() == 0
    np.testing.assert_allclose(
        found.fractions[0], reference(result.labels, result.predicted[0], normalize="true")
    )
    table = found.per_class()
    first = table[(table.layer == "layer") & (table["class"] == "cat")].iloc[0]
    hits, n = found.counts[0, 0, 0], (result.labels == 0).sum()
    assert (first.images, first.accuracy) == (n, hits / n)
    assert (first.low, first.high) == wilson_interval(int(hits), int(n))
    assert first.precision == hits / (result.predicted[0] == 0).sum()
    assert table[table.layer == "bad"][["accuracy", "low", "precision"]].isna().all(axis=None)
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())
    assert found.to_frame().images.sum() == 120
    errors = [sum((result.labels == k) ^ (result.predicted[0] == k)) for k in range(3)]
    assert found.most_confused(0, 2).tolist() == sorted(np.argsort(errors)[::-1][:2])
    assert found.most_confused(0, 9).tolist() == [0, 1, 2]


def test_the_mistakes_of_a_class(probe):
    result, _ = probe
    answers = result.predicted[0][result.labels == 1]
    found = result.mistakes(0, "dog")
    assert [answer for _, answer in found] == [
        ("cat", "dog", "frog")[k] for k in answers[answers != 1]
    ]
    assert all(result.labels[i] == 1 for i, _ in found)
    assert result.mistakes(1, "dog") == [
        (i, "no prediction") for i in np.flatnonzero(result.labels == 1)
    ]


def told(result, probabilities, labels):
    """The probe with probabilities by hand, for one layer."""
    p = np.asarray(probabilities, dtype=np.float32)[None]
    y = np.asarray(labels)
    names = tuple(str(k) for k in range(p.shape[2]))
    return replace(
        select(result, "layer", [0]),
        probabilities=p,
        labels=y,
        predicted=p.argmax(axis=2),
        n_test=len(y),
        class_labels=np.arange(p.shape[2]),
        class_names=names,
    )


def test_calibration_by_hand(probe):
    # Four answers at 0.85, three right; two at 0.55, none right. |.75 - .85| 4/6 + |0 - .55| 2/6 =
    # .25.
    p = [[0.85, 0.15]] * 4 + [[0.45, 0.55]] * 2
    found = calibration(told(probe[0], p, [0, 0, 0, 1, 0, 0]), bins=10)
    assert found.ece[0] == pytest.approx(0.25)
    assert found.counts[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 4, 0]
    assert found.accuracy[0, 8] == 0.75
    assert np.isnan(found.accuracy[0, 0])
    assert found.brier[0] == pytest.approx((3 * 0.045 + 1.445 + 2 * 0.605) / 6)
    assert found.nll[0] == pytest.approx(
        -(3 * math.log(0.85) + math.log(0.15) + 2 * math.log(0.45)) / 6
    )
    assert (found.low[0, 8], found.high[0, 8]) == wilson_interval(3, 4)
    assert (found.mean_confidence[0], found.mean_accuracy[0]) == pytest.approx((0.75, 0.5))


def test_perfect_probabilities_are_within_their_null(probe):
    random, inside, overconfident = np.random.default_rng(4), 0, 0
    for trial in range(40):
        p = random.dirichlet([1, 1, 1], size=400)
        y = (random.random(400)[:, None] > p.cumsum(axis=1)).sum(axis=1)
        found = calibration(told(probe[0], p, y), seed=trial)
        inside += found.ece[0] <= found.ece_null_high[0]
        sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
        wrong = calibration(told(probe[0], sharp, y), seed=trial)
        overconfident += wrong.ece[0] > wrong.ece_null_high[0]
    assert inside >= 34
    assert overconfident == 40


def test_scores_of_scikit_learn(probe):
    random = np.random.default_rng(5)
    p, y = random.dirichlet([1, 1], size=50), random.integers(0, 2, 50)
    found = calibration(told(probe[0], p, y))
    assert found.nll[0] == pytest.approx(log_loss(y, p), rel=1e-5)
    # Of two classes the squares are counted twice.
    assert found.brier[0] == pytest.approx(2 * brier_score_loss(y, p[:, 1]), rel=1e-5)


def test_temperature_is_a_logistic_regression_on_the_scores():
    # For two classes of opposite scores s, softmax at t is the logistic of 2 s / t.
    random = np.random.default_rng(6)
    s = random.normal(size=200)
    y = (random.random(200) < 1 / (1 + np.exp(-3 * s))).astype(int)
    fit = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(s[:, None], y)
    assert best_temperature(np.column_stack([-s, s]), y) == pytest.approx(
        2 / fit.coef_[0, 0], rel=1e-4
    )


def test_ridge_scores_become_probabilities(probe):
    result, sides = probe
    with pytest.raises(MeasureError, match="kept no probabilities"):
        calibration(result)
    found = calibration(result, tuple(sides))
    assert found.source.startswith("softmax of ridge scores")
    assert found.ece[0] < found.ece_null_high[0] + 0.05
    assert found.mean_accuracy[0] == pytest.approx(result.accuracy[0])
    assert np.isnan(found.ece[1])
    assert from_dict(to_dict(found)).to_frame().equals(found.to_frame())
    assert len(found.bins_frame()) == 30
    with pytest.raises(MeasureError, match="other images"):
        calibration(result, tuple(sides[::-1]))
    with pytest.raises(MeasureError, match="bins is a whole number"):
        calibration(result, tuple(sides), bins=0)
