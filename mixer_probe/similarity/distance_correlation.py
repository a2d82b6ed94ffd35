"""Distance correlation (Szekely, Rizzo and Bakirov 2007, "Measuring and Testing Dependence by Correlation of Distances")."""

from __future__ import annotations

from torch import Tensor

from mixer_probe.similarity.inputs import Features
from mixer_probe.similarity.measure import Measure, Square, inner_products, matrix_of
from mixer_probe.similarity.rsa import squared_distances


def distance_correlation(X: Features, Y: Features) -> float:
    """sqrt(dCov^2(X, Y) / sqrt(dVar^2(X) dVar^2(Y))) of `X` [n, p] and `Y` [n, q], rows being the same images, where dCov^2
    is the mean product of the double-centred Euclidean distance matrices (the V-statistic of Szekely et al. 2007).

    1 for representations that differ by rotation, isotropic scaling and translation. Its expectation for independent ones is
    not 0: like biased CKA it approaches 1 where p and q are far larger than n, so read it against its null
    (Szekely and Rizzo 2013).

    NaN if a side is constant. Raises MeasureError for other than two axes, different n, n < 4, NaN or infinite values."""
    return DISTANCE_CORRELATION(X, Y)


def _centre_distances(X: Tensor) -> Square:
    """Euclidean distances between all images, double-centred."""
    distances = squared_distances(X / X.abs().max()).sqrt_()
    mean = distances.mean(0)
    distances.sub_(mean).sub_(mean[:, None]).add_(mean.mean())
    return Square(distances.div_(distances.norm()))


def _root(covariances: Tensor) -> Tensor:
    # dCov^2 is never negative but for rounding.
    return covariances.clamp_min(0).sqrt()


DISTANCE_CORRELATION = Measure(
    name="distance_correlation",
    label="distance correlation",
    about="Correlation of the double-centred Euclidean distances of all pairs of images, under a root.",
    source="Szekely, Rizzo and Bakirov 2007, Annals of Statistics 35(6)",
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=_centre_distances,
    table=lambda a, b: _root(inner_products(a, b)),
    pairwise=True,
    matrix=matrix_of,
    finish=_root,
)
