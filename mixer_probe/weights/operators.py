"""Weights as linear operators: the weight that a layer applies, its singular values, and what iid
weights would have.

A k x k convolution with circular boundary on an H x W grid is block diagonal in the Fourier basis:
its singular values are those of the small matrices K(f) [out, in] over all H W frequencies f
(Sedghi, Gupta and Long 2019, ICLR, "The Singular Values of Convolutional Layers"). A stride s folds
the s x s aliases of an output frequency into one matrix [out, in s s] / s, which is exact too.
Groups make K(f) block diagonal; a depthwise kernel leaves |FFT| of each kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import gamma
from torch import nn
from torch.overrides import TorchFunctionMode

from mixer_probe.core.memory import at_once
from mixer_probe.stats import prediction_limit


class _KernelCapture(TorchFunctionMode):
    """Records the kernel of the last `conv2d`."""

    kernel: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            self.kernel = args[1] if len(args) > 1 else kwargs["weight"]
        return func(*args, **(kwargs or {}))


def applied_weight(layer: nn.Module) -> torch.Tensor:
    """The weight that a linear layer or convolution multiplies by, in its own type, without
    gradient.

    Convolutions with weight standardisation (BiT) apply another kernel than the one they store."""
    stored = layer.weight
    assert isinstance(stored, torch.Tensor)
    if not isinstance(layer, nn.Conv2d) or type(layer).forward is nn.Conv2d.forward:
        return stored.detach()
    smallest = stored.new_zeros(
        1, layer.in_channels, *(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size))
    )
    with torch.no_grad(), _KernelCapture() as captured:
        layer(smallest)
    return (stored if captured.kernel is None else captured.kernel).detach()


def double(weight: torch.Tensor) -> torch.Tensor:
    """A copy in float64 on the CPU."""
    return weight.detach().to(device="cpu", dtype=torch.float64, copy=True)


def double_array(weight: torch.Tensor) -> np.ndarray:
    """A copy in float64 as an array."""
    array: np.ndarray = double(weight).numpy()
    return array


def matrix_values(matrix: torch.Tensor) -> np.ndarray:
    """Singular values [..., min(m, n)] of [..., m, n], largest first; NaN for matrices that are not
    finite."""
    if not bool(torch.isfinite(matrix).all()):
        return np.full((*matrix.shape[:-2], min(matrix.shape[-2:])), np.nan)
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mH
    # The triangular factor has the same singular values and is much the smaller; the Gram matrix
    # would lose the small ones.
    reduced = torch.linalg.qr(tall, mode="r")[1] if tall.shape[-2] > 1.5 * tall.shape[-1] else tall
    values: np.ndarray = torch.linalg.svdvals(reduced).numpy()
    return values


def product_values(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """Singular values [..., min(p, d, q)] of left @ right, for thin factors [..., p, d] and [...,
    d, q] in float64.

    Of Q R = left and P S = right' only R S' is decomposed, so that no p x q matrix is made."""
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        return np.full((*left.shape[:-2], min(*left.shape[-2:], right.shape[-1])), np.nan)
    r = torch.linalg.qr(left, mode="r")[1]
    s = torch.linalg.qr(right.mT, mode="r")[1]
    values: np.ndarray = torch.linalg.svdvals(r @ s.mT).numpy()
    return values


def convolution_values(
    kernel: torch.Tensor,
    grid: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """All singular values, largest first, of the circular convolution with kernel [out, in /
    groups, kh, kw] on `grid`.

    `grid` is the input's (rows, columns) and a multiple of the stride. Returns [frequencies x
    groups x min(o, i)] with i the inputs of a group times the aliases of a stride. Sedghi, Gupta
    and Long (2019), with stride, dilation and groups added."""
    weight = double(kernel)
    if not bool(torch.isfinite(weight).all()):
        weight = torch.full_like(weight, math.nan)
    phases, repeats = _transfer_phases(grid, stride, dilation, (kernel.shape[2], kernel.shape[3]))
    bytes_per_frequency = phases.shape[1] * weight[:, :, 0, 0].numel() * 16
    out, inputs = weight.shape[0] // groups, weight.shape[1]
    taps = weight.reshape(out * groups * inputs, -1).T
    found = []
    for chunk in torch.split(phases, at_once(bytes_per_frequency)):
        # Two real products are cheaper than one complex product with a real factor.
        transfer = torch.complex(chunk.real @ taps, chunk.imag @ taps)
        matrices = (
            transfer.reshape(*chunk.shape[:2], groups, out, inputs)
            .permute(0, 2, 3, 4, 1)
            .flatten(3)
        )
        if min(matrices.shape[-2:]) == 1:
            found.append(torch.linalg.vector_norm(matrices, dim=(-2, -1)).numpy()[..., None])
        else:
            found.append(matrix_values(matrices))
    ordered: np.ndarray = np.sort(np.repeat(np.concatenate(found), repeats, axis=0), axis=None)[
        ::-1
    ].copy()
    return ordered


def _transfer_phases(
    grid: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], size: tuple[int, int]
) -> tuple[torch.Tensor, np.ndarray]:
    """exp(2 pi i f t) / s as [output frequency, alias, tap], and how often each output frequency
    counts.

    The kernel is real, so f and -f have the same singular values: one of the two is kept and counts
    twice."""
    height, width = grid[0] // stride[0], grid[1] // stride[1]
    rows, columns = (axis.ravel() for axis in np.indices((height, width)))
    own, mirrored = rows * width + columns, (-rows % height) * width + (-columns % width)
    kept = own <= mirrored
    along = []
    for index, length, s, d, taps in zip((rows[kept], columns[kept]), grid, stride, dilation, size):
        aliases = index[:, None] + np.arange(s) * (length // s)
        along.append(np.exp(2j * np.pi * aliases[..., None] * np.arange(taps) * d / length))
    waves = along[0][:, :, None, :, None] * along[1][:, None, :, None, :]
    flat = waves.reshape(len(waves), stride[0] * stride[1], size[0] * size[1]) / math.sqrt(
        stride[0] * stride[1]
    )
    return torch.from_numpy(flat), np.where(own < mirrored, 2, 1)[kept]


def stable_rank(values: np.ndarray) -> float:
    """|W|_F^2 / |W|_2^2 from singular values: 1 for rank one, n for an orthogonal n x n matrix. NaN
    for zeros or NaN."""
    if not values.size or not np.isfinite(values).all() or not values.max() > 0:
        return math.nan
    return float(((values / values.max()) ** 2).sum())


def marchenko_pastur_edge(rows: int, columns: int, norm: float = 1.0) -> float:
    """Largest singular value of an iid rows x columns matrix of Frobenius norm `norm`, for large
    sizes.

    sigma (sqrt(rows) + sqrt(columns)) with sigma = norm / sqrt(rows columns) (Marchenko and Pastur
    1967; Geman 1980)."""
    return norm * (1 / math.sqrt(rows) + 1 / math.sqrt(columns))


# Tracy and Widom's law for real matrices: mean, standard deviation, and the shifted gamma law that
# stands in for it.
_TW_MEAN, _TW_SD = -1.2065335746, 1.2679803
_TW_SHAPE, _TW_SCALE, _TW_SHIFT = 46.446, 0.186054, 9.84801


def tracy_widom_edge(
    rows: int, columns: int, norm: float = 1.0, *, level: float = 0.05, tests: int = 1
) -> float:
    """The singular value that the largest of an iid rows x columns matrix of Frobenius norm `norm`
    exceeds with probability `level` or less; with `tests`, the largest of so many matrices
    (Bonferroni).

    The squared largest singular value over the variance of the entries is, centred and scaled
    (Johnstone 2001, with the constants of Ma 2012), Tracy and Widom's law, taken here from the
    gamma law of Chiani 2014. The norm is known and not estimated, so that its variance is taken
    out. The Marchenko-Pastur edge is where the largest value of *infinite* matrices lies: finite
    ones exceed it."""
    a, b = (math.sqrt(n - 0.5) if n > 1 else 1.0 for n in (rows, columns))
    centre, scale = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    z = (
        float(gamma.ppf(1 - level / tests, _TW_SHAPE, scale=_TW_SCALE)) - _TW_SHIFT - _TW_MEAN
    ) / _TW_SD
    mean = centre + scale * _TW_MEAN
    variance = (scale * _TW_SD) ** 2 - mean**2 * 2 / (rows * columns)
    size = mean + z * math.sqrt(max(variance, 0.0))
    # A single row has all of the norm, up to rounding.
    return min(norm * (1 + 1e-12), norm * math.sqrt(size / (rows * columns)))


def iid_values(
    operator: Callable[[torch.Generator], np.ndarray], draws: int, seed: int
) -> tuple[np.ndarray, float, float]:
    """Singular values of an operator with iid normal weights at Frobenius norm 1; the largest of
    all draws; and what the largest of one more draw exceeds in 5 % of cases (`prediction_limit`).

    `operator` draws one such operator and returns its singular values, largest first. The values
    are means over the draws, order statistic by order statistic."""
    generator = torch.Generator().manual_seed(seed)
    drawn = np.stack([operator(generator) for _ in range(draws)])
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn.mean(0), float(drawn.max()), prediction_limit(drawn.max(1))
