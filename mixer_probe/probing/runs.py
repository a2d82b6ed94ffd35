"""Two runs of one network, one to fit on and one to test on: checks that they match, and labels
that mean the same in both."""

from __future__ import annotations

import warnings

import numpy as np

from mixer_probe.capture import ImageSource
from mixer_probe.core.errors import MeasureError, NonFiniteWarning
from mixer_probe.core.fingerprint import apart, check_apart, keys_of
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.rows import Rows
from mixer_probe.images.classes import Labelled, require_labels, shared_classes
from mixer_probe.linear.stratification import stratified
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix

Runs = tuple[RepresentationsLike, RepresentationsLike]
Labels = tuple[np.ndarray, np.ndarray]
# Features [image, channel] of a layer in both.
Pair = tuple[np.ndarray | Rows, np.ndarray | Rows]
# The first columns of the `Frame` of a result with one row per layer, or several.
LAYER = "model=model.name model.trained layer=layers.name layers.kind layers.depth"


def train_labels(reps: RepresentationsLike) -> np.ndarray:
    """Labels [n] of the training images. Raises ImagesError where there are none."""
    return require_labels(
        reps.labels, f"the train images ({reps.images.name})", "a probe", len(reps.ids)
    )


def split_in_half(reps: RepresentationsLike) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to fit on and of those to test on, half of a run each: every class in
    both where it has two images, and no picture in both. Raises ImagesError without labels."""
    y = train_labels(reps)
    test = stratified(y, len(y) // 2)
    return apart(reps.keys, np.setdiff1d(np.arange(len(y)), test), test), test


def run_labels(train: RepresentationsLike, test: RepresentationsLike) -> Labels:
    """The labels of both runs by the class indices of `train`.

    Raises ImagesError for missing labels, and what `shared_classes` raises."""
    return _shared(
        *((run.labels, run.class_names, len(run.ids), run.images.name) for run in (train, test))
    )


def source_labels(train: ImageSource, test: ImageSource) -> Labels:
    """`run_labels` of two sets of images."""
    return _shared(
        *(
            (images.labels, images.class_names, len(images), images.record.name)
            for images in (train, test)
        )
    )


def _shared(*sides: tuple[np.ndarray | None, tuple[str, ...] | None, int, str]) -> Labels:
    found = []
    for split, (labels, names, n, images) in zip(("train", "test"), sides, strict=True):
        called = f"the {split} images ({images})"
        found.append(Labelled(require_labels(labels, called, "a probe", n), names, called))
    return shared_classes(*found)


def majority_rate(y: np.ndarray) -> float:
    """Frequency of the most frequent of the labels `y` [n]: the accuracy of the best constant
    prediction."""
    return float(np.unique(y, return_counts=True)[1].max() / len(y))


def check_runs(train: RepresentationsLike, test: RepresentationsLike) -> None:
    """Raise unless both are one network's representations of different images, reduced alike.

    MeasureError for other networks, layers, numbers of channels or reductions; ImagesError for an
    image in both."""
    if train.model != test.model:
        called = [f"{run.model.name} ({run.model.fingerprint[:8]})" for run in (train, test)]
        raise MeasureError(
            "train and test come from two networks, or from one with two kinds of preprocessing: "
            f"{called[0]} and {called[1]}"
        )
    if train.reduce != test.reduce:
        raise MeasureError(
            f"train was extracted with reduce='{train.reduce}' and test with '{test.reduce}'"
        )
    if not train.layers:
        raise MeasureError("there is no layer to probe")
    missing = {layer.name for layer in train.layers} ^ {layer.name for layer in test.layers}
    if missing:
        raise MeasureError(f"layer '{min(missing)}' is only in one of train and test")
    other = {layer.name: layer for layer in test.layers}
    for layer in train.layers:
        check_width(layer.name, layer.channels, other[layer.name].channels)
    check_apart(train, test)


def check_width(name: str, train: int, test: int) -> None:
    """Raise MeasureError unless a layer has as many channels in both runs."""
    if train != test:
        raise MeasureError(
            f"layer '{name}' has {train} channels in train and {test} in test: extract both with "
            "one network"
        )


def check_untrained(runs: Runs, untrained: Runs | None) -> None:
    """Raise MeasureError unless `untrained` is of an untrained network and holds the same images,
    or is None."""
    if untrained is None:
        return
    if untrained[0].model.trained:
        raise MeasureError(
            f"untrained= must hold an untrained network, but {untrained[0].model.name} is trained"
        )
    for split, run, other in zip(("train", "test"), runs, untrained, strict=True):
        if keys_of(run) != keys_of(other):
            raise MeasureError(
                f"the untrained baseline was run on different {split} images; extract both from "
                "the same images"
            )


def layer_pair(train: RepresentationsLike, test: RepresentationsLike, name: str) -> Pair:
    """Features [image, channel] of a layer in both runs. Raises MeasureError for positions and
    unequal numbers of channels."""
    X, new = layer_matrix(train, name), layer_matrix(test, name)
    check_width(name, X.shape[1], new.shape[1])
    return X, new


def count_non_finite(*features: np.ndarray | Rows) -> int:
    """How many numbers of some arrays are NaN or infinite."""
    return sum(
        int((~np.isfinite(X[rows])).sum()) for X in features for rows in slices(len(X), ROWS)
    )


def non_finite(reps: RepresentationsLike, name: str) -> int:
    """How many features of a layer are NaN or infinite; of a store as they were counted when it was
    written."""
    features, counted = layer_matrix(reps, name), getattr(reps, "non_finite", None)
    if isinstance(features, Rows) and counted is not None:
        return int(counted.get(name, 0))
    return count_non_finite(features)


def warn_non_finite(name: str, count: int, what: str = "no probe of", stacklevel: int = 5) -> bool:
    """Whether some of the features of a layer are not finite; warns with NonFiniteWarning if so."""
    if count:
        message = f"{what} layer '{name}': {count} of its features are NaN or infinite"
        warnings.warn(message, NonFiniteWarning, stacklevel=stacklevel)
    return count > 0


def finite_pair(train: RepresentationsLike, test: RepresentationsLike, name: str) -> Pair | None:
    """`layer_pair`; None, with a NonFiniteWarning, where some features are NaN or infinite."""
    pair, bad = layer_pair(train, test, name), non_finite(train, name) + non_finite(test, name)
    return None if warn_non_finite(name, bad, stacklevel=6) else pair
