"""Probes on a few images per class, over several draws of them: accuracy against images per class,
with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.core.errors import ImagesError, MeasureError, closest
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.threads import parallel_map
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name, quoted
from mixer_probe.linear.classifier import last_best, predict_one
from mixer_probe.linear.ridge import gram
from mixer_probe.linear.ridge_path import argmax
from mixer_probe.linear.scaling import block_of, blocks
from mixer_probe.linear.stratification import few_of_each
from mixer_probe.models.layer import Layer
from mixer_probe.probing.methods import ESTIMATORS, FITTERS, Values, find_fitter
from mixer_probe.probing.runs import (
    LAYER,
    Labels,
    Runs,
    check_runs,
    check_untrained,
    finite_pair,
    majority_rate,
    run_labels,
)
from mixer_probe.probing.scores import combined_interval, images_interval, seeds_interval
from mixer_probe.similarity.inputs import RepresentationsLike

SHOTS = (1, 5, 10, 25)
BIG_VISION = "big_vision"
BIG_VISION_L2 = 2.0**10
# Large, so that the penalty hardly affects the weight that multiplies it: the bias.
BIAS = 100.0
# Keeps the deviations of big_vision from 0.
_EPSILON = 1e-5
_BOUNDS = ("low", "high", "images_low", "images_high", "seeds_low", "seeds_high")


@dataclass(frozen=True)
class FewShotResult(Result):
    """Accuracy [L, S, R] of probes on `shots` [S] images per class, for R draws of these images.

    A draw of fewer shots is part of that of more. `mean` [L, S] is over draws. Its 95 % interval
    `low` to `high` is for other draws and other test images; `images_low` to `images_high` for
    other test images and these probes; `seeds_low` to `seeds_high` for other draws and these test
    images (NaN for one draw). `chosen` [L, S, R] are the values chosen from each path by left-out
    accuracy. `preset` is "big_vision" or the method of the probe. NaN marks layers that are not
    finite."""

    title: ClassVar[str] = "Few-shot probes"
    frame = Frame(
        "layer shot",
        f"""{LAYER} shots seeds accuracy=mean low high images_low images_high seeds_low seeds_high
        chance n_test classes preset""",
        below="untrained",
    )

    model: ModelRecord
    images_train: ImagesRecord
    images_test: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    preset: str
    estimator: str
    shots: Annotated[tuple[int, ...], "shot"]
    seeds: int
    accuracy: Annotated[np.ndarray, "layer", "shot", "seed"]
    chosen: Annotated[np.ndarray, "layer", "shot", "seed"]
    low: Annotated[np.ndarray, "layer", "shot"]
    high: Annotated[np.ndarray, "layer", "shot"]
    images_low: Annotated[np.ndarray, "layer", "shot"]
    images_high: Annotated[np.ndarray, "layer", "shot"]
    seeds_low: Annotated[np.ndarray, "layer", "shot"]
    seeds_high: Annotated[np.ndarray, "layer", "shot"]
    chance: float
    n_test: int
    classes: int
    reduce: str
    untrained: FewShotResult | None = None

    @property
    def mean(self) -> Annotated[np.ndarray, "layer", "shot"]:
        """Mean accuracy over draws, [L, S]."""
        return np.asarray(self.accuracy.mean(axis=-1))

    def draws_frame(self) -> pd.DataFrame:
        """One row per layer, number of shots and draw: accuracy and the value chosen from the
        path."""
        columns = f"{LAYER} shots seed accuracy chosen"
        return Frame("layer shot seed", columns, below="untrained").of(self)


@checked(MeasureError)
def few_shot_probe(
    train: RepresentationsLike,
    test: RepresentationsLike,
    shots: Sequence[int | str] | None = SHOTS,
    seeds: int = 3,
    preset: str = BIG_VISION,
    *,
    values: Values = None,
    untrained: Runs | None = None,
) -> FewShotResult:
    """Accuracy on `test` of probes fitted on a few images per class of `train`, for every layer,
    number of shots and draw.

    The preset "big_vision" is the protocol of the Mixer and ViT papers (`fewshot_lsr`):
    `big_vision_probe` with a penalty of 2^10, whatever the shots. A method ("ridge", "logistic",
    "knn", "centroid") is that probe, whose value is chosen from its path (`values`, by default its
    own) by accuracy on left-out images of the few; of one shot none can be left out, and the
    simplest is taken. `shots` None takes those of 1, 5, 10 and 25 that every class has. `untrained`
    is (train, test) of an untrained baseline.

    Raises ImagesError if labels are missing, there is one class, a class has fewer images than
    shots or is only in the test images, or an image is in both; MeasureError for an unknown preset,
    shots or seeds below 1, layers with positions, and a baseline that is trained or was run on
    other images."""
    if preset != BIG_VISION and preset not in FITTERS:
        raise MeasureError(
            f"there is no few-shot protocol '{preset}'; {closest(preset, (BIG_VISION, *FITTERS))}"
        )
    if preset == BIG_VISION and values is not None:
        raise MeasureError(
            "the big_vision protocol has one penalty: take preset='ridge' for a path of them"
        )
    check_runs(train, test)
    check_untrained((train, test), untrained)
    labels = run_labels(train, test)
    if shots is None:
        fewest = int(np.unique(labels[0], return_counts=True)[1].min())
        shots = [count for count in SHOTS if count <= fewest]
    counts = check_shots(labels[0], shots, train.class_names)
    draws = [few_of_each(labels[0], count, seed) for count in counts for seed in range(seeds)]
    options: dict[str, Any] = {
        "runs": (train, test),
        "labels": labels,
        "draws": draws,
        "seeds": seeds,
    }
    options |= {"preset": preset, "values": values}
    names = [layer.name for layer in train.layers]
    if preset in ("logistic", "knn"):
        found = [_probe_layer(name, **options) for name in names]
    else:
        found = parallel_map(partial(_probe_layer, **options), names)
    columns: dict[str, Any] = {
        name: np.stack([layer[name] for layer in found]) for name in found[0]
    }
    return FewShotResult(
        model=train.model,
        images_train=train.images,
        images_test=test.images,
        layers=train.layers,
        preset=preset,
        estimator=f"big_vision's fewshot_lsr, l2 = {BIG_VISION_L2:g}"
        if preset == BIG_VISION
        else ESTIMATORS[preset],
        shots=counts,
        seeds=seeds,
        **columns,
        chance=majority_rate(labels[1]),
        n_test=len(labels[1]),
        classes=len(np.unique(labels[0])),
        reduce=train.reduce,
        untrained=None
        if untrained is None
        else few_shot_probe(*untrained, shots, seeds, preset, values=values),
    )


def check_shots(
    y_train: np.ndarray, shots: Sequence[int | str], names: Sequence[str] | None
) -> tuple[int, ...]:
    """The shots. Raises MeasureError unless they are positive numbers, and ImagesError if a class
    has fewer images."""
    counts = [s for s in shots if isinstance(s, (int, np.integer)) and s > 0]
    if not counts or len(counts) < len(shots):
        raise MeasureError(f"shots are positive numbers of images a class, got {tuple(shots)}")
    classes, sizes = np.unique(y_train, return_counts=True)
    least, most = int(sizes.argmin()), max(counts)
    if sizes[least] < most:
        have = f"{sizes[least]} image{'s' if sizes[least] > 1 else ''}"
        raise ImagesError(
            f"class {quoted(class_name(int(classes[least]), names))} has {have} in train, fewer "
            f"than the {most} shots asked for: take at most {sizes[least]}, or more images of it"
        )
    return tuple(int(count) for count in counts)


def _probe_layer(
    name: str,
    runs: Runs,
    labels: Labels,
    draws: Sequence[np.ndarray],
    seeds: int,
    preset: str,
    values: Values,
) -> dict[str, np.ndarray]:
    """Accuracy and chosen values [S, R] of a layer, and the bounds [S] of three intervals; NaN
    where it is not finite."""
    pair, shape = finite_pair(*runs, name), (len(draws) // seeds, seeds)
    if pair is None:
        nan = np.full(shape, np.nan)
        return {"accuracy": nan, "chosen": nan, **dict.fromkeys(_BOUNDS, nan[:, 0])}
    (X, new), y = pair, labels[0]
    # Of a stored run only these images are read.
    few = np.unique(np.concatenate(draws))
    X, y, draws = X[few], y[few], [np.searchsorted(few, rows) for rows in draws]
    if preset == BIG_VISION:
        fits, chosen = (
            [big_vision_probe(X[rows], y[rows]) for rows in draws],
            np.full(len(draws), BIG_VISION_L2),
        )
        # One product for all draws on the same test images.
        weights, bias = torch.cat([w for w, _ in fits], dim=1), torch.cat([b for _, b in fits])
        predicted, classes = np.empty((len(draws), len(new)), dtype=y.dtype), np.unique(y)
        for part in blocks(len(new), weights.shape[1]):
            scores = torch.addmm(bias, block_of(new, part), weights)
            predicted[:, part] = classes[argmax(scores.view(len(scores), len(draws), -1)).T]
    else:
        predicted, chosen = np.empty((len(draws), len(new)), dtype=y.dtype), np.empty(len(draws))
        for i, rows in enumerate(draws):
            path = find_fitter(preset)(X[rows], y[rows], values)
            # Of one image per class none can be left out: the simplest value is taken.
            best = (
                int(last_best(path.left_out_accuracy()))
                if len(rows) > len(path.classes)
                else len(path.values) - 1
            )
            predicted[i], chosen[i] = predict_one(path, new, best), path.values[best]
    right = (predicted == labels[1]).reshape(*shape, -1)
    accuracy = right.mean(axis=-1)
    bounds = (*combined_interval(right), *images_interval(right), *seeds_interval(accuracy))
    return {
        "accuracy": accuracy,
        "chosen": chosen.reshape(shape),
        **dict(zip(_BOUNDS, bounds, strict=True)),
    }


def big_vision_probe(X: Any, y: np.ndarray, l2: float = BIG_VISION_L2) -> tuple[Tensor, Tensor]:
    """Weights [p, K] and bias [K] of big_vision's few-shot classifier on features `X` [n, p] and
    classes `y` [n].

    Features are centred and divided by their deviation + 1e-5, a column of 100 is appended (the
    bias, hardly penalised), and W = (X'X + l2 I)^-1 X'Y with targets of +1 and -1; W = X'(XX' + l2
    I)^-1 Y for more features than images (big_vision, evaluators/fewshot_lsr.py). The weights are
    given for features as they are: scores are `X @ weights + bias`."""
    Z = block_of(X, slice(None))
    mean = Z.mean(0)
    scale = Z.sub_(mean).square().mean(0).sqrt() + _EPSILON
    Z = torch.nn.functional.pad(Z.div_(scale), (0, 1), value=BIAS)
    classes, labels = np.unique(y, return_inverse=True)
    Y = 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), len(classes)).double() - 1
    # The dual form has the smaller matrix where there are more features than images.
    wide = Z.shape[1] > Z.shape[0]
    matrix = gram(Z.T if wide else Z)
    matrix.diagonal().add_(l2)
    factor = torch.linalg.cholesky(matrix)
    W = Z.T @ torch.cholesky_solve(Y, factor) if wide else torch.cholesky_solve(Z.T @ Y, factor)
    weights = W[:-1] / scale[:, None]
    return weights, BIAS * W[-1] - mean @ weights
