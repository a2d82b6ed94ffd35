"""Labels of the images that probes are fitted on and tested on: what they must have, and draws that keep their classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.errors import ImagesError, MeasureError


def class_name(label: int, names: Sequence[str] | None) -> str:
    """How an error or table calls a class: its name in quotes, or its index where it has none."""
    return f"'{names[label]}'" if names is not None and 0 <= label < len(names) else str(label)


def checked_labels(labels: np.ndarray | None, n: int, split: str, images: str) -> np.ndarray:
    """The labels [n] of the images called `images`. Raises ImagesError where they are missing or there is no image."""
    if labels is None:
        raise ImagesError(f"the {split} images ({images}) have no labels: a probe needs them")
    if n == 0:
        raise ImagesError(f"there are no {split} images")
    if len(labels) != n:
        raise ImagesError(f"there are {n} {split} images and {len(labels)} labels: each image needs one")
    return np.asarray(labels)


def check_classes(y_train: np.ndarray, y_test: np.ndarray, names: Sequence[str] | None) -> None:
    """Raise ImagesError if there is one class, or one that only the test images have."""
    known = np.unique(y_train)
    if len(known) < 2:
        raise ImagesError(f"all train images are of class {class_name(known[0], names)}, a probe needs two")
    unknown = np.setdiff1d(y_test, known)
    if len(unknown):
        raise ImagesError(f"class {class_name(unknown[0], names)} is among the test images but not in train")


def check_shots(y_train: np.ndarray, shots: Sequence[int | str], names: Sequence[str] | None) -> tuple[int, ...]:
    """The shots. Raises MeasureError unless they are positive numbers, and ImagesError if a class has fewer images."""
    counts = [s for s in shots if isinstance(s, (int, np.integer)) and s > 0]
    if not counts or len(counts) < len(shots):
        raise MeasureError(f"shots are positive numbers of images a class, got {tuple(shots)}")
    classes, sizes = np.unique(y_train, return_counts=True)
    least, most = int(sizes.argmin()), max(counts)
    if sizes[least] < most:
        have = f"{sizes[least]} image{'s' if sizes[least] > 1 else ''}"
        raise ImagesError(
            f"class {class_name(classes[least], names)} has {have} in train, fewer than the {most} shots asked for: "
            f"take at most {sizes[least]}, or more images of it"
        )
    return tuple(int(count) for count in counts)


def check_apart(train: Sequence[str], test: Sequence[str]) -> None:
    """Raise ImagesError if an image, by its id, is in both."""
    seen = set(train)
    shared = [name for name in test if name in seen]
    if shared:
        raise ImagesError(f"{len(shared)} test images are also in train, the first is '{shared[0]}'")


def few_of_each(y: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Sorted indices of `shots` images of every class, drawn with `seed`; those of fewer shots are among those of more."""
    order, turn = _turns(y, seed)
    return np.sort(order[turn < shots])


def stratified(y: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Sorted indices of `size` of the images, drawn with `seed`, of every class its share."""
    order, turn = _turns(y, seed)
    _, inverse, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    return np.sort(order[np.argsort((turn + 0.5) / counts[inverse], kind="stable")[:size]])


def _turns(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random order of all images, and how many of the same class come before each in it."""
    order = np.random.default_rng(seed).permutation(len(y))
    _, inverse, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    turn = np.empty(len(y), dtype=np.int64)
    turn[np.argsort(inverse, kind="stable")] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order, turn
