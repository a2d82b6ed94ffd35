"""CKA of all pairs of layers from their Gram matrices: of the true pairing of the images, of random ones, and of halves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_probe.similarity.hsic import Estimator, Kernel, centre_gram, divisor, gram, self_hsic_of_gram
from mixer_probe.similarity.nulls import Pairings, Traces

# Gram matrices are worked on in blocks of layers that keep to this many bytes.
_BYTES = 2**29
_PRODUCT_BYTES = 2**26

# Centred features [n, p] of each layer; they may be read when asked for.
Layers = Sequence[Tensor]


@dataclass(frozen=True)
class Settings:
    """The choices that define a CKA."""

    estimator: Estimator
    kernel: Kernel
    bandwidth: float


def cka_by_grams(a: Layers, b: Layers, pairings: Pairings, settings: Settings) -> Tensor:
    """CKA [s, La, Lb] of the layers `a` and `b` for the s `pairings` of their images; all shifts of an order cost as much as
    one.

    A shift of the images moves a Gram matrix along its diagonals. Its inner products with another one for all
    shifts are therefore the circular cross-correlations of their diagonals, summed: products of Fourier
    transforms."""
    n = len(pairings.order)
    values = torch.empty((len(pairings.shifts), len(a), len(b)), dtype=torch.float64)
    size = max(1, (_BYTES - gram_bytes(n, 0)) // (gram_bytes(n, 1) - gram_bytes(n, 0)))
    for rows in _blocks(len(a), size):
        left = _spectra(a, rows, pairings.order, settings).conj()
        for columns in _blocks(len(b), size):
            products = left @ _spectra(b, columns, pairings.order, settings).mT
            values[:, rows, columns] = torch.fft.irfft(products, n, dim=0)[pairings.shifts]
    return values


def _spectra(layers: Layers, block: slice, order: Tensor, settings: Settings) -> Tensor:
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


def traces(layers: Layers, settings: Settings) -> Traces:
    """What the exact moments of the permutation null need of every layer's centred Gram matrix."""
    parts = [Traces.of([_unit_gram(layers[i], settings)]) for i in range(len(layers))]
    return Traces(*(torch.cat([getattr(p, f) for p in parts]) for f in ("trace", "power", "diagonal")))


@dataclass(frozen=True)
class _Halved:
    """A layer's Gram matrix [n, n] for the estimator, and what halves of the images with weights W [n, r] make of it."""

    K: Tensor
    KW: Tensor
    sums: Tensor  # [r] w'Kw
    own: Tensor  # [r] HSIC of each half with itself


def cka_of_halves(a: Layers, b: Layers, halves: Tensor, settings: Settings) -> Tensor:
    """CKA [r, La, Lb] of the images in each of r `halves` (weights [n, r] of 0 and 1), exactly as on those images alone.

    HSIC of a half depends on w'(K o L)w, w'Kw and sum w (Kw)(Lw) only, which are matrix products for all halves at once."""
    values = torch.empty((halves.shape[1], len(a), len(b)), dtype=torch.float64)
    size = max(1, _BYTES // (16 * halves.shape[0] ** 2))
    for rows in _blocks(len(a), size):
        left = [_halved(X, halves, settings) for X in a[rows]]
        own_a = torch.stack([side.own for side in left], dim=1)
        for columns in _blocks(len(b), size):
            right = [_halved(Y, halves, settings) for Y in b[columns]]
            own_b = torch.stack([side.own for side in right], dim=1)
            cross = torch.stack([_cross(one, right, halves, settings.estimator) for one in left], dim=1)
            values[:, rows, columns] = cross / (own_a.sqrt()[:, :, None] * own_b.sqrt()[:, None, :])
    return values


def _halved(X: Tensor, halves: Tensor, settings: Settings) -> _Halved:
    K = gram(X, settings.kernel, settings.bandwidth)
    if settings.estimator == "unbiased":
        K.fill_diagonal_(0)
    KW = K @ halves
    sums = (KW * halves).sum(0)
    side = _Halved(K, KW, sums, sums)
    return _Halved(K, KW, sums, _cross(side, [side], halves, settings.estimator)[:, 0])


def _cross(one: _Halved, others: list[_Halved], halves: Tensor, estimator: Estimator) -> Tensor:
    """HSIC [r, L] of each half of one layer with each of the `others`."""
    step = max(1, _PRODUCT_BYTES // one.K.nbytes)
    found = [_cross_block(one, others[i : i + step], halves, estimator) for i in range(0, len(others), step)]
    return torch.cat(found, dim=1)


def _cross_block(one: _Halved, others: list[_Halved], halves: Tensor, estimator: Estimator) -> Tensor:
    m = float(halves[:, 0].sum())
    product = torch.stack([other.K for other in others]).mul_(one.K) @ halves
    t = (product * halves).sum(1)
    sums = torch.stack([other.sums for other in others]) * one.sums
    c = torch.stack([(one.KW * other.KW * halves).sum(0) for other in others])
    if estimator == "biased":
        return ((t + sums / m**2 - 2 * c / m) / divisor(int(m), estimator)).T
    return ((t + sums / ((m - 1) * (m - 2)) - 2 * c / (m - 2)) / divisor(int(m), estimator)).T


def _blocks(count: int, size: int) -> Iterator[slice]:
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def gram_bytes(n: int, layers: int) -> int:
    """Peak memory: six n x n matrices in the making, and a quarter of one in complex numbers a layer and
    side."""
    return n * n * (6 * 8 + layers * 2 * 16 // 4)
