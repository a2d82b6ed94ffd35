"""Linear probes of other targets than the class: properties of images, columns of a table, the
place of a planted pattern."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError, UndefinedProbeWarning
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.rows import take_rows
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import Labelled, shared_classes
from mixer_probe.linear.classifier import decided_class, last_best
from mixer_probe.linear.many_targets import RidgeFits
from mixer_probe.linear.ridge import default_l2
from mixer_probe.linear.ridge_path import one_hot
from mixer_probe.linear.ridge_probe import LEFT_OUT
from mixer_probe.linear.stratification import stratified
from mixer_probe.models.layer import Layer
from mixer_probe.probing.runs import (
    LAYER,
    Pair,
    Runs,
    check_runs,
    check_untrained,
    finite_pair,
    majority_rate,
)
from mixer_probe.probing.targets import Target
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import delta_interval, wilson_interval

Targets = Target | Sequence[Target]
_SCORES = ("score", "low", "high", "left_out", "error", "l2")


@dataclass(frozen=True)
class TargetProbe(Result):
    """Score of a ridge probe of each of T targets at each of L layers; arrays [L, T].

    `score` is R^2 on the test images for numbers and angles (of an angle that of its sine and
    cosine together), and accuracy for classes; `metrics` [T] names it. `low` and `high` are a 95 %
    interval over test images: Wilson's for accuracy, by the delta method for R^2. `chance` [T] is 0
    for R^2 and the frequency of the most frequent class of the test images for accuracy. `left_out`
    is the same score of the training images by leave-one-out, which chose `l2`. `error` is the mean
    absolute error in the target's unit (degrees for angles), NaN for classes. NaN marks layers with
    NaN or infinite features and targets that do not vary. `n_train` and `n_test` [T] count the
    images where a target is defined."""

    title: ClassVar[str] = "Probes beyond the class"
    frame = Frame(
        "layer target",
        f"""{LAYER} target=targets metric=metrics score low high left_out error l2 chance n_train
        n_test unit=units""",
        below="untrained",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    targets: Annotated[tuple[str, ...], "target"]
    kinds: Annotated[tuple[str, ...], "target"]
    metrics: Annotated[tuple[str, ...], "target"]
    units: Annotated[tuple[str, ...], "target"]
    meanings: Annotated[tuple[str, ...], "target"]
    score: Annotated[np.ndarray, "layer", "target"]
    low: Annotated[np.ndarray, "layer", "target"]
    high: Annotated[np.ndarray, "layer", "target"]
    chance: Annotated[np.ndarray, "target"]
    left_out: Annotated[np.ndarray, "layer", "target"]
    error: Annotated[np.ndarray, "layer", "target"]
    l2: Annotated[np.ndarray, "layer", "target"]
    n_train: Annotated[np.ndarray, "target"]
    n_test: Annotated[np.ndarray, "target"]
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out"
    untrained: TargetProbe | None = None


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
    """Scores on the test images of a ridge probe of every target, fitted on every layer.

    The targets of both sets have the same names and kinds in the same order; their values are found
    by image id. Images where a target is NaN are left out of it, with an UndefinedProbeWarning that
    counts them. Classes are matched by name.

    Raises ImagesError for images without a value, one class, and a class that only the test images
    have; MeasureError for targets of other names, fewer than 3 images, and what `linear_probe`
    raises for representations and penalties."""
    check_runs(reps_train, reps_test)
    sides = [
        (side,) if isinstance(side, Target) else tuple(side)
        for side in (targets_train, targets_test)
    ]
    names = [
        ", ".join(f"{target.name} ({target.kind})" for target in side) or "none" for side in sides
    ]
    if not sides[0] or names[0] != names[1]:
        raise MeasureError(f"train and test need the same targets, got {names[0]} and {names[1]}")
    tasks = [
        _Task.of(one.of_run(reps_train), other.of_run(reps_test))
        for one, other in zip(*sides, strict=True)
    ]
    check_untrained((reps_train, reps_test), untrained)
    baseline = (
        None if untrained is None else target_probe(*untrained, targets_train, targets_test, l2=l2)
    )
    # Features are decomposed once for all tasks of the same images.
    groups: dict[bytes, list[int]] = {}
    for k, task in enumerate(tasks):
        if task.varies():
            groups.setdefault(task.key, []).append(k)
    found = []
    for layer in reps_train.layers:
        pair = finite_pair(reps_train, reps_test, layer.name)
        scores = [dict.fromkeys(_SCORES, np.nan)] * len(tasks)
        if pair is not None:
            for group in groups.values():
                for k, one in zip(group, _scores(pair, [tasks[k] for k in group], l2), strict=True):
                    scores[k] = one
        found.append(scores)
    columns: dict[str, Any] = {
        name: np.array([[scores[name] for scores in row] for row in found]) for name in _SCORES
    }
    return TargetProbe(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        targets=tuple(task.target.name for task in tasks),
        kinds=tuple(task.target.kind for task in tasks),
        metrics=tuple(
            "accuracy" if task.target.kind == "classification" else "R2" for task in tasks
        ),
        units=tuple(task.target.unit for task in tasks),
        meanings=tuple(task.target.meaning for task in tasks),
        chance=np.array(
            [
                majority_rate(task.y_test) if task.target.kind == "classification" else 0.0
                for task in tasks
            ]
        ),
        n_train=np.array([len(task.train) for task in tasks]),
        n_test=np.array([len(task.test) for task in tasks]),
        reduce=reps_train.reduce,
        untrained=baseline,
        **columns,
    )


class _Task(NamedTuple):
    """A target for both sets: rows of the images that have it, and their values: class indices [n],
    or columns [n, 1 or 2]."""

    target: Target
    train: np.ndarray
    test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray

    @property
    def key(self) -> bytes:
        """Equal for tasks of the same images."""
        return self.train.tobytes() + b" " + self.test.tobytes()

    @classmethod
    def of(cls, train: Target, test: Target) -> _Task:
        """The task of a target of the training and of the test images. Raises as `target_probe`."""
        sides = (train, test)
        rows = [np.flatnonzero(~np.isnan(target.values)) for target in sides]
        undefined = sum(
            len(target.values) - len(defined) for target, defined in zip(sides, rows, strict=True)
        )
        if min(map(len, rows)) < 3:
            raise MeasureError(
                f"target '{train.name}' is defined for {len(rows[0])} train and {len(rows[1])} "
                "test images: 3 are needed"
            )
        if undefined:
            message = (
                f"target '{train.name}' is not defined for {undefined} images, which are left out"
            )
            warnings.warn(message, UndefinedProbeWarning, stacklevel=5)
        values = [target.values[defined] for target, defined in zip(sides, rows, strict=True)]
        if train.kind == "classification":
            labelled = [
                Labelled(
                    y.astype(np.int64),
                    target.classes,
                    f"the {split} images for target '{target.name}'",
                )
                for target, y, split in zip(sides, values, ("train", "test"), strict=True)
            ]
            labels = shared_classes(*labelled)
            values = [np.searchsorted(np.unique(labels[0]), y) for y in labels]
        elif train.kind == "angle":
            values = [
                np.stack([np.cos(np.radians(y)), np.sin(np.radians(y))], axis=1) for y in values
            ]
        else:
            values = [y[:, None] for y in values]
        return cls(train, rows[0], rows[1], values[0], values[1])

    def targets(self, rows: slice | np.ndarray) -> Tensor:
        """The targets [b, k] of some training images: the numbers, or +1 and -1 of the classes."""
        y = torch.from_numpy(self.y_train[rows])
        if self.target.kind != "classification":
            return y.to(torch.float64)
        return one_hot(y, int(self.y_train.max()) + 1)

    def varies(self) -> bool:
        """Whether there is something to read; warns with UndefinedProbeWarning if not."""
        found = self.target.kind == "classification" or all(
            np.ptp(side, axis=0).any() for side in (self.y_train, self.y_test)
        )
        if not found:
            message = (
                f"target '{self.target.name}' is the same for all images, so there is nothing to "
                "read"
            )
            warnings.warn(message, UndefinedProbeWarning, stacklevel=5)
        return found

    def decided(self, scores: np.ndarray) -> np.ndarray:
        """What scores [n, k] predict: classes [n, 1], or the numbers themselves."""
        return decided_class(scores)[:, None] if self.target.kind == "classification" else scores

    def score(self, y: np.ndarray, predicted: np.ndarray) -> float:
        """Accuracy or R^2 of what was predicted for `y`."""
        if self.target.kind == "classification":
            return float((predicted[:, 0] == y).mean())
        return r_squared(y, predicted)

    def scores(self, predicted: np.ndarray, left_out: float, l2: float) -> dict[str, float]:
        """The scores at one layer, from the predictions [n, k] for the test images."""
        y = self.y_test
        score = self.score(y, predicted)
        if self.target.kind == "classification":
            low, high = map(float, wilson_interval(round(score * len(y)), len(y)))
            return dict(zip(_SCORES, (score, low, high, left_out, np.nan, l2)))
        error = np.abs(y - predicted)
        if self.target.kind == "angle":
            # The smaller way round, in degrees.
            angles = [np.degrees(np.arctan2(side[:, 1], side[:, 0])) for side in (y, predicted)]
            error = np.abs((angles[0] - angles[1] + 180) % 360 - 180)
        low, high = r_squared_interval(y, predicted)
        numbers = (score, low, high, left_out, float(error.mean()), l2)
        return dict(zip(_SCORES, numbers))


def _scores(
    pair: Pair, tasks: Sequence[_Task], l2: Sequence[float] | None
) -> list[dict[str, float]]:
    """The scores at one layer of tasks of the same images."""
    X, new = (
        part if len(chosen) == len(part) else take_rows(part, chosen)
        for part, chosen in zip(pair, (tasks[0].train, tasks[0].test), strict=True)
    )
    path = default_l2(len(X)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
    sample = stratified(np.zeros(len(X), dtype=np.int64), LEFT_OUT)
    fits = RidgeFits.of(
        X, lambda some: torch.cat([task.targets(some) for task in tasks], dim=1), path, sample
    )
    widths = [task.targets(slice(0, 1)).shape[1] for task in tasks]

    def decided(scores: np.ndarray) -> list[np.ndarray]:
        parts = np.split(scores, np.cumsum(widths)[:-1], axis=1)
        return [task.decided(part) for task, part in zip(tasks, parts, strict=True)]

    found = np.empty((len(sample), len(path), sum(widths)))
    for rows, _, scores in fits.left_out():
        found[rows] = scores.numpy()
    left_out = np.array(
        [
            [
                task.score(task.y_train[sample], part)
                for task, part in zip(tasks, decided(found[:, i]), strict=True)
            ]
            for i in range(len(path))
        ]
    )
    best = last_best(left_out)
    predicted = np.empty((len(new), sum(widths)))
    for rows, part in fits.predictions(new, np.repeat(best, widths)):
        predicted[rows] = part
    return [
        task.scores(part, float(left_out[i, k]), float(path[i]))
        for k, (task, i, part) in enumerate(zip(tasks, best, decided(predicted), strict=True))
    ]


def r_squared(y: np.ndarray, predicted: np.ndarray) -> float:
    """1 - |y - predicted|^2 / |y - mean|^2 over all images and columns of `y` [n, k]; negative
    where the mean is better."""
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def r_squared_interval(y: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """95 % interval of R^2 over images (delta method); NaN where all images have the same
    influence."""
    errors, spread = (np.square(y - side).sum(axis=1) for side in (predicted, y.mean(axis=0)))
    unexplained = errors.mean() / spread.mean()
    low, high = delta_interval(1 - unexplained, (unexplained * spread - errors) / spread.mean())
    return float(low), float(np.minimum(high, 1))
