"""Effective spatial kernels: the weights with which each position reads the others, for every
family, on one axis in pixels.

`spatial_kernels(model)` gives one kernel per spatial-mixing layer, K[i, j] = "position i reads from
position j":

- Mixer: W2 W1, the linear part of the token MLP (its GELU and biases left out); gMixer: W2 times
  the plain half of fc1 (the activated half gates hidden units and is left out); ResMLP:
  linear_tokens times the root mean square of its layer scale; gMLP: the weight of the spatial gate.
- ViT: attention from positions alone, averaged over heads
  (`mixer_probe.weights.position_attention`).
- CNN: the kernels of the convolution, which lie in offset space already and have no S x S matrix
  here. Depthwise convolutions have one kernel per channel, full ones one per pair of channels; the
  energy at an offset is the sum of squares over all of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import t as student
from torch import nn

from mixer_probe.core.errors import (
    LayerError,
    MeasureError,
    ModelError,
    UndefinedKernelWarning,
    layer_index,
)
from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.core.words import first_and_more
from mixer_probe.models.model import Model
from mixer_probe.models.structure import Block
from mixer_probe.stats.claims import LEVEL
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
from mixer_probe.weights.operators import double_array
from mixer_probe.weights.position_attention import position_attention
from mixer_probe.weights.token_matrices import token_matrices

# Kernels whose distance and self mass differ by less from uniform mixing are uniform.
_UNIFORM = 1e-6
# Weights have no sampling error, but distances of two untrained networks differ by a few per cent.
CLEAR_DIFFERENCE = 0.05
_FORMS = {
    "Mixer": "W2 W1, the linear part of the token MLP",
    "gMixer": "W2 times the plain half of W1, without its gate",
    "ResMLP": "linear_tokens",
    "gMLP": "weight of the spatial gate",
}


@storable
@dataclass(frozen=True)
class SpatialKernel:
    """The effective kernel of one layer. S positions lie in rows of `grid` (h, w), `step_px` (down,
    right) pixels apart.

    `matrix` [S, S] is K, float32, None for convolutions. `mean` and `rms` are the average and the
    root-mean-square kernel around a position in offset space: [2h-1, 2w-1] over the available pairs
    of each offset (no padding), or for a convolution [kh, kw] over its kernels. `offset_step_px` is
    the pixels between two entries of them, larger than `step_px` for a dilated convolution.
    `translation_fraction` is the fraction of energy that depends on the offset alone, as a
    convolution's does, the mean of K taken away, and `translation_iid` its expectation for iid
    entries. `distance_px` is the mean mixing distance, weighted by K^2 (row by row, then averaged
    over positions), `distance_sd` its standard deviation over permutations
    (`offsets.matrix_spread_sd`), `uniform_px` the distance of uniform mixing, `self_mass` the
    fraction of K^2 on the position itself. `norm` is the Frobenius norm of K. `head_distance_px`
    [head] is the distance per attention head. Weights that are all zero give NaN."""

    block: str
    layer: str
    depth: float
    form: str
    grid: Grid
    step_px: Pixels
    offset_step_px: Pixels
    matrix: Annotated[np.ndarray | None, "position", "position"]
    mean: Annotated[np.ndarray, "row", "column"]
    rms: Annotated[np.ndarray, "row", "column"]
    norm: float
    translation_fraction: float
    translation_iid: float
    distance_px: float
    distance_sd: float
    uniform_px: float
    self_mass: float
    head_distance_px: Annotated[np.ndarray, "head"]

    @property
    def reach_px(self) -> tuple[float, float]:
        """The farthest offset (down, right) in pixels that `mean` and `rms` show, to the outer edge
        of its entry."""
        return self.rms.shape[0] * self.offset_step_px[0] / 2, self.rms.shape[
            1
        ] * self.offset_step_px[1] / 2


@dataclass(frozen=True)
class SpatialKernels(Result):
    """One `SpatialKernel` per spatial-mixing layer, in execution order.

    `most_structured` is the index of the kernel of the largest translation fraction among those of
    S x S matrices, -1 where there is none, and `p_value` that of this maximum: the p-value of
    `offsets.translation_p` with `draws` draws, times the number of these kernels (Bonferroni)."""

    title: ClassVar[str] = "Spatial kernels"

    model: ModelRecord
    kernels: Annotated[tuple[SpatialKernel, ...], "kernel"]
    most_structured: int = -1
    p_value: float = float("nan")
    draws: int = 0

    def __len__(self) -> int:
        return len(self.kernels)

    def index(self, block: int | str) -> int:
        """Index of a kernel given by number, or path of its block or layer. Raises LayerError."""
        return layer_index(
            block, [(k.block, k.layer) for k in self.kernels], self.model.name, "spatial kernel"
        )

    def kernel(self, block: int | str) -> SpatialKernel:
        """The kernel of a block. Raises LayerError that names the range or close paths."""
        return self.kernels[self.index(block)]

    def matrix(self, block: int | str) -> np.ndarray:
        """K [S, S] of a block. Raises LayerError for a convolution, whose kernels are shared by all
        positions."""
        kernel = self.kernel(block)
        if kernel.matrix is None:
            raise LayerError(
                f"'{kernel.layer}' is a convolution: all positions share its kernels, and there is "
                "no map per position; use mean or rms"
            )
        return kernel.matrix

    @property
    def ignores_position(self) -> bool:
        """Whether every position reads all positions with the same weight, in every layer."""
        return all(
            k.matrix is not None
            and abs(k.distance_px / k.uniform_px - 1) < _UNIFORM
            and abs(k.self_mass * k.grid[0] * k.grid[1] - 1) < _UNIFORM
            for k in self.kernels
        )

    def row_maps(self, block: int | str) -> np.ndarray:
        """Mixing weights as maps [S, h, w]: map i shows where position i reads. Raises LayerError
        for a convolution."""
        return self.matrix(block).reshape(-1, *self.kernel(block).grid)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: distances in px, self mass, translation fraction and its value for iid
        entries, norm."""
        rows = [
            {
                "model": self.model.name,
                "block": k.block,
                "layer": k.layer,
                "depth": k.depth,
                "kernel": k.form,
                "grid": "×".join(map(str, k.grid)),
                "step_px": max(k.step_px),
                "distance_px": k.distance_px,
                "distance_over_uniform": k.distance_px / k.uniform_px
                if k.uniform_px > 0
                else float("nan"),
                "self_mass": k.self_mass,
                "translation_fraction": k.translation_fraction,
                "translation_iid": k.translation_iid,
                "norm": k.norm,
            }
            for k in self.kernels
        ]
        return pd.DataFrame(rows)


@checked(MeasureError)
def spatial_kernels(model: Model, *, draws: int = 999, seed: int = 0) -> SpatialKernels:
    """The effective spatial kernel of every layer that mixes positions, from the weights alone.

    `draws` is the number of permutations for the null of the largest translation fraction, 0 for
    none.

    Raises ModelError for a ViT whose positions enter otherwise than by an absolute embedding or a
    relative bias, and for a network without any spatial kernel. Warns with UndefinedKernelWarning
    of kernels that are zero or constant."""
    if model.family == "cnn":
        kernels = tuple(convolution_kernel(model, found) for found in spatial_convolutions(model))
    else:
        kernels = tuple(_position_kernels(model))
    if not kernels:
        raise ModelError(
            f"{model.name} has no convolution larger than 1×1 in its blocks, so it has no spatial "
            "kernels"
        )
    undefined = [
        f"'{k.layer}'" for k in kernels if np.isnan(k.translation_fraction) and k.grid != (1, 1)
    ]
    if undefined:
        warnings.warn(
            f"the kernel of {first_and_more(undefined)} is zero or the same for all pairs of "
            "positions: what is undefined is NaN",
            UndefinedKernelWarning,
            stacklevel=3,
        )
    return SpatialKernels(model.record, kernels, *most_structured(kernels, draws, seed), draws)


def most_structured(kernels: Sequence[SpatialKernel], draws: int, seed: int) -> tuple[int, float]:
    """Index of the kernel of the largest translation fraction, and the p-value of this maximum (see
    `SpatialKernels`)."""
    known = [
        i
        for i, k in enumerate(kernels)
        if k.matrix is not None and np.isfinite(k.translation_fraction)
    ]
    if not known:
        return -1, float("nan")
    best = max(known, key=lambda i: kernels[i].translation_fraction)
    if not draws:
        return best, float("nan")
    p = translation_p(kernels[best].matrix, kernels[best].grid, draws, seed)  # type: ignore[arg-type]
    return best, min(1.0, p * len(known))


def shorter_and_longer(result: SpatialKernels, baseline: SpatialKernels) -> tuple[int, int]:
    """In how many layers the mean mixing distance is shorter, and in how many longer, than in the
    untrained baseline.

    A difference counts if it exceeds 5 % of the distance, and chance: 5 % over all layers and both
    signs (Bonferroni), by Student's t, because standard deviations are estimated from as many rows
    as there are positions."""
    own, untrained = (np.array([k.distance_px for k in r.kernels]) for r in (result, baseline))
    sd = np.hypot(
        [k.distance_sd for k in baseline.kernels], [k.distance_sd for k in result.kernels]
    )
    freedom = np.array([max(k.grid[0] * k.grid[1] - 1, 1) for k in result.kernels])
    margin = np.maximum(
        student.isf(LEVEL / 2 / len(own), freedom) * sd, CLEAR_DIFFERENCE * untrained
    )
    return int((own < untrained - margin).sum()), int((own > untrained + margin).sum())


def _position_kernels(model: Model) -> Iterator[SpatialKernel]:
    """The S x S kernels of a Mixer, or the attention from positions alone of a ViT."""
    if model.family == "mixer":
        grid = known_grid(model)
        step = step_of(model.input.size, grid)
        for mixing in token_matrices(model):
            layer = f"{mixing.block}.{mixing.layer}"
            yield matrix_kernel(
                mixing.linear_part,
                mixing.block,
                layer,
                mixing.depth,
                _FORMS[mixing.form],
                grid,
                step,
            )
        return
    blocks = position_attention(model)
    for i, found in enumerate(blocks, start=1):
        heads, path = found.heads.numpy(), found.block.path
        # The map of a block in windows is finer or coarser than its window.
        step = step_of(model.input.size, model.layer(path).grid or found.grid)
        distances = np.array([matrix_spread(head, found.grid, step)[0] for head in heads])
        place = (path, f"{path}.{found.layer}", i / len(blocks))
        yield matrix_kernel(heads.mean(0), *place, found.form, found.grid, step, distances)


def known_grid(model: Model) -> Grid:
    """The patch grid (rows, columns). Raises ModelError where it is not known."""
    grid = model.structure.token_grid
    if grid is None:
        raise ModelError(
            f"the patch grid of {model.name} is not known, so its kernels cannot be laid out in "
            "space"
        )
    return grid


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
    """What is measured on an S x S kernel: offset averages, translation fraction, distances."""
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
        return double_array(self.module.weight)


def spatial_convolutions(model: Model) -> list[SpatialConvolution]:
    """The convolutions larger than 1x1 by which the blocks of a CNN mix positions, in execution
    order."""
    blocks = model.structure.single_blocks
    found: list[SpatialConvolution] = []
    for i, block in enumerate(blocks):
        modules = dict(block.module.named_modules())
        # Some are wrapped together with their norm.
        paths = [path for name in block.spec.spatial for path in (name, f"{name}.conv")]
        own = [
            (p, m)
            for p in paths
            if isinstance(m := modules.get(p), nn.Conv2d) and max(m.kernel_size) > 1
        ]
        for j, (path, module) in enumerate(own):
            depth = (i + (j + 1) / len(own)) / len(blocks)
            found.append(SpatialConvolution(block, f"{block.path}.{path}", depth, module))
    return found


def convolution_kernel(model: Model, found: SpatialConvolution) -> SpatialKernel:
    """What is measured on the kernels of a convolution: their averages and distances."""
    module, kernels = found.module, found.weight.reshape(-1, *found.module.kernel_size)
    grid = model.layer(found.path).grid
    assert grid is not None
    steps = []
    for pixels, positions, stride in zip(model.input.size[1:], grid, module.stride, strict=True):
        # Strides of 2 round up: 240 px become 15 and then 8 positions of 32 px.
        power = 2 ** max(round(math.log2(pixels / positions)), 0)
        steps.append(
            (float(power) if -(-pixels // power) == positions else pixels / positions) / stride
        )
    step = (steps[0], steps[1])
    taps = (steps[0] * module.dilation[0], steps[1] * module.dilation[1])
    energy = (kernels**2).sum(0)
    distance, self_mass = shared_spread(energy, taps)
    kind = "depthwise" if found.depthwise else "full" if module.groups == 1 else "grouped"
    return SpatialKernel(
        block=found.block.path,
        layer=found.path,
        depth=found.depth,
        form=f"{'×'.join(map(str, module.kernel_size))} {kind} convolution",
        grid=grid,
        step_px=step,
        offset_step_px=taps,
        matrix=None,
        mean=kernels.mean(0),
        rms=np.sqrt(energy / len(kernels)),
        norm=float(np.sqrt(energy.sum())),
        # Zero-padded and shared by all positions, which is what a BTTB matrix is, without its mean
        # too.
        translation_fraction=1.0 if energy.any() else float("nan"),
        translation_iid=bttb_fraction_centred_iid(grid),
        distance_px=distance,
        distance_sd=shared_spread_sd(energy, taps, len(kernels)),
        uniform_px=uniform_distance(grid, step),
        self_mass=self_mass,
        head_distance_px=np.zeros(0),
    )


def step_of(size: tuple[int, int, int], grid: Grid) -> Pixels:
    """Pixels (down, right) between the tokens of a grid that covers an image of size (channels,
    height, width)."""
    return size[1] / grid[0], size[2] / grid[1]
