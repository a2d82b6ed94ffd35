"""Numbers of several training runs: means over seeds, differences, similarity, half of the way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from mixer_probe.core.errors import MeasureError
from mixer_probe.training import UnitHistory
from mixer_probe.training.figures import animated_units
from mixer_probe.training.findings import quantity_sentences, similarity_sentences
from mixer_probe.training.quantities import difference_of_differences, half_rise
from tests.training.samples import quantity, similarity


def test_means_and_differences_are_over_seeds_of_means_over_layers() -> None:
    values = np.random.default_rng(0).uniform(0.3, 0.6, (2, 3, 4, 5))
    r = quantity(values)
    own = values[:, :, -1].mean(-1)
    mean, difference = r.mean("patches"), r.difference("patches")
    expected = ttest_1samp(own[1], 0).confidence_interval(0.95)
    assert (mean.value, mean.low, mean.high) == pytest.approx((own[1].mean(), *expected))
    welch = ttest_ind(own[1], own[0], equal_var=False).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx(tuple(welch))
    curve = r.difference("patches", steps=slice(None))
    assert curve.value == pytest.approx(values[1].mean() - values[0].mean())


def test_intervals_of_fractions_stay_fractions() -> None:
    r = quantity(np.array([0.0, 0.1, 0.3]).reshape(1, 3, 1, 1))
    assert r.mean("original").low == 0
    assert quantity(r.values, unit="px").mean("original").low < 0


def test_changes_are_paired_by_seed() -> None:
    values = np.random.default_rng(1).normal(size=(1, 3, 1, 4))
    change = quantity(values).change("original")
    own = values[0, :, 0, -1] - values[0, :, 0, 0]
    expected = ttest_1samp(own, 0).confidence_interval(0.95)
    assert (change.value, change.low, change.high) == pytest.approx((own.mean(), *expected))


def test_differences_of_two_families_differ() -> None:
    random = np.random.default_rng(2)
    a, b = (quantity(random.normal(size=(2, 3, 1, 1))) for _ in range(2))
    found = difference_of_differences(a, b, "patches")
    means = [r.values.mean((1, 2, 3)) for r in (a, b)]
    assert found.value == pytest.approx((means[1][1] - means[1][0]) - (means[0][1] - means[0][0]))


def test_an_unknown_arm_is_answered_with_close_ones() -> None:
    with pytest.raises(MeasureError, match="patches"):
        quantity(np.zeros((2, 3, 1, 1))).mean("patchs")


def test_a_sentence_has_the_difference_with_its_interval_and_claims_none_that_is_not_there() -> (
    None
):
    noise = np.array([-0.01, 0.0, 0.01])
    values = np.stack([0.7 + noise, 0.701 + noise, 0.4 + noise])[:, :, None, None]
    (sentence,) = quantity_sentences([quantity(values)])
    assert "70.0 % [67.5, 72.5] (original)" in sentence
    assert "(patches), no significant difference of +0.1 points [-2.2, +2.4]" in sentence
    assert "(global), a difference of -30.0 points [-32.3, -27.7]" in sentence


ARMS, SEEDS = ("original",) * 3 + ("patches",) * 3, (0, 1, 2) * 2


def test_pairs_of_one_seed_are_left_out() -> None:
    values = np.random.default_rng(0).normal(size=(6, 6, 2))
    values = values + values.transpose(1, 0, 2)
    r = similarity(values, ARMS, SEEDS)
    between = [values[i, 3 + j] for i in range(3) for j in range(3) if i != j]
    within = [values[i, j] for i in range(3) for j in range(3) if i != j]
    assert np.allclose(r.between("original", "patches"), np.mean(between, 0))
    assert np.allclose(r.within("original"), np.mean(within, 0))


def test_the_interval_of_the_excess_holds_zero_where_arms_are_alike() -> None:
    """Similarities of networks that have a place each, with a part that networks of one seed
    share."""
    random, held, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        shared = np.tile(random.normal(size=(3, 8)), (2, 1))
        places = 0.5 * shared + random.normal(size=(6, 8))
        r = similarity((places @ places.T)[..., None], ARMS, SEEDS)
        excess = r.excess("original", "patches")
        held += excess.low <= 0 <= excess.high
    assert 0.93 <= held / n <= 0.99


def test_a_larger_distance_between_arms_is_found() -> None:
    random = np.random.default_rng(0)
    noise = 0.01 * random.normal(size=(6, 6, 1))
    apart = np.kron(np.array([[0.8, 0.5], [0.5, 0.8]]), np.ones((3, 3)))[..., None]
    r = similarity(apart + noise + noise.transpose(1, 0, 2), ARMS, SEEDS)
    assert r.excess("original", "patches").high < -0.2
    assert "significantly different" in similarity_sentences(r)[0]


def test_half_of_the_way_of_a_line() -> None:
    steps = (0, 1, 2, 4, 8, 16)
    # From 0 at step 1 on linear in the logarithm: half at 4, and twice as fast at 2.
    line = np.array([0.0, 0.0, 0.25, 0.5, 0.75, 1.0])
    fast = np.array([0.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    # Back below half of the way: the last crossing counts.
    back = np.array([0.0, 0.0, 0.9, 0.2, 0.8, 1.0])
    found = half_rise(steps, np.stack([line, 1 - line, 3 * fast, back, np.ones(6)]))
    assert np.allclose(found, [2, 2, 1, 2.5, np.nan], equal_nan=True)


def test_an_animation_has_a_frame_per_step() -> None:
    import io

    from PIL import Image

    maps = np.random.default_rng(0).normal(size=(4, 7, 8, 8)).astype(np.float32)
    content = animated_units(UnitHistory("run", "blocks.0", (0, 1, 2, 4), maps))
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 4
