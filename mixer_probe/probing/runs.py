"""Two runs of one network, one to fit on and one to test on: that they belong together, and labels that mean the same in both."""

from __future__ import annotations

import warnings

import numpy as np

from mixer_probe.capture import ImageSource
from mixer_probe.core.errors import MeasureError, NonFiniteWarning
from mixer_probe.core.fingerprint import check_apart, keys_of
from mixer_probe.images.classes import Labelled, require_labels, shared_classes
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix

Runs = tuple[RepresentationsLike, RepresentationsLike]
_PURPOSE = "a probe"


def train_labels(reps: RepresentationsLike) -> np.ndarray:
    """Labels [n] of the images that something is fitted on. Raises ImagesError where there are none."""
    return _labelled(reps, "train").labels


def run_labels(train: RepresentationsLike, test: RepresentationsLike) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both runs by the class indices of `train`.

    Raises ImagesError for missing labels, and what `shared_classes` raises."""
    return shared_classes(_labelled(train, "train"), _labelled(test, "test"))


def source_labels(train: ImageSource, test: ImageSource) -> tuple[np.ndarray, np.ndarray]:
    """`run_labels` of two sets of images."""
    sides = [
        _labels(source.labels, source.class_names, len(source), split, source.record.name)
        for source, split in ((train, "train"), (test, "test"))
    ]
    return shared_classes(sides[0], sides[1])


def _labelled(reps: RepresentationsLike, split: str) -> Labelled:
    return _labels(reps.labels, reps.class_names, len(reps.ids), split, reps.images.name)


def _labels(labels: np.ndarray | None, names: tuple[str, ...] | None, n: int, split: str, images: str) -> Labelled:
    called = f"the {split} images ({images})"
    return Labelled(require_labels(labels, called, _PURPOSE, n), names, called)


def check_runs(train: RepresentationsLike, test: RepresentationsLike) -> None:
    """Raise unless both are one network's representations of different images, reduced alike.

    MeasureError for other networks, layers, numbers of channels or reductions; ImagesError for an image in both."""
    if train.model != test.model:
        raise MeasureError(
            f"train and test come from two networks, or from one with two kinds of preprocessing: {_called(train)} and "
            f"{_called(test)}"
        )
    if train.reduce != test.reduce:
        raise MeasureError(f"train was extracted with reduce='{train.reduce}' and test with '{test.reduce}'")
    if not train.layers:
        raise MeasureError("there is no layer to probe")
    missing = {layer.name for layer in train.layers} ^ {layer.name for layer in test.layers}
    if missing:
        raise MeasureError(f"layer '{min(missing)}' is only in one of train and test")
    other = {layer.name: layer for layer in test.layers}
    for layer in train.layers:
        check_width(layer.name, layer.channels, other[layer.name].channels)
    check_apart(train, test)


def _called(reps: RepresentationsLike) -> str:
    return f"{reps.model.name} ({reps.model.fingerprint[:8]})"


def check_width(name: str, train: int, test: int) -> None:
    """Raise MeasureError unless a layer has as many channels in both runs."""
    if train != test:
        raise MeasureError(f"layer '{name}' has {train} channels in train and {test} in test: extract both with one network")


def layer_pair(train: RepresentationsLike, test: RepresentationsLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [image, channel] of a layer in both runs. Raises MeasureError for positions and unequal numbers of channels."""
    X, new = layer_matrix(train, name), layer_matrix(test, name)
    check_width(name, X.shape[1], new.shape[1])
    return X, new


def finite_pair(train: RepresentationsLike, test: RepresentationsLike, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Features [image, channel] of a layer for both sets; None, with a NonFiniteWarning, where some are NaN or infinite."""
    pair = layer_pair(train, test, name)
    bad = sum(int((~np.isfinite(X)).sum()) for X in pair)
    if bad:
        warnings.warn(f"no probe of layer '{name}': {bad} of its features are NaN or infinite", NonFiniteWarning, stacklevel=5)
        return None
    return pair


def check_twin(runs: Runs, twin: Runs) -> None:
    """Raise MeasureError unless `twin` is untrained and holds the same images."""
    if twin[0].model.trained:
        raise MeasureError(f"untrained= must hold an untrained network, but {twin[0].model.name} is trained")
    for split, run, other in zip(("train", "test"), runs, twin, strict=True):
        if keys_of(run) != keys_of(other):
            raise MeasureError(f"the untrained baseline was run on different {split} images; extract both from the same images")
