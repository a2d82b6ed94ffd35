"""Centred kernel alignment (CKA) of two representations, after Kornblith et al. 2019, "Similarity
of Neural Network Representations Revisited". The unbiased HSIC is the default: the biased one reads
0.75 for independent noise of 768 features and 256 images."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.similarity.components import without_top_components
from mixer_probe.similarity.hsic import (
    Estimator,
    Kernel,
    check_pair,
    gram,
    hsic_from_moments,
    self_hsic_of_moments,
    unit_gram,
)
from mixer_probe.similarity.inputs import Features, as_matrix, centred
from mixer_probe.similarity.intervals import OF_RBF
from mixer_probe.similarity.measure import Measure, Square, inner_products, matrix_of

Method = Literal["auto", "moments", "gram", "minibatch"]


@checked(MeasureError)
def cka(
    X: Features,
    Y: Features,
    *,
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    bandwidth: float = 0.5,
    method: Method = "auto",
    without_top_pc: int = 0,
) -> float:
    """HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) of `X` [n, p] and `Y` [n, q], rows being the same
    images.

    The raw value, never clamped: 1 for equal representations; for independent ones around 0, above
    and below, with the unbiased estimator, and about sqrt(pq / ((p + n)(q + n))) with the biased
    one, which lies in [0, 1]. Unchanged by rotation, isotropic scaling and translation of either
    side, not by other linear maps. Computed in float64.

    `bandwidth` of the RBF kernel is a fraction of the median distance (the root of the median
    squared one, as in Kornblith's notebook). `method` "moments" takes p x q memory and "gram" n x
    n; "auto" takes moments for the linear kernel unless p or q is larger than n. `without_top_pc`
    removes that many leading principal components from each side first: one dominant component,
    often of a few images, is what draws blocks into similarity matrices (Nguyen, Raghu and
    Kornblith 2021).

    NaN where CKA is 0/0: a side is constant, all its pairs of images are equally similar, or (RBF)
    its median distance is 0. Raises MeasureError for other than two axes, different n, n < 4, NaN
    or infinite values, unknown choices."""
    check_options(kernel, bandwidth, method)
    x = as_matrix(X, "X")
    y = as_matrix(Y, "Y").to(x.device)
    check_pair(x, y)
    if method == "minibatch":
        raise MeasureError(
            "the minibatch estimator needs batches: use similarity.MinibatchCKA, compare or "
            "compare_models"
        )
    x, y = (without_top_components(centred(side), without_top_pc) for side in (x, y))
    small = kernel == "linear" and max(x.shape[1], y.shape[1]) <= len(x)
    if method == "moments" or (method == "auto" and small):
        n, kx, ky = len(x), x.square().sum(1), y.square().sum(1)
        cross = hsic_from_moments(_power(x, y), kx @ ky, kx.sum(), ky.sum(), n, estimator)
        own_x, own_y = (
            self_hsic_of_moments(_power(z, z), k @ k, k.sum(), n, estimator)
            for z, k in ((x, kx), (y, ky))
        )
        # Two roots, because the product of two fourth powers leaves the range of numbers first.
        return float(cross / (own_x.sqrt() * own_y.sqrt()))
    left, right = (unit_gram(gram(side, kernel, bandwidth), estimator) for side in (x, y))
    return float((left * right).sum())


def check_options(kernel: str, bandwidth: float, method: str) -> None:
    """Raise MeasureError for a method that does not exist for the kernel, and for a bandwidth that
    is none."""
    if kernel == "rbf" and method == "moments":
        raise MeasureError("the RBF kernel has no moments form: use method='gram' or 'auto'")
    if bandwidth <= 0:
        raise MeasureError(
            f"bandwidth {bandwidth} is not a positive fraction of the median distance"
        )


def _power(x: Tensor, y: Tensor) -> Tensor:
    return (x.T @ y).square().sum()


def ratio(cross: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """CKA [..., La, Lb] from HSIC of all pairs [..., La, Lb] and of each layer with itself, [La]
    and [Lb]."""
    return cross / torch.outer(own_a.sqrt(), own_b.sqrt())


def _prepare(X: Tensor, kernel: Kernel, bandwidth: float = 0.5) -> Square:
    return Square(unit_gram(gram(centred(X), kernel, bandwidth), "unbiased"))


# Measures that have estimator, bandwidth and cheaper forms.
CKA_NAMES = ("cka", "cka_rbf")
_SOURCE = "Kornblith et al. 2019; unbiased HSIC of Song et al. 2012"

CKA = Measure(
    name="cka",
    label="CKA",
    about=(
        "Centred kernel alignment with a linear kernel: whether the directions of large variance "
        "agree."
    ),
    source=_SOURCE,
    invariances=("translation", "isotropic scaling", "permutation", "orthogonal"),
    prepare=partial(_prepare, kernel="linear"),
    table=inner_products,
    lowest=-1.0,
    pairwise=True,
    matrix=matrix_of,
)
CKA_RBF = Measure(
    name="cka_rbf",
    label="CKA (RBF)",
    about=(
        "Centred kernel alignment with a Gaussian kernel of half the median distance: whether near "
        "images are the same."
    ),
    source=_SOURCE,
    invariances=CKA.invariances,
    prepare=partial(_prepare, kernel="rbf"),
    table=inner_products,
    lowest=-1.0,
    pairwise=True,
    matrix=matrix_of,
    no_interval=OF_RBF,
)
