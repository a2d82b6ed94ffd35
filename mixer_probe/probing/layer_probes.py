"""Probes of every layer: how well a simple classifier reads the class from a representation (Alain
and Bengio 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import ROWS, at_once, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.threads import parallel_map
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name
from mixer_probe.linear.classifier import ProbePath, last_best
from mixer_probe.linear.logistic import logistic_paths
from mixer_probe.models.layer import Layer
from mixer_probe.probing.fewshot import FewShotResult, few_shot_probe
from mixer_probe.probing.methods import (
    ESTIMATORS,
    FITTERS,
    PATHS,
    PROBABILISTIC,
    Values,
    find_fitter,
)
from mixer_probe.probing.runs import (
    LAYER,
    Labels,
    Runs,
    check_runs,
    check_untrained,
    layer_pair,
    majority_rate,
    non_finite,
    run_labels,
    warn_non_finite,
)
from mixer_probe.probing.scores import accuracy, balanced_accuracy, balanced_interval
from mixer_probe.similarity.inputs import RepresentationsLike, layer_matrix
from mixer_probe.stats import wilson_interval

# In place of a class where a layer has none, because its features are not finite.
UNDEFINED = -1


@dataclass(frozen=True)
class ProbeResult(Result):
    """Accuracy of a probe on every layer of a network, [L], and over its path of m values, [L, m].

    `chosen` is the value of the path (a penalty, a number of neighbours) chosen for each layer by
    accuracy on left-out training images, of equals the simplest model, never on the test images.
    `low` and `high` are Wilson's 95 % interval over test images; `balanced_accuracy` is the mean
    over classes of the accuracy per class, with bounds of its own; `chance` is the frequency of the
    most frequent class of the test images, the accuracy of the best constant prediction.
    `predicted` [L, n_test] and `labels` [n_test] are class indices; training has `class_labels`
    [K], called `class_names`; `probabilities` [L, n_test, K] are kept when asked for. NaN, and -1
    in `predicted`, mark layers with NaN or infinite features. `few_shot` is the same probe on few
    images per class, `untrained` the same result for the untrained baseline."""

    title: ClassVar[str] = "Linear probes"
    frame = Frame(
        "layer",
        f"""{LAYER} chosen accuracy low high balanced_accuracy balanced_low balanced_high chance
        n_train n_test classes p method""",
        below="untrained",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    method: str
    estimator: str
    path_name: str
    path_values: Annotated[np.ndarray, "value"]
    path_left_out: Annotated[np.ndarray, "layer", "value"]
    path_test: Annotated[np.ndarray, "layer", "value"]
    chosen: Annotated[np.ndarray, "layer"]
    accuracy: Annotated[np.ndarray, "layer"]
    low: Annotated[np.ndarray, "layer"]
    high: Annotated[np.ndarray, "layer"]
    balanced_accuracy: Annotated[np.ndarray, "layer"]
    balanced_low: Annotated[np.ndarray, "layer"]
    balanced_high: Annotated[np.ndarray, "layer"]
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: Annotated[tuple[int, ...], "layer"]
    predicted: Annotated[np.ndarray, "layer", "image"]
    labels: Annotated[np.ndarray, "image"]
    class_labels: Annotated[np.ndarray, "class"]
    class_names: Annotated[tuple[str, ...], "class"]
    reduce: str
    probabilities: Annotated[np.ndarray | None, "layer", "image", "class"] = None
    few_shot: FewShotResult | None = None
    untrained: ProbeResult | None = None

    @property
    def l2(self) -> np.ndarray:
        """The penalty chosen for each layer [L]. Raises MeasureError for probes without a
        penalty."""
        return self._of_l2(self.chosen)

    @property
    def path_l2(self) -> np.ndarray:
        """The penalties [m] to choose from. Raises MeasureError for probes without a penalty."""
        return self._of_l2(self.path_values)

    @property
    def right(self) -> np.ndarray:
        """Whether each test image is classified right by each layer [L, n_test]; False for
        undefined layers."""
        return np.asarray(self.predicted == self.labels)

    def _of_l2(self, values: np.ndarray) -> np.ndarray:
        if self.path_name != "l2":
            raise MeasureError(
                f"a {self.method} probe has no l2, its path is over {self.path_name or 'nothing'}"
            )
        return values

    @property
    def is_chosen(self) -> Annotated[np.ndarray, "layer", "value"]:
        """Which value of the path was chosen for each layer [L, m]; none of undefined layers."""
        nothing = np.isnan(self.path_values) & ~np.isnan(self.accuracy)[:, None]
        return np.asarray((self.path_values == self.chosen[:, None]) | nothing)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, of the network and then of its untrained baseline."""
        frame, name = super().to_frame(), self.path_name
        return frame.rename(columns={"chosen": name}) if name else frame.drop(columns="chosen")

    def path_frame(self) -> pd.DataFrame:
        """One row per layer and value of the path: accuracy on left-out training images, and on the
        test images."""
        columns = (
            f"{LAYER} value=path_values left_out_accuracy=path_left_out test_accuracy=path_test "
            "chosen=is_chosen"
        )
        frame = Frame("layer value", columns, below="untrained").of(self)
        return frame.rename(columns={"value": self.path_name or "value"})

    def layer_path(self, i: int) -> pd.DataFrame:
        """The rows of `path_frame` of one layer, with Wilson's 95 % interval of the accuracy on
        test images (`low`, `high`)."""
        frame = self.path_frame()
        frame = frame[frame["layer"] == self.layers[i].name].reset_index(drop=True)
        low, high = wilson_interval(
            np.round(frame["test_accuracy"] * self.n_test), np.full(len(frame), self.n_test)
        )
        return frame.assign(n_test=self.n_test, low=low, high=high)

    def mistakes(self, i: int, class_name: str) -> list[tuple[int, str]]:
        """The test images of a class that layer `i` gets wrong: index and predicted class, "no
        prediction" where undefined."""
        names = dict(zip(self.class_labels.tolist(), self.class_names))
        wrong = np.flatnonzero(~self.right[i])
        chosen = [int(k) for k in wrong if names.get(int(self.labels[k])) == class_name]
        return [(k, names.get(int(self.predicted[i, k]), "no prediction")) for k in chosen]


class LayerPath(NamedTuple):
    """A probe of one layer: accuracies [m] along its path, and the classes predicted with the
    `chosen` value."""

    chosen: float
    left_out: np.ndarray
    test: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None = None


class PathScore:
    """What the classifiers of a `path` predict of `n` test images, added up block by block; the
    value is chosen by left-out accuracy. `probabilities` keeps those of the chosen one."""

    def __init__(self, path: ProbePath, n: int, probabilities: bool = False) -> None:
        self._path, self._left_out, self._done = path, path.left_out_accuracy(), 0
        self._best = int(last_best(self._left_out))
        self._right = np.zeros(len(path.values), dtype=np.int64)
        # Made before: what is kept of a block scatters over the memory that blocks take in turn.
        self._predicted = np.empty(n, dtype=path.classes.dtype)
        size = (n, len(path.classes)) if probabilities else (0, 0)
        self._probabilities = np.empty(size, dtype=np.float32)

    def add(self, X: Any, y: np.ndarray) -> None:
        """Predict features [b, p] of classes `y` [b]."""
        rows = slice(self._done, self._done + len(y))
        predicted, self._done = self._path.predict(X), rows.stop
        self._right += (predicted == y).sum(axis=1)
        self._predicted[rows] = predicted[self._best]
        if len(self._probabilities):
            self._probabilities[rows] = np.exp(self._path.scores(X)[self._best])

    def result(self) -> LayerPath:
        """The accuracies on all images."""
        return LayerPath(
            float(self._path.values[self._best]),
            self._left_out,
            self._right / len(self._predicted),
            self._predicted,
            self._probabilities if len(self._probabilities) else None,
        )


class LayerPaths(NamedTuple):
    """Probes along one path: its values [m], and for each layer its width and its `LayerPath`, None
    if undefined."""

    values: np.ndarray
    widths: list[int]
    layers: list[LayerPath | None]

    @classmethod
    def of(
        cls, runs: Runs, labels: Labels, method: str, values: Values, probabilities: bool
    ) -> LayerPaths:
        """Probes of every layer of both runs."""
        names = [layer.name for layer in runs[0].layers]
        options: dict[str, Any] = {
            "runs": runs,
            "labels": labels,
            "method": method,
            "values": values,
        }
        options |= {"probabilities": probabilities}
        if method == "logistic":
            # Layers of one width in one batch: the solver is iterative, and an iteration for many
            # small layers costs little more.
            size = 8 * len(labels[0]) * max(layer.channels for layer in runs[0].layers)
            probed = []
            for part in slices(len(names), at_once(size)):
                finite = [
                    name for name in names[part] if not any(non_finite(r, name) for r in runs)
                ]
                fitted = logistic_paths(
                    [np.asarray(layer_matrix(runs[0], name)) for name in finite], labels[0], values
                )
                paths = dict(zip(finite, fitted, strict=True))
                probed += [
                    _probe_layer(name, path=paths.get(name), **options) for name in names[part]
                ]
        elif method == "knn":
            probed = [_probe_layer(name, **options) for name in names]
        else:
            probed = parallel_map(partial(_probe_layer, **options), names)
        for name, layer in zip(names, probed, strict=True):
            warn_non_finite(name, layer.bad)
        given = np.array([np.nan]) if values is None else np.asarray(values)
        path = next((layer.values for layer in probed if layer.values is not None), given)
        return cls(path, [layer.width for layer in probed], [layer.found for layer in probed])


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
    """Accuracy on `reps_test` of a probe fitted on every layer of `reps_train`.

    `method` is "ridge" (closed form), "logistic" (multinomial), "knn" or "centroid" (nearest class
    mean). `values` is the path to choose from for each layer (`l2` is the same for probes with a
    penalty); by default that of the method: for ridge 15 penalties that grow with the number of
    images. `shots`, such as ("all", 1, 5, 10, 25), adds the same probe on so many images per class,
    drawn `seeds` times (`few_shot_probe`); all images are always probed. `probabilities` keeps
    those of the test images. `untrained` is (train, test) of an untrained baseline of the network
    on the same images. Layers with NaN or infinite features give NaN and a NonFiniteWarning.
    Ridge and centroid read a stored run in blocks of images; logistic and knn hold one layer of the
    training images in memory at a time.

    Raises ImagesError if labels are missing, there is one class, a class is only in the test images
    or has fewer images than shots, or an image is in both sets; MeasureError for layers with
    positions (reduce="none"), two networks, a trained baseline, an unknown method, and values or
    probabilities that the method does not have."""
    check_runs(reps_train, reps_test)
    labels = run_labels(reps_train, reps_test)
    check_untrained((reps_train, reps_test), untrained)
    if probabilities and method in FITTERS and method not in PROBABILISTIC:
        raise MeasureError(
            f"a {method} probe has no probabilities; those with: {', '.join(PROBABILISTIC)}"
        )
    path = path_values(method, l2, values)
    few = [s for s in shots or () if not isinstance(s, str) or s != "all"]
    options: dict[str, Any] = {"method": method, "values": path, "probabilities": probabilities}
    return assemble(
        reps_train,
        reps_test,
        labels,
        LayerPaths.of((reps_train, reps_test), labels, method, path, probabilities),
        method=method,
        few_shot=few_shot_probe(reps_train, reps_test, few, seeds, method, values=path)
        if few
        else None,
        untrained=None
        if untrained is None
        else linear_probe(*untrained, shots=shots, seeds=seeds, **options),
    )


def path_values(method: str, l2: Values, values: Values) -> Values:
    """The path asked for, in the order of `ProbePath`; None for that of the method.

    Raises MeasureError for an unknown method, `l2` for one that has none, and both `l2` and
    `values`."""
    find_fitter(method)
    if l2 is not None and values is not None:
        raise MeasureError("l2 and values are the same path: give one of both")
    if l2 is not None and PATHS[method] != "l2":
        raise MeasureError(f"a {method} probe has no l2: give its path as values")
    given = values if l2 is None else l2
    return None if given is None else np.unique(np.asarray(given, dtype=np.float64))


class _Probed(NamedTuple):
    """A layer's width and how many of its features are not finite; if none is, the values of its
    path and its accuracies."""

    width: int
    bad: int
    values: np.ndarray | None = None
    found: LayerPath | None = None


def _probe_layer(
    name: str,
    runs: Runs,
    labels: Labels,
    method: str,
    values: Values,
    probabilities: bool,
    path: ProbePath | None = None,
) -> _Probed:
    """One layer, with the `path` that was fitted or one to fit; its value is chosen by left-out
    accuracy."""
    (X, new), bad = layer_pair(*runs, name), sum(non_finite(run, name) for run in runs)
    if bad:
        return _Probed(X.shape[1], bad)
    path = path or find_fitter(method)(X, labels[0], values)
    score = PathScore(path, len(new), probabilities)
    for rows in slices(len(new), ROWS):
        score.add(new[rows], labels[1][rows])
    return _Probed(X.shape[1], 0, path.values, score.result())


class Run(Protocol):
    """A network on images: representations, or a stream of them."""

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
    labels: Labels,
    found: LayerPaths,
    *,
    method: str,
    few_shot: FewShotResult | None = None,
    untrained: ProbeResult | None = None,
) -> ProbeResult:
    """The result from the probes of all layers."""
    y_train, y = labels
    known = np.unique(y_train)
    nan, unknown = (
        np.full(len(found.values), np.nan),
        np.full((len(y), len(known)), np.nan, dtype=np.float32),
    )
    layers = [
        layer or LayerPath(np.nan, nan, nan, np.full(len(y), UNDEFINED), unknown)
        for layer in found.layers
    ]
    predicted = np.stack([layer.predicted for layer in layers])
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
    probabilities = [layer.probabilities for layer in layers if layer.probabilities is not None]
    return ProbeResult(
        model=train.model,
        images_train=train.images,
        images_test=test.images,
        layers=train.layers,
        method=method,
        estimator=ESTIMATORS[method],
        path_name=PATHS[method],
        path_values=found.values,
        path_left_out=np.stack([layer.left_out for layer in layers]),
        path_test=np.stack([layer.test for layer in layers]),
        chosen=np.array([layer.chosen for layer in layers]),
        **{name: np.where(undefined, np.nan, values) for name, values in scores.items()},
        chance=majority_rate(y),
        n_train=len(y_train),
        n_test=len(y),
        classes=len(known),
        p=tuple(found.widths),
        predicted=predicted,
        labels=y,
        class_labels=known,
        class_names=tuple(class_name(int(label), train.class_names) for label in known),
        reduce=train.reduce,
        probabilities=np.stack(probabilities)
        if any(p is not unknown for p in probabilities)
        else None,
        few_shot=few_shot,
        untrained=untrained,
    )
