"""Measures of the distances between images: representational similarity analysis (RSA) and distance
correlation.

RSA (Kriegeskorte, Mur and Bandettini 2008, "Representational Similarity Analysis - Connecting the
Branches of Systems Neuroscience"): two representations are similar if they order the pairs of
images similarly. Distance correlation: Szekely, Rizzo and Bakirov 2007, "Measuring and Testing
Dependence by Correlation of Distances"."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor
from torch.nn.functional import normalize

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.similarity.inputs import CONSTANT, Features, as_matrix
from mixer_probe.similarity.measure import Measure, Square, inner_products, matrix_of

Distance = Literal["correlation", "euclidean"]

# Squared distances from products have an error of 1e-16 of the squared norms: below this fraction
# of them it would show.
_CLOSE = 1e-3
# Rows that differ by no more than this fraction of their norm are equal but for rounding.
_EQUAL = 1e-14
# Distances that agree to as many bits differ by rounding only, and share a rank.
_BITS = 40
# Bits of a float64 beyond those; the first of its 53 is not stored.
_DROPPED = 53 - _BITS


@checked(MeasureError)
def rsa(X: Features, Y: Features, *, distance: Distance = "correlation") -> float:
    """Spearman correlation of the upper triangles of the dissimilarity matrices of `X` [n, p] and
    `Y` [n, q], rows being the same images; ties get average ranks.

    "correlation" is 1 - Pearson's r over the channels of two images. The features are taken as they
    are, not centred over images, so it changes with translation and with rotation of either side.
    "euclidean" changes with neither.

    NaN if a side is constant, if all its pairs are equally dissimilar, or if an image has the same
    value in all channels (correlation only; always so with one channel). Raises MeasureError for
    other than two axes, different n, n < 4, NaN or infinite values, an unknown distance."""
    return (RSA if distance == "correlation" else RSA_EUCLIDEAN)(X, Y)


@checked(MeasureError)
def sample_dissimilarities(
    X: Features, Y: Features, *, n_pairs: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """At most `n_pairs` random pairs of images, `i` < `j`, with their dissimilarity 1 - r, as `rsa`
    has it, in `X` [n, p] (`distance_a`) and in `Y` [n, q] (`distance_b`). Rows are the same images.

    Raises MeasureError for other than two axes and different n."""
    a, b = as_matrix(X, "X").cpu().numpy(), as_matrix(Y, "Y").cpu().numpy()
    if len(a) != len(b):
        raise MeasureError(
            f"X has {len(a)} rows and Y has {len(b)}: give the same images in the same order"
        )
    first, second = np.triu_indices(len(a), 1)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(first))[:n_pairs])
    distances = {
        name: pdist(side, "correlation")[chosen]
        for name, side in (("distance_a", a), ("distance_b", b))
    }
    return pd.DataFrame({"i": first[chosen], "j": second[chosen], **distances})


def distance_correlation(X: Features, Y: Features) -> float:
    """sqrt(dCov^2(X, Y) / sqrt(dVar^2(X) dVar^2(Y))) of `X` [n, p] and `Y` [n, q], rows being the
    same images, where dCov^2 is the mean product of the double-centred Euclidean distance matrices
    (the V-statistic of Szekely et al. 2007).

    1 for representations that differ by rotation, isotropic scaling and translation. Its
    expectation for independent ones is not 0: like biased CKA it approaches 1 where p and q are far
    larger than n, so read it against its null (Szekely and Rizzo 2013).

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN
    or infinite values."""
    return DISTANCE_CORRELATION(X, Y)


def squared_distances(X: Tensor) -> Tensor:
    """Squared Euclidean distances [n, n] between the rows of `X` [n, p], accurate also for rows
    that nearly coincide."""
    deviation = X - X.mean(0)
    products = deviation @ deviation.T
    norms = products.diagonal()[:, None] + products.diagonal()
    squares = torch.sub(norms, products, alpha=2, out=products)
    if bool((squares < norms.mul_(_CLOSE)).fill_diagonal_(False).any()):
        # From differences, 0 where these are rounding. Not of the deviations: a far outlier has
        # moved the mean, and rounded those of all other rows.
        squares = torch.from_numpy(squareform(pdist(X.cpu().numpy(), "sqeuclidean"))).to(X.device)
        powers = X.square().sum(1)
        return squares.masked_fill(squares < _EQUAL**2 * (powers[:, None] + powers), 0)
    # Products of a row with itself and of the rows with each other are summed in different orders.
    return torch.add(squares, squares.T, out=norms).div_(2).fill_diagonal_(0)


def _rank_correlation_distances(X: Tensor) -> Square:
    # Every row has a scale of its own, so that no square leaves the range of numbers.
    X = normalize(X, p=torch.inf, dim=1, eps=torch.finfo(X.dtype).tiny)
    deviation = X - X.mean(1, keepdim=True)
    length = deviation.norm(dim=1, keepdim=True)
    flat = length <= CONSTANT * X.norm(dim=1, keepdim=True)
    # |u - v|^2 / 2 = 1 - r for unit vectors, and unlike 1 - r it is exact near 0.
    return _rank(squared_distances((deviation / length).masked_fill(flat, torch.nan)))


def _rank(dissimilarities: Tensor) -> Square:
    """Ranks of symmetric `dissimilarities` [n, n] that are not negative, or of any increasing
    function of them: mean 0 off the diagonal, 0 on it."""
    pairs = squareform(dissimilarities.cpu().numpy(), checks=False)
    ranks = np.full_like(pairs, np.nan)
    if np.isfinite(pairs).all():
        # Equal where they agree to `_BITS` bits (halves go to even): the bits of numbers >= 0 are
        # in the order of the numbers, across exponents too.
        bits = pairs.view(np.int64)
        ranks = centred_ranks(
            (bits + (2 ** (_DROPPED - 1) - 1) + (bits >> _DROPPED & 1)) >> _DROPPED
        )
    # Each pair stands twice in the square; without any spread this is 0/0, which is right.
    with np.errstate(invalid="ignore"):
        ranks /= np.sqrt(2) * np.linalg.norm(ranks)
    return Square(torch.from_numpy(squareform(ranks, checks=False)).to(dissimilarities.device))


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of `values` [m] less their mean; ties get average ranks."""
    order = np.argsort(values)
    ordered, places = values[order], np.arange(len(values)) - (len(values) - 1) / 2
    steps = ordered[1:] != ordered[:-1]
    ranks = np.empty(len(values))
    if not steps.all():
        # Means of the evenly spaced places over the runs of ties.
        ends = np.flatnonzero(steps)
        first, last = np.r_[0, ends + 1], np.r_[ends, len(places) - 1]
        places = np.repeat((places[first] + places[last]) / 2, last - first + 1)
    ranks[order] = places
    return ranks


def _centre_distances(X: Tensor) -> Square:
    """Euclidean distances between all images, double-centred."""
    distances = squared_distances(X / X.abs().max()).sqrt_()
    mean = distances.mean(0)
    distances.sub_(mean).sub_(mean[:, None]).add_(mean.mean())
    return Square(distances.div_(distances.norm()))


def _root(covariances: Tensor) -> Tensor:
    # dCov^2 is never negative but for rounding.
    return covariances.clamp_min(0).sqrt()


_SOURCE = "Kriegeskorte, Mur and Bandettini 2008, Frontiers in Systems Neuroscience 2:4"

RSA = Measure(
    name="rsa",
    label="RSA (correlation)",
    about="Spearman correlation of the dissimilarities 1 - r of all pairs of images.",
    source=_SOURCE,
    invariances=("isotropic scaling", "permutation"),
    prepare=_rank_correlation_distances,
    table=inner_products,
    lowest=-1.0,
    pairwise=True,
    matrix=matrix_of,
    no_interval=(
        "an image that is nearly the same in all channels has dissimilarities that the least "
        "change reorders"
    ),
)

RSA_EUCLIDEAN = Measure(
    name="rsa_euclidean",
    label="RSA (Euclidean)",
    about="Spearman correlation of the Euclidean distances of all pairs of images.",
    source=_SOURCE,
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=lambda X: _rank(squared_distances(X / X.abs().max())),
    table=inner_products,
    lowest=-1.0,
    pairwise=True,
    matrix=matrix_of,
)

DISTANCE_CORRELATION = Measure(
    name="distance_correlation",
    label="distance correlation",
    about=(
        "Correlation of the double-centred Euclidean distances of all pairs of images, under a "
        "root."
    ),
    source="Szekely, Rizzo and Bakirov 2007, Annals of Statistics 35(6)",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=_centre_distances,
    table=lambda a, b: _root(inner_products(a, b)),
    pairwise=True,
    matrix=matrix_of,
    finish=_root,
)
