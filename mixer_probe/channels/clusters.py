"""How the channels of a layer vary together: participation ratio, nearest channel, clusters of
correlated channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

# Clusters are merged while their channels correlate, on average over pairs, by this much.
CLUSTER_CORRELATION = 0.5


@dataclass(frozen=True)
class ChannelCovariance:
    """How the channels of a layer vary together.

    `participation` is tr(C)^2 / tr(C^2) of the covariance C. For each channel, `nearest` is the one
    it correlates with most strongly, of either sign, by `nearest_correlation` (-1 and NaN where
    there is none); `cluster` counts from 1, the largest first, and is 0 for channels that are
    constant."""

    participation: float
    nearest: np.ndarray
    nearest_correlation: np.ndarray
    cluster: np.ndarray


def channel_covariance(scatter: np.ndarray | None, scale: np.ndarray) -> ChannelCovariance:
    """Participation ratio, nearest channels and clusters from sums of products of deviations
    [channel, channel] and magnitudes `scale` [channel]; undefined where there are no sums or they
    are not finite.

    A channel whose spread is rounding beside its magnitude counts as constant."""
    nearest, correlation = np.full(len(scale), -1), np.full(len(scale), np.nan)
    cluster = np.zeros(len(scale), dtype=np.int64)
    if scatter is None or not np.isfinite(scatter).all():
        return ChannelCovariance(float("nan"), nearest, correlation, cluster)
    spread = np.sqrt(scatter.diagonal().clip(0))
    places = np.flatnonzero(spread > 1e-6 * scale)
    if len(places) > 1:
        r = (scatter[np.ix_(places, places)] / np.outer(spread[places], spread[places])).clip(-1, 1)
        cluster[places] = clusters_of(r)
        np.fill_diagonal(r, 0)
        best = np.abs(r).argmax(1)
        nearest[places], correlation[places] = places[best], r[np.arange(len(r)), best]
    elif len(places):
        cluster[places] = 1
    return ChannelCovariance(participation_ratio(scatter), nearest, correlation, cluster)


def participation_ratio(covariance: np.ndarray) -> float:
    """tr(C)^2 / tr(C^2), the number of directions of equal variance with the same ratio; NaN if
    nothing varies."""
    square = float((covariance * covariance).sum())
    return float(np.trace(covariance)) ** 2 / square if square > 0 else float("nan")


def clusters_of(r: np.ndarray, correlation: float = CLUSTER_CORRELATION) -> np.ndarray:
    """Cluster numbers [channel] from 1, the largest first, by average linkage of 1 - |r| for
    correlations [channel, channel]."""
    distance = 1 - np.abs(r)
    np.fill_diagonal(distance, 0)
    labels = fcluster(
        linkage(squareform(distance, checks=False), "average"), 1 - correlation, "distance"
    )
    _, first, inverse, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(1, len(sizes) + 1)
    return np.asarray(rank[inverse])
