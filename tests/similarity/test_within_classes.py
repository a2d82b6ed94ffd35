"""Similarity within classes: which classes have enough images, and the measure over their images
alone."""

from __future__ import annotations

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.core.errors import MeasureError
from mixer_probe.images import from_arrays
from mixer_probe.similarity import compare_within_classes
from mixer_probe.similarity.within_classes import class_images, images_per_class
from tests.networks import CASES

NAMES = ("cat", "dog", "frog")
# 10 cats, 9 dogs and 5 frogs, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [10, 9, 5]))


@pytest.fixture(scope="module")
def reps() -> tuple[Representations, Representations]:
    pixels = np.random.default_rng(1).integers(0, 256, (len(LABELS), 32, 32, 3), dtype=np.uint8)
    images = from_arrays(pixels, LABELS, class_names=NAMES)
    a, b = (mp.extract(CASES[name].model(), images, ["blocks.0"]) for name in ("mixer", "gmixer"))
    return a, b


def test_the_largest_classes_with_enough_images(
    reps: tuple[Representations, Representations],
) -> None:
    found = class_images(reps[0], 6)
    assert list(found) == ["cat", "dog"]
    for label, rows in enumerate(found.values()):
        assert rows.tolist() == np.flatnonzero(label == LABELS).tolist()
    assert list(class_images(reps[0], 1, most=1)) == ["cat"]
    assert class_images(reps[0], 11) == {}
    without = Representations(
        reps[0].record, {n: reps[0][n] for n in reps[0]}, {}, reps[0].ids, None, None, {}
    )
    assert class_images(without, 1) == {}


def test_each_class_is_compared_alone(reps: tuple[Representations, Representations]) -> None:
    assert images_per_class("cka") == 8
    found = compare_within_classes(*reps, permutations=0, resamples=0)
    assert [matrix.images.split for matrix in found if matrix.images] == ["cat", "dog"]
    for label, matrix in enumerate(found):
        rows = label == LABELS
        assert matrix.n == rows.sum()
        expected = mp.cka(reps[0]["blocks.0"][rows], reps[1]["blocks.0"][rows])
        assert matrix.values[0, 0] == pytest.approx(expected)


def test_other_images_are_refused(reps: tuple[Representations, Representations]) -> None:
    with pytest.raises(MeasureError, match="different order"):
        compare_within_classes(reps[0], reps[1].take(np.arange(len(LABELS))[::-1]))
