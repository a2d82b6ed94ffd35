"""Which channels of a layer move together: participation ratio, nearest channel, clusters of correlated channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

# Channels are put together while they correlate, on average over pairs, by this much.
CLUSTER_CORRELATION = 0.5


@dataclass(frozen=True)
class Together:
    """How the channels of a layer vary together.

    `participation` is tr(C)^2 / tr(C^2) of the covariance C. For each channel, `nearest` is the one it correlates with most
    strongly, of either sign, by `correlation` (-1 and NaN where there is none); `cluster` counts from 1, the largest first, and
    is 0 for channels that are constant."""

    participation: float
    nearest: np.ndarray
    correlation: np.ndarray
    cluster: np.ndarray


def together(scatter: np.ndarray, scale: np.ndarray) -> Together:
    """From sums of products of deviations [channel, channel] and which magnitude the channels have [channel].

    A channel whose spread is rounding beside its magnitude counts as constant."""
    if not np.isfinite(scatter).all():
        return Together(float("nan"), *undefined(len(scatter)))
    spread = np.sqrt(scatter.diagonal().clip(0))
    varies = spread > 1e-6 * scale
    nearest, correlation, cluster = undefined(len(scatter))
    places = np.flatnonzero(varies)
    if len(places) > 1:
        r = (scatter[np.ix_(places, places)] / np.outer(spread[places], spread[places])).clip(-1, 1)
        cluster[places] = clusters_of(r)
        np.fill_diagonal(r, 0)
        best = np.abs(r).argmax(1)
        nearest[places], correlation[places] = places[best], r[np.arange(len(r)), best]
    elif len(places):
        cluster[places] = 1
    return Together(participation_ratio(scatter), nearest, correlation, cluster)


def undefined(channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest, correlation and cluster where there is no covariance."""
    return np.full(channels, -1), np.full(channels, np.nan), np.zeros(channels, dtype=np.int64)


def participation_ratio(covariance: np.ndarray) -> float:
    """tr(C)^2 / tr(C^2), the number of equal directions that would vary as evenly; NaN if nothing varies."""
    square = float((covariance * covariance).sum())
    return float(np.trace(covariance)) ** 2 / square if square > 0 else float("nan")


def clusters_of(r: np.ndarray, correlation: float = CLUSTER_CORRELATION) -> np.ndarray:
    """Cluster numbers [channel] from 1, the largest first, by average linkage of 1 - |r| for correlations [channel, channel]."""
    distance = 1 - np.abs(r)
    np.fill_diagonal(distance, 0)
    labels = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - correlation, "distance")
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(1, len(sizes) + 1)
    return np.asarray(rank[inverse])
