"""Shared nearest neighbours of two representations.

Neighbours of an image are the k others of largest cosine similarity. Where several tie for the last
places, each of them is a member in equal part, so that no order of the images decides, and sets are
compared as fuzzy ones: |A & B| = sum min(a, b). Without ties this is the usual count. Breaking ties
by index instead would give any two representations with many of them, such as sparse or quantised
ones, the same low indices as neighbours: an agreement above chance that the images do not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import check_fraction, checked
from mixer_probe.similarity.inputs import Features, as_matrix
from mixer_probe.similarity.measure import Measure

_K = 10
_CLAMP = 0.95
# Cosines of unit vectors have an error of about 1e-16 times the root of the channels: closer than
# this is a tie.
_TIE = 1e-13
_NO_INTERVAL = (
    "an image that is left out moves the neighbourhoods of many others, so that the jackknife is "
    "far too wide"
)


@dataclass(frozen=True)
class Neighbourhoods:
    """Membership of image j in the neighbourhood of image i, `members` [n, n]: 0 or 1 but for ties;
    each row sums to `k`.

    None if there are no neighbourhoods, as all pairs of images are equally close."""

    members: csr_array | None
    k: int

    def take(self, order: Tensor) -> Self:
        """The neighbourhoods for the images in another `order` [n]."""
        if self.members is None:
            return self
        places = order.cpu().numpy()
        rows = self.members[places]
        # Where each image has gone, which is faster than a choice of columns.
        moved = csr_array(
            (rows.data, np.argsort(places)[rows.indices], rows.indptr), shape=rows.shape
        )
        moved.sort_indices()
        return replace(self, members=moved)


@checked(MeasureError)
def mutual_knn(X: Features, Y: Features, *, k: int = _K, clamp: float | None = _CLAMP) -> float:
    """Mean fraction of the `k` nearest neighbours (cosine, without the image itself) that an image
    has in both `X` [n, p] and `Y` [n, q], rows being the same images (Huh et al. 2024). Random
    pairings of the images average k / (n - 1).

    `clamp` is the quantile of all absolute values of a side that larger ones are cut to before the
    rows are normalised, as the authors do with 0.95; None leaves the features as they are. Clamping
    and cosines refer to the origin, so translation changes the value, and the clamp also refers to
    the axes, so that rotation does; without it, rotation does not.

    NaN if a side is constant, or if all pairs of its images have equal cosines: with one channel of
    one sign, or where more than `clamp` of the values are 0. Raises MeasureError for other than two
    axes, different n, n < k + 2, NaN or infinite values, k < 1, `clamp` outside 0 to 1."""
    if clamp is not None:
        check_fraction("clamp, a quantile,", clamp, MeasureError)
    return _with(MUTUAL_KNN, k, clamp)(X, Y)


@checked(MeasureError)
def neighbourhood_jaccard(X: Features, Y: Features, *, k: int = _K) -> float:
    """Mean over images of |A & B| / |A | B| for the neighbourhoods A in `X` [n, p] and B in `Y` [n,
    q] of `k` images each (cosine, without the image itself), rows being the same images (Schumacher
    et al. 2021; Klabunde et al. 2023).

    NaN if a side is constant, or if all pairs of its images have equal cosines. Raises MeasureError
    for other than two axes, different n, n < k + 2, NaN or infinite values, k < 1."""
    return _with(JACCARD, k, None)(X, Y)


@checked(MeasureError)
def nearest_images(X: Features, *, k: int = _K, clamp: float | None = _CLAMP) -> np.ndarray:
    """The `k` nearest other rows [n, k] of each row of `X` [n, p], the nearest first, by the cosine
    similarity of `mutual_knn`.

    Where several tie for the last place, one of them is taken. Raises MeasureError for other than
    two axes, no more than k rows, and `clamp` outside 0 to 1."""
    if clamp is not None:
        check_fraction("clamp, a quantile,", clamp, MeasureError)
    if k >= len(X):
        raise MeasureError(
            f"{len(X)} images are too few for {k} neighbours each: give at least {k + 1}"
        )
    matrix = as_matrix(X, "X")
    matrix = (matrix if clamp is None else clamp_outliers(matrix, clamp)).cpu()
    found: np.ndarray = (
        NearestNeighbors(n_neighbors=k, metric="cosine")
        .fit(matrix.numpy())
        .kneighbors(return_distance=False)
    )
    return found


def _with(measure: Measure, k: int, clamp: float | None) -> Measure:
    return replace(measure, prepare=partial(neighbourhoods, k=k, clamp=clamp), minimum_images=k + 2)


def neighbourhoods(X: Tensor, *, k: int, clamp: float | None) -> Neighbourhoods:
    """The `k` nearest neighbours of each row of `X` [n, p], none where all pairs of rows have equal
    cosines.

    A row of zeros has cosine 0 with all others."""
    if clamp is not None:
        X = clamp_outliers(X, clamp)
    # Largest value first, so that no square leaves the range of numbers.
    rows = normalize(normalize(X, p=torch.inf, dim=1, eps=torch.finfo(X.dtype).tiny), dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-torch.inf).cpu().numpy()
    n = len(cosines)
    # The next one, and then the k nearest in any order.
    nearest = cosines.argpartition(n - k - 1, axis=1)[:, n - k - 1 :]
    values = np.take_along_axis(cosines, nearest, axis=1)
    last = values[:, 1:].min(1, keepdims=True)
    if (last - values[:, :1] > _TIE).all():
        places = np.sort(nearest[:, 1:], axis=1).ravel()
        return Neighbourhoods(
            csr_array((np.ones(n * k), places, np.arange(0, n * k + 1, k)), shape=(n, n)), k
        )
    # Others are as close as the last of the k.
    sure = cosines > last + _TIE
    tied = np.abs(cosines - last) <= _TIE
    if (tied.sum(1) == n - 1).all():
        return Neighbourhoods(None, k)
    left = k - sure.sum(1, keepdims=True)
    return Neighbourhoods(csr_array(sure + tied * (left / tied.sum(1, keepdims=True))), k)


def clamp_outliers(X: Tensor, quantile: float) -> Tensor:
    """`X` [n, p] cut at plus and minus the `quantile` of all its absolute values, the order
    statistic number floor(q n p) from 0: `remove_outliers(exact=True)` of the code of Huh et al.
    2024, for one layer."""
    magnitudes = X.abs().flatten().cpu().numpy()
    place = int(quantile * len(magnitudes))
    limit = float(np.partition(magnitudes, place)[place])
    return X.clamp(-limit, limit)


def _shared(layers_a: Sequence[Neighbourhoods], layers_b: Sequence[Neighbourhoods]) -> Tensor:
    """Number of shared neighbours of each image, [La, Lb, n]; NaN where a side has no
    neighbourhoods."""
    n = max(
        (layer.members.shape[0] for layer in (*layers_a, *layers_b) if layer.members is not None),
        default=1,
    )
    shared = torch.full((len(layers_a), len(layers_b), n), torch.nan, dtype=torch.float64)
    for i, a in enumerate(layers_a):
        for j, b in enumerate(layers_b):
            if a.members is not None and b.members is not None:
                shared[i, j] = torch.from_numpy(a.members.minimum(b.members).sum(axis=1))
    return shared


def _mean_jaccard(layers_a: Sequence[Neighbourhoods], layers_b: Sequence[Neighbourhoods]) -> Tensor:
    """Mean of |A & B| / |A | B| over the images, [La, Lb]."""
    shared = _shared(layers_a, layers_b)
    return (shared / (2 * layers_a[0].k - shared)).mean(-1)


MUTUAL_KNN = Measure(
    name="mutual_knn",
    label=f"mutual k-NN (k = {_K})",
    about=(
        "Mean fraction of an image's nearest neighbours (cosine, outliers clamped) that both "
        "representations have in common."
    ),
    source="Huh, Cheung, Wang and Isola 2024, The Platonic Representation Hypothesis, and its code",
    invariances=("isotropic scaling", "permutation"),
    prepare=partial(neighbourhoods, k=_K, clamp=_CLAMP),
    table=lambda a, b: (_shared(a, b) / a[0].k).mean(-1),
    minimum_images=_K + 2,
    pairwise=True,
    no_interval=_NO_INTERVAL,
)

JACCARD = Measure(
    name="jaccard",
    label=f"Jaccard of neighbourhoods (k = {_K})",
    about=(
        "Mean Jaccard index of an image's nearest neighbours (cosine) in the two representations."
    ),
    source="Schumacher et al. 2021; Klabunde et al. 2023, Similarity of Neural Network Models",
    invariances=("isotropic scaling", "permutation", "orthogonal"),
    prepare=partial(neighbourhoods, k=_K, clamp=None),
    table=_mean_jaccard,
    minimum_images=_K + 2,
    pairwise=True,
    no_interval=_NO_INTERVAL,
)
