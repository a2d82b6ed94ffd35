"""Leading principal components of features, and features without them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import ROWS
from mixer_probe.core.validate import check_count
from mixer_probe.similarity.inputs import LayerFeatures

_ROUNDING = 1e-12


def without_top_components(X: Tensor, k: int) -> Tensor:
    """Centred features `X` [n, p] without their `k` leading principal components; all NaN if
    nothing but rounding is left.

    Raises MeasureError for a negative count."""
    check_count("without_top_pc", k, MeasureError, least=0)
    if k == 0 or not torch.isfinite(X).all():
        return X
    if X.shape[1] <= len(X):
        V = _leading(X.T @ X, k)
        return _rest(X, X - X @ V @ V.T)
    U = _leading(X @ X.T, k)
    return _rest(X, X - U @ (U.T @ X))


def _leading(symmetric: Tensor, k: int) -> Tensor:
    """Eigenvectors of the `k` largest eigenvalues, as columns."""
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors[:, max(0, len(symmetric) - k) :]


def _rest(whole: Tensor, rest: Tensor) -> Tensor:
    if rest.square().sum() <= _ROUNDING**2 * whole.square().sum():
        return torch.full_like(whole, torch.nan)
    return rest


class WithoutTopComponents:
    """A function of a layer's index and raw features [m, p] that takes out the `k` leading
    components of all its images.

    The components of a layer are found when it is first asked for, in two passes over `layers`."""

    def __init__(self, layers: LayerFeatures, k: int) -> None:
        self._layers = layers
        self._k = k
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, index: int, X: Tensor) -> Tensor:
        """`X` about the mean of all images, without the components."""
        if index not in self._found:
            n, slices = self._layers.n, partial(self._layers.slices, index, ROWS)
            mean = torch.stack([part.sum(0) for part in slices()]).sum(0) / n
            if not torch.isfinite(mean).all():
                V = mean.new_zeros(len(mean), self._k)
            elif len(mean) > n:
                centred = self._layers.raw(index) - mean
                V = torch.linalg.qr(centred.T @ _leading(centred @ centred.T, self._k)).Q
                del centred
            else:
                covariance = mean.new_zeros(len(mean), len(mean))
                for part in slices():
                    covariance.addmm_((part - mean).T, part - mean)
                V = _leading(covariance, self._k)
            self._found[index] = mean, V
        mean, V = (found.to(X.device) for found in self._found[index])
        X = X - mean
        return _rest(X, X - X @ V @ V.T)
