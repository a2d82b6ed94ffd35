"""How many channels a classifier needs: accuracy from the most selective channels, and from as many
at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np

from mixer_probe.channels.image_means import ImageMeans
from mixer_probe.channels.layerwise import Layerwise
from mixer_probe.channels.selectivity import ClassSelectivity, class_selectivity
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.linear.classifier import predict_one
from mixer_probe.linear.moments import RidgeMoments
from mixer_probe.linear.ridge import default_l2
from mixer_probe.linear.ridge_probe import RidgeProbe
from mixer_probe.linear.stratification import stratified
from mixer_probe.models.layer import Layer
from mixer_probe.probing.centroid import centroid_path
from mixer_probe.probing.runs import check_runs, run_labels
from mixer_probe.similarity.inputs import RepresentationsLike

Probe = Literal["ridge", "centroid"]
# Images that are left out in turn to choose a penalty, of more.
_LEFT_OUT = 2000
# Classes [image] of activations [image, channel].
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ChannelsNeeded(Layerwise, Result):
    """Accuracy on the test images of a classifier on few channels of a layer. Tuples are over
    layers.

    `counts` [count] are numbers of channels, the last all of the layer. `selective` [count] is the
    accuracy of the most selective channels of the training images, class by class in turn. `random`
    [count, draw] is that of random channels; the subsets of a draw are nested. `chance` is the
    fraction of test images in the most frequent class. The probe is "ridge" (penalty by
    leave-one-out accuracy) or "centroid" (nearest class mean of standardised channels)."""

    title: ClassVar[str] = "Channels needed"
    frame = Frame(
        "layer count",
        """model=model.name layer=layers.name layers.depth probe channels=counts selective
        random=random.mean random_low=random.min random_high=random.max draws=draw chance n_train
        n_test=n""",
    )

    model: ModelRecord
    train_images: ImagesRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    n_train: int
    n: int
    probe: str
    seed: int
    chance: float
    counts: Annotated[tuple[np.ndarray, ...], "layer", "count"]
    selective: Annotated[tuple[np.ndarray, ...], "layer", "count"]
    random: Annotated[tuple[np.ndarray, ...], "layer", "count", "draw"]

    @checked(MeasureError)
    def needed(self, fraction: float = 0.9) -> np.ndarray:
        """The smallest of `counts` [layer] that reaches the fraction `fraction` of the gain over
        chance of all channels.

        NaN for a layer in which all channels do no better than chance."""
        found = np.full(len(self.layers), np.nan)
        for i, (counts, accuracy) in enumerate(zip(self.counts, self.selective, strict=True)):
            gain = accuracy - self.chance
            if gain[-1] > 0:
                found[i] = counts[np.argmax(gain >= fraction * gain[-1] - 1e-12)]
        return found


@checked(MeasureError)
def channels_needed(
    train: RepresentationsLike,
    test: RepresentationsLike,
    *,
    counts: Sequence[int] | None = None,
    probe: Probe = "ridge",
    draws: int = 5,
    seed: int = 0,
) -> ChannelsNeeded:
    """Accuracy on `test` of classifiers fitted to subsets of the channels of `train`, per layer.

    `counts` are by default 1, 2, 4, ... and all channels. Channels that are constant in `train`
    come last. Raises MeasureError for runs of different layers, counts or draws below 1 and an
    unknown probe; ImagesError for labels as `linear_probe` does."""
    if counts is not None and (not len(counts) or min(counts) < 1):
        raise MeasureError(f"counts of channels are 1 or more, not {counts}")
    check_runs(train, test)
    y, y_test = run_labels(train, test)
    ranking = class_selectivity(train, permutations=0)
    parts = []
    for i, layer in enumerate(train.layers):
        sides = ImageMeans(train, layer.name), ImageMeans(test, layer.name)
        ranked = round_robin(ranking, i)
        sizes = (
            2 ** np.arange(int(np.log2(len(ranked))) + 1) if counts is None else np.asarray(counts)
        )
        sizes = np.unique(np.append(sizes[sizes < len(ranked)], len(ranked)))
        rng = np.random.default_rng([seed, i])
        orders = [ranked, *(rng.permutation(len(ranked)) for _ in range(draws))]
        # All channels are the same ones in any order.
        subsets = [order[:size] for size in sizes[:-1] for order in orders] + [ranked]
        right = _accuracies(sides, y, y_test, subsets, probe)
        found = np.append(right[:-1], np.full(len(orders), right[-1])).reshape(-1, len(orders))
        parts.append({"counts": sizes, "selective": found[:, 0], "random": found[:, 1:]})
    return ChannelsNeeded.of_layers(
        parts,
        model=train.model,
        train_images=train.images,
        images=test.images,
        layers=tuple(train.layers),
        n_train=len(y),
        n=len(y_test),
        probe=probe,
        seed=seed,
        chance=float(np.unique(y_test, return_counts=True)[1].max() / len(y_test)),
    )


def round_robin(selectivity: ClassSelectivity, i: int) -> np.ndarray:
    """All channels of layer `i` by selectivity: the best for every class, then the second best for
    each, and so on.

    Taken by strength alone, the first channels could all be of one class."""
    away = np.nan_to_num(np.abs(selectivity.auroc[i] - 0.5), nan=-1.0)
    order = np.argsort(-away, axis=0, kind="stable")
    # Within a turn the clearer class comes first.
    turn = np.take_along_axis(away, order, 0)
    ranked = np.take_along_axis(order, np.argsort(-turn, axis=1, kind="stable"), 1).ravel()
    _, first = np.unique(ranked, return_index=True)
    return np.asarray(ranked[np.sort(first)])


def _accuracies(
    sides: tuple[ImageMeans, ImageMeans],
    y: np.ndarray,
    y_test: np.ndarray,
    subsets: Sequence[np.ndarray],
    probe: Probe,
) -> np.ndarray:
    """The accuracy on the test images of a probe on each of some subsets of the channels."""
    train, test = sides
    predict: list[Predict]
    if probe == "ridge":
        predict = _ridge_probes(train, y, subsets)
    else:
        predict = [
            partial(predict_one, centroid_path(train.only(chosen), y, standardize=True), i=0)
            for chosen in subsets
        ]
    right = np.zeros(len(subsets))
    for rows in slices(len(y_test), ROWS):
        X = test[rows]
        for k, channels in enumerate(subsets):
            right[k] += (predict[k](X[:, channels]) == y_test[rows]).sum()
    return right / len(y_test)


def _ridge_probes(train: ImageMeans, y: np.ndarray, subsets: Sequence[np.ndarray]) -> list[Predict]:
    """Ridge probes on subsets of the channels, from moments of all: their predictions."""
    moments = RidgeMoments()
    moments.update(train, y)
    left = stratified(y, _LEFT_OUT) if len(y) > _LEFT_OUT else np.arange(len(y))
    X, probes = train[left], list[Predict]()
    for channels in subsets:
        if len(channels) > len(y):
            # Of few images the equations between images are smaller.
            probes.append(RidgeProbe(None).fit(X[:, channels], y).predict)
            continue
        path = moments.take(channels).fit(default_l2(len(y)), standardize=True)
        path = path.leaving_out(X[:, channels], y[left])
        probes.append(RidgeProbe.of(path, path.best_l2()).predict)
    return probes
