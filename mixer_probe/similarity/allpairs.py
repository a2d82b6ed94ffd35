"""CKA of all pairs of layers under all pairings of the images at once, by Gram matrices or by moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_probe.errors import MeasureError
from mixer_probe.similarity.alignment import Method, ratio
from mixer_probe.similarity.hsic import (
    Estimator,
    Kernel,
    centre_gram,
    divisor,
    gram,
    hsic_from_moments,
    self_hsic_of_gram,
    self_hsic_of_moments,
)
from mixer_probe.similarity.inputs import LayerFeatures
from mixer_probe.similarity.nulls import Pairings

# The Gram form works in blocks of layers that keep to the first, and is refused beyond the second.
_BYTES = 2**30
_MOST_BYTES = 2**32
_BATCH = 2**22


@dataclass(frozen=True)
class Settings:
    """The choices that define a CKA."""

    estimator: Estimator
    kernel: Kernel
    bandwidth: float


def choose(method: Method, kernel: Kernel, n: int, widths: tuple[Sequence[int], Sequence[int]], permutations: int) -> Method:
    """The cheaper form for these sizes: "gram" or "moments", by floating-point operations.

    Raises MeasureError if only the Gram form will do and one pair of them takes more than 4 GiB."""
    fits = _gram_bytes(n, 1) <= _MOST_BYTES
    if method == "moments" or (method == "auto" and kernel == "linear" and not fits):
        return "moments"
    if not fits:
        most = int((_MOST_BYTES / _gram_bytes(1, 1)) ** 0.5)
        raise MeasureError(
            f"Gram matrices of {n} images do not fit into 4 GiB: take at most {most} images, "
            "or the linear kernel with method='moments'"
        )
    if method == "gram" or kernel == "rbf":
        return "gram"
    a, b = widths
    # Centring and transforming a Gram matrix costs about 200 operations an entry.
    by_gram = n * n * (2 * (sum(a) + sum(b)) + 200 * (len(a) + len(b)) + 2 * len(a) * len(b))
    by_moments = (permutations + 1) * 2 * n * sum(a) * sum(b)
    return "gram" if by_gram * (1 + permutations // n) <= by_moments else "moments"


def cka_by_moments(a: LayerFeatures, b: LayerFeatures, pairings: Pairings, settings: Settings) -> Tensor:
    """CKA [s, La, Lb] of the layers `a` and `b` for the s `pairings` of their images.

    For the linear kernel. A pairing costs a p x n x q product a pair of layers."""
    orders = pairings.partners()
    values = orders.new_empty((len(orders), len(a), len(b)), dtype=torch.float64)
    own_a, own_b = torch.empty(len(a), dtype=torch.float64), torch.empty(len(b), dtype=torch.float64)
    for rows in _blocks(len(a), max(1, _BYTES // (8 * orders.shape[1] * max(1, *a.channels)))):
        left = a[rows]
        own_a[rows] = torch.stack([_own_by_moments(X, settings.estimator) for X in left])
        for column, Y in enumerate(b):
            own_b[column] = _own_by_moments(Y, settings.estimator)
            pairs = [_pair_by_moments(X, Y, orders, settings.estimator) for X in left]
            values[:, rows, column] = torch.stack(pairs, dim=1)
    return ratio(values, own_a, own_b)


def _pair_by_moments(X: Tensor, Y: Tensor, orders: Tensor, estimator: Estimator) -> Tensor:
    """HSIC [s] of `X` and of `Y` in the `orders` [s, n]."""
    kx, ky = X.square().sum(1), Y.square().sum(1)
    step = max(1, _BATCH // Y.numel())
    products = [(X.T @ Y[part]).square().sum((1, 2)) for part in torch.split(orders, step)]
    return hsic_from_moments(torch.cat(products), ky[orders] @ kx, kx.sum(), ky.sum(), len(X), estimator)


def _own_by_moments(X: Tensor, estimator: Estimator) -> Tensor:
    kx = X.square().sum(1)
    return self_hsic_of_moments((X.T @ X).square().sum(), kx @ kx, kx.sum(), len(X), estimator)


def cka_by_grams(a: LayerFeatures, b: LayerFeatures, pairings: Pairings, settings: Settings) -> Tensor:
    """As `cka_by_moments`, for any kernel; all shifts of an order cost as much as one.

    A shift of the images moves a Gram matrix along its diagonals. Its inner products with another one for all
    shifts are therefore the circular cross-correlations of their diagonals, summed: products of Fourier
    transforms."""
    n = len(pairings.order)
    values = torch.empty((len(pairings.shifts), len(a), len(b)), dtype=torch.float64)
    size = max(1, (_BYTES - _gram_bytes(n, 0)) // (_gram_bytes(n, 1) - _gram_bytes(n, 0)))
    for rows in _blocks(len(a), size):
        left = _spectra(a, rows, pairings.order, settings).conj()
        for columns in _blocks(len(b), size):
            products = left @ _spectra(b, columns, pairings.order, settings).mT
            values[:, rows, columns] = torch.fft.irfft(products, n, dim=0)[pairings.shifts]
    return values


def _spectra(layers: LayerFeatures, block: slice, order: Tensor, settings: Settings) -> Tensor:
    """Fourier transforms along the diagonals of the layers' Gram matrices, [frequency, L, diagonal]."""
    indices, half = range(len(layers))[block], len(order) // 2 + 1
    spectra = torch.empty((half, len(indices), half), dtype=torch.complex128)
    for place, index in enumerate(indices):
        diagonals = _diagonals(_unit_gram(layers[index][order], settings))
        spectra[:, place] = torch.fft.rfft(diagonals, dim=1).T
    return spectra


def _unit_gram(X: Tensor, settings: Settings) -> Tensor:
    """Centred Gram matrix [n, n], scaled so that the inner product of two is their CKA."""
    original = gram(X, settings.kernel, settings.bandwidth)
    matrix = centre_gram(original, settings.estimator)
    own = self_hsic_of_gram(matrix, original, settings.estimator)
    return matrix.div_((own * divisor(len(X), settings.estimator)).sqrt())


def _diagonals(K: Tensor) -> Tensor:
    """The circular diagonals K[i, i + d] of a symmetric matrix [n, n] for d from 0 to n / 2: [d, i].

    Diagonal n - d holds the same numbers as d, so all but the first, and the last for even n, count twice."""
    n = len(K)
    half = n // 2 + 1
    wide = torch.cat([K, K[:, : half - 1]], dim=1)
    view = wide.as_strided((half, n), (1, wide.shape[1] + 1))
    diagonals = view.clone(memory_format=torch.contiguous_format)
    diagonals[1 : (n + 1) // 2] *= 2**0.5
    return diagonals


def _blocks(count: int, size: int) -> Iterator[slice]:
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def _gram_bytes(n: int, layers: int) -> int:
    """Peak memory: six n x n matrices in the making, and a quarter of one in complex numbers a layer and
    side."""
    return n * n * (6 * 8 + layers * 2 * 16 // 4)
