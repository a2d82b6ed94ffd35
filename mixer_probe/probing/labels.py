"""Labels of the images that probes are fitted on: how many of each class there must be, and draws that keep the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.images.classes import class_name, quoted


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
            f"class {quoted(class_name(int(classes[least]), names))} has {have} in train, fewer than the {most} shots asked for: "
            f"take at most {sizes[least]}, or more images of it"
        )
    return tuple(int(count) for count in counts)


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
