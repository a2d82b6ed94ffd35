"""Probes on a few images of every class, over several draws of them: curves of accuracy by shots, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning, closest
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.threads import side_by_side
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name, quoted
from mixer_probe.linear.classifier import last_best
from mixer_probe.linear.ridge import gram
from mixer_probe.linear.ridge_path import argmax
from mixer_probe.linear.scaling import block_of, blocks
from mixer_probe.linear.stratification import few_of_each
from mixer_probe.models.layer import Layer
from mixer_probe.probing.methods import ESTIMATORS, FITTERS, Values, find_fitter
from mixer_probe.probing.runs import Runs, check_runs, check_twin, layer_pair, run_labels
from mixer_probe.probing.scores import combined_interval, images_interval, seeds_interval
from mixer_probe.probing.tables import layer_columns
from mixer_probe.similarity.inputs import RepresentationsLike

BIG_VISION = "big_vision"
BIG_VISION_L2 = 2.0**10
# Large, so that the penalty hardly touches the weight that multiplies it: the bias.
BIAS = 100.0
# Keeps the deviations of big_vision from 0.
_EPSILON = 1e-5


@dataclass(frozen=True)
class FewShotResult(Result):
    """Accuracy [L, S, R] of probes on `shots` [S] images of every class, for R draws of these images.

    One draw of fewer shots is part of that of more. `mean` [L, S] is over draws. Its 95 % interval `low` to `high` is for other
    draws and other test images; `images_low` to `images_high` for other test images and these probes; `seeds_low` to
    `seeds_high` for other draws and these test images (NaN for one draw). `chosen` [L, S, R] are the values taken from each path
    by left-out accuracy. `preset` is "big_vision" or the method of the probe. NaN marks layers that are not finite."""

    title: ClassVar[str] = "Few-shot probes"

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: tuple[Layer, ...]
    preset: str
    estimator: str
    shots: tuple[int, ...]
    seeds: int
    accuracy: np.ndarray
    chosen: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images_low: np.ndarray
    images_high: np.ndarray
    seeds_low: np.ndarray
    seeds_high: np.ndarray
    chance: float
    n_test: int
    classes: int
    reduce: str
    untrained: FewShotResult | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean accuracy over draws, [L, S]."""
        return np.asarray(self.accuracy.mean(axis=-1))

    def to_frame(self) -> pd.DataFrame:
        """One layer and number of shots a row, of the network and then of its untrained twin."""
        count, bounds = len(self.shots), ("low", "high", "images_low", "images_high", "seeds_low", "seeds_high")
        frame = pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, count),
                "shots": np.tile(self.shots, len(self.layers)),
                "seeds": self.seeds,
                "accuracy": self.mean.ravel(),
                **{name: getattr(self, name).ravel() for name in bounds},
                "chance": self.chance,
                "n_test": self.n_test,
                "classes": self.classes,
                "preset": self.preset,
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.to_frame()], ignore_index=True)

    def draws_frame(self) -> pd.DataFrame:
        """One layer, number of shots and draw a row: accuracy and the value taken from the path."""
        count = len(self.shots) * self.seeds
        frame = pd.DataFrame(
            {
                **layer_columns(self.model, self.layers, count),
                "shots": np.tile(np.repeat(self.shots, self.seeds), len(self.layers)),
                "seed": np.tile(np.arange(self.seeds), len(self.layers) * len(self.shots)),
                "accuracy": self.accuracy.ravel(),
                "chosen": self.chosen.ravel(),
            }
        )
        if self.untrained is None:
            return frame
        return pd.concat([frame, self.untrained.draws_frame()], ignore_index=True)


@checked(MeasureError)
def few_shot_probe(
    train: RepresentationsLike,
    test: RepresentationsLike,
    shots: Sequence[int | str] = (1, 5, 10, 25),
    seeds: int = 3,
    preset: str = BIG_VISION,
    *,
    values: Values = None,
    untrained: Runs | None = None,
) -> FewShotResult:
    """Fit probes on a few images of every class of `train`, for every layer, number of shots and draw; test on all of `test`.

    The preset "big_vision" is the protocol of the Mixer and ViT papers (`fewshot_lsr`): `big_vision_probe` with a penalty of
    2^10, whatever the shots. A method ("ridge", "logistic", "knn", "centroid") is that probe, whose value is taken from its path
    (`values`, by default its own) by accuracy on left-out images of the few; of one shot none can be left out, and the simplest
    is taken. `untrained` is (train, test) of an untrained twin.

    Raises ImagesError if labels are missing, there is one class, a class has fewer images than shots or is only in the test
    images, or an image is in both; MeasureError for an unknown preset, shots or seeds below 1, layers with positions, and a twin
    that is trained or saw other images."""
    _check_settings(preset, values)
    check_runs(train, test)
    if untrained is not None:
        check_twin((train, test), untrained)
    y_train, y_test = run_labels(train, test)
    counts = check_shots(y_train, shots, train.class_names)
    draws = [[few_of_each(y_train, count, seed) for seed in range(seeds)] for count in counts]
    probe: _Probe = _BigVision() if preset == BIG_VISION else _Chosen(preset, values)
    work = partial(_probe_layer, runs=(train, test), labels=(y_train, y_test), draws=draws, probe=probe)
    names = [layer.name for layer in train.layers]
    found = [work(name) for name in names] if preset in ("logistic", "knn") else side_by_side(work, names)
    accuracy, chosen, *bounds = (np.stack(part) for part in zip(*found, strict=True))
    bound_names = ("low", "high", "images_low", "images_high", "seeds_low", "seeds_high")
    return FewShotResult(
        model=train.model,
        images_train=train.images,
        images_test=test.images,
        layers=train.layers,
        preset=preset,
        estimator=f"big_vision's fewshot_lsr, l2 = {BIG_VISION_L2:g}" if preset == BIG_VISION else ESTIMATORS[preset],
        shots=counts,
        seeds=seeds,
        accuracy=accuracy,
        chosen=chosen,
        **dict(zip(bound_names, bounds, strict=True)),
        chance=float(np.unique(y_test, return_counts=True)[1].max() / len(y_test)),
        n_test=len(y_test),
        classes=len(np.unique(y_train)),
        reduce=train.reduce,
        untrained=None if untrained is None else few_shot_probe(*untrained, shots, seeds, preset, values=values),
    )


def check_shots(y_train: np.ndarray, shots: Sequence[int | str], names: Sequence[str] | None) -> tuple[int, ...]:
    """The shots. Raises MeasureError unless they are positive numbers, and ImagesError if a class has fewer images."""
    counts = [s for s in shots if isinstance(s, (int, np.integer)) and s > 0]
    if not counts or len(counts) < len(shots):
        raise MeasureError(f"shots are positive numbers of images a class, got {tuple(shots)}")
    classes, sizes = np.unique(y_train, return_counts=True)
    least, most = int(sizes.argmin()), max(counts)
    if sizes[least] < most:
        have = f"{sizes[least]} image{'s' if sizes[least] > 1 else ''}"
        raise ImagesError(
            f"class {quoted(class_name(int(classes[least]), names))} has {have} in train, fewer than the {most} shots asked for: "
            f"take at most {sizes[least]}, or more images of it"
        )
    return tuple(int(count) for count in counts)


def _check_settings(preset: str, values: Values) -> None:
    if preset != BIG_VISION and preset not in FITTERS:
        raise MeasureError(f"there is no few-shot protocol '{preset}'; {closest(preset, (BIG_VISION, *FITTERS))}")
    if preset == BIG_VISION and values is not None:
        raise MeasureError("the big_vision protocol has one penalty: take preset='ridge' for a path of them")


class _Probe(Protocol):
    """Fits probes to several draws of one training set and tests them on the same images."""

    def __call__(
        self, X: np.ndarray, y: np.ndarray, draws: Sequence[np.ndarray], new: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classes [draws, images] predicted for features `new`, and the value taken for each draw [draws]."""


def _probe_layer(
    name: str,
    runs: Runs,
    labels: tuple[np.ndarray, np.ndarray],
    draws: Sequence[Sequence[np.ndarray]],
    probe: _Probe,
) -> tuple[np.ndarray, ...]:
    """Accuracy and values [S, R] of a layer, and the bounds [S] of three intervals."""
    train, test = layer_pair(*runs, name)
    shape = (len(draws), len(draws[0]))
    bad = int((~np.isfinite(train)).sum() + (~np.isfinite(test)).sum())
    if bad:
        warnings.warn(f"no probe of layer '{name}': {bad} of its features are NaN or infinite", NonFiniteWarning, stacklevel=5)
        return (*(np.full(shape, np.nan) for _ in range(2)), *(np.full(len(draws), np.nan) for _ in range(6)))
    predicted, chosen = probe(train, labels[0], [rows for draw in draws for rows in draw], test)
    right = (predicted == labels[1]).reshape(*shape, -1)
    accuracy = right.mean(axis=-1)
    bounds = (*combined_interval(right), *images_interval(right), *seeds_interval(accuracy))
    return accuracy, chosen.reshape(shape), *bounds


@dataclass(frozen=True)
class _Chosen:
    """Any probe, with the value that left-out images of the draw choose."""

    method: str
    values: Values

    def __call__(
        self, X: np.ndarray, y: np.ndarray, draws: Sequence[np.ndarray], new: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        found = [self._one(X[rows], y[rows], new) for rows in draws]
        return np.stack([classes for classes, _ in found]), np.array([value for _, value in found])

    def _one(self, X: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, float]:
        path = find_fitter(self.method)(X, y, self.values)
        # Of one image a class none can be left out: the simplest is taken.
        several = len(y) > len(path.classes)
        best = last_best(path.left_out_accuracy()) if several else len(path.values) - 1
        return path.predict(new)[best], float(path.values[best])


class _BigVision:
    """The protocol of big_vision."""

    def __call__(
        self, X: np.ndarray, y: np.ndarray, draws: Sequence[np.ndarray], new: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        classes = np.unique(y)
        fits = [big_vision_probe(X[rows], y[rows]) for rows in draws]
        # One product for all draws: they see the same test images.
        weights, bias = torch.cat([w for w, _ in fits], dim=1), torch.cat([b for _, b in fits])
        parts = []
        for rows in blocks(len(new), weights.shape[1]):
            scores = torch.addmm(bias, block_of(new, rows), weights)
            parts.append(argmax(scores.view(len(scores), len(draws), -1)))
        return classes[np.concatenate(parts).T], np.full(len(draws), BIG_VISION_L2)


def big_vision_probe(X: Any, y: np.ndarray, l2: float = BIG_VISION_L2) -> tuple[Tensor, Tensor]:
    """Weights [p, K] and bias [K] of big_vision's few-shot classifier on features `X` [n, p] and classes `y` [n].

    Features are centred and divided by their deviation + 1e-5, a column of 100 is appended (the bias, hardly penalised), and
    W = (X'X + l2 I)^-1 X'Y with targets of +1 and -1; W = X'(XX' + l2 I)^-1 Y for more features than images (big_vision,
    evaluators/fewshot_lsr.py). The weights are given for features as they are: scores are `X @ weights + bias`."""
    Z = block_of(X, slice(None))
    mean = Z.mean(0)
    scale = Z.sub_(mean).square().mean(0).sqrt() + _EPSILON
    Z = torch.nn.functional.pad(Z.div_(scale), (0, 1), value=BIAS)
    classes, labels = np.unique(y, return_inverse=True)
    Y = 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), len(classes)).double() - 1
    n, p = Z.shape
    W = _solve(gram(Z), Z.T @ Y, l2) if n >= p else Z.T @ _solve(gram(Z.T), Y, l2)
    weights = W[:-1] / scale[:, None]
    return weights, BIAS * W[-1] - mean @ weights


def _solve(gram: Tensor, right: Tensor, l2: float) -> Tensor:
    """(gram + l2 I)^-1 right."""
    gram.diagonal().add_(l2)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
