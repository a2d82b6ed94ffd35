"""Selectivity against scikit-learn, the formulas, and planted units."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from mixer_probe.channels import (
    ClassSelectivity,
    auroc_of,
    channels_needed,
    class_selectivity,
    dprime_of,
    morcos_index,
)
from mixer_probe.channels.findings import best_channel_finding
from mixer_probe.channels.needed import round_robin
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError, UndefinedChannelsWarning
from mixer_probe.core.result import from_dict, to_dict
from tests.probing.conftest import FakeRepresentations

NAMES = ("cat", "dog", "frog")


def planted(
    n: int = 300, channels: int = 60, seed: int = 0, split: str = "test", effect: float = 2.0
) -> FakeRepresentations:
    """Noise of either sign, in which channel 4 answers to class 1, 9 is silenced by class 2, and 17
    answers to class 0."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    X = rng.standard_normal((n, channels))
    X[:, 4] += effect * (labels == 1)
    X[:, 9] -= effect * (labels == 2)
    X[:, 17] += effect * (labels == 0)
    return FakeRepresentations(
        {"noise": rng.standard_normal((n, channels)), "units": X}, labels, split
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.booleans())
def test_auroc_equals_scikit_learn_with_and_without_ties(
    seed: int, classes: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 40)]) * 3
    X = rng.standard_normal((len(labels), 4))
    X = np.round(X) if ties else X
    found = auroc_of(X, labels)
    for c in range(4):
        for k in range(classes):
            assert found[c, k] == pytest.approx(roc_auc_score(labels == 3 * k, X[:, c]), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(-1e4, 1e4))
def test_dprime_equals_the_formula_also_far_from_zero(seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.repeat(np.arange(4), 2), rng.integers(0, 4, 30)]))
    X = rng.gamma(2, size=(len(labels), 3)) + offset
    found = dprime_of(X, labels)
    for k in range(4):
        a, b = X[labels == k], X[labels != k]
        expected = (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2)
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-7, atol=1e-9)


def test_dprime_and_auroc_of_two_gaussians_are_the_known_ones() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20_000)
    X = rng.standard_normal((40_000, 1)) + 1.5 * labels[:, None]
    assert dprime_of(X, labels)[0] == pytest.approx([-1.5, 1.5], abs=0.03)
    # Phi(d / sqrt 2).
    assert auroc_of(X, labels)[0, 1] == pytest.approx(0.85558, abs=0.004)


def test_morcos_index_is_the_formula_where_nothing_is_negative() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    X = np.array([[1, 0, 2], [3, 0, 2], [0, 0, 2], [0, 0, 2], [1, 0, 2], [1, 0, 2]], dtype=float)
    # Class means 2, 0, 1: (2 - 0.5) / (2 + 0.5).
    np.testing.assert_allclose(morcos_index(X, labels), [0.6, np.nan, 0.0])


def test_morcos_index_is_refused_below_zero() -> None:
    with pytest.raises(
        MeasureError, match=r"needs activations of at least 0.*take auroc or dprime"
    ):
        morcos_index(np.array([[1.0], [-0.1], [-0.1]]), np.array([0, 1, 2]))
    reps = planted()
    reps.features["positive"] = np.abs(reps.features["units"])
    reps.layers = (
        *reps.layers,
        FakeRepresentations({"positive": reps.features["positive"]}, reps.labels, "x").layers[0],
    )
    found = class_selectivity(reps, permutations=0)
    with pytest.raises(MeasureError, match="layer 'units' are negative in part"):
        found.morcos("units")
    np.testing.assert_array_equal(
        found.morcos("positive"), morcos_index(reps.features["positive"], reps.labels)
    )
    with pytest.raises(LayerError, match="closest: positive"):
        found.morcos("positiv")


def test_planted_units_are_found_and_nothing_else_is_above_the_corrected_null() -> None:
    found = class_selectivity(planted())
    assert np.flatnonzero(found.selective[0]).tolist() == []
    assert np.flatnonzero(found.selective[1]).tolist() == [4, 9, 17]
    assert found.preferred[1][[4, 9, 17]].tolist() == [1, 2, 0]
    assert found.auroc[1][4, 1] > 0.8
    assert found.auroc[1][9, 2] < 0.2
    assert found.dprime[1][9, 2] < -1
    assert found.p_value[1][4] == pytest.approx(1 / 1000)
    assert (found.strength[1][[4, 9, 17]] > found.threshold[1]).all()
    summary = found.summary()
    assert summary["fraction_selective"].tolist() == [0, 3 / 60]
    frame = found.to_frame()
    assert frame[frame["selective"]]["class"].tolist() == ["dog", "frog", "cat"]


def test_noise_is_above_the_corrected_null_in_one_layer_of_twenty() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), [50, 30, 15, 5])
    reps = FakeRepresentations(
        {f"l{i}": rng.standard_normal((100, 20)) for i in range(200)}, labels, "test"
    )
    reps.class_names = None
    found = class_selectivity(reps, permutations=99)
    rejected = sum(bool(s.any()) for s in found.selective)
    # Binomial(200, 0.05): 2 to 20 in all but one case of a thousand.
    assert 2 <= rejected <= 20


def test_the_spread_under_random_labels_is_that_of_the_permutations() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [5, 20, 35])
    X = np.round(rng.standard_normal((60, 2)), 0)
    reps = FakeRepresentations({"x": X}, labels, "test")
    strength = class_selectivity(reps, permutations=0).strength[0]
    drawn = np.array([auroc_of(X, rng.permutation(labels)) for _ in range(4000)])
    z = np.abs(auroc_of(X, labels) - 0.5) / drawn.std(0)
    np.testing.assert_allclose(strength, z.max(1), rtol=0.05)


def test_positions_are_averaged_and_constant_channels_named() -> None:
    reps = planted()
    noise = np.random.default_rng(3).standard_normal((300, 4, 60))
    noise -= noise.mean(1, keepdims=True)
    reps.features["units"] = reps.features["units"][:, None] + noise
    reps.features["noise"][:, 5] = 1.0
    with pytest.warns(UndefinedChannelsWarning, match="1 of 'noise'"):
        found = class_selectivity(reps)
    np.testing.assert_allclose(
        found.auroc[1], class_selectivity(planted(), permutations=0).auroc[1], atol=1e-12
    )
    assert np.isnan(found.auroc[0][5]).all()
    assert np.isnan(found.p_value[0][5])
    assert found.preferred[0][5] == -1
    assert found.to_frame().loc[5, "class"] == ""
    assert not found.selective[0][5]


def test_a_layer_without_any_variation_is_nan_throughout() -> None:
    reps = planted()
    reps.features["noise"][:] = 0.5
    with pytest.warns(UndefinedChannelsWarning, match="60 of 'noise'"):
        found = class_selectivity(reps, permutations=19)
    assert np.isnan(found.strength[0]).all()
    assert np.isnan(found.summary()["auroc_median"][0])


def test_labels_are_needed_of_two_classes() -> None:
    reps = planted()
    reps.labels = None
    with pytest.raises(ImagesError, match="have no labels"):
        class_selectivity(reps)
    reps.labels = np.ones(300, dtype=int)
    with pytest.raises(
        MeasureError, match="at least two classes, and all images are of class 'dog'"
    ):
        class_selectivity(reps)
    with pytest.raises(MeasureError, match="take 19 or more, or 0"):
        class_selectivity(planted(), permutations=5)


@pytest.mark.parametrize("labels", [range(12), [0, 0, *range(1, 11)], [0] * 6 + [1, 2, 3, 4, 5, 6]])
def test_one_image_of_nearly_each_class_is_refused(labels: Sequence[int]) -> None:
    """An AUROC over one image is 0 or 1, whatever the channel."""
    X = np.random.default_rng(0).standard_normal((12, 5))
    reps = FakeRepresentations({"x": X}, np.array(labels), "test")
    reps.class_names = None
    with pytest.raises(MeasureError, match="selectivity needs two classes with two images each"):
        class_selectivity(reps)


def test_the_largest_of_all_layers_has_a_null_of_its_own() -> None:
    found = class_selectivity(planted(), permutations=99)
    strongest = max(float(s.max()) for s in found.strength)
    assert found.overall_p(strongest) == pytest.approx(1 / 100)
    assert found.overall_p(0.0) == 1
    assert found.overall_p(float(found.threshold.max())) >= 0.05
    np.testing.assert_allclose(found.threshold, np.sort(found.peaks, axis=1)[:, 94])


@pytest.mark.parametrize("classes", [3, 40])
def test_permuted_sums_are_those_of_permuted_labels(classes: int) -> None:
    """Both ways to add up: by a product with indicators, and class by class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 4)[: 4 * classes - 1]
    X = np.round(rng.standard_normal((len(labels), 6)), 1)
    reps = FakeRepresentations({"x": X}, labels, "test")
    reps.class_names = None
    found = class_selectivity(reps, permutations=19, seed=3)
    order = np.argsort(labels, kind="stable")
    drawn = np.random.default_rng(3)
    n, counts = len(labels), np.bincount(labels)
    ranks = rankdata(X, axis=0)
    m = counts[None]
    sd = np.sqrt(ranks.var(0, ddof=1)[:, None] * m * (n - m) / n) / (m * (n - m))
    peaks = []
    for _ in range(19):
        permuted = np.empty(n, dtype=int)
        permuted[drawn.permutation(n)] = labels[order]
        peaks.append((np.abs(auroc_of(X, permuted) - 0.5) / sd).max())
    np.testing.assert_allclose(found.peaks[0], peaks, rtol=1e-12)


@pytest.mark.parametrize(
    "X, kind, auroc, verb",
    [
        (-1.0, "block", 0.1, "separates"),
        (-1.0, "norm", 0.9, "separates"),
        (0.0, "block", 0.1, "is suppressed by"),
        (0.0, "block", 0.9, "responds to"),
        (-1.0, "head", 0.1, "is suppressed by"),
    ],
)
def test_low_activations_are_suppression_where_signs_have_a_meaning(
    X: float, kind: str, auroc: float, verb: str
) -> None:
    reps = planted()
    reps.features["units"] = np.maximum(reps.features["units"], X * 100)
    reps.layers = tuple(replace(layer, kind=kind) for layer in reps.layers)
    assert class_selectivity(reps, permutations=0).relation(1, auroc) == verb


def test_storage() -> None:
    found = class_selectivity(planted(), permutations=19)
    again = from_dict(to_dict(found))
    assert isinstance(again, ClassSelectivity)
    assert again.to_frame().equals(found.to_frame())


def test_the_null_in_units_of_the_auroc() -> None:
    # Without ties the AUROC of m of n images has the deviation sqrt((n + 1) / (12 m (n - m))).
    found, n, m = class_selectivity(planted(n=90), permutations=99), 90, 30
    expected = found.threshold[1] * np.sqrt((n + 1) / (12 * m * (n - m)))
    np.testing.assert_allclose(found.null_band(1), expected, rtol=1e-6)


def test_classes_of_a_channel_have_interval_and_null() -> None:
    found = class_selectivity(planted(), permutations=99)
    frame = found.class_frame("units", 4)
    np.testing.assert_array_equal(frame["auroc"], found.auroc[1][4])
    np.testing.assert_array_equal(frame["dprime"], found.dprime[1][4])
    assert frame["images"].tolist() == [100, 100, 100]
    assert ((frame["low"] < frame["auroc"]) & (frame["auroc"] < frame["high"])).all()
    np.testing.assert_allclose(frame["null_low"] + frame["null_high"], 1)
    assert ((frame["auroc"] > frame["null_high"]) | (frame["auroc"] < frame["null_low"])).tolist()[
        1
    ]


def test_the_best_channel_of_each_layer() -> None:
    found = class_selectivity(planted(), permutations=0)
    for k, name in enumerate(NAMES):
        away = [np.abs(auroc[:, k] - 0.5) for auroc in found.auroc]
        best = found.best_channels(name)
        np.testing.assert_allclose(best["best"], [0.5 + values.max() for values in away])
        assert best["channel"].tolist() == [values.argmax() for values in away]
    assert [int(found.best_channels(name)["channel"][1]) for name in NAMES] == [17, 4, 9]
    anyone = found.best_channels()
    np.testing.assert_allclose(
        anyone["best"], [0.5 + np.abs(auroc - 0.5).max() for auroc in found.auroc]
    )


def test_the_sentence_on_the_channel_most_selective_for_a_class() -> None:
    found = class_selectivity(planted(), permutations=99)
    numbers = found.class_frame("units", 4).iloc[1]
    finding = best_channel_finding(found, "dog")
    assert finding is not None
    assert finding.verdict == "found"
    start, null = finding.sentence.split(" Null: ")
    assert start == (
        f"Channel 4 of units is the most selective for dog: AUROC {numbers['auroc']:.2f} "
        f"[{numbers['low']:.2f}, {numbers['high']:.2f}], d′ {numbers['dprime']:.2f}, n = 300 "
        "images, 100 of them dog."
    )
    assert (
        f"no channel of units is above {numbers['null_high']:.2f} (or below "
        f"{numbers['null_low']:.2f}) in 95 %" in null
    )
    assert "permutations; p ≤ 0.010 after max-T" in null
    lower = best_channel_finding(found, "frog")
    assert lower is not None
    assert (
        "Channel 9 of units is the most selective for frog, with lower activations (AUROC below "
        "0.5)" in lower.sentence
    )
    higher = [auroc[:, 2] for auroc in found.auroc]
    i = int(np.argmax([values.max() for values in higher]))
    where = f"channel {higher[i].argmax()} of {('noise', 'units')[i]}"
    assert f"{where} has the largest AUROC, {higher[i].max():.2f}" in lower.sentence
    none = best_channel_finding(found, layers=["noise"])
    assert none is not None
    assert none.verdict == "none"
    assert none.sentence.startswith("No channel is significantly selective for ")
    anyone = best_channel_finding(found)
    assert anyone is not None
    assert anyone.numbers[0].where == f"channel {found.strength[1].argmax()} of units"
    with pytest.warns(UndefinedChannelsWarning):
        constant = class_selectivity(
            FakeRepresentations({"a": np.ones((30, 2))}, np.arange(30) % 3, "test"), permutations=0
        )
    assert best_channel_finding(constant) is None


def test_the_best_of_every_class_comes_first() -> None:
    found = class_selectivity(planted(), permutations=0)
    ranked = round_robin(found, 1)
    assert sorted(ranked[:3]) == [4, 9, 17]
    assert sorted(ranked) == list(range(60))


@pytest.mark.parametrize("probe", ["ridge", "centroid"])
def test_three_planted_channels_are_all_that_is_needed(probe: str) -> None:
    train, test = planted(seed=1, split="train", effect=6), planted(seed=2, effect=6)
    found = channels_needed(train, test, counts=(1, 3, 20), probe=probe)
    assert found.counts[1].tolist() == [1, 3, 20, 60]
    assert found.selective[1][0] < 0.8
    assert found.selective[1][1] > 0.97
    assert found.random[1][1].mean() < 0.8
    assert np.ptp(found.random[1][-1]) == 0
    assert found.random[1][-1, 0] == found.selective[1][-1]
    assert found.needed()[1] == 3
    assert found.chance == pytest.approx(1 / 3)
    # Nothing to find in noise.
    assert found.selective[0].max() < 0.45
    frame = found.to_frame()
    assert len(frame) == 8
    assert from_dict(to_dict(found)).to_frame().equals(frame)


def test_default_counts_are_powers_of_two() -> None:
    found = channels_needed(
        planted(seed=1, split="train"), planted(seed=2), draws=1, probe="centroid"
    )
    assert found.counts[0].tolist() == [1, 2, 4, 8, 16, 32, 60]


def test_what_cannot_be_counted_is_named() -> None:
    train, test = planted(seed=1, split="train"), planted()
    with pytest.raises(MeasureError, match="unknown probe 'forest'; known: ridge, centroid"):
        channels_needed(train, test, probe="forest")
    with pytest.raises(MeasureError, match="draws is a whole number, 1 or more, not 0"):
        channels_needed(train, test, draws=0)
    test.layers = test.layers[:1]
    with pytest.raises(MeasureError, match="layer 'units' is only in one of train and test"):
        channels_needed(train, test)
