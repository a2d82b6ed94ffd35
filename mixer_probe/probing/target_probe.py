"""Linear probes of anything: properties of images, columns of a table, the place of something planted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError, UndefinedProbeWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import Labelled, shared_classes
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.many_targets import RidgeFits, classify
from mixer_probe.linear.ridge import default_l2
from mixer_probe.models.layer import Layer
from mixer_probe.probing.runs import Runs, check_runs, check_twin, finite_pair
from mixer_probe.probing.tables import layer_columns
from mixer_probe.probing.targets import Target
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import delta_interval, wilson_interval

Targets = Target | Sequence[Target]


@dataclass(frozen=True)
class TargetProbe(Result):
    """How well a ridge probe reads each target T from each layer L; arrays [L, T].

    `score` is R^2 on the test images for numbers and angles (of an angle that of its sine and cosine together), and accuracy for
    classes; `metrics` [T] names it. `low` and `high` are a 95 % interval over test images: Wilson's for accuracy, by the delta
    method for R^2. `chance` [T] is 0 for R^2 and the share of the most frequent class of the test
    images for accuracy. `left_out` is the same score of the training images by leave-one-out, which chose `l2`. `error` is the
    mean absolute error in the target's unit (degrees for angles), NaN for classes. NaN marks layers with NaN or infinite
    features and targets that do not vary. `n_train` and `n_test` [T] count the images where a target is defined."""

    title: ClassVar[str] = "Probes beyond the class"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    targets: tuple[str, ...]
    kinds: tuple[str, ...]
    metrics: tuple[str, ...]
    units: tuple[str, ...]
    meanings: tuple[str, ...]
    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: np.ndarray
    left_out: np.ndarray
    error: np.ndarray
    l2: np.ndarray
    n_train: np.ndarray
    n_test: np.ndarray
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out"
    untrained: TargetProbe | None = None

    def to_frame(self) -> pd.DataFrame:
        """One layer and target a row, of the network and then of its untrained twin."""
        layers, targets = len(self.layers), len(self.targets)
        frame = pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, targets),
                "target": self.targets * layers,
                "metric": self.metrics * layers,
                **{name: getattr(self, name).ravel() for name in ("score", "low", "high", "left_out", "error", "l2")},
                **{name: np.tile(getattr(self, name), layers) for name in ("chance", "n_train", "n_test")},
                "unit": self.units * layers,
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.to_frame()], ignore_index=True)


@checked(MeasureError)
def target_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    targets_train: Targets,
    targets_test: Targets,
    *,
    l2: Sequence[float] | None = None,
    untrained: Runs | None = None,
) -> TargetProbe:
    """Fit a ridge probe of every target on every layer and measure it on the test images.

    The targets of both sets have the same names and kinds in the same order; their values are found by image id. Images where
    a target is NaN are left out of it, with an UndefinedProbeWarning that counts them. Classes are matched by name.

    Raises ImagesError for images without a value, one class, and a class that only the test images have; MeasureError for targets
    of other names, fewer than 3 images, and what `linear_probe` raises for representations and penalties."""
    check_runs(reps_train, reps_test)
    tasks = _tasks(reps_train, reps_test, targets_train, targets_test)
    twin = None
    if untrained is not None:
        check_twin((reps_train, reps_test), untrained)
        twin = target_probe(untrained[0], untrained[1], targets_train, targets_test, l2=l2)
    found = [
        [_measured(task, features, l2) for task in tasks]
        for features in (_Features.of(finite_pair(reps_train, reps_test, layer.name)) for layer in reps_train.layers)
    ]
    columns: dict[str, Any] = {name: np.array([[score[name] for score in row] for row in found]) for name in _NOTHING}
    return TargetProbe(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        targets=tuple(task.target.name for task in tasks),
        kinds=tuple(task.target.kind for task in tasks),
        metrics=tuple("accuracy" if task.target.kind == "classification" else "R2" for task in tasks),
        units=tuple(task.target.unit for task in tasks),
        meanings=tuple(task.target.meaning for task in tasks),
        chance=np.array([task.chance for task in tasks]),
        n_train=np.array([len(task.train) for task in tasks]),
        n_test=np.array([len(task.test) for task in tasks]),
        reduce=reps_train.reduce,
        untrained=twin,
        **columns,
    )


_NOTHING = {"score": np.nan, "low": np.nan, "high": np.nan, "left_out": np.nan, "error": np.nan, "l2": np.nan}


@dataclass(frozen=True)
class _Task:
    """A target for both sets: rows of the images that have it, and their values: class indices [n], or columns [n, 1 or 2]."""

    target: Target
    train: np.ndarray
    test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray

    @property
    def chance(self) -> float:
        """Of the score."""
        return float(np.bincount(self.y_test).max() / len(self.y_test)) if self.target.kind == "classification" else 0.0


def _tasks(train: RepresentationsLike, test: RepresentationsLike, targets_train: Targets, targets_test: Targets) -> list[_Task]:
    sides = [(found,) if isinstance(found, Target) else tuple(found) for found in (targets_train, targets_test)]
    names = [[(target.name, str(target.kind)) for target in side] for side in sides]
    if not names[0] or names[0] != names[1]:
        raise MeasureError(f"train and test need the same targets, got {_listed(names[0])} and {_listed(names[1])}")
    return [_task(one.of_run(train), other.of_run(test)) for one, other in zip(*sides, strict=True)]


def _listed(names: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in names) or "none"


def _task(train: Target, test: Target) -> _Task:
    rows = [np.flatnonzero(~np.isnan(target.values)) for target in (train, test)]
    lost = sum(len(target.values) - len(kept) for target, kept in zip((train, test), rows, strict=True))
    if min(map(len, rows)) < 3:
        raise MeasureError(
            f"target '{train.name}' is defined for {len(rows[0])} train and {len(rows[1])} test images: 3 are needed"
        )
    if lost:
        warnings.warn(
            f"target '{train.name}' is not defined for {lost} images, which are left out", UndefinedProbeWarning, stacklevel=6
        )
    values = [target.values[kept] for target, kept in zip((train, test), rows, strict=True)]
    if train.kind == "classification":
        sides = [
            Labelled(y.astype(np.int64), target.classes, f"the {split} images for target '{target.name}'")
            for target, y, split in zip((train, test), values, ("train", "test"), strict=True)
        ]
        y_train, y_test = shared_classes(*sides)
        known = np.unique(y_train)
        return _Task(train, rows[0], rows[1], np.searchsorted(known, y_train), np.searchsorted(known, y_test))
    return _Task(train, rows[0], rows[1], _columns(train, values[0]), _columns(train, values[1]))


def _columns(target: Target, values: np.ndarray) -> np.ndarray:
    """Numbers [n, 1], or cosine and sine of angles [n, 2]."""
    if target.kind == "angle":
        angles = np.radians(values)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return values[:, None]


class _Features:
    """Features of one layer for both sets, decomposed once for all targets that the same images have."""

    def __init__(self, train: np.ndarray, test: np.ndarray) -> None:
        self._train, self._test = train, test
        self._made: dict[bytes, tuple[RidgeFits, np.ndarray]] = {}

    @classmethod
    def of(cls, pair: tuple[np.ndarray, np.ndarray] | None) -> _Features | None:
        return None if pair is None else cls(*pair)

    def fits(self, task: _Task, l2: Sequence[float] | None) -> tuple[RidgeFits, np.ndarray]:
        """Regressions of nothing yet on the training images of a task, and its projected test images."""
        key = task.train.tobytes()
        if key not in self._made:
            X = self._train[task.train]
            path = default_l2(len(X)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
            fits = RidgeFits.of(X, None, path)
            self._made[key] = fits, fits.project(self._test)
        fits, new = self._made[key]
        return fits, new[task.test]


def _measured(task: _Task, features: _Features | None, l2: Sequence[float] | None) -> dict[str, float]:
    if features is None:
        return _NOTHING
    fits, new = features.fits(task, l2)
    if task.target.kind == "classification":
        return _classified(task, fits, new)
    return _regressed(task, fits, new)


def _classified(task: _Task, fits: RidgeFits, new: np.ndarray) -> dict[str, float]:
    found = classify(fits, task.y_train[:, None], new, int(task.y_train.max()) + 1)
    right = int((found.predicted[:, 0] == task.y_test).sum())
    low, high = wilson_interval(right, len(new))
    scores = {"score": right / len(new), "low": float(low), "high": float(high)}
    return scores | {"left_out": float(found.left_out_accuracy[0]), "error": np.nan, "l2": float(found.l2[0])}


def _regressed(task: _Task, fits: RidgeFits, new: np.ndarray) -> dict[str, float]:
    if not np.ptp(task.y_train, axis=0).any() or not np.ptp(task.y_test, axis=0).any():
        warnings.warn(
            f"target '{task.target.name}' is the same for all images, so there is nothing to read",
            UndefinedProbeWarning,
            stacklevel=7,
        )
        return _NOTHING
    fits = fits.with_targets(task.y_train)
    left_out = np.array([r_squared(task.y_train, fits.left_out(i)) for i in range(len(fits.l2))])
    chosen = int(last_best(left_out))
    predicted = fits.predict(new, chosen)
    low, high = r_squared_interval(task.y_test, predicted)
    scores = {"score": r_squared(task.y_test, predicted), "low": low, "high": high, "left_out": float(left_out[chosen])}
    return scores | {"error": _mean_error(task.target, task.y_test, predicted), "l2": float(fits.l2[chosen])}


def r_squared(y: np.ndarray, predicted: np.ndarray) -> float:
    """1 - |y - predicted|^2 / |y - mean|^2 over all images and columns of `y` [n, k]; negative where the mean would do better."""
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def r_squared_interval(y: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """95 % interval of R^2 over images (delta method); NaN where all images have the same influence."""
    errors, spread = (np.square(y - side).sum(axis=1) for side in (predicted, y.mean(axis=0)))
    unexplained = errors.mean() / spread.mean()
    low, high = delta_interval(1 - unexplained, (unexplained * spread - errors) / spread.mean())
    return float(low), float(np.minimum(high, 1))


def _mean_error(target: Target, y: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error; of angles the smaller way round, in degrees."""
    if target.kind != "angle":
        return float(np.abs(y - predicted).mean())
    angles = [np.degrees(np.arctan2(side[:, 1], side[:, 0])) for side in (y, predicted)]
    return float(np.abs((angles[0] - angles[1] + 180) % 360 - 180).mean())
