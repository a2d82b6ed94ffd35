"""Error consistency: do two networks fail on the same images, beyond what their accuracies force on them?

Geirhos, Meding and Wichmann 2020 ("Beyond accuracy"): with p and q the two accuracies, `observed` is the share of images on which
both are right or both wrong, `expected` = p q + (1 - p)(1 - q) is that share for independent errors, and Cohen's kappa is
(observed - expected) / (1 - expected). Kappa cannot be anything from -1 to 1: networks of different accuracy differ on |p - q| of
the images at least, and on min(p + q, 2 - p - q) at most, so that a kappa is read beside its own bounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from mixer_probe.core.errors import MeasureError, UndefinedInvarianceWarning
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.images.distortions import Distortion
from mixer_probe.invariance.accuracy import DistortionAccuracy
from mixer_probe.stats import delta_interval, paired_counts, wilson_interval

_LEVEL = 0.95


def expected_agreement(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Share of images on which independent errors are both there or both not, for accuracies `p` and `q` [...]."""
    found: np.ndarray = p * q + (1 - p) * (1 - q)
    return found


def kappa(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(observed - expected) / (1 - expected) [...]; NaN where two networks are always right, or always wrong."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # The expected share of two perfect networks is 1 but for rounding.
        found: np.ndarray = np.where(1 - expected > 1e-12, (observed - expected) / (1 - expected), np.nan)
    return found


def kappa_bounds(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest kappa [...] that accuracies `p` and `q` allow: agreement on |p + q - 1| of the images, and on
    1 - |p - q|."""
    expected = expected_agreement(p, q)
    return kappa(np.abs(p + q - 1), expected), kappa(1 - np.abs(p - q), expected)


@dataclass(frozen=True)
class ErrorConsistency(Result):
    """Kappa of every two networks on plain images and under each distortion: arrays [1 + distortion, network, network].

    [`low`, `high`] is the 95 % interval over images (delta method), [`null_low`, `null_high`] holds at least 95 % of the kappas
    of independent errors with these accuracies (hypergeometric, exact), [`least`, `most`] all that these accuracies allow.
    `accuracy` is [1 + distortion, network], `chance` that of the commonest class. NaN where kappa is not defined."""

    title: ClassVar[str] = "Error consistency"

    models: tuple[ModelRecord, ...]
    images: ImagesRecord
    distortions: tuple[Distortion, ...]
    accuracy: np.ndarray
    observed: np.ndarray
    expected: np.ndarray
    kappa: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null_low: np.ndarray
    null_high: np.ndarray
    least: np.ndarray
    most: np.ndarray
    chance: float
    n: int

    @property
    def share_of_most(self) -> np.ndarray:
        """Kappa over the largest one possible [1 + distortion, network, network]; where kappa is negative, over the least one."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share: np.ndarray = np.where(self.kappa >= 0, self.kappa / self.most, -self.kappa / self.least)
        return share

    @property
    def above_chance(self) -> np.ndarray:
        """Which networks are right more often than chance, beyond Wilson's interval: [1 + distortion, network]."""
        right = np.round(self.accuracy * self.n)
        low: np.ndarray = wilson_interval(right, np.full(right.shape, self.n))[0]
        return low > self.chance

    @property
    def labels(self) -> tuple[str, ...]:
        """What was done to the images, row by row."""
        return ("none", *(d.label for d in self.distortions))

    def to_frame(self) -> pd.DataFrame:
        """One row a distortion and pair of different networks."""
        pairs = [(i, j) for i in range(len(self.models)) for j in range(i + 1, len(self.models))]
        return pd.DataFrame([self._row(d, i, j) for d in range(len(self.labels)) for i, j in pairs])

    def _row(self, d: int, i: int, j: int) -> dict[str, object]:
        names = ("kappa", "low", "high", "null_low", "null_high", "least", "most", "share_of_most", "observed", "expected")
        return {
            "distortion": self.labels[d],
            "kind": "none" if d == 0 else self.distortions[d - 1].kind,
            "model_a": self.models[i].name,
            "model_b": self.models[j].name,
            "accuracy_a": float(self.accuracy[d, i]),
            "accuracy_b": float(self.accuracy[d, j]),
            **{name: float(getattr(self, name)[d, i, j]) for name in names},
            "n": self.n,
        }


def error_consistency(results: Sequence[DistortionAccuracy]) -> ErrorConsistency:
    """Error consistency of every two networks whose predictions `results` hold, on plain images and under every distortion.

    Warns with UndefinedInvarianceWarning of networks that are always right or always wrong. Raises MeasureError for fewer than
    two networks, other images, or other distortions."""
    check_comparable(results)
    first = results[0]
    right = np.stack([r.right for r in results], axis=1)
    counts = paired_counts(right[:, :, None], right[:, None])
    observed, expected = _agreements(counts)
    values = kappa(observed, expected)
    accuracy = right.mean(axis=-1)
    p, q = accuracy[:, :, None], accuracy[:, None]
    _warn_undefined(values, first)
    return ErrorConsistency(
        tuple(r.model for r in results),
        first.images,
        first.distortions,
        accuracy,
        observed,
        expected,
        values,
        *_interval(right, values),
        *_null(right.sum(axis=-1), first.n),
        *kappa_bounds(p, q),
        first.chance,
        first.n,
    )


def check_comparable(results: Sequence[DistortionAccuracy]) -> None:
    """Raise MeasureError unless there are two networks or more, under the same distortions of the same images."""
    if len(results) < 2:
        raise MeasureError(f"error consistency needs two or more networks, and there {'is one' if results else 'is none'}")
    first = results[0]
    for other in results[1:]:
        if other.images.fingerprint != first.images.fingerprint:
            raise MeasureError(
                f"{first.model.name} and {other.model.name} were evaluated on different images; use the same images for both"
            )
        if other.distortions != first.distortions:
            raise MeasureError(
                f"{first.model.name} and {other.model.name} were evaluated under different distortions; give both the same "
                "list, such as "
                "standard_distortions of one of them"
            )


def _agreements(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed and expected share of equal answers [...] of counts [..., 4]."""
    n = counts.sum(axis=-1)
    p, q = ((counts[..., 0] + counts[..., k]) / n for k in (1, 2))
    return (counts[..., 0] + counts[..., 3]) / n, expected_agreement(p, q)


def _interval(right: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [distortion, network, network] of kappa, from right answers [distortion, network, image]; a distortion at a time,
    since the influences of all of them would fill the memory."""
    bounds = [
        delta_interval(value, _influence(row.astype(np.float64)), limits=(-1, 1))
        for row, value in zip(right, values, strict=True)
    ]
    low, high = (np.stack(side) for side in zip(*bounds, strict=True))
    return low, high


def _influence(right: np.ndarray) -> np.ndarray:
    """Of each image on kappa [network, network, image]: the derivative of (o - e) / (1 - e) by the observed agreement o and by
    the two accuracies in e = pq + (1 - p)(1 - q)."""
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


def _null(right: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of kappa of independent errors, for numbers of right answers [distortion, network]: which images a network
    is right on is then any choice of so many, and the number on which both are right is hypergeometric."""
    a, b = right[:, :, None], right[:, None]
    tail = (1 - _LEVEL) / 2
    expected = expected_agreement(a / n, b / n)
    both = (stats.hypergeom.ppf(share, n, a, b) for share in (tail, 1 - tail))
    low, high = (kappa((n - a - b + 2 * k) / n, expected) for k in both)
    return low, high


def _warn_undefined(values: np.ndarray, first: DistortionAccuracy) -> None:
    rows = np.flatnonzero(np.isnan(values).any(axis=(1, 2)))
    if len(rows):
        label = "undistorted images" if rows[0] == 0 else first.distortions[rows[0] - 1].label
        warnings.warn(
            f"{int(np.isnan(values).sum())} of {values.size} kappas are NaN, the first on {label}: kappa is undefined for "
            "networks "
            "that are correct on all images or on none",
            UndefinedInvarianceWarning,
            stacklevel=4,
        )
