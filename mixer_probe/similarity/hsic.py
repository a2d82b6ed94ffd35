"""The Hilbert-Schmidt independence criterion of two representations, from Gram matrices or from
moments.

`unbiased` is HSIC_1 of Song et al. 2012 (JMLR 13, "Feature Selection via Dependence Maximization",
eq. 4), here in its U-centred form (Szekely and Rizzo 2014): the inner product of the U-centred Gram
matrices over n (n - 3). `biased` is HSIC_0 = tr(K H L H) / (n - 1)^2 of Gretton et al. 2005, as in
Kornblith et al. 2019.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import slices
from mixer_probe.core.validate import checked
from mixer_probe.similarity.inputs import as_matrix

Estimator = Literal["unbiased", "biased"]
Kernel = Literal["linear", "rbf"]

MINIMUM_IMAGES = 4
# A self-HSIC below this fraction of the whole Gram matrix is rounding: all pairs of images are
# equally similar.
_ROUNDING_OF_GRAM = 1e-24
_ROUNDING_OF_MOMENTS = 1e-13
# Squared distances from products have an error of 1e-16 of the largest squared norm.
_FAR_OUT = 1e-5
# Smaller products are done before the copies of blocks would be.
_WORTH_BLOCKS = 256
_COLUMNS = 2560
# Images, spread over all, whose mean is near that of all.
_NEAR_MEAN = 128


@checked(MeasureError)
def hsic(K: Any, L: Any, estimator: Estimator = "unbiased") -> float:
    """HSIC of two Gram matrices `K` and `L` [n, n] over the same images, in the units of K times L.

    The unbiased one ignores both diagonals, may be negative, and has mean 0 over all permutations
    of the images. Raises MeasureError if the matrices are not square, differ in size, have n < 4,
    or hold NaN or infinity."""
    gram_k = as_matrix(K, "K")
    gram_l = as_matrix(L, "L").to(gram_k.device)
    for name, gram in (("K", gram_k), ("L", gram_l)):
        if gram.shape[0] != gram.shape[1]:
            raise MeasureError(
                f"{name} has shape {tuple(gram.shape)}, expected a Gram matrix [n, n]"
            )
    check_pair(gram_k, gram_l, ("K", "L"))
    product = centre_gram(gram_k, estimator) * centre_gram(gram_l, estimator)
    return float(product.sum() / divisor(len(gram_k), estimator))


def check_pair(X: Tensor, Y: Tensor, names: tuple[str, str] = ("X", "Y")) -> None:
    """Raise MeasureError unless both have the same n >= 4 rows and are finite."""
    if len(X) != len(Y):
        raise MeasureError(
            f"{names[0]} has {len(X)} images and {names[1]} has {len(Y)}: use the same images"
        )
    if len(X) < MINIMUM_IMAGES:
        raise MeasureError(f"{len(X)} images are too few: HSIC needs at least {MINIMUM_IMAGES}")
    for name, values in zip(names, (X, Y), strict=True):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise MeasureError(f"{name} contains {bad} values that are NaN or infinite")


def divisor(n: int, estimator: Estimator) -> float:
    """What the inner product of two centred Gram matrices is divided by."""
    return float(n * (n - 3)) if estimator == "unbiased" else float((n - 1) ** 2)


def centre_gram(K: Tensor, estimator: Estimator) -> Tensor:
    """`K` [n, n] double-centred (biased), or U-centred with a zero diagonal (unbiased); all rows
    sum to 0."""
    n = len(K)
    if estimator == "biased":
        return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    K = K.clone().fill_diagonal_(0)
    columns, rows = K.sum(0) / (n - 2), K.sum(1, keepdim=True) / (n - 2)
    # In place: fresh memory of that size costs more than the sums.
    return K.sub_(columns - columns.sum() / (n - 1)).sub_(rows).fill_diagonal_(0)


def gram(X: Tensor, kernel: Kernel, bandwidth: float) -> Tensor:
    """Gram matrix [n, n] of the centred features `X` [n, p]."""
    return inner_products_of_rows(X) if kernel == "linear" else gram_rbf(X, bandwidth)


def inner_products_of_rows(X: Tensor) -> Tensor:
    """XX' [n, n]; of large ones only the blocks on and below the diagonal are computed, 5 / 8 of
    the work."""
    n = len(X)
    if min(X.shape) < _WORTH_BLOCKS:
        return X @ X.T
    products = X.new_empty(n, n)
    step = -(-n // 4)
    for part in slices(n, step):
        block = X[part.start :] @ X[part].T
        products[part.start :, part] = block
        products[part, part.start :] = block.T
    return products


def products_in_float32(X: Tensor) -> Tensor:
    """XX' [n, n] in float64 of float32 features [n, p] minus about their mean: blocks of columns
    are multiplied in float32 and summed in float64.

    What is taken off is the float32 mean of some images: a shift that all images share changes no
    centred Gram matrix, so that it need only be near the mean, and the difference is as exact as
    the features are. An entry is off by some 1e-7 of itself, up or down; of CKA, which sums n^2 of
    them, about 1e-9 is left."""
    n = len(X)
    products = X.new_zeros(n, n, dtype=torch.float64)
    step = -(-n // 4) if n >= _WORTH_BLOCKS else n
    blocks = list(slices(n, step))
    # One piece of memory for all blocks of columns: the system clears fresh memory first.
    room = X.new_empty(n * min(_COLUMNS, X.shape[1]))
    some = X[:: -(-n // _NEAR_MEAN)]
    for part, sample in zip(
        torch.split(X, _COLUMNS, dim=1), torch.split(some, _COLUMNS, dim=1), strict=True
    ):
        centred = torch.sub(part, sample.mean(0), out=room[: part.numel()].view(part.shape))
        for block in blocks:
            products[block.start :, block] += centred[block.start :] @ centred[block].T
    for block in blocks:
        products[block, block] = (products[block, block] + products[block, block].T) / 2
        products[block, block.stop :] = products[block.stop :, block].T
    return products


def gram_rbf(X: Tensor, bandwidth: float) -> Tensor:
    """exp(-d^2 / (2 b^2 m)), m the median of all n^2 squared distances d^2, zeros of the diagonal
    among them, and b = `bandwidth`, as in the notebook of Kornblith et al. 2019. NaN where that
    median is 0."""
    products = inner_products_of_rows(X)
    squares = products.diagonal()
    # Equal rows would keep a rounding error of either sign.
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0).fill_diagonal_(0)
    middle = _median(distances)
    if middle < _FAR_OUT * X.square().sum(1).max():
        # Outliers: products of their size have rounded the distances between all the others.
        distances = torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist").square()
        middle = _median(distances)
    return torch.exp(-distances / (2 * bandwidth**2 * middle))


def _median(values: Tensor) -> Tensor:
    """The median with the two middle values averaged, which torch.median does not do."""
    flat = values.flatten()
    middle = [flat.kthvalue(k).values for k in ((len(flat) + 1) // 2, len(flat) // 2 + 1)]
    return (middle[0] + middle[1]) / 2


def unit_gram(K: Tensor, estimator: Estimator) -> Tensor:
    """`K` [n, n] centred and divided by its norm; NaN where nothing but rounding is left of it."""
    matrix = centre_gram(K, estimator)
    norm = torch.linalg.vector_norm(matrix)
    left = norm > _ROUNDING_OF_GRAM**0.5 * torch.linalg.vector_norm(K)
    return matrix.div_(torch.where(left, norm, torch.nan))


def hsic_from_moments(
    product: Tensor, weights: Tensor, x: Tensor, y: Tensor, n: int, estimator: Estimator
) -> Tensor:
    """Linear-kernel HSIC from moments of features with zero mean; any broadcastable shapes.

    `product` = |X'Y|_F^2, `weights` = sum_i |x_i|^2 |y_i|^2, `x` = sum_i |x_i|^2, `y` = sum_i
    |y_i|^2. HSIC_1 of Song et al. 2012 with K = XX', L = YY' and all row sums zero, so that only
    the diagonals are left to remove."""
    if estimator == "biased":
        return product / divisor(n, estimator)
    diagonal = x * y / ((n - 1) * (n - 2)) - weights * (n / (n - 2))
    return (product + diagonal) / divisor(n, estimator)


def self_hsic_of_moments(
    product: Tensor, weights: Tensor, x: Tensor, n: int, estimator: Estimator
) -> Tensor:
    """HSIC of a representation with itself from the moments of `hsic_from_moments`, NaN where it is
    zero but for rounding."""
    value = hsic_from_moments(product, weights, x, x, n, estimator)
    return torch.where(
        value > _ROUNDING_OF_MOMENTS * product / divisor(n, estimator), value, torch.nan
    )
