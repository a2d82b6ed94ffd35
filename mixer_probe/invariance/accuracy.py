"""Accuracy of a frozen network under distortions, and agreement with its predictions for
undistorted images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError, UndefinedInvarianceWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import Distortion
from mixer_probe.invariance.predictions import Source, predictions
from mixer_probe.invariance.standard import filter_type, standard_distortions
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.model import Model
from mixer_probe.stats import (
    delta_interval,
    difference_interval,
    mcnemar,
    paired_counts,
    wilson_interval,
)


@dataclass(frozen=True)
class Estimate:
    """Values with their 95 % intervals, all of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class DistortionAccuracy(Result):
    """Predicted classes [1 + distortion, image] of a network, row 0 of the undistorted images, and
    the `labels` [image] as outputs of the network.

    Everything else follows from them. `classes` is the number of classes of the network; chance is
    the fraction of images in the most frequent class. Undefined predictions are -1 and never
    right."""

    title: ClassVar[str] = "Accuracy under distortions"

    model: ModelRecord
    images: ImagesRecord
    distortions: Annotated[tuple[Distortion, ...], "distortion"]
    predicted: Annotated[np.ndarray, "distortion + 1", "image"]
    labels: Annotated[np.ndarray, "image"]
    classes: int

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of distortion, in order."""
        return tuple(dict.fromkeys(d.kind for d in self.distortions))

    def filter_type(self, kind: str) -> list[int]:
        """Indices of the distortions of a kind, from the mildest to the most severe.

        Raises MeasureError for a kind that is not among the distortions."""
        if kind not in self.kinds:
            raise MeasureError(
                f"{self.model.name} was not measured under '{kind}'; its distortions: "
                f"{', '.join(self.kinds)}"
            )
        return filter_type(self.distortions, kind)

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is right: [1 + distortion, image]."""
        found: np.ndarray = self.predicted == self.labels
        return found

    @cached_property
    def accuracy(self) -> Estimate:
        """Fraction of right predictions [1 + distortion], the undistorted images first, with
        Wilson's interval."""
        return self._fraction(self.right)

    @property
    def chance(self) -> float:
        """Accuracy of always predicting the most frequent class."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / self.n)

    @property
    def reads_class(self) -> bool:
        """Whether accuracy on the undistorted images is significantly above chance (lower end of
        the interval)."""
        return bool(self.accuracy.low[0] > self.chance)

    @cached_property
    def drop(self) -> Estimate:
        """Accuracy on undistorted minus that on distorted images [distortion], with Tango's
        interval for paired fractions."""
        return Estimate(
            self.accuracy.value[0] - self.accuracy.value[1:], *difference_interval(self._counts)
        )

    @property
    def p_value(self) -> np.ndarray:
        """McNemar's exact p-value of each drop [distortion], two-sided."""
        return mcnemar(self._counts)

    @cached_property
    def kept(self) -> Estimate:
        """Retained accuracy, (distorted - chance) / (undistorted - chance) [distortion]: 1 if
        nothing is lost, 0 at chance.

        The interval is that of the ratio over images (delta method).

        NaN for a network that is no better than chance on the undistorted images."""
        if not self.reads_class:
            return Estimate(*np.full((3, len(self.distortions)), np.nan))
        value, influence, most = self.kept_by_image()
        return Estimate(
            value, *delta_interval(value, influence, limits=(value - most, value + most))
        )

    def kept_by_image(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Retained accuracy [distortion], the influence of each image on it [distortion, image],
        and the most it would change if the predictions of all distorted images did."""
        right, margin = self.right.astype(np.float64), self.accuracy.value[0] - self.chance
        value = (self.accuracy.value[1:] - self.chance) / margin
        away = right - right.mean(axis=1, keepdims=True)
        return value, (away[1:] - value[:, None] * away[0]) / margin, 1 / margin

    @cached_property
    def agreement(self) -> Estimate:
        """Fraction of images with the predicted class of the undistorted image [distortion], with
        Wilson's interval."""
        return self._fraction((self.predicted[1:] == self.predicted[0]) & (self.predicted[0] >= 0))

    @property
    def agreement_by_chance(self) -> np.ndarray:
        """Agreement expected of independent predictions with the same class frequencies
        [distortion]."""
        frequencies = np.stack(
            [(self.predicted == k).mean(axis=1) for k in np.unique(self.predicted)]
        )
        found: np.ndarray = (frequencies[:, 1:] * frequencies[:, :1]).sum(axis=0)
        return found

    @property
    def _counts(self) -> np.ndarray:
        """Images right in both, undistorted alone, distorted alone, in neither: [distortion, 4]."""
        return paired_counts(self.right[:1], self.right[1:])

    def _fraction(self, true: np.ndarray) -> Estimate:
        low, high = wilson_interval(true.sum(axis=-1), np.full(true.shape[0], self.n))
        return Estimate(true.mean(axis=-1), np.asarray(low), np.asarray(high))

    def to_frame(self) -> pd.DataFrame:
        """One row per distortion, the undistorted images first."""
        frame = pd.DataFrame(
            {
                "model": self.model.name,
                "trained": self.model.trained,
                "family": self.model.family,
                "distortion": ["none", *(d.label for d in self.distortions)],
                "kind": ["none", *(d.kind for d in self.distortions)],
                "strength": [np.nan, *(d.strength for d in self.distortions)],
                "unit": ["", *(d.unit for d in self.distortions)],
            }
        )
        undistorted = {
            "accuracy": (),
            "drop": (0.0,),
            "kept": (1.0 if self.reads_class else np.nan,),
            "agreement": (1.0,),
        }
        for name, first in undistorted.items():
            estimate = getattr(self, name)
            for side, values in (
                ("", estimate.value),
                ("_low", estimate.low),
                ("_high", estimate.high),
            ):
                frame[name + side] = np.concatenate([first, values])
        frame["agreement_by_chance"] = np.concatenate([[1.0], self.agreement_by_chance])
        frame["p_mcnemar"] = np.concatenate([[np.nan], self.p_value])
        return frame.assign(chance=self.chance, n=self.n)


@checked(MeasureError)
def distortion_accuracy(
    model: Model,
    images: Source,
    distortions: Sequence[Distortion] | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> DistortionAccuracy:
    """Predictions of a frozen network for labelled images, undistorted and under each of the
    `distortions`.

    By default `standard_distortions(model, seed=seed)`. Networks are compared under the same
    distortions of the same images: give all of them the list of one.

    Warns with UndefinedInvarianceWarning of a network that is no better than chance. Raises
    ImagesError for images without labels and a grid that does not divide the network's input,
    MeasureError for classes that are none of the network's outputs (they are found by name, as
    `labels_as_outputs` does)."""
    labels = labels_as_outputs(model, images, "accuracy under distortions")
    chosen = tuple(standard_distortions(model, seed=seed) if distortions is None else distortions)
    predicted, classes = predictions(model, images, chosen, batch_size)
    result = DistortionAccuracy(model.record, images.record, chosen, predicted, labels, classes)
    if not result.reads_class:
        warnings.warn(
            f"{model.name} has an accuracy of {100 * result.accuracy.value[0]:.1f} % on "
            f"undistorted images, which is not above chance ({100 * result.chance:.1f} %): the "
            "retained fraction is NaN",
            UndefinedInvarianceWarning,
            stacklevel=3,
        )
    return result
