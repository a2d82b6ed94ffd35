"""CKA of all pairs of layers from their Gram matrices: of the true pairing, of random ones, and
without one image each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_probe.core.memory import LARGE, at_once, slices
from mixer_probe.similarity.hsic import Estimator, Kernel, gram, products_in_float32, unit_gram
from mixer_probe.similarity.inputs import LayerFeatures
from mixer_probe.similarity.nulls import Pairings, Traces

_SPREAD = 1e-5
# Of the power method: the eigenvalue is needed to a few per cent.
_ITERATIONS = 30

# Centred features [n, p] of each layer; they may be read when asked for.
Layers = Sequence[Tensor]
# The symmetric matrix [n, n] of a layer by its index.
Matrices = Callable[[int], Tensor]


@dataclass(frozen=True)
class Settings:
    """The choices that define a CKA."""

    estimator: Estimator
    kernel: Kernel
    bandwidth: float


class Grams:
    """Gram matrices [n, n] of `layers`, computed when they are asked for and cached while there is
    room."""

    def __init__(self, layers: Layers, settings: Settings) -> None:
        self._layers = layers
        self.settings = settings
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def raw(self, index: int) -> Tensor:
        """Not centred; not to be written to."""
        if index in self._kept:
            return self._kept[index]
        wide = (
            self._layers
            if isinstance(self._layers, LayerFeatures) and self.settings.kernel == "linear"
            else None
        )
        narrow = None if wide is None else wide.narrow(index)
        if wide is None or narrow is None:
            K = gram(self._layers[index], self.settings.kernel, self.settings.bandwidth)
        else:
            K = products_in_float32(narrow)
            low, high = K.aminmax()
            # Equal rows leave the rounding of their mean, and with it one number everywhere.
            if not high - low > _SPREAD * torch.maximum(high.abs(), low.abs()):
                wide.mark_undefined(index)
                K.fill_(torch.nan)
        if len(self._kept) < at_once(K.nbytes, least=0):
            self._kept[index] = K
        return K

    def unit(self, index: int) -> Tensor:
        """Centred and of norm 1: the inner product of two is their CKA. NaN where the layer's own
        HSIC is 0."""
        return unit_gram(self.raw(index), self.settings.estimator)

    def traces(self) -> Traces:
        """What the exact moments of the permutation null need of every layer's centred Gram
        matrix."""
        parts = [Traces.of([self.unit(i)]) for i in range(len(self))]
        return Traces(
            *(torch.cat([getattr(p, f) for p in parts]) for f in ("trace", "power", "diagonal"))
        )


def inner_products(a: Matrices, b: Matrices, size: tuple[int, int], n: int) -> Tensor:
    """Inner products [La, Lb] of the matrices [n, n] of two sides."""
    values = torch.empty(size, dtype=torch.float64)
    step = at_once(2 * 8 * n * n, LARGE)
    for rows in slices(size[0], step):
        left = torch.stack([a(i).flatten() for i in range(size[0])[rows]])
        for columns in slices(size[1], step):
            # No stack of the other side: a product with one vector reads as much.
            for column in range(size[1])[columns]:
                values[rows, column] = left @ b(column).flatten()
    return values


def shifted_inner_products(
    a: Matrices, b: Matrices, size: tuple[int, int], pairings: Pairings
) -> Tensor:
    """Inner products [s, La, Lb] of symmetric matrices [n, n] for the s `pairings` of their images;
    all shifts of an order cost as much as one.

    A shift of the images moves a matrix along its diagonals. Its inner products with another one
    for all shifts are therefore the circular cross-correlations of their diagonals, summed:
    products of Fourier transforms."""
    n = len(pairings.order)
    values = torch.empty((len(pairings.shifts), *size), dtype=torch.float64)
    step = at_once(gram_bytes(n, 1) - gram_bytes(n, 0), LARGE - gram_bytes(n, 0))
    for rows in slices(size[0], step):
        left = _spectra(a, range(size[0])[rows], pairings.order).conj()
        for columns in slices(size[1], step):
            products = left @ _spectra(b, range(size[1])[columns], pairings.order).mT
            values[:, rows, columns] = torch.fft.irfft(products, n, dim=0)[pairings.shifts]
    return values


def _spectra(matrices: Matrices, indices: range, order: Tensor) -> Tensor:
    """Fourier transforms along the diagonals of the layers' matrices, [frequency, L, diagonal]."""
    n, half = len(order), len(order) // 2 + 1
    spectra = torch.empty((half, len(indices), half), dtype=torch.complex128)
    for place, index in enumerate(indices):
        # The circular diagonals K[i, i + d] of a symmetric matrix [n, n] for d from 0 to n / 2: [d,
        # i].
        K = matrices(index)[order][:, order]
        wide = torch.cat([K, K[:, : half - 1]], dim=1)
        view = wide.as_strided((half, n), (1, wide.shape[1] + 1))
        diagonals = view.clone(memory_format=torch.contiguous_format)
        # Diagonal n - d holds the same numbers as d, so all but the first, and the last for even n,
        # count twice.
        diagonals[1 : (n + 1) // 2] *= 2**0.5
        spectra[:, place] = torch.fft.rfft(diagonals, dim=1).T
    return spectra


def jackknife_variances(a: Grams, b: Grams, n: int) -> Tensor:
    """Jackknife variance [La, Lb] of CKA over the `n` images: (n - 1) / n times the sum of squared
    deviations of its values without one image each, which are exact."""
    found = torch.empty(len(a), len(b), dtype=torch.float64)
    for rows in slices(len(a), at_once(2 * 8 * n * n, LARGE)):
        left = [a.unit(i) for i in range(len(a))[rows]]
        own = [_without_each(K, K, a.settings.estimator) for K in left]
        for column in range(len(b)):
            L = b.unit(column)
            other = _without_each(L, L, a.settings.estimator)
            for row, (K, one) in enumerate(zip(left, own, strict=True), start=rows.start):
                values = _without_each(K, L, a.settings.estimator) / (one.sqrt() * other.sqrt())
                found[row, column] = values.var(correction=0) * (n - 1)
    return found


def _without_each(K: Tensor, L: Tensor, estimator: Estimator) -> Tensor:
    """Inner products [n] of two centred matrices [n, n] when one image each is left out and the
    rest is centred anew.

    All rows of the matrices sum to 0, so that of what centring anew takes off only row i itself and
    its diagonal are left."""
    n = len(K)
    rows = torch.einsum("ij,ij->i", K, L)
    if estimator == "unbiased":
        return rows.sum() - 2 * (n - 2) / (n - 3) * rows
    ratio = n / (n - 1)
    return rows.sum() - 2 * ratio * rows + ratio**2 * K.diagonal() * L.diagonal()


def leading_fractions(layers: Grams) -> Tensor:
    """Largest eigenvalue [L] of the centred Gram matrices of norm 1: 1 for one dimension, 1 /
    sqrt(p) for p equal ones."""
    found = []
    for K in map(layers.unit, range(len(layers))):
        # By power iteration from the row of the image that is farthest out.
        vector = K[torch.linalg.vector_norm(K, dim=1).argmax()]
        for _ in range(_ITERATIONS):
            vector = K @ (vector / vector.norm())
        found.append(vector.norm())
    return torch.stack(found)


def gram_bytes(n: int, layers: int) -> int:
    """Peak memory: six n x n matrices in the making, and a quarter of one in complex numbers per
    layer and side."""
    return n * n * (6 * 8 + layers * 2 * 16 // 4)
