"""Similarity of representations within the images of each class: agreement beyond the separation of
classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_probe.capture import Representations
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.fingerprint import check_same_images
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name
from mixer_probe.similarity.comparison import compare
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.registry import find_measure

# Classes that are compared: of more the largest ones.
MOST_CLASSES = 40


def images_per_class(measure: str) -> int:
    """The fewest images of a class that is compared alone: twice as many as the measure needs at
    all."""
    return 2 * find_measure(measure).minimum_images


def class_images(
    reps: Representations, fewest: int, most: int = MOST_CLASSES
) -> dict[str, np.ndarray]:
    """The images of each class with at least `fewest`, by the name of the class; the `most` classes
    with most images.

    Empty without labels."""
    if reps.labels is None:
        return {}
    known, counts = np.unique(reps.labels, return_counts=True)
    taken = sorted(k for k in np.argsort(-counts, kind="stable")[:most] if counts[k] >= fewest)
    return {
        class_name(int(known[k]), reps.class_names): np.flatnonzero(reps.labels == known[k])
        for k in taken
    }


@checked(MeasureError)
def compare_within_classes(
    reps_a: Representations,
    reps_b: Representations,
    measure: str = "cka",
    *,
    fewest: int | None = None,
    **options: Any,
) -> tuple[SimilarityMatrix, ...]:
    """The measure over the images of one class alone, for the classes of `class_images`;
    `images.split` of each names the class.

    Classes have at least `fewest` images, by default `images_per_class`. `options` are those of
    `compare`. Empty without labels and where no class has enough images. Raises what `compare`
    raises."""
    check_same_images(reps_a, reps_b)
    parts = class_images(reps_a, images_per_class(measure) if fewest is None else fewest).items()
    return tuple(
        compare(reps_a.take(i, name), reps_b.take(i, name), measure, **options) for name, i in parts
    )
