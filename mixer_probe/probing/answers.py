"""What the answers of a probe look like class by class, and whether its probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy import optimize, special

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.linear.ridge_probe import ridge_path
from mixer_probe.models.layer import Layer
from mixer_probe.probing.layer_probes import UNDEFINED, ProbeResult
from mixer_probe.probing.runs import Runs
from mixer_probe.probing.tables import layer_columns
from mixer_probe.similarity.inputs import layer_matrix
from mixer_probe.stats import upper_quantile, wilson_interval

_BINS = 15
# With fewer draws no further one lies beyond all of them in 5 % of cases or less.
_FEWEST_DRAWS = 19


@dataclass(frozen=True)
class ConfusionMatrix(Result):
    """How many test images of each class (rows) each layer takes for each class (columns): `counts` [L, K, K].

    The classes are those that the probe was fitted on. A layer without answers has zeros."""

    title: ClassVar[str] = "Confusion"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    class_names: tuple[str, ...]
    counts: np.ndarray
    method: str

    @property
    def shares(self) -> np.ndarray:
        """Of the images of each true class, [L, K, K]; NaN for a class without test images."""
        totals = self.counts.sum(axis=2, keepdims=True)
        shares: np.ndarray = np.divide(self.counts, totals, out=np.full(self.counts.shape, np.nan), where=totals > 0)
        return shares

    def to_frame(self) -> pd.DataFrame:
        """One layer, true class and predicted class a row."""
        k = len(self.class_names)
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, k * k),
                "true": np.tile(np.repeat(self.class_names, k), len(self.layers)),
                "predicted": np.tile(self.class_names, k * len(self.layers)),
                "images": self.counts.ravel(),
                "share": self.shares.ravel(),
            }
        )

    def per_class(self) -> pd.DataFrame:
        """One layer and class a row: accuracy on its images with Wilson's 95 % interval, and precision, the share of the answers
        with that class that are right. NaN where there are no images, or no such answers."""
        images, answers = self.counts.sum(axis=2).ravel(), self.counts.sum(axis=1).ravel()
        right = np.diagonal(self.counts, axis1=1, axis2=2).ravel()
        some = images > 0
        bounds = np.full((2, len(images)), np.nan)
        if some.any():
            bounds[:, some] = wilson_interval(right[some], images[some])
        empty = np.full(len(images), np.nan)
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, len(self.class_names)),
                "class": np.tile(self.class_names, len(self.layers)),
                "images": images,
                "accuracy": np.divide(right, images, out=empty.copy(), where=some),
                "low": bounds[0],
                "high": bounds[1],
                "precision": np.divide(right, answers, out=empty.copy(), where=answers > 0),
            }
        )


def confusion_matrix(result: ProbeResult) -> ConfusionMatrix:
    """The confusion matrix of every layer of a probe, from its `predicted` and `labels`."""
    classes = len(result.class_labels)
    true = np.searchsorted(result.class_labels, result.labels)
    counts = np.zeros((len(result.layers), classes, classes), dtype=np.int64)
    for layer, predicted in zip(counts, result.predicted, strict=True):
        answered = predicted != UNDEFINED
        np.add.at(layer, (true[answered], np.searchsorted(result.class_labels, predicted[answered])), 1)
    return ConfusionMatrix(
        result.model, result.images_train, result.images_test, result.layers, result.class_names, counts, result.method
    )


@dataclass(frozen=True)
class Calibration(Result):
    """Whether a probe that says 80 % is right 80 % of the time, for each layer [L] and bin of confidence [L, B].

    The confidence is the probability of the predicted class, in bins of equal width (`edges` [B + 1]). `ece`, the expected
    calibration error, is the mean over images of |accuracy - confidence| of their bins (Naeini et al. 2015; Guo et al. 2017). It
    is above 0 for perfect probabilities too, since bins have few images: `ece_null` is its mean, and `ece_null_high` its 95 %
    quantile, over `resamples` draws of answers that are right as often as they say (Broecker and Smith 2007). `brier` is the mean
    squared distance of the probabilities from the one-hot truth (0 to 2), `nll` the mean -ln of the probability of the truth.
    `source` says where the probabilities are from; `temperature` [L] is 1 where they were taken as they are. `counts`,
    `confidence`, `accuracy`, `low` and `high` (Wilson) describe the bins, NaN where empty."""

    title: ClassVar[str] = "Calibration"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    ece: np.ndarray
    ece_null: np.ndarray
    ece_null_high: np.ndarray
    brier: np.ndarray
    nll: np.ndarray
    mean_confidence: np.ndarray
    mean_accuracy: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    temperature: np.ndarray
    n_test: int
    resamples: int
    seed: int
    source: str

    def to_frame(self) -> pd.DataFrame:
        """One layer a row."""
        names = ("ece", "ece_null", "ece_null_high", "brier", "nll", "mean_confidence", "mean_accuracy", "temperature")
        numbers = {name: getattr(self, name) for name in names}
        return pd.DataFrame({**layer_columns(self.model, self.layers), **numbers, "n_test": self.n_test, "source": self.source})

    def bins_frame(self) -> pd.DataFrame:
        """One layer and bin a row."""
        layers = len(self.layers)
        return pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, len(self.edges) - 1),
                "from": np.tile(self.edges[:-1], layers),
                "to": np.tile(self.edges[1:], layers),
                "images": self.counts.ravel(),
                **{name: getattr(self, name).ravel() for name in ("confidence", "accuracy", "low", "high")},
            }
        )


@checked(MeasureError)
def calibration(
    result: ProbeResult, reps: Runs | None = None, *, bins: int = _BINS, resamples: int = 200, seed: int = 0
) -> Calibration:
    """Calibration of a probe on its test images.

    Probabilities are those the probe kept (`linear_probe(..., probabilities=True)`), as they are. Ridge scores are no
    probabilities: with `reps`, the (train, test) that the probe was made from, they become such by a softmax whose temperature
    has the highest likelihood on the leave-one-out scores of the training images (Guo et al. 2017; never the test images).

    Raises MeasureError for a result with neither, other representations than the probe's, and fewer than one bin."""
    found, temperature, source = _probabilities(result, reps)
    true = np.searchsorted(result.class_labels, result.labels)
    random = np.random.default_rng(seed)
    edges = np.linspace(0, 1, bins + 1)
    layers = [_reliability(p.astype(np.float64), true, edges, resamples, random) for p in found]
    columns: dict[str, Any] = {name: np.array([layer[name] for layer in layers]) for name in layers[0]}
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


def _probabilities(result: ProbeResult, reps: Runs | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Probabilities [L, n, K], temperatures [L], and where they are from."""
    if result.probabilities is not None:
        return result.probabilities, np.ones(len(result.layers)), f"probabilities of the {result.method} probe"
    if reps is None or result.method != "ridge":
        raise MeasureError(
            f"this {result.method} probe kept no probabilities: make it with probabilities=True where the method has them, "
            "or give reps=(train, test) of a ridge probe"
        )
    if reps[0].images != result.images_train or reps[1].images != result.images_test or reps[0].model != result.model:
        raise MeasureError("reps= holds other images or another network than the probe was made from")
    pairs = [_scaled(result, reps, i) for i in range(len(result.layers))]
    source = "softmax of ridge scores, temperature by leave-one-out likelihood"
    return np.stack([p for p, _ in pairs]), np.array([t for _, t in pairs]), source


def _scaled(result: ProbeResult, reps: Runs, i: int) -> tuple[np.ndarray, float]:
    l2, name = float(result.l2[i]), result.layers[i].name
    if np.isnan(l2):
        return np.full((result.n_test, len(result.class_labels)), np.nan), np.nan
    path = ridge_path(layer_matrix(reps[0], name), reps[0].labels, [l2])
    left_out = two_sided(path.leave_one_out_scores(l2))
    assert path.left is not None
    temperature = best_temperature(left_out, path.left.labels.cpu().numpy())
    probabilities: np.ndarray = special.softmax(path.scores(layer_matrix(reps[1], name))[0] / temperature, axis=1)
    return probabilities, temperature


def two_sided(scores: np.ndarray) -> np.ndarray:
    """Scores [n, K]; the single column of two classes, positive for the second, becomes two that are opposite."""
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores


def best_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The t > 0 for which softmax(scores [n, K] / t) has the highest likelihood of `labels` [n] (Guo et al. 2017)."""

    def loss(log_t: float) -> float:
        log = special.log_softmax(scores / np.exp(log_t), axis=1)
        return -float(log[np.arange(len(labels)), labels].mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-12, 12), method="bounded", options={"xatol": 1e-8}).x))


def _reliability(
    p: np.ndarray, true: np.ndarray, edges: np.ndarray, resamples: int, random: np.random.Generator
) -> dict[str, Any]:
    """The columns of `Calibration` for probabilities `p` [n, K] of one layer."""
    bins = len(edges) - 1
    if not np.isfinite(p).all():
        one = ("ece", "ece_null", "ece_null_high", "brier", "nll", "mean_confidence", "mean_accuracy")
        empty = {name: np.full(bins, np.nan) for name in ("confidence", "accuracy", "low", "high")}
        return dict.fromkeys(one, np.nan) | empty | {"counts": np.zeros(bins, dtype=np.int64)}
    confidence, right = p.max(axis=1), p.argmax(axis=1) == true
    # A bin has its upper edge, so that a confidence of 1 is in the last.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    members = (place[:, None] == np.arange(bins)).astype(np.float64)
    counts = members.sum(axis=0)
    hits, said = right @ members, confidence @ members
    drawn = (random.random((resamples, len(p))) < confidence) @ members
    null = np.abs(drawn - said).sum(axis=1) / len(p)
    some = counts > 0
    bounds = np.full((2, bins), np.nan)
    bounds[:, some] = wilson_interval(hits[some], counts[some])
    hot = np.eye(p.shape[1])[true]
    return {
        "ece": np.abs(hits - said).sum() / len(p),
        "ece_null": null.mean() if resamples else np.nan,
        "ece_null_high": upper_quantile(null) if resamples >= _FEWEST_DRAWS else np.nan,
        "brier": ((p - hot) ** 2).sum(axis=1).mean(),
        "nll": -np.log(np.maximum(p[np.arange(len(p)), true], np.finfo(float).tiny)).mean(),
        "mean_confidence": confidence.mean(),
        "mean_accuracy": right.mean(),
        "counts": counts.astype(np.int64),
        "confidence": np.divide(said, counts, out=np.full(bins, np.nan), where=some),
        "accuracy": np.divide(hits, counts, out=np.full(bins, np.nan), where=some),
        "low": bounds[0],
        "high": bounds[1],
    }
