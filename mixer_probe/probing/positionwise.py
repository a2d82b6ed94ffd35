"""One probe per position: where in the image a layer encodes the class.

Every position of a layer has a ridge probe of its own on its channels. All positions of a layer
share one penalty, that with the highest leave-one-out accuracy on average over positions, so that a
map shows differences between positions, not penalties.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError, NonFiniteWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.ridge import checked_penalties, default_l2
from mixer_probe.linear.ridge_probe import ridge_path
from mixer_probe.models.layer import Layer
from mixer_probe.probing.runs import Labels, check_runs, count_non_finite, majority_rate, run_labels
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import wilson_interval


@dataclass(frozen=True)
class PositionProbe(Result):
    """Accuracy on test images of a ridge probe at every position of every layer.

    For layer i with a grid of h rows and w columns `accuracy[i]`, `low[i]` and `high[i]` (Wilson's
    interval at 95 % for each position by itself), and `left_out[i]` (leave-one-out on the training
    images) are [h, w]; positions without a grid are one row. `l2` [L] was chosen for all positions
    of a layer together, by `left_out`. `prefix[i]` [T] is the accuracy at the layer's T prefix
    tokens, `pooled` [L] that of the mean over positions, each with its own penalty, chosen alike;
    `prefix_low`, `prefix_high`, `pooled_low` and `pooled_high` bound them. `chance` is the
    frequency of the most frequent class of the test images. NaN marks positions with NaN or
    infinite features."""

    title: ClassVar[str] = "Probes by position"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    l2: Annotated[np.ndarray, "layer"]
    accuracy: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]
    low: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]
    high: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]
    left_out: Annotated[tuple[np.ndarray, ...], "layer", "row", "column"]
    prefix: Annotated[tuple[np.ndarray, ...], "layer", "token"]
    prefix_low: Annotated[tuple[np.ndarray, ...], "layer", "token"]
    prefix_high: Annotated[tuple[np.ndarray, ...], "layer", "token"]
    pooled: Annotated[np.ndarray, "layer"]
    pooled_low: Annotated[np.ndarray, "layer"]
    pooled_high: Annotated[np.ndarray, "layer"]
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: Annotated[tuple[int, ...], "layer"]
    estimator: str = "ridge, one l2 per layer by leave-one-out accuracy over all positions"

    def quantiles(self, q: Sequence[float]) -> np.ndarray:
        """Quantiles `q` [Q] over positions of the accuracy at each layer, [Q, L]; NaN where no
        position has a probe."""
        known = [part[np.isfinite(part)] for part in self.accuracy]
        return np.array(
            [np.quantile(part, q) if len(part) else np.full(len(q), np.nan) for part in known]
        ).T

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and position, by `row` and `column`; prefix tokens and the mean over
        positions have neither (-1).

        `place` is "position", "prefix" or "pooled", `index` counts within it."""
        frames = []
        for i, layer in enumerate(self.layers):
            (h, w), tokens = self.accuracy[i].shape, len(self.prefix[i])
            outside = np.full(tokens + 1, -1)
            numbers = {
                "accuracy": (self.accuracy, self.prefix, self.pooled),
                "low": (self.low, self.prefix_low, self.pooled_low),
                "high": (self.high, self.prefix_high, self.pooled_high),
            }
            columns = {
                "model": self.model.name,
                "trained": self.model.trained,
                "layer": layer.name,
                "kind": layer.kind,
                "depth": layer.depth,
                "place": np.repeat(["position", "prefix", "pooled"], [h * w, tokens, 1]),
                "index": np.concatenate([np.arange(h * w), np.arange(tokens), [0]]),
                "row": np.concatenate([np.repeat(np.arange(h), w), outside]),
                "column": np.concatenate([np.tile(np.arange(w), h), outside]),
                **{
                    name: np.concatenate([np.ravel(part[i]) for part in parts])
                    for name, parts in numbers.items()
                },
                "chance": self.chance,
                "n_train": self.n_train,
                "n_test": self.n_test,
                "classes": self.classes,
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)


def position_probe(
    reps_train: RepresentationsLike,
    reps_test: RepresentationsLike,
    l2: Sequence[float] | np.ndarray | None = None,
) -> PositionProbe:
    """Accuracy on `reps_test` of a ridge probe fitted at every position of every layer of
    `reps_train`.

    Both are extracted with reduce="none". Layers without positions (heads) are left out. `l2` is
    the path of penalties to choose from, by default `default_l2`. Positions with NaN or infinite
    features give NaN and a NonFiniteWarning.

    Raises MeasureError for representations without positions, two networks and penalties that are
    not positive; ImagesError if labels are missing, there is one class, a class is only in the test
    images or an image is in both sets."""
    labels = checked_runs(reps_train, reps_test)
    penalties = default_l2(len(labels[0])) if l2 is None else np.unique(checked_penalties(l2))
    layers = layers_with_positions(reps_train)
    maps, tokens, pooled = [], [], []
    for layer in layers:
        features = [np.asarray(run[layer.name]) for run in (reps_train, reps_test)]
        warn_positions(layer.name, *features)
        # A mean over infinities of both signs is NaN, as it should be.
        with np.errstate(invalid="ignore"):
            means = [part.mean(axis=1, dtype=np.float64, keepdims=True) for part in features]
        prefix = [prefix_of(run, layer) for run in (reps_train, reps_test)]
        each = [
            _fit_positions([part[:, t : t + 1] for part in prefix], labels, penalties)
            for t in range(prefix[0].shape[1])
        ]
        maps.append(_fit_positions(features, labels, penalties).shaped(map_shape(layer)))
        pooled.append(_fit_positions(means, labels, penalties))
        tokens.append(
            {
                name: np.array([getattr(token, name)[0] for token in each])
                for name in ("accuracy", "low", "high")
            }
        )
    return PositionProbe(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=layers,
        l2=np.array([part.l2 for part in maps]),
        accuracy=tuple(part.accuracy for part in maps),
        low=tuple(part.low for part in maps),
        high=tuple(part.high for part in maps),
        left_out=tuple(part.left_out for part in maps),
        prefix=tuple(part["accuracy"] for part in tokens),
        prefix_low=tuple(part["low"] for part in tokens),
        prefix_high=tuple(part["high"] for part in tokens),
        pooled=np.array([part.accuracy[0] for part in pooled]),
        pooled_low=np.array([part.low[0] for part in pooled]),
        pooled_high=np.array([part.high[0] for part in pooled]),
        chance=majority_rate(labels[1]),
        n_train=len(labels[0]),
        n_test=len(labels[1]),
        classes=len(np.unique(labels[0])),
        p=tuple(layer.channels for layer in layers),
    )


class _PositionScores(NamedTuple):
    """Probes of S positions that share a penalty: accuracies, bounds and leave-one-out accuracies
    [S]."""

    l2: float
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    left_out: np.ndarray

    def shaped(self, shape: tuple[int, int]) -> _PositionScores:
        """The same as maps of rows and columns."""
        return _PositionScores(self.l2, *(part.reshape(shape) for part in self[1:]))


def _fit_positions(
    features: Sequence[np.ndarray], labels: Labels, l2: np.ndarray
) -> _PositionScores:
    """Probes of features [n, S, p] of the training and the test images; NaN where they are not
    finite."""
    train, test = features
    positions, n = train.shape[1], len(labels[1])
    left_out, right = np.full((2, positions, len(l2)), np.nan)
    usable = np.flatnonzero(
        np.isfinite(train).all(axis=(0, 2)) & np.isfinite(test).all(axis=(0, 2))
    )
    for s in usable:
        path = ridge_path(np.ascontiguousarray(train[:, s]), labels[0], l2)
        left_out[s] = path.left_out_accuracy()
        right[s] = (path.predict(np.ascontiguousarray(test[:, s])) == labels[1]).sum(axis=1)
    low, high = np.full((2, positions), np.nan)
    if not len(usable):
        return _PositionScores(np.nan, low, low, high, low)
    # Sums of counts of images are exact, so that equal penalties are recognised as equal.
    best = last_best(np.round(left_out[usable] * len(labels[0])).sum(axis=0))
    low[usable], high[usable] = wilson_interval(right[usable, best], n)
    return _PositionScores(float(l2[best]), right[:, best] / n, low, high, left_out[:, best])


def checked_runs(train: RepresentationsLike, test: RepresentationsLike) -> Labels:
    """The labels of two runs with positions. Raises as `position_probe`."""
    check_runs(train, test)
    if train.reduce != "none":
        raise MeasureError(
            f"positions are needed, but the layers were extracted with reduce='{train.reduce}': "
            "take reduce='none'"
        )
    return run_labels(train, test)


def layers_with_positions(reps: RepresentationsLike) -> tuple[Layer, ...]:
    """The layers that have positions. Raises MeasureError if there are none."""
    layers = tuple(layer for layer in reps.layers if layer.positions)
    if not layers:
        raise MeasureError(
            f"none of the layers has positions: {', '.join(layer.name for layer in reps.layers)}"
        )
    return layers


def map_shape(layer: Layer) -> tuple[int, int]:
    """Rows and columns of a map; one row for positions without a grid."""
    return layer.grid or (1, layer.positions)


def warn_positions(name: str, *features: np.ndarray) -> bool:
    """Whether any of the features of a layer are NaN or infinite; warns with NonFiniteWarning if
    so."""
    bad = count_non_finite(*features)
    if bad:
        message = (
            f"positions of layer '{name}' have no probe: {bad} of its features are NaN or infinite"
        )
        warnings.warn(message, NonFiniteWarning, stacklevel=3)
    return bad > 0


def prefix_of(reps: RepresentationsLike, layer: Layer) -> np.ndarray:
    """The prefix tokens [n, T, p] of a layer; T is 0 where it has none."""
    reader = getattr(reps, "prefix", None)
    if not layer.prefix_tokens or reader is None:
        return np.empty((len(reps.ids), 0, layer.channels))
    return np.asarray(reader(layer.name))
