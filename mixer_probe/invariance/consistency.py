"""Error consistency: do two networks fail on the same images more than their accuracies imply?

Geirhos, Meding and Wichmann 2020 ("Beyond accuracy"): with p and q the two accuracies, `observed`
is the fraction of images on which both are right or both wrong, `expected` = p q + (1 - p)(1 - q)
is that fraction for independent errors, and Cohen's kappa is (observed - expected) / (1 -
expected). Kappa cannot be anything from -1 to 1: networks of different accuracy differ on
|p - q| of the images at least, and on min(p + q, 2 - p - q) at most, so that a kappa is read beside
its own bounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from mixer_probe.core.errors import MeasureError, UndefinedInvarianceWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.images.distortions import Distortion
from mixer_probe.invariance.accuracy import DistortionAccuracy
from mixer_probe.stats import delta_interval, paired_counts, wilson_interval

_LEVEL = 0.95


def expected_agreement(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Fraction of images on which both are right or both wrong if errors are independent, for
    accuracies `p` and `q` [...]."""
    found: np.ndarray = p * q + (1 - p) * (1 - q)
    return found


def kappa(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(observed - expected) / (1 - expected) [...]; NaN where two networks are always right, or
    always wrong."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # The expected agreement of two perfect networks is 1 but for rounding.
        found: np.ndarray = np.where(
            1 - expected > 1e-12, (observed - expected) / (1 - expected), np.nan
        )
    return found


def kappa_bounds(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest kappa [...] that accuracies `p` and `q` allow: agreement on |p + q
    - 1| of the images, and on 1 - |p - q|."""
    expected = expected_agreement(p, q)
    return kappa(np.abs(p + q - 1), expected), kappa(1 - np.abs(p - q), expected)


@dataclass(frozen=True)
class ErrorConsistency(Result):
    """Kappa of every two networks on undistorted images and under each distortion: arrays [1 +
    distortion, network, network].

    [`low`, `high`] is the 95 % interval over images (delta method), [`null_low`, `null_high`] holds
    at least 95 % of the kappas of independent errors with these accuracies (hypergeometric, exact),
    [`least`, `most`] all that these accuracies allow. `accuracy` is [1 + distortion, network],
    `chance` that of the most frequent class. NaN where kappa is not defined."""

    title: ClassVar[str] = "Error consistency"

    models: Annotated[tuple[ModelRecord, ...], "model"]
    images: ImagesRecord
    distortions: Annotated[tuple[Distortion, ...], "distortion"]
    accuracy: Annotated[np.ndarray, "distortion + 1", "model"]
    observed: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    expected: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    kappa: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    low: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    high: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    null_low: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    null_high: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    least: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    most: Annotated[np.ndarray, "distortion + 1", "model", "model"]
    chance: float
    n: int

    @property
    def fraction_of_most(self) -> np.ndarray:
        """Kappa over the largest one possible [1 + distortion, network, network]; where kappa is
        negative, over the least one."""
        with np.errstate(invalid="ignore", divide="ignore"):
            fraction: np.ndarray = np.where(
                self.kappa >= 0, self.kappa / self.most, -self.kappa / self.least
            )
        return fraction

    @property
    def above_chance(self) -> np.ndarray:
        """Which networks are right more often than chance, beyond Wilson's interval: [1 +
        distortion, network]."""
        right = np.round(self.accuracy * self.n)
        low: np.ndarray = wilson_interval(right, np.full(right.shape, self.n))[0]
        return low > self.chance

    @property
    def labels(self) -> tuple[str, ...]:
        """What was done to the images, row by row."""
        return ("none", *(d.label for d in self.distortions))

    def to_frame(self) -> pd.DataFrame:
        """One row per distortion and pair of different networks."""
        names = (
            "kappa",
            "low",
            "high",
            "null_low",
            "null_high",
            "least",
            "most",
            "fraction_of_most",
            "observed",
            "expected",
        )
        kinds = ["none", *(d.kind for d in self.distortions)]
        return pd.DataFrame(
            [
                {
                    "distortion": label,
                    "kind": kinds[d],
                    "model_a": self.models[i].name,
                    "model_b": self.models[j].name,
                    "accuracy_a": float(self.accuracy[d, i]),
                    "accuracy_b": float(self.accuracy[d, j]),
                    **{name: float(getattr(self, name)[d, i, j]) for name in names},
                    "n": self.n,
                }
                for d, label in enumerate(self.labels)
                for i, j in combinations(range(len(self.models)), 2)
            ]
        )


def error_consistency(results: Sequence[DistortionAccuracy]) -> ErrorConsistency:
    """Error consistency of every two networks whose predictions `results` hold, on plain images and
    under every distortion.

    Warns with UndefinedInvarianceWarning of networks that are always right or always wrong. Raises
    MeasureError for fewer than two networks, other images, or other distortions."""
    check_comparable(results)
    first, right = results[0], np.stack([r.right for r in results], axis=1)
    accuracy, n = right.mean(axis=-1), first.n
    # Networks right together, either alone, and wrong together: [distortion, network, network, 4].
    counts = paired_counts(right[:, :, None], right[:, None])
    expected = expected_agreement(*((counts[..., 0] + counts[..., k]) / n for k in (1, 2)))
    observed = (counts[..., 0] + counts[..., 3]) / n
    values = kappa(observed, expected)
    undefined = np.flatnonzero(np.isnan(values).any(axis=(1, 2)))
    if len(undefined):
        label = (
            "undistorted images" if undefined[0] == 0 else first.distortions[undefined[0] - 1].label
        )
        warnings.warn(
            f"{int(np.isnan(values).sum())} of {values.size} kappas are NaN, the first on {label}: "
            "kappa is undefined for networks that are correct on all images or on none",
            UndefinedInvarianceWarning,
            stacklevel=2,
        )
    # One distortion at a time: the influences of all of them would fill the memory.
    bounds = [
        delta_interval(value, kappa_influence(row.astype(np.float64)), limits=(-1, 1))
        for row, value in zip(right, values, strict=True)
    ]
    low, high = (np.stack(side) for side in zip(*bounds, strict=True))
    # Independent errors: the images that a network is right on are any choice of so many, and the
    # number on which two are right together is hypergeometric. The middle 95 %.
    a, b = (right.sum(axis=-1)[index] for index in (np.s_[:, :, None], np.s_[:, None]))
    together = (hypergeom.ppf(level, n, a, b) for level in ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    null_low, null_high = (
        kappa((n - a - b + 2 * k) / n, expected_agreement(a / n, b / n)) for k in together
    )
    return ErrorConsistency(
        tuple(r.model for r in results),
        first.images,
        first.distortions,
        accuracy,
        observed,
        expected,
        values,
        low,
        high,
        null_low,
        null_high,
        *kappa_bounds(accuracy[:, :, None], accuracy[:, None]),
        first.chance,
        n,
    )


def check_comparable(results: Sequence[DistortionAccuracy]) -> None:
    """Raise MeasureError unless there are two networks or more, under the same distortions of the
    same images."""
    if len(results) < 2:
        raise MeasureError(
            "error consistency needs two or more networks, and there "
            f"{'is one' if results else 'is none'}"
        )
    first = results[0]
    for other in results[1:]:
        if other.images.fingerprint != first.images.fingerprint:
            raise MeasureError(
                f"{first.model.name} and {other.model.name} were evaluated on different images; "
                "use the same images for both"
            )
        if other.distortions != first.distortions:
            raise MeasureError(
                f"{first.model.name} and {other.model.name} were evaluated under different "
                "distortions; give both the same list, such as standard_distortions of one of them"
            )


def kappa_influence(right: np.ndarray) -> np.ndarray:
    """Influence of each image on kappa [network, network, image], from right answers [network,
    image]: the derivative of (o - e) / (1 - e) by the observed agreement o and by the two
    accuracies in e = pq + (1 - p)(1 - q)."""
    accuracy = right.mean(axis=-1)
    same = (right[:, None] == right[None]).astype(np.float64)
    observed = same.mean(axis=-1, keepdims=True)
    p, q = accuracy[:, None, None], accuracy[None, :, None]
    away = right - accuracy[:, None]
    rest = 1 - expected_agreement(p, q)
    by_accuracy = (2 * q - 1) * away[:, None] + (2 * p - 1) * away[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = (same - observed) / rest - (1 - observed) / rest**2 * by_accuracy
    return found
