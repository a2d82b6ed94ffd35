"""Probes of every layer: how well a simple classifier reads the class from a representation (Alain and Bengio 2016)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError, NonFiniteWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.threads import side_by_side
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name
from mixer_probe.linear.classifier import ProbePath, last_best
from mixer_probe.models.layer import Layer
from mixer_probe.probing.fewshot import FewShotResult, few_shot_probe
from mixer_probe.probing.methods import ESTIMATORS, FITTERS, PATHS, PROBABILISTIC, Values, find_fitter
from mixer_probe.probing.runs import Runs, check_runs, check_twin, layer_pair, run_labels
from mixer_probe.probing.scores import accuracy, balanced_accuracy, balanced_interval
from mixer_probe.probing.tables import layer_columns
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix
from mixer_probe.stats import wilson_interval

# In place of a class where a layer has none, because its features are not finite.
UNDEFINED = -1


@dataclass(frozen=True)
class ProbeResult(Result):
    """Accuracy of a probe on every layer of a network, [L], and over its path of m values, [L, m].

    `chosen` is the value of the path (a penalty, a number of neighbours) taken for each layer by accuracy on left-out training
    images, of equals the simplest model; the test images chose nothing. `low` and `high` bound the accuracy by Wilson's interval
    at 95 %, over test images; `balanced_accuracy` is the mean over classes of the share that is right, with bounds of its own;
    `chance` is the share of the most frequent class of the test images, the best that a constant answer reaches.
    `predicted` [L, n_test] and `labels` [n_test] are class indices; training has `class_labels` [K], called `class_names`;
    `probabilities` [L, n_test, K] are kept when asked for. NaN, and -1 in `predicted`, mark layers with NaN or infinite features.
    `few_shot` has the same probe on few images a class, `untrained` is all of it for the untrained twin."""

    title: ClassVar[str] = "Linear probes"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    method: str
    estimator: str
    path_name: str
    path_values: np.ndarray
    path_left_out: np.ndarray
    path_test: np.ndarray
    chosen: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    balanced_accuracy: np.ndarray
    balanced_low: np.ndarray
    balanced_high: np.ndarray
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: tuple[int, ...]
    predicted: np.ndarray
    labels: np.ndarray
    class_labels: np.ndarray
    class_names: tuple[str, ...]
    reduce: str
    probabilities: np.ndarray | None = None
    few_shot: FewShotResult | None = None
    untrained: ProbeResult | None = None

    @property
    def l2(self) -> np.ndarray:
        """The penalty taken for each layer [L]. Raises MeasureError for probes that have none."""
        return self._of_l2(self.chosen)

    @property
    def path_l2(self) -> np.ndarray:
        """The penalties [m] to choose from. Raises MeasureError for probes that have none."""
        return self._of_l2(self.path_values)

    @property
    def right(self) -> np.ndarray:
        """Whether each test image is classified right by each layer [L, n_test]; False for undefined layers."""
        return np.asarray(self.predicted == self.labels)

    def _of_l2(self, values: np.ndarray) -> np.ndarray:
        if self.path_name != "l2":
            raise MeasureError(f"a {self.method} probe has no l2, its path is over {self.path_name or 'nothing'}")
        return values

    def to_frame(self) -> pd.DataFrame:
        """One layer a row, of the network and then of its untrained twin."""
        chosen = {self.path_name: self.chosen} if self.path_name else {}
        same = ("accuracy", "low", "high", "balanced_accuracy", "balanced_low", "balanced_high")
        rest = ("chance", "n_train", "n_test", "classes", "p", "method")
        numbers = {name: getattr(self, name) for name in (*same, *rest)}
        frame = pd.DataFrame({**layer_columns(self.model, self.layers, 1), **chosen, **numbers})
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.to_frame()], ignore_index=True)

    def path_frame(self) -> pd.DataFrame:
        """One layer and value of the path a row: accuracy on left-out training images, and on the test images."""
        taken = (self.path_values == self.chosen[:, None]) | (np.isnan(self.path_values) & ~np.isnan(self.accuracy)[:, None])
        frame = pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, len(self.path_values)),
                self.path_name or "value": np.tile(self.path_values, len(self.layers)),
                "left_out_accuracy": self.path_left_out.ravel(),
                "test_accuracy": self.path_test.ravel(),
                "chosen": taken.ravel(),
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.path_frame()], ignore_index=True)


@dataclass(frozen=True)
class LayerPath:
    """What a probe of one layer found: accuracies [m] along its path, and the classes predicted by the value `chosen`."""

    chosen: float
    left_out: np.ndarray
    test: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None = None

    @classmethod
    def of(cls, path: ProbePath, X: np.ndarray, y: np.ndarray, probabilities: bool = False) -> LayerPath:
        """Choose from `path` by its left-out accuracy, and test all of it on features `X` [n, p] of classes `y` [n]."""
        left_out, predicted = path.left_out_accuracy(), path.predict(X)
        best = last_best(left_out)
        shares = np.exp(path.scores(X)[best]).astype(np.float32) if probabilities else None
        return cls(float(path.values[best]), left_out, accuracy(predicted, y), predicted[best], shares)


@checked(MeasureError)
def linear_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    l2: Values = None,
    untrained: Runs | None = None,
    *,
    method: str = "ridge",
    values: Values = None,
    shots: Sequence[int | str] | None = None,
    seeds: int = 3,
    probabilities: bool = False,
) -> ProbeResult:
    """Fit a probe on every layer of `reps_train` and measure its accuracy on `reps_test`.

    `method` is "ridge" (closed form), "logistic" (multinomial), "knn" or "centroid" (nearest class mean). `values` is the path to
    choose from for each layer (`l2` is the same for probes with a penalty); by default that of the method: for ridge 15
    penalties that grow with the number of images. `shots`, such as ("all", 1, 5, 10, 25), adds the same probe on so many images a
    class, drawn `seeds` times (`few_shot_probe`); all images are always probed. `probabilities` keeps those of the test images.
    `untrained` is (train, test) of an untrained twin of the network on the same images, the baseline for every layer. Layers
    with NaN or infinite features give NaN and a NonFiniteWarning.

    Raises ImagesError if labels are missing, there is one class, a class is only in the test images or has fewer images than
    shots, or an image is in both sets; MeasureError for layers with positions (reduce="none"), two networks, a trained
    twin, an unknown method, and values or probabilities that the method does not have."""
    check_runs(reps_train, reps_test)
    labels = run_labels(reps_train, reps_test)
    if untrained is not None:
        check_twin((reps_train, reps_test), untrained)
    if probabilities and method in FITTERS and method not in PROBABILISTIC:
        raise MeasureError(f"a {method} probe has no probabilities; those with: {', '.join(PROBABILISTIC)}")
    path = path_values(method, l2, values)
    few = [s for s in shots or () if not isinstance(s, str) or s != "all"]
    return assemble(
        reps_train,
        reps_test,
        labels,
        _Fits(method, path, labels, probabilities).of((reps_train, reps_test)),
        method=method,
        few_shot=few_shot_probe(reps_train, reps_test, few, seeds, method, values=path) if few else None,
        untrained=None
        if untrained is None
        else linear_probe(*untrained, values=path, method=method, shots=shots, seeds=seeds, probabilities=probabilities),
    )


def path_values(method: str, l2: Values, values: Values) -> Values:
    """The path asked for, in the order of `ProbePath`; None for that of the method.

    Raises MeasureError for an unknown method, `l2` for one that has none, and both `l2` and `values`."""
    find_fitter(method)
    if l2 is not None and values is not None:
        raise MeasureError("l2 and values are the same path: give one of both")
    if l2 is not None and PATHS[method] != "l2":
        raise MeasureError(f"a {method} probe has no l2: give its path as values")
    given = values if l2 is None else l2
    return None if given is None else np.unique(np.asarray(given, dtype=np.float64))


@dataclass
class Found:
    """What was found along one path: its values [m], and for each layer its width and what it gave, None if undefined."""

    values: np.ndarray
    widths: list[int]
    layers: list[LayerPath | None]


@dataclass(frozen=True)
class _Fits:
    """How every layer of a run is probed."""

    method: str
    values: Values
    labels: tuple[np.ndarray, np.ndarray]
    probabilities: bool

    def of(self, runs: Runs) -> Found:
        """Every layer of both runs."""
        names = [layer.name for layer in runs[0].layers]
        if self.method == "logistic":
            probed = self._together(names, runs)
        elif self.method == "knn":
            probed = [self._alone(name, runs) for name in names]
        else:
            probed = side_by_side(lambda name: self._alone(name, runs), names)
        for name, layer in zip(names, probed, strict=True):
            warn_non_finite(name, layer.bad)
        given = np.array([np.nan]) if self.values is None else np.asarray(self.values)
        values = next((layer.values for layer in probed if layer.values is not None), given)
        return Found(values, [layer.width for layer in probed], [layer.found for layer in probed])

    def _alone(self, name: str, runs: Runs, path: ProbePath | None = None) -> _Probed:
        """One layer, with the `path` that was fitted or one to fit."""
        train, test = layer_pair(*runs, name)
        bad = count_bad(train) + count_bad(test)
        if bad:
            return _Probed(train.shape[1], bad)
        path = path or find_fitter(self.method)(train, self.labels[0], self.values)
        return _Probed(train.shape[1], 0, path.values, LayerPath.of(path, test, self.labels[1], self.probabilities))

    def _together(self, names: Sequence[str], runs: Runs) -> list[_Probed]:
        """Layers of one width in one batch: the logistic probe is iterative, and an iteration of many costs little more."""
        from mixer_probe.linear.logistic import logistic_paths

        finite = [name for name in names if not any(count_bad(layer_matrix(run, name)) for run in runs)]
        paths = logistic_paths([layer_matrix(runs[0], name) for name in finite], self.labels[0], self.values)
        fitted = dict(zip(finite, paths, strict=True))
        return [self._alone(name, runs, fitted.get(name)) for name in names]


@dataclass(frozen=True)
class _Probed:
    """A layer's width and how many of its features are not finite; if none is, its path's values and what was found."""

    width: int
    bad: int
    values: np.ndarray | None = None
    found: LayerPath | None = None


def count_bad(X: np.ndarray) -> int:
    """How many numbers of `X` are NaN or infinite."""
    return X.size - int(np.isfinite(X).sum())


def warn_non_finite(name: str, bad: int) -> bool:
    """Whether a layer has features that are not finite; warns with NonFiniteWarning if so."""
    if bad:
        warnings.warn(f"no probe of layer '{name}': {bad} of its features are NaN or infinite", NonFiniteWarning, stacklevel=5)
    return bad > 0


class Run(Protocol):
    """Which network, on which images: representations, or what was streamed."""

    @property
    def model(self) -> ModelRecord:
        """The network."""

    @property
    def images(self) -> ImagesRecord:
        """The images."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In execution order."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by index."""

    @property
    def reduce(self) -> str:
        """How positions were reduced."""


def assemble(
    train: Run,
    test: Run,
    labels: tuple[np.ndarray, np.ndarray],
    found: Found,
    *,
    method: str,
    few_shot: FewShotResult | None = None,
    untrained: ProbeResult | None = None,
) -> ProbeResult:
    """The result of what was found for every layer."""
    y_train, y_test = labels
    known = np.unique(y_train)
    filled = [layer or _undefined(len(found.values), len(y_test), len(known)) for layer in found.layers]
    shares = [layer.probabilities for layer in found.layers if layer is not None]
    predicted = np.stack([layer.predicted for layer in filled])
    return ProbeResult(
        model=train.model,
        images_train=train.images,
        images_test=test.images,
        layers=train.layers,
        method=method,
        estimator=ESTIMATORS[method],
        path_name=PATHS[method],
        path_values=found.values,
        path_left_out=np.stack([layer.left_out for layer in filled]),
        path_test=np.stack([layer.test for layer in filled]),
        chosen=np.array([layer.chosen for layer in filled]),
        **_scored(predicted, y_test),
        chance=float(np.unique(y_test, return_counts=True)[1].max() / len(y_test)),
        n_train=len(y_train),
        n_test=len(y_test),
        classes=len(known),
        p=tuple(found.widths),
        predicted=predicted,
        labels=y_test,
        class_labels=known,
        class_names=tuple(class_name(int(label), train.class_names) for label in known),
        reduce=train.reduce,
        probabilities=np.stack([layer.probabilities for layer in filled]) if any(s is not None for s in shares) else None,  # type: ignore[misc]
        few_shot=few_shot,
        untrained=untrained,
    )


def _undefined(m: int, n: int, classes: int) -> LayerPath:
    nothing = np.full(m, np.nan)
    return LayerPath(np.nan, nothing, nothing, np.full(n, UNDEFINED), np.full((n, classes), np.nan, dtype=np.float32))


def _scored(predicted: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracies of `predicted` [L, n] with their bounds; NaN for layers without predictions."""
    low, high = wilson_interval((predicted == y).sum(axis=1), len(y))
    balanced_low, balanced_high = balanced_interval(predicted, y)
    scores = {
        "accuracy": accuracy(predicted, y),
        "low": low,
        "high": high,
        "balanced_accuracy": balanced_accuracy(predicted, y),
        "balanced_low": balanced_low,
        "balanced_high": balanced_high,
    }
    undefined = (predicted == UNDEFINED).all(axis=1)
    return {name: np.where(undefined, np.nan, values) for name, values in scores.items()}
