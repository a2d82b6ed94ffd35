"""Families compared by what they keep: planted losses, gaps and their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import load_results, save_results
from mixer_probe.images import LowPass, PatchShuffle
from mixer_probe.invariance import compare_architectures
from mixer_probe.stats import wilson_interval
from tests.invariance.planted import answers_right

DISTORTIONS = (PatchShuffle(4), PatchShuffle(2), LowPass(4.0))


def right(fractions: list[float], n: int = 1000) -> np.ndarray:
    """Exactly these shares are right: the first images of every class."""
    return np.arange(n)[None] // 10 < np.array(fractions)[:, None] * n / 10


def test_what_is_kept_is_averaged_over_strengths_and_networks() -> None:
    results = [
        answers_right(right([0.9, 0.5, 0.7, 0.9]), DISTORTIONS, name="m0", family="mixer"),
        answers_right(right([0.9, 0.3, 0.5, 0.1]), DISTORTIONS, name="m1", family="mixer"),
        answers_right(right([0.5, 0.5, 0.5, 0.3]), DISTORTIONS, name="v0", family="vit"),
    ]
    found = compare_architectures(results)
    assert found.groups == ("mixer", "vit")
    assert found.kinds == ("patches shuffled", "low-pass")
    assert found.strengths == ("2×2, 4×4", "4")
    # Chance is 0.1: (0.5 - 0.1) / 0.8 = 0.5 and so on.
    np.testing.assert_allclose(
        found.by_network, [[0.625, 1.0], [0.375, 0.0], [1.0, 0.5]], atol=1e-12
    )
    np.testing.assert_allclose(found.kept, [[0.5, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(found.gap[1, 0], [0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.gap, -found.gap.transpose(1, 0, 2))
    assert found.gap_low[1, 0, 0] > 0
    assert found.gap_low[1, 0, 1] < 0 < found.gap_high[1, 0, 1]
    row = found.to_frame().query("kind == 'patches shuffled' and group == 'mixer'").iloc[0]
    assert (row.best_group, row.networks) == ("vit", 2)
    assert (row.behind_best, row.lowest_network, row.highest_network) == pytest.approx(
        (0.5, 0.375, 0.625)
    )


def test_a_network_against_itself_has_no_gap() -> None:
    fractions = [0.8, 0.6, 0.4, 0.5]
    results = [
        answers_right(right(fractions), DISTORTIONS, name=n, family=f)
        for n, f in (("a", "vit"), ("b", "cnn"))
    ]
    found = compare_architectures(results)
    np.testing.assert_array_equal(found.gap, 0)
    # No image tells them apart: how many others would has Wilson's bound of none of n, and each
    # counts 1 / (0.8 - 0.1) twice.
    np.testing.assert_allclose(found.gap_high, 2 / 0.7 * wilson_interval(0, found.n)[1])
    np.testing.assert_allclose(found.gap_low, -found.gap_high)


def test_intervals_have_the_width_of_the_delta_method() -> None:
    random = np.random.default_rng(0)
    n, p, q = 2000, 0.8, 0.45
    results = [
        answers_right(
            random.random((2, n)) < [[p], [q]], (PatchShuffle(2),), name=name, family=name
        )
        for name in ("vit", "cnn")
    ]
    found = compare_architectures(results)
    for k, r in enumerate(results):
        a, b = r.accuracy.value
        ratio = (b - 0.1) / (a - 0.1)
        error = np.sqrt(b * (1 - b) / n + ratio**2 * a * (1 - a) / n) / (a - 0.1)
        assert found.high[k, 0] - found.low[k, 0] == pytest.approx(2 * 1.96 * error, rel=0.12)
    # Independent networks: variances of the gap add up.
    width = np.hypot(*(found.high[:, 0] - found.low[:, 0]))
    assert found.gap_high[0, 1, 0] - found.gap_low[0, 1, 0] == pytest.approx(width, rel=0.12)


def test_networks_that_cannot_read_the_class_are_left_out(tmp_path: Path) -> None:
    able = [
        answers_right(right([0.8, 0.6, 0.4, 0.5]), DISTORTIONS, name=n, family=f)
        for n, f in (("a", "vit"), ("b", "cnn"))
    ]
    blind = answers_right(right([0.1, 0.1, 0.1, 0.1]), DISTORTIONS, name="c", family="mixer")
    found = compare_architectures([*able, blind])
    assert found.networks == ("a", "b")
    assert (
        load_results(save_results([found], tmp_path / "r.json"))[0]
        .to_frame()
        .equals(found.to_frame())
    )
    with pytest.raises(MeasureError, match="only 1 of the networks are above chance"):
        compare_architectures([able[0], blind])
