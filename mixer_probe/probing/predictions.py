"""Predictions of a probe class by class, and the calibration of its probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from scipy import optimize, special

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.linear.ridge_probe import ridge_path
from mixer_probe.models.layer import Layer
from mixer_probe.probing.layer_probes import UNDEFINED, ProbeResult
from mixer_probe.probing.runs import LAYER, Runs
from mixer_probe.similarity.inputs import layer_matrix
from mixer_probe.stats import ratio, upper_quantile, wilson_interval

_BINS = 15
# With fewer simulations the largest is exceeded by a further one in more than 5 % of cases.
_FEWEST_DRAWS = 19


@dataclass(frozen=True)
class ConfusionMatrix(Result):
    """Numbers of test images per true class (rows) and predicted class (columns) for each layer:
    `counts` [L, K, K].

    The classes are those of training. A layer without predictions has zeros."""

    title: ClassVar[str] = "Confusion"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    class_names: Annotated[tuple[str, ...], "class"]
    counts: Annotated[np.ndarray, "layer", "class", "class"]
    method: str

    @property
    def fractions(self) -> np.ndarray:
        """Fractions of the images of each true class, [L, K, K]; NaN for a class without test
        images."""
        return ratio(self.counts, self.counts.sum(axis=2, keepdims=True))

    def most_confused(self, layer: int, most: int) -> np.ndarray:
        """Indices of the `most` classes with the most errors after a layer, as true or as predicted
        class, in their own order."""
        counts = self.counts[layer]
        errors = counts.sum(axis=1) + counts.sum(axis=0) - 2 * np.diagonal(counts)
        return np.sort(np.argsort(-errors, kind="stable")[:most])

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, true class and predicted class."""
        names = np.array(self.class_names)
        columns = {"true": names[:, None], "predicted": names}
        columns |= {"images": self.counts, "fraction": self.fractions}
        return Frame("layer class class", LAYER).of(self, columns)

    def per_class(self) -> pd.DataFrame:
        """One row per layer and class: accuracy on its images with Wilson's 95 % interval, and
        precision. NaN where there are no images, or no such predictions."""
        images, predictions = self.counts.sum(axis=2), self.counts.sum(axis=1)
        right = np.diagonal(self.counts, axis1=1, axis2=2)
        low, high = _bounds(right, images)
        columns = {
            "class": self.class_names,
            "images": images,
            "accuracy": ratio(right, images),
            "low": low,
            "high": high,
            "precision": ratio(right, predictions),
        }
        return Frame("layer class", LAYER).of(self, columns)


def _bounds(hits: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Wilson's 95 % interval [2, ...] of `hits` of `n` [...], NaN where n is 0."""
    some, bounds = n > 0, np.full((2, *n.shape), np.nan)
    if some.any():
        bounds[:, some] = wilson_interval(hits[some], n[some])
    return bounds


def confusion_matrix(result: ProbeResult) -> ConfusionMatrix:
    """The confusion matrix of every layer of a probe, from its `predicted` and `labels`."""
    classes = len(result.class_labels)
    true = np.searchsorted(result.class_labels, result.labels)
    counts = np.zeros((len(result.layers), classes, classes), dtype=np.int64)
    for layer, predicted in zip(counts, result.predicted, strict=True):
        answered = predicted != UNDEFINED
        np.add.at(
            layer, (true[answered], np.searchsorted(result.class_labels, predicted[answered])), 1
        )
    return ConfusionMatrix(
        result.model,
        result.images_train,
        result.images_test,
        result.layers,
        result.class_names,
        counts,
        result.method,
    )


_PER_LAYER = (
    "ece",
    "ece_null",
    "ece_null_high",
    "brier",
    "nll",
    "mean_confidence",
    "mean_accuracy",
)
_PER_BIN = ("confidence", "accuracy", "low", "high")


@dataclass(frozen=True)
class Calibration(Result):
    """Calibration of the probabilities of a probe, for each layer [L] and bin of confidence [L, B].

    The confidence is the probability of the predicted class, in bins of equal width (`edges` [B +
    1]). `ece`, the expected calibration error, is the mean over images of |accuracy - confidence|
    of their bins (Naeini et al. 2015; Guo et al. 2017). It is above 0 for perfect probabilities
    too, since bins have few images: `ece_null` is its mean, and `ece_null_high` its 95 % quantile,
    over `resamples` simulations of calibrated predictions (Broecker and Smith 2007). `brier` is the
    mean squared distance of the probabilities from the one-hot truth (0 to 2), `nll` the mean -ln
    of the probability of the truth. `source` names the origin of the probabilities; `temperature`
    [L] is 1 where they are those of the probe. `counts`, `confidence`, `accuracy`, `low` and `high`
    (Wilson) describe the bins, NaN where empty."""

    title: ClassVar[str] = "Calibration"
    frame = Frame(
        "layer",
        f"""{LAYER} ece ece_null ece_null_high brier nll mean_confidence mean_accuracy temperature
        n_test source""",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    ece: Annotated[np.ndarray, "layer"]
    ece_null: Annotated[np.ndarray, "layer"]
    ece_null_high: Annotated[np.ndarray, "layer"]
    brier: Annotated[np.ndarray, "layer"]
    nll: Annotated[np.ndarray, "layer"]
    mean_confidence: Annotated[np.ndarray, "layer"]
    mean_accuracy: Annotated[np.ndarray, "layer"]
    edges: Annotated[np.ndarray, "bin + 1"]
    counts: Annotated[np.ndarray, "layer", "bin"]
    confidence: Annotated[np.ndarray, "layer", "bin"]
    accuracy: Annotated[np.ndarray, "layer", "bin"]
    low: Annotated[np.ndarray, "layer", "bin"]
    high: Annotated[np.ndarray, "layer", "bin"]
    temperature: Annotated[np.ndarray, "layer"]
    n_test: int
    resamples: int
    seed: int
    source: str

    def bins_frame(self) -> pd.DataFrame:
        """One row per layer and bin."""
        columns = {"from": self.edges[:-1], "to": self.edges[1:], "images": self.counts}
        columns |= {name: getattr(self, name) for name in _PER_BIN}
        return Frame("layer bin", LAYER).of(self, columns)


@checked(MeasureError)
def calibration(
    result: ProbeResult,
    reps: Runs | None = None,
    *,
    bins: int = _BINS,
    resamples: int = 200,
    seed: int = 0,
) -> Calibration:
    """Calibration of a probe on its test images.

    Probabilities are those of the probe (`linear_probe(..., probabilities=True)`). Ridge scores are
    not probabilities: with `reps`, the (train, test) of the probe, they become such by a softmax
    whose temperature has the highest likelihood on the leave-one-out scores of the training images
    (Guo et al. 2017; never the test images).

    Raises MeasureError for a result with neither, other representations than the probe's, and fewer
    than one bin."""
    random, edges = np.random.default_rng(seed), np.linspace(0, 1, bins + 1)
    true = np.searchsorted(result.class_labels, result.labels)
    if result.probabilities is not None:
        found, temperature = iter(result.probabilities), np.ones(len(result.layers))
        source = f"probabilities of the {result.method} probe"
    else:
        if reps is None or result.method != "ridge":
            raise MeasureError(
                f"this {result.method} probe kept no probabilities: make it with "
                "probabilities=True where the method has them, or give reps=(train, test) of a "
                "ridge probe"
            )
        if (
            reps[0].images != result.images_train
            or reps[1].images != result.images_test
            or reps[0].model != result.model
        ):
            raise MeasureError(
                "reps= holds other images or another network than the probe was made from"
            )
        temperature = np.full(len(result.layers), np.nan)
        found = _ridge_probabilities(result, reps, temperature)
        source = "softmax of ridge scores, temperature by leave-one-out likelihood"
    layers = [_reliability(p.astype(np.float64), true, bins, resamples, random) for p in found]
    columns: dict[str, Any] = {
        name: np.array([layer[name] for layer in layers]) for name in layers[0]
    }
    return Calibration(
        model=result.model,
        images_train=result.images_train,
        images_test=result.images_test,
        layers=result.layers,
        edges=edges,
        temperature=temperature,
        n_test=result.n_test,
        resamples=resamples,
        seed=seed,
        source=source,
        **columns,
    )


def _ridge_probabilities(
    result: ProbeResult, reps: Runs, temperature: np.ndarray
) -> Iterator[np.ndarray]:
    """Probabilities [n, K] at one layer after the other, and their temperatures [L], which are
    filled in."""
    for i, (layer, l2) in enumerate(zip(result.layers, result.l2, strict=True)):
        if np.isnan(l2):
            yield np.full((result.n_test, len(result.class_labels)), np.nan)
            continue
        path = ridge_path(layer_matrix(reps[0], layer.name), reps[0].labels, [l2])
        left_out = path.leave_one_out_scores(float(l2))
        # One column for two classes, positive for the second.
        left_out = np.hstack([-left_out, left_out]) if left_out.shape[1] == 1 else left_out
        assert path.left is not None
        temperature[i] = best_temperature(left_out, path.left.labels.cpu().numpy())
        scores = path.scores(layer_matrix(reps[1], layer.name))[0]
        yield special.softmax(scores / temperature[i], axis=1)


def best_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The t > 0 for which softmax(scores [n, K] / t) has the highest likelihood of `labels` [n]
    (Guo et al. 2017)."""

    def loss(log_t: float) -> float:
        log = special.log_softmax(scores / np.exp(log_t), axis=1)
        return -float(log[np.arange(len(labels)), labels].mean())

    return float(
        np.exp(
            optimize.minimize_scalar(
                loss, bounds=(-12, 12), method="bounded", options={"xatol": 1e-8}
            ).x
        )
    )


def _reliability(
    p: np.ndarray, true: np.ndarray, bins: int, resamples: int, random: np.random.Generator
) -> dict[str, Any]:
    """The columns of `Calibration` for probabilities `p` [n, K] of one layer."""
    if not np.isfinite(p).all():
        empty = {name: np.full(bins, np.nan) for name in _PER_BIN}
        return (
            dict.fromkeys(_PER_LAYER, np.nan) | empty | {"counts": np.zeros(bins, dtype=np.int64)}
        )
    confidence, right = p.max(axis=1), p.argmax(axis=1) == true
    # A bin has its upper edge, so that a confidence of 1 is in the last.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    members = (place[:, None] == np.arange(bins)).astype(np.float64)
    counts = members.sum(axis=0)
    hits, expected = right @ members, confidence @ members
    # One resample after the other: all of them take n times as much memory.
    simulated = ((random.random(len(p)) < confidence) @ members for _ in range(resamples))
    null = np.array([np.abs(hit - expected).sum() / len(p) for hit in simulated])
    low, high = _bounds(hits, counts)
    return {
        "ece": np.abs(hits - expected).sum() / len(p),
        "ece_null": null.mean() if resamples else np.nan,
        "ece_null_high": upper_quantile(null) if resamples >= _FEWEST_DRAWS else np.nan,
        "brier": ((p - np.eye(p.shape[1])[true]) ** 2).sum(axis=1).mean(),
        "nll": -np.log(np.maximum(p[np.arange(len(p)), true], np.finfo(float).tiny)).mean(),
        "mean_confidence": confidence.mean(),
        "mean_accuracy": right.mean(),
        "counts": counts.astype(np.int64),
        "confidence": ratio(expected, counts),
        "accuracy": ratio(hits, counts),
        "low": low,
        "high": high,
    }
