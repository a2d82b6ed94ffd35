"""Linear probes of every layer: how well a linear map reads the class (Alain and Bengio 2016)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy.special import ndtri

from mixer_probe.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.models.layer import Layer
from mixer_probe.probing.ridge import default_l2, ridge_path
from mixer_probe.results import ImagesRecord, ModelRecord, Result
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix

Runs = tuple[RepresentationsLike, RepresentationsLike]


@dataclass(frozen=True)
class ProbeResult(Result):
    """Accuracy of a ridge probe on every layer of a network, [L], and over its path of penalties, [L, m].

    `l2` was chosen for each layer by leave-one-out accuracy on the training images, of equals the largest;
    the test images chose nothing. `low` and `high` bound the accuracy by Wilson's interval at 95 %, over test
    images; `chance` is the share of the most frequent class of the test images, the best that a constant
    answer reaches. `balanced_accuracy` is the mean over classes of the share that is right. NaN marks layers
    with NaN or infinite features. `untrained` is the same for the untrained twin."""

    title: ClassVar[str] = "Linear probes"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    l2: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    balanced_accuracy: np.ndarray
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: tuple[int, ...]
    path_l2: np.ndarray
    path_leave_one_out: np.ndarray
    path_test: np.ndarray
    reduce: str
    estimator: str = "ridge, l2 by leave-one-out accuracy"
    untrained: ProbeResult | None = None

    def to_frame(self) -> pd.DataFrame:
        """One layer a row, of the network and then of its untrained twin."""
        frame = pd.DataFrame(
            {
                **self._layer_columns(1),
                "l2": self.l2,
                "accuracy": self.accuracy,
                "low": self.low,
                "high": self.high,
                "balanced_accuracy": self.balanced_accuracy,
                "chance": self.chance,
                "n_train": self.n_train,
                "n_test": self.n_test,
                "classes": self.classes,
                "p": self.p,
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.to_frame()], ignore_index=True)

    def path_frame(self) -> pd.DataFrame:
        """One layer and penalty a row: leave-one-out accuracy in training, accuracy on the test images."""
        frame = pd.DataFrame(
            {
                **self._layer_columns(len(self.path_l2)),
                "l2": np.tile(self.path_l2, len(self.layers)),
                "leave_one_out_accuracy": self.path_leave_one_out.ravel(),
                "test_accuracy": self.path_test.ravel(),
                "chosen": (self.path_l2 == self.l2[:, None]).ravel(),
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.path_frame()], ignore_index=True)

    def _layer_columns(self, repeat: int) -> dict[str, object]:
        return {
            "model": self.model.name,
            "trained": self.model.trained,
            "layer": np.repeat([layer.name for layer in self.layers], repeat),
            "kind": np.repeat([layer.kind for layer in self.layers], repeat),
            "depth": np.repeat([layer.depth for layer in self.layers], repeat),
        }


@dataclass(frozen=True)
class _LayerScore:
    p: int
    l2: float
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    path_leave_one_out: np.ndarray
    path_test: np.ndarray


def linear_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    l2: Sequence[float] | None = None,
    untrained: Runs | None = None,
) -> ProbeResult:
    """Fit a ridge probe on every layer of `reps_train` and measure its accuracy on `reps_test`.

    `l2` is the path of penalties to choose from, by default 15 values that grow with the number of images.
    `untrained` is (train, test) of an untrained twin of the network on the same images, the baseline for
    every layer. Layers with NaN or infinite features give NaN and a NonFiniteWarning.

    Raises ImagesError if labels are missing, there is one class, a class is only in the test images or an
    image is in both sets; MeasureError for layers with positions (reduce="none"), two networks, a trained
    twin, and penalties that are not positive."""
    check_runs(reps_train, reps_test)
    y_train, y_test = _labels(reps_train, "train"), _labels(reps_test, "test")
    check_classes(reps_train, y_train, y_test)
    twin = None
    if untrained is not None:
        check_twin((reps_train, reps_test), untrained)
        twin = linear_probe(untrained[0], untrained[1], l2)
    path = default_l2(len(y_train)) if l2 is None else np.unique(np.asarray(l2, dtype=np.float64))
    names = [layer.name for layer in reps_train.layers]
    scores = [_probe_layer(name, (reps_train, reps_test), (y_train, y_test), path) for name in names]
    return ProbeResult(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=reps_train.layers,
        l2=np.array([score.l2 for score in scores]),
        accuracy=np.array([score.accuracy for score in scores]),
        low=np.array([score.low for score in scores]),
        high=np.array([score.high for score in scores]),
        balanced_accuracy=np.array([score.balanced_accuracy for score in scores]),
        chance=float(np.bincount(np.unique(y_test, return_inverse=True)[1]).max() / len(y_test)),
        n_train=len(y_train),
        n_test=len(y_test),
        classes=len(np.unique(y_train)),
        p=tuple(score.p for score in scores),
        path_l2=path,
        path_leave_one_out=np.stack([score.path_leave_one_out for score in scores]),
        path_test=np.stack([score.path_test for score in scores]),
        reduce=reps_train.reduce,
        untrained=twin,
    )


def wilson_interval(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, of which `right` of `n` were seen (Wilson 1927); always inside [0, 1].

    Raises MeasureError unless 0 <= right <= n and n > 0."""
    if not (n > 0 and 0 <= right <= n):
        raise MeasureError(f"{right} of {n} is no share")
    z = float(ndtri((1 + confidence) / 2))
    share, shrink = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / shrink
    # The bounds are 0 and 1 at the ends; rounding must not push them past the share.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def balanced_accuracy(predicted: np.ndarray, y: np.ndarray) -> float:
    """Mean over the classes in `y` [n] of the share of their images that `predicted` [n] gets right."""
    return float(np.mean([(predicted[y == label] == label).mean() for label in np.unique(y)]))


def check_runs(train: RepresentationsLike, test: RepresentationsLike) -> None:
    """Raise unless both are one network's representations of different images, reduced alike.

    MeasureError for other networks, layers or reductions; ImagesError for an image in both."""
    if train.model != test.model:
        raise MeasureError(f"train and test come from two networks: {train.model.name} and {test.model.name}")
    if train.reduce != test.reduce:
        raise MeasureError(f"train was extracted with reduce='{train.reduce}' and test with '{test.reduce}'")
    if not train.layers:
        raise MeasureError("there is no layer to probe")
    missing = {layer.name for layer in train.layers} ^ {layer.name for layer in test.layers}
    if missing:
        raise MeasureError(f"layer '{min(missing)}' is only in one of train and test")
    seen = set(train.ids)
    shared = [name for name in test.ids if name in seen]
    if shared:
        raise ImagesError(f"{len(shared)} test images are also in train, the first is '{shared[0]}'")


def check_twin(runs: Runs, twin: Runs) -> None:
    """Raise MeasureError unless `twin` is untrained and holds the same images."""
    if twin[0].model.trained:
        raise MeasureError(f"untrained= must hold an untrained network, but {twin[0].model.name} is trained")
    for split, run, other in zip(("train", "test"), runs, twin, strict=True):
        if run.ids != other.ids:
            raise MeasureError(f"the untrained twin was run on other {split} images")


def check_classes(reps: RepresentationsLike, y_train: np.ndarray, y_test: np.ndarray) -> None:
    """Raise ImagesError if there is one class, or one that only the test images have."""
    known = np.unique(y_train)
    if len(known) < 2:
        raise ImagesError(f"all train images are of class {_class_name(reps, known[0])}, a probe needs two")
    unknown = np.setdiff1d(y_test, known)
    if len(unknown):
        raise ImagesError(f"class {_class_name(reps, unknown[0])} is among the test images but not in train")


def _class_name(reps: RepresentationsLike, label: int) -> str:
    names = reps.class_names
    return f"'{names[label]}'" if names is not None and 0 <= label < len(names) else str(label)


def _labels(reps: RepresentationsLike, split: str) -> np.ndarray:
    if reps.labels is None:
        raise ImagesError(f"the {split} images ({reps.images.name}) have no labels: a probe needs them")
    if len(reps.ids) == 0:
        raise ImagesError(f"there are no {split} images")
    return np.asarray(reps.labels)


def _probe_layer(name: str, runs: Runs, labels: tuple[np.ndarray, np.ndarray], l2: np.ndarray) -> _LayerScore:
    train, test = (layer_matrix(run, name) for run in runs)
    bad = int((~np.isfinite(train)).sum() + (~np.isfinite(test)).sum())
    if bad:
        message = f"no probe of layer '{name}': {bad} of its features are NaN or infinite"
        warnings.warn(message, NonFiniteWarning, stacklevel=3)
        nothing = np.full(len(l2), np.nan)
        return _LayerScore(train.shape[1], np.nan, np.nan, np.nan, np.nan, np.nan, nothing, nothing)
    path = ridge_path(train, labels[0], l2)
    left_out, predicted = path.leave_one_out_accuracy(), path.predict(test)
    # The last of equals: penalties ascend.
    chosen = np.flatnonzero(left_out == left_out.max())[-1]
    right = predicted == labels[1]
    hits = int(right[chosen].sum())
    low, high = wilson_interval(hits, len(labels[1]))
    balanced = balanced_accuracy(predicted[chosen], labels[1])
    return _LayerScore(
        p=train.shape[1],
        l2=float(l2[chosen]),
        accuracy=hits / len(labels[1]),
        low=low,
        high=high,
        balanced_accuracy=balanced,
        path_leave_one_out=left_out,
        path_test=right.mean(axis=1),
    )
