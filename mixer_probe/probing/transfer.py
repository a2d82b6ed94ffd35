"""Probes from one data set to another, whose classes are matched by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mixer_probe.errors import ImagesError, closest
from mixer_probe.models.layer import Layer
from mixer_probe.probing.labels import checked_labels
from mixer_probe.probing.layer_probes import Runs, linear_probe
from mixer_probe.results import ImagesRecord, ModelRecord
from mixer_probe.similarity.inputs import RepresentationsLike

R = TypeVar("R")


class MatchedRepresentations:
    """A run of another data set with the class indices of the one that the probe is fitted on.

    Ids begin with the name of their data set, because two folders may well have files of the same names."""

    def __init__(self, reps: RepresentationsLike, labels: np.ndarray, class_names: tuple[str, ...] | None) -> None:
        self._reps = reps
        self.labels: np.ndarray | None = labels
        self.class_names = class_names
        self.ids = tuple(f"{reps.images.name}:{reps.images.split}/{name}" for name in reps.ids)
        self.images: ImagesRecord = reps.images
        self.model: ModelRecord = reps.model
        self.layers: tuple[Layer, ...] = reps.layers
        self.reduce = reps.reduce

    def __getitem__(self, name: str, /) -> np.ndarray:
        """The features of a layer, as they are."""
        return self._reps[name]


def matched(reps_train: RepresentationsLike, reps_test: RepresentationsLike) -> Runs:
    """Both runs with the class indices of `reps_train`, for any probe: `linear_probe(*matched(a, b), method="knn")`.

    A class that only train has is an answer that the probe may give, wrongly. Where neither set has class names, indices are
    taken as they are. Raises ImagesError for missing labels, names in one set alone, classes of the test images that train does
    not have (their number and names), and one and the same set of images."""
    y_train, y_test = (
        checked_labels(reps.labels, len(reps.ids), split, reps.images.name)
        for reps, split in ((reps_train, "train"), (reps_test, "test"))
    )
    if reps_train.images == reps_test.images and reps_train.ids == reps_test.ids:
        raise ImagesError(f"train and test are the same images ({reps_train.images.name}), so nothing is transferred")
    names = reps_train.class_names
    indices = _translation(reps_train, reps_test, np.unique(y_train), np.unique(y_test))
    labels = y_test if indices is None else indices[y_test]
    return MatchedRepresentations(reps_train, y_train, names), MatchedRepresentations(reps_test, labels, names)


def _translation(
    train: RepresentationsLike, test: RepresentationsLike, known: np.ndarray, there: np.ndarray
) -> np.ndarray | None:
    """Index in train of every class of test, -1 for those without images; None where neither set has names."""
    if train.class_names is None and test.class_names is None:
        missing = [str(k) for k in np.setdiff1d(there, known)]
        _refuse(missing, [str(k) for k in known], train, test)
        return None
    if train.class_names is None or test.class_names is None:
        without = train if train.class_names is None else test
        raise ImagesError(f"the classes of {without.images.name} have no names to match those of the other images by")
    place = {train.class_names[k]: int(k) for k in known}
    _refuse([test.class_names[k] for k in there if test.class_names[k] not in place], list(place), train, test)
    return np.array([place.get(name, -1) for name in test.class_names])


def _refuse(missing: list[str], known: list[str], train: RepresentationsLike, test: RepresentationsLike) -> None:
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ImagesError(
            f"{len(missing)} classes of {test.images.name} are not among those of {train.images.name}: {listed}; "
            f"{closest(missing[0], known)}"
        )


def transfer_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    *,
    probe: Callable[..., R] = linear_probe,  # type: ignore[assignment]
    untrained: Runs | None = None,
    **options: Any,
) -> R:
    """A probe fitted on one data set and tested on another, whose classes are matched by name.

    `probe` is any that takes (train, test): `linear_probe` (with `method=` among the `options`), `control_task`, ...; `untrained`
    is (train, test) of the untrained twin, matched in the same way. Raises what `matched` and the probe raise."""
    train, test = matched(reps_train, reps_test)
    if untrained is not None:
        options["untrained"] = matched(*untrained)
    return probe(train, test, **options)
