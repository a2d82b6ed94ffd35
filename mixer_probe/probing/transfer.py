"""Probes from one data set to another, whose classes are matched by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from mixer_probe.core.errors import ImagesError
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.core.rows import Rows
from mixer_probe.models.layer import Layer
from mixer_probe.probing.layer_probes import linear_probe
from mixer_probe.probing.runs import Runs, run_labels
from mixer_probe.similarity.inputs import RepresentationsLike

R = TypeVar("R")


class MatchedRepresentations:
    """A run of another data set with the class indices of the training set.

    Ids begin with the name of their data set, because two folders may have files of the same
    names."""

    def __init__(
        self, reps: RepresentationsLike, labels: np.ndarray, class_names: tuple[str, ...] | None
    ) -> None:
        self._reps = reps
        self.labels: np.ndarray | None = labels
        self.class_names = class_names
        self.keys = keys_of(reps)
        self.ids = tuple(f"{reps.images.name}:{reps.images.split}/{name}" for name in reps.ids)
        self.images: ImagesRecord = reps.images
        self.model: ModelRecord = reps.model
        self.layers: tuple[Layer, ...] = reps.layers
        self.reduce = reps.reduce
        self.non_finite: dict[str, int] | None = getattr(reps, "non_finite", None)

    def __getitem__(self, name: str, /) -> np.ndarray:
        """The features of a layer, as they are."""
        return self._reps[name]

    def array(self, name: str) -> np.ndarray | Rows:
        """As `reps[name]`, read when rows are asked for where they can be."""
        reader = getattr(self._reps, "array", self._reps.__getitem__)
        return cast(np.ndarray | Rows, reader(name))


def matched(reps_train: RepresentationsLike, reps_test: RepresentationsLike) -> Runs:
    """Both runs with the class indices of `reps_train`, for any probe: `linear_probe(*matched(a,
    b), method="knn")`.

    A class that only train has can be predicted, wrongly. Where neither set has class names,
    classes are matched by index. Raises ImagesError for missing labels, names in one set alone,
    classes of the test images that train does not have (their number and names), and one and the
    same set of images."""
    y_train, y_test = run_labels(reps_train, reps_test)
    if keys_of(reps_train) == keys_of(reps_test):
        raise ImagesError(
            f"train and test are the same images ({reps_train.images.name}), so nothing is "
            "transferred"
        )
    names = reps_train.class_names
    return MatchedRepresentations(reps_train, y_train, names), MatchedRepresentations(
        reps_test, y_test, names
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

    `probe` is any that takes (train, test): `linear_probe` (with `method=` among the `options`),
    `control_task`, ...; `untrained` is (train, test) of the untrained baseline, matched in the same
    way. Raises what `matched` and the probe raise."""
    train, test = matched(reps_train, reps_test)
    if untrained is not None:
        options["untrained"] = matched(*untrained)
    return probe(train, test, **options)
