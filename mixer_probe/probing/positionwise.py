"""One probe a position: where in the image the class can be read from a layer.

Every position of a layer has a ridge probe of its own on its channels. All positions of a layer share one penalty, that with
the highest leave-one-out accuracy on average over positions, so that a map shows differences between places, not penalties.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError, NonFiniteWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.ridge import checked_penalties, default_l2
from mixer_probe.linear.ridge_probe import ridge_path
from mixer_probe.models.layer import Layer
from mixer_probe.probing.runs import check_runs, run_labels
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.stats import wilson_interval

Labels = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PositionProbe(Result):
    """Accuracy on test images of a ridge probe at every position of every layer.

    For layer i with a grid of h rows and w columns `accuracy[i]`, `low[i]` and `high[i]` (Wilson's interval at 95 % for each
    position by itself), and `left_out[i]` (leave-one-out on the training images) are [h, w]; positions that form no grid are
    one row. `l2` [L] was chosen for all positions of a layer together, by `left_out`. `prefix[i]` [T] is the accuracy at the
    layer's T prefix tokens, `pooled` [L] that of the mean over positions, each with its own penalty, chosen alike; `prefix_low`,
    `prefix_high`, `pooled_low` and `pooled_high` bound them. `chance` is the share of the most frequent class of the test
    images. NaN marks positions with NaN or infinite features."""

    title: ClassVar[str] = "Probes by position"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    l2: np.ndarray
    accuracy: tuple[np.ndarray, ...]
    low: tuple[np.ndarray, ...]
    high: tuple[np.ndarray, ...]
    left_out: tuple[np.ndarray, ...]
    prefix: tuple[np.ndarray, ...]
    prefix_low: tuple[np.ndarray, ...]
    prefix_high: tuple[np.ndarray, ...]
    pooled: np.ndarray
    pooled_low: np.ndarray
    pooled_high: np.ndarray
    chance: float
    n_train: int
    n_test: int
    classes: int
    p: tuple[int, ...]
    estimator: str = "ridge, one l2 a layer by leave-one-out accuracy over all positions"

    def to_frame(self) -> pd.DataFrame:
        """One layer and position a row, by `row` and `column`; prefix tokens and the mean over positions have neither (-1).

        `place` is "position", "prefix" or "pooled", `index` counts within it."""
        return pd.concat([self._layer_frame(i) for i in range(len(self.layers))], ignore_index=True)

    def _layer_frame(self, i: int) -> pd.DataFrame:
        (h, w), tokens, layer = self.accuracy[i].shape, len(self.prefix[i]), self.layers[i]
        outside = np.full(tokens + 1, -1)

        def column(name: str) -> np.ndarray:
            pooled = getattr(self, f"pooled{name}")[i]
            positions = getattr(self, name[1:] or "accuracy")[i]
            return np.concatenate([positions.ravel(), getattr(self, f"prefix{name}")[i], [pooled]])

        return pd.DataFrame(
            {
                "model": self.model.name,
                "trained": self.model.trained,
                "layer": layer.name,
                "kind": layer.kind,
                "depth": layer.depth,
                "place": np.repeat(["position", "prefix", "pooled"], [h * w, tokens, 1]),
                "index": np.concatenate([np.arange(h * w), np.arange(tokens), [0]]),
                "row": np.concatenate([np.repeat(np.arange(h), w), outside]),
                "column": np.concatenate([np.tile(np.arange(w), h), outside]),
                "accuracy": column(""),
                "low": column("_low"),
                "high": column("_high"),
                "chance": self.chance,
                "n_train": self.n_train,
                "n_test": self.n_test,
                "classes": self.classes,
            }
        )


@dataclass(frozen=True)
class _Places:
    """Probes of S places that share a penalty: accuracies and bounds [S], leave-one-out accuracies [S], the penalty."""

    l2: float
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    left_out: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray, test: np.ndarray, labels: Labels, l2: np.ndarray) -> _Places:
        """Of features [n, S, p] of the training and the test images; NaN where they are not finite."""
        places = train.shape[1]
        left_out, right = np.full((places, len(l2)), np.nan), np.full((places, len(l2)), np.nan)
        usable = np.flatnonzero(np.isfinite(train).all(axis=(0, 2)) & np.isfinite(test).all(axis=(0, 2)))
        for s in usable:
            path = ridge_path(np.ascontiguousarray(train[:, s]), labels[0], l2)
            left_out[s] = path.left_out_accuracy()
            right[s] = (path.predict(np.ascontiguousarray(test[:, s])) == labels[1]).sum(axis=1)
        if not len(usable):
            nothing = np.full(places, np.nan)
            return cls(np.nan, nothing, nothing, nothing, nothing)
        # Sums of counts of images are exact, so that equal penalties are seen to be equal.
        best = last_best(np.round(left_out[usable] * len(labels[0])).sum(axis=0))
        low, high = np.full((2, places), np.nan)
        low[usable], high[usable] = wilson_interval(right[usable, best], len(labels[1]))
        return cls(float(l2[best]), right[:, best] / len(labels[1]), low, high, left_out[:, best])


def position_probe(
    reps_train: RepresentationsLike, reps_test: RepresentationsLike, l2: Sequence[float] | np.ndarray | None = None
) -> PositionProbe:
    """Fit a ridge probe at every position of every layer of `reps_train`, and measure its accuracy on `reps_test`.

    Both are extracted with reduce="none". Layers without positions (heads) are left out. `l2` is the path of penalties to choose
    from, by default `default_l2`. Positions with NaN or infinite features give NaN and a NonFiniteWarning.

    Raises MeasureError for representations without positions, two networks and penalties that are not positive; ImagesError if
    labels are missing, there is one class, a class is only in the test images or an image is in both sets."""
    labels = checked_runs(reps_train, reps_test)
    penalties = default_l2(len(labels[0])) if l2 is None else np.unique(checked_penalties(l2))
    layers = layers_with_positions(reps_train)
    found = [_layer(layer, (reps_train, reps_test), labels, penalties) for layer in layers]
    maps, tokens, pooled = zip(*found, strict=True)
    shapes = [map_shape(layer) for layer in layers]

    def by_grid(name: str) -> tuple[np.ndarray, ...]:
        return tuple(getattr(part, name).reshape(shape) for part, shape in zip(maps, shapes, strict=True))

    def by_token(name: str) -> tuple[np.ndarray, ...]:
        return tuple(np.array([getattr(token, name)[0] for token in part]) for part in tokens)

    return PositionProbe(
        model=reps_train.model,
        images_train=reps_train.images,
        images_test=reps_test.images,
        layers=layers,
        l2=np.array([part.l2 for part in maps]),
        accuracy=by_grid("accuracy"),
        low=by_grid("low"),
        high=by_grid("high"),
        left_out=by_grid("left_out"),
        prefix=by_token("accuracy"),
        prefix_low=by_token("low"),
        prefix_high=by_token("high"),
        pooled=np.array([part.accuracy[0] for part in pooled]),
        pooled_low=np.array([part.low[0] for part in pooled]),
        pooled_high=np.array([part.high[0] for part in pooled]),
        chance=chance(labels[1]),
        n_train=len(labels[0]),
        n_test=len(labels[1]),
        classes=len(np.unique(labels[0])),
        p=tuple(layer.channels for layer in layers),
    )


def checked_runs(train: RepresentationsLike, test: RepresentationsLike) -> Labels:
    """The labels of two runs with positions. Raises as `position_probe`."""
    check_runs(train, test)
    if train.reduce != "none":
        raise MeasureError(
            f"positions are needed, but the layers were extracted with reduce='{train.reduce}': take reduce='none'"
        )
    return run_labels(train, test)


def layers_with_positions(reps: RepresentationsLike) -> tuple[Layer, ...]:
    """Those layers. Raises MeasureError if there are none."""
    layers = tuple(layer for layer in reps.layers if layer.positions)
    if not layers:
        raise MeasureError(f"none of the layers has positions: {', '.join(layer.name for layer in reps.layers)}")
    return layers


def map_shape(layer: Layer) -> tuple[int, int]:
    """Rows and columns of a map; one row where positions form no grid."""
    return layer.grid or (1, layer.positions)


def chance(y: np.ndarray) -> float:
    """Share of the most frequent of the labels `y` [n]."""
    return float(np.unique(y, return_counts=True)[1].max() / len(y))


def _layer(
    layer: Layer, runs: tuple[RepresentationsLike, RepresentationsLike], labels: Labels, l2: np.ndarray
) -> tuple[_Places, list[_Places], _Places]:
    """Probes of the positions, of each prefix token, and of the mean over positions."""
    train, test = (np.asarray(run[layer.name]) for run in runs)
    warn_if_not_finite(layer.name, train, test)
    # A mean over infinities of both signs is NaN, as it should be.
    with np.errstate(invalid="ignore"):
        means = [part.mean(axis=1, dtype=np.float64, keepdims=True) for part in (train, test)]
    first, second = (prefix_of(run, layer) for run in runs)
    prefix = [_Places.of(first[:, t : t + 1], second[:, t : t + 1], labels, l2) for t in range(first.shape[1])]
    return _Places.of(train, test, labels, l2), prefix, _Places.of(means[0], means[1], labels, l2)


def warn_if_not_finite(name: str, *arrays: np.ndarray) -> None:
    """A NonFiniteWarning if any of the features of a layer are NaN or infinite."""
    bad = int(sum((~np.isfinite(array)).sum() for array in arrays))
    if bad:
        message = f"positions of layer '{name}' have no probe: {bad} of its features are NaN or infinite"
        warnings.warn(message, NonFiniteWarning, stacklevel=6)


def prefix_of(reps: RepresentationsLike, layer: Layer) -> np.ndarray:
    """The prefix tokens [n, T, p] of a layer; T is 0 where it has none."""
    reader = getattr(reps, "prefix", None)
    if not layer.prefix_tokens or reader is None:
        return np.empty((len(reps.ids), 0, layer.channels))
    return np.asarray(reader(layer.name))
