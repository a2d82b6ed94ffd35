"""Effective spatial kernels: from which positions each position reads, read off the weights of every family on one axis in
pixels.

`spatial_kernels(model)` gives one kernel a spatial-mixing layer, K[i, j] = "position i reads from position j":

- Mixer: W2 W1, the linear part of the token MLP (its GELU and biases left out); gMixer: W2 times the plain half of fc1 (the
  activated half gates hidden units and is left out); ResMLP: linear_tokens times the root mean square of its layer scale;
  gMLP: the weight of the spatial gate.
- ViT: attention from positions alone, averaged over heads (`mixer_probe.weights.position_attention`).
- CNN: the kernels of the convolution, which lie in offset space already and have no S x S matrix here. Depthwise convolutions
  have one kernel a channel, full ones one for every pair of channels; the energy at an offset is the sum of squares over all of
  them, so that A2 of SCIENCE's P_ij = A2_ij / sum_j A2_ij is the squared Frobenius norm of what the layer reads there.

A network without training (`model.untrained()`) is just another result to put beside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from mixer_probe.core.errors import LayerError, MeasureError, ModelError, UndefinedKernelWarning, closest
from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.models.structure import Block
from mixer_probe.weights.offsets import (
    Grid,
    Pixels,
    bttb_fraction_centred_iid,
    matrix_spread,
    matrix_spread_sd,
    offset_mean,
    offset_rms,
    shared_spread,
    shared_spread_sd,
    translation_fraction,
    translation_p,
    uniform_distance,
)
from mixer_probe.weights.position_attention import PositionAttention, position_attention
from mixer_probe.weights.token_matrices import TokenMatrices, token_matrices

_FORMS = {
    "Mixer": "W2 W1, the linear part of the token MLP",
    "gMixer": "W2 times the plain half of W1, its gate left out",
    "ResMLP": "linear_tokens",
    "gMLP": "weight of the spatial gate",
}


@storable
@dataclass(frozen=True)
class SpatialKernel:
    """The effective kernel of one layer. S positions lie in rows of `grid` (h, w), `step_px` (down, right) pixels apart.

    `matrix` [S, S] is K, float32, None for convolutions. `mean` and `rms` are the average and the root-mean-square kernel
    around a position in offset space: [2h-1, 2w-1] over the available pairs of each offset (no padding), or for a convolution
    [kh, kw] over its kernels. `offset_step_px` is the pixels between two entries of them, larger than `step_px` for a dilated
    convolution. `translation_fraction` is the fraction of energy that depends on the offset alone, as a convolution's does, the
    mean of K taken away, and `translation_iid` its expectation for iid entries. `distance_px` is the mean distance that a
    position reads over, weighted by K^2 (row by row, then averaged over positions), `distance_sd` how far chance moves it
    (`offsets.matrix_spread_sd`),
    `uniform_px` that of a kernel that reads everywhere alike, `self_mass` the share of K^2 on the position itself. `norm` is
    the Frobenius norm of K. `head_distance_px` [head] is for attention, one head at a time. Weights that are all zero give
    NaN."""

    block: str
    layer: str
    depth: float
    form: str
    grid: Grid
    step_px: Pixels
    offset_step_px: Pixels
    matrix: np.ndarray | None
    mean: np.ndarray
    rms: np.ndarray
    norm: float
    translation_fraction: float
    translation_iid: float
    distance_px: float
    distance_sd: float
    uniform_px: float
    self_mass: float
    head_distance_px: np.ndarray

    @property
    def reach_px(self) -> tuple[float, float]:
        """The farthest offset (down, right) in pixels that `mean` and `rms` show, to the outer edge of its entry."""
        return self.rms.shape[0] * self.offset_step_px[0] / 2, self.rms.shape[1] * self.offset_step_px[1] / 2


@dataclass(frozen=True)
class SpatialKernels(Result):
    """One `SpatialKernel` per spatial-mixing layer, in execution order.

    `most_structured` is the index of the kernel of the largest translation fraction among those of S x S matrices, -1 where there
    is none, and `p_value` that of this maximum: the p-value of `offsets.translation_p` with `draws` draws, times the number of
    these kernels (Bonferroni)."""

    title: ClassVar[str] = "Spatial kernels"

    model: ModelRecord
    kernels: tuple[SpatialKernel, ...]
    most_structured: int = -1
    p_value: float = float("nan")
    draws: int = 0

    def __len__(self) -> int:
        return len(self.kernels)

    def index(self, block: int | str) -> int:
        """Position of a kernel given by number (negative counts from the end), or path of its block or layer. Raises
        LayerError."""
        if isinstance(block, str):
            return self._index_of_path(block)
        if not -len(self) <= block < len(self):
            raise LayerError(f"{self.model.name} has spatial kernels 0 to {len(self) - 1}, not {block}")
        return block % len(self)

    def _index_of_path(self, path: str) -> int:
        names = [name for k in self.kernels for name in (k.block, k.layer)]
        if path not in names:
            raise LayerError(f"no spatial kernel at '{path}' in {self.model.name}; {closest(path, dict.fromkeys(names))}")
        return names.index(path) // 2

    def kernel(self, block: int | str) -> SpatialKernel:
        """The kernel of a block. Raises LayerError that names the range or close paths."""
        return self.kernels[self.index(block)]

    def matrix(self, block: int | str) -> np.ndarray:
        """K [S, S] of a block. Raises LayerError for a convolution, whose kernels are shared by all positions."""
        kernel = self.kernel(block)
        if kernel.matrix is None:
            raise LayerError(
                f"'{kernel.layer}' is a convolution: all positions share its kernels, so it has no map of its own for each; "
                "take mean or rms"
            )
        return kernel.matrix

    def row_maps(self, block: int | str) -> np.ndarray:
        """Who reads from whom: [S, h, w], map i is where position i reads. Raises LayerError for a convolution."""
        return self.matrix(block).reshape(-1, *self.kernel(block).grid)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: distances in px, self mass, translation fraction and its iid value, norm."""
        return pd.DataFrame([self._row(k) for k in self.kernels])

    def _row(self, k: SpatialKernel) -> dict[str, object]:
        return {
            "model": self.model.name,
            "block": k.block,
            "layer": k.layer,
            "depth": k.depth,
            "kernel": k.form,
            "grid": "×".join(map(str, k.grid)),
            "step_px": max(k.step_px),
            "distance_px": k.distance_px,
            "distance_over_uniform": k.distance_px / k.uniform_px if k.uniform_px > 0 else float("nan"),
            "self_mass": k.self_mass,
            "translation_fraction": k.translation_fraction,
            "translation_iid": k.translation_iid,
            "norm": k.norm,
        }


@checked(MeasureError)
def spatial_kernels(model: Model, *, draws: int = 999, seed: int = 0) -> SpatialKernels:
    """The effective spatial kernel of every layer that mixes positions, from the weights alone.

    `draws` are those of the null of the largest translation fraction, 0 for none.

    Raises ModelError for a ViT whose positions enter otherwise than by an absolute embedding or a relative bias, and for a
    network without any spatial kernel. Warns with UndefinedKernelWarning of kernels that are zero or constant."""
    makers = {"mixer": _of_mixer, "vit": _of_vit, "cnn": _of_cnn}
    kernels = tuple(makers[model.family](model))
    if not kernels:
        raise ModelError(f"{model.name} has no convolution larger than 1×1 in its blocks, so it has no spatial kernels")
    _warn(k.layer for k in kernels if np.isnan(k.translation_fraction) and k.grid != (1, 1))
    return SpatialKernels(model.record, kernels, *_most_structured(kernels, draws, seed), draws)


def _most_structured(kernels: Sequence[SpatialKernel], draws: int, seed: int) -> tuple[int, float]:
    known = [i for i, k in enumerate(kernels) if k.matrix is not None and np.isfinite(k.translation_fraction)]
    if not known:
        return -1, float("nan")
    best = max(known, key=lambda i: kernels[i].translation_fraction)
    if not draws:
        return best, float("nan")
    p = translation_p(kernels[best].matrix, kernels[best].grid, draws, seed)  # type: ignore[arg-type]
    return best, min(1.0, p * len(known))


def _warn(layers: Iterable[str]) -> None:
    found = list(layers)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(
            f"the kernel of '{found[0]}'{more} is zero or the same for all pairs of positions: what is undefined is NaN",
            UndefinedKernelWarning,
            stacklevel=3,
        )


def _of_mixer(model: Model) -> Iterator[SpatialKernel]:
    grid = model.structure.token_grid
    if grid is None:
        raise ModelError(f"the patch grid of {model.name} is not known, so its kernels cannot be laid out in space")
    for found in token_matrices(model):
        layer = f"{found.block}.{found.layer}"
        yield matrix_kernel(
            _product(found), found.block, layer, found.depth, _FORMS[found.form], grid, step_of(model.input.size, grid)
        )


def _product(found: TokenMatrices) -> np.ndarray:
    matrix: np.ndarray = found.read if found.write is None else found.write.T @ found.read
    return matrix


def _of_vit(model: Model) -> Iterator[SpatialKernel]:
    blocks = position_attention(model)
    for i, found in enumerate(blocks):
        heads = found.heads.numpy()
        step = _attention_step(model, found)
        layer = f"{found.block.path}.{found.layer}"
        distances = np.array([matrix_spread(head, found.grid, step)[0] for head in heads])
        depth = (i + 1) / len(blocks)
        yield matrix_kernel(heads.mean(0), found.block.path, layer, depth, found.form, found.grid, step, distances)


def _attention_step(model: Model, found: PositionAttention) -> Pixels:
    # A windowed block sees a finer or coarser grid than its window has positions.
    grid = model.layer(found.block.path).grid or found.grid
    return step_of(model.input.size, grid)


def matrix_kernel(
    matrix: np.ndarray,
    block: str,
    layer: str,
    depth: float,
    form: str,
    grid: Grid,
    step: Pixels,
    head_distances: np.ndarray | None = None,
) -> SpatialKernel:
    """Everything measured on an S x S kernel: offset averages, translation fraction, spread."""
    distance, self_mass = matrix_spread(matrix, grid, step)
    fraction, iid = translation_fraction(matrix, grid)
    return SpatialKernel(
        block=block,
        layer=layer,
        depth=depth,
        form=form,
        grid=grid,
        step_px=step,
        offset_step_px=step,
        matrix=matrix.astype(np.float32),
        mean=offset_mean(matrix, grid),
        rms=offset_rms(matrix, grid),
        norm=float(np.linalg.norm(matrix)),
        translation_fraction=fraction,
        translation_iid=iid,
        distance_px=distance,
        distance_sd=matrix_spread_sd(matrix, grid, step),
        uniform_px=uniform_distance(grid, step),
        self_mass=self_mass,
        head_distance_px=np.zeros(0) if head_distances is None else head_distances,
    )


@dataclass(frozen=True)
class SpatialConvolution:
    """A convolution larger than 1x1 that mixes positions in a block, and where its depth is."""

    block: Block
    path: str
    depth: float
    module: nn.Conv2d

    @property
    def depthwise(self) -> bool:
        """Whether every kernel reads one channel."""
        return self.module.groups == self.module.in_channels > 1

    @property
    def weight(self) -> np.ndarray:
        """[out, in of the group, kh, kw] in float64."""
        weight: np.ndarray = self.module.weight.detach().cpu().to(torch.float64).numpy()
        return weight


def spatial_convolutions(model: Model) -> list[SpatialConvolution]:
    """The convolutions larger than 1x1 that a CNN's blocks mix positions with, in execution order."""
    blocks = model.structure.single_blocks
    found: list[SpatialConvolution] = []
    for i, block in enumerate(blocks):
        own = list(_convolutions(block))
        found += [SpatialConvolution(block, path, (i + (j + 1) / len(own)) / len(blocks), m) for j, (path, m) in enumerate(own)]
    return found


def _convolutions(block: Block) -> Iterator[tuple[str, nn.Conv2d]]:
    modules = dict(block.module.named_modules())
    for name in block.spec.spatial:
        # Some are wrapped together with their norm.
        for path in (name, f"{name}.conv"):
            module = modules.get(path)
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                yield f"{block.path}.{path}", module


def _of_cnn(model: Model) -> Iterator[SpatialKernel]:
    return (_of_convolution(model, found) for found in spatial_convolutions(model))


def _of_convolution(model: Model, found: SpatialConvolution) -> SpatialKernel:
    kernels = found.weight.reshape(-1, *found.module.kernel_size)
    energy = (kernels**2).sum(0)
    grid, step, taps = convolution_steps(model, found)
    distance, self_mass = shared_spread(energy, taps)
    shape = "×".join(map(str, found.module.kernel_size))
    zero = not energy.any()
    return SpatialKernel(
        block=found.block.path,
        layer=found.path,
        depth=found.depth,
        form=f"{shape} {'depthwise' if found.depthwise else 'full' if found.module.groups == 1 else 'grouped'} convolution",
        grid=grid,
        step_px=step,
        offset_step_px=taps,
        matrix=None,
        mean=kernels.mean(0),
        rms=np.sqrt(energy / len(kernels)),
        norm=float(np.sqrt(energy.sum())),
        # Zero-padded and shared by all positions, which is what a BTTB matrix is, without its mean too.
        translation_fraction=float("nan") if zero else 1.0,
        translation_iid=bttb_fraction_centred_iid(grid),
        distance_px=distance,
        distance_sd=shared_spread_sd(energy, taps, len(kernels)),
        uniform_px=uniform_distance(grid, step),
        self_mass=self_mass,
        head_distance_px=np.zeros(0),
    )


def convolution_steps(model: Model, found: SpatialConvolution) -> tuple[Grid, Pixels, Pixels]:
    """(grid of the output, pixels between two inputs, pixels between two taps) of a convolution."""
    grid = model.layer(found.path).grid
    assert grid is not None
    output = (_stride(pixels, n) for pixels, n in zip(model.input.size[1:], grid, strict=True))
    down, right = (s / t for s, t in zip(output, found.module.stride, strict=True))
    rows, columns = found.module.dilation
    return grid, (down, right), (down * rows, right * columns)


def step_of(size: tuple[int, int, int], grid: Grid) -> Pixels:
    """Pixels (down, right) between the tokens of a grid that covers an image of size (channels, height, width)."""
    return size[1] / grid[0], size[2] / grid[1]


def _stride(pixels: int, positions: int) -> float:
    """Pixels between the positions of a CNN's map. Its strides of 2 round up: 240 px become 15 and then 8 positions of 32 px."""
    power = 2 ** max(round(math.log2(pixels / positions)), 0)
    return float(power) if -(-pixels // power) == positions else pixels / positions
