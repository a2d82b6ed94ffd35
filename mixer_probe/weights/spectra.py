"""Spectra: singular values, stable rank and norm of every mixing matrix by depth, beside those of iid weights.

Weights are taken as the layer applies them, without the norms, layer scales and biases around it. Matrices of iid entries
have a spectrum of their own (Marchenko and Pastur 1967), so each value stands beside that of iid normal weights of the same
shape and norm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from mixer_probe.core.errors import DegenerateWeightsWarning, LayerError, MeasureError, closest
from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.weights.matrices import HeadProducts, MixingMatrices, MixingMatrix, mixing_matrices
from mixer_probe.weights.operators import (
    convolution_values,
    double,
    iid_values,
    marchenko_pastur_edge,
    matrix_values,
    product_values,
    stable_rank,
    tracy_widom_edge,
)
from mixer_probe.weights.units import effective_rank

KINDS = ("spatial", "channel", "both")
# Draws of operators whose largest singular value has no law in closed form.
_DRAWS = 10
_LARGE_DRAWS = 3


@storable
@dataclass(frozen=True)
class IidSpectrum:
    """Singular values of iid normal weights at Frobenius norm 1: means over the draws, the largest value of all draws, and the
    `limit` that the largest of one more draw exceeds in 5 % of cases (infinite for a single draw)."""

    values: np.ndarray
    largest: float
    limit: float
    draws: int


@storable
@dataclass(frozen=True)
class MatrixSpectrum:
    """One mixing matrix: `values` are its singular values, largest first.

    `kind` says what it mixes: "spatial" (positions), "channel", or "both" (a full k x k convolution). Queries and keys, which
    decide the positions that attention reads, are spatial; values and the output projection are channel. `operator` is
    "matrix", "convolution" (circular, on `grid`; values of all frequencies) or "product" (of the two matrices of one `head`;
    `shape` is that of the product). `frobenius` is the norm of the weight itself. `edge` is the Marchenko-Pastur edge of the
    same shape and mean square, NaN where it does not apply (products, depthwise and strided convolutions). `null` indexes
    `WeightSpectra.nulls`; the `null_*` figures are for iid weights of the same shape, operator and norm. `limit` is what the
    largest singular value of these exceeds in at most 5 % of cases: by Tracy and Widom's law where there is an edge, corrected
    for the frequencies of a convolution, and from the draws of the null elsewhere."""

    layer: str
    role: str
    kind: str
    block: str
    depth: float
    main: bool
    head: int | None
    operator: str
    shape: tuple[int, ...]
    grid: tuple[int, int] | None
    stride: tuple[int, int]
    parameters: int
    frobenius: float
    values: np.ndarray = field(repr=False)
    edge: float
    limit: float
    null: int
    null_norm: float
    null_stable_rank: float
    null_effective_rank: float

    @property
    def name(self) -> str:
        """The layer with the role where it holds several, and the head."""
        return f"{self.layer} ({self.role})" + ("" if self.head is None else f" head {self.head}")

    @property
    def spectral_norm(self) -> float:
        """The largest singular value."""
        return float(self.values[0])

    @property
    def rms(self) -> float:
        """Root mean square of the singular values: the Frobenius norm of the operator over the root of its full rank."""
        return float(np.sqrt((self.values**2).mean()))

    @property
    def full_rank(self) -> int:
        """The number of singular values: the largest rank that the operator can have."""
        return len(self.values)

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius over squared spectral norm: at least 1, at most the full rank; NaN for zero weights."""
        return stable_rank(self.values)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); NaN for zero weights."""
        return effective_rank(self.values) if self.rms > 0 else math.nan

    @property
    def outliers(self) -> int:
        """How many singular values are above the `limit` of iid weights; matrices of iid weights have none in 95 % of cases."""
        return int((self.values > self.limit).sum())

    @property
    def outlier_energy(self) -> float:
        """Fraction of the squared Frobenius norm in the singular values above the `limit` of iid weights."""
        energy = self.values**2
        total = energy.sum()
        return float(energy[self.values > self.limit].sum() / total) if total > 0 else math.nan


@dataclass(frozen=True)
class WeightSpectra(Result):
    """The spectra of every mixing matrix inside the blocks, and of the downsampling between blocks, in order of depth.

    `entries` hold each weight once, and the products of attention heads besides (which have no parameters of their own).
    `left_out` pairs every other weight of two axes or more inside the blocks with the reason."""

    title: ClassVar[str] = "Spectra of mixing matrices"

    model: ModelRecord
    entries: tuple[MatrixSpectrum, ...]
    nulls: tuple[IidSpectrum, ...]
    left_out: tuple[tuple[str, str], ...]
    largest_grid: int | None
    null_size: int
    seed: int

    @property
    def blocks(self) -> tuple[str, ...]:
        """Module paths of the blocks in order of depth."""
        return tuple(dict.fromkeys(e.block for e in self.entries if e.block))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the main matrices mix: those of "spatial", "channel" and "both" that occur."""
        return tuple(k for k in KINDS if any(e.kind == k and e.main for e in self.entries))

    def select(
        self, *, kind: str | None = None, role: str | None = None, block: str | None = None, main: bool | None = None
    ) -> tuple[MatrixSpectrum, ...]:
        """The entries with these properties. Raises LayerError, with close names, for a value that no entry has."""
        wanted = {"kind": kind, "role": role, "block": block, "main": main}
        asked = {name: value for name, value in wanted.items() if value is not None}
        for name, value in asked.items():
            known = list(dict.fromkeys(str(getattr(e, name)) for e in self.entries))
            if str(value) not in known:
                raise LayerError(
                    f"no {name} '{value}' among the mixing matrices of {self.model.name}; {closest(str(value), known)}"
                )
        return tuple(e for e in self.entries if all(getattr(e, name) == value for name, value in asked.items()))

    def null_values(self, entry: MatrixSpectrum) -> np.ndarray:
        """Singular values that iid weights of the same shape and norm have, largest first."""
        scaled: np.ndarray = self.nulls[entry.null].values * np.linalg.norm(entry.values)
        return scaled

    def to_frame(self) -> pd.DataFrame:
        """One row a matrix (or product of a head)."""
        return pd.DataFrame([self._row(e) for e in self.entries])

    def _row(self, e: MatrixSpectrum) -> dict[str, Any]:
        place = {"model": self.model.name, "layer": e.layer, "role": e.role, "kind": e.kind, "block": e.block, "depth": e.depth}
        what = {"main": e.main, "head": e.head, "operator": e.operator, "shape": "×".join(map(str, e.shape))}
        grid = {"grid": "×".join(map(str, e.grid)) if e.grid else "", "parameters": e.parameters}
        return place | what | grid | _figures(e)

    def by_depth(self) -> pd.DataFrame:
        """One row a block and kind: means over the main matrices of the shares of the full rank, geometric means of the norms.

        `norm_over_null` is the spectral norm divided by that of iid weights. Matrices of zeros count nowhere."""
        frame = self.to_frame()
        main = frame[frame["main"] & frame["spectral_norm"].gt(0)]
        groups = main.groupby(["depth", "block", "kind"], sort=True)
        rows = [_depth_row(self.model.name, keys, table) for keys, table in groups]
        return pd.DataFrame(rows, columns=["model", "block", "kind", "depth", "matrices", *_SHARES, *_NORMS])


_SHARES = (
    "stable_rank_share",
    "effective_rank_share",
    "null_stable_rank_share",
    "null_effective_rank_share",
    "outlier_energy",
)
_NORMS = ("rms", "spectral_norm", "norm_over_null")


def _figures(e: MatrixSpectrum) -> dict[str, Any]:
    return {
        "full_rank": e.full_rank,
        "frobenius_norm": e.frobenius,
        "rms": e.rms,
        "spectral_norm": e.spectral_norm,
        "stable_rank": e.stable_rank,
        "stable_rank_share": e.stable_rank / e.full_rank,
        "effective_rank": e.effective_rank,
        "effective_rank_share": e.effective_rank / e.full_rank,
        "edge": e.edge,
        "limit": e.limit,
        "null_norm": e.null_norm,
        "norm_over_null": e.spectral_norm / e.null_norm if e.null_norm > 0 else math.nan,
        "null_stable_rank_share": e.null_stable_rank / e.full_rank,
        "null_effective_rank_share": e.null_effective_rank / e.full_rank,
        "outliers": e.outliers,
        "outlier_energy": e.outlier_energy,
    }


def _depth_row(model: str, keys: Any, table: pd.DataFrame) -> dict[str, Any]:
    depth, block, kind = keys
    place = {"model": model, "block": block, "kind": kind, "depth": depth, "matrices": len(table)}
    shares = {name: float(table[name].mean()) for name in _SHARES}
    return place | shares | {name: float(np.exp(np.log(table[name]).mean())) for name in _NORMS}


# -- measuring -----------------------------------------------------------------------------------------------------------


@checked(MeasureError)
def weight_spectra(model: Model, *, largest_grid: int | None = 8, null_size: int = 1000, seed: int = 0) -> WeightSpectra:
    """Singular values of every mixing matrix in the blocks of a Mixer, ViT or CNN, in float64, beside iid weights.

    A k x k convolution is taken as the circular operator (Sedghi, Gupta and Long 2019) with the layer's own stride on the
    layer's own input grid, halved until no side is above `largest_grid` (None: never), which keeps a subset of the
    frequencies; a grid smaller than the kernel is enlarged to it. Kernels that do not overlap (stride = size) have one matrix
    for all positions, taken once. The null of a shape is as many iid operators as have `null_size` singular values in all, at
    least one; where the largest value has no law in closed form ten, and three of convolutions with a stride, which are large.

    Attention has W_Q' W_K and W_O W_V of every head besides (without 1 / sqrt(d) and without query and key norms). Zero or
    non-finite weights give NaN and a DegenerateWeightsWarning. Raises MeasureError for null_size or largest_grid below 1."""
    found = mixing_matrices(model)
    nulls = _Nulls(null_size, seed)
    entries = sorted(_entries(found, largest_grid, nulls), key=lambda e: e.depth)
    _warn_of_degenerate(model.name, entries)
    return WeightSpectra(model.record, tuple(entries), tuple(nulls.found), found.left_out, largest_grid, null_size, seed)


def _entries(found: MixingMatrices, largest_grid: int | None, nulls: _Nulls) -> Iterator[MatrixSpectrum]:
    for matrix in found.matrices:
        yield _of_matrix(matrix, nulls) if matrix.grid is None else _of_convolution(matrix, largest_grid, nulls)
    for products in found.products:
        yield from _of_products(products, nulls)


def _warn_of_degenerate(name: str, entries: list[MatrixSpectrum]) -> None:
    bad = list(dict.fromkeys(e.layer for e in entries if not e.spectral_norm > 0))
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        text = f"{name} has weights that are all zero or not finite, whose ranks are NaN: {', '.join(bad[:3])}{more}"
        warnings.warn(text, DegenerateWeightsWarning, stacklevel=4)


class _Nulls:
    """iid spectra, drawn once for each shape of operator: a network has few shapes."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._index: dict[tuple[Any, ...], int] = {}
        self.found: list[IidSpectrum] = []

    def figures(
        self, key: tuple[Any, ...], operator: Callable[[torch.Generator], np.ndarray], values: np.ndarray, fewest: int = 1
    ) -> dict[str, Any]:
        """The null fields of an entry with these singular values."""
        if key not in self._index:
            self._index[key] = len(self.found)
            draws = max(fewest, -(-self._size // len(values)))
            self.found.append(IidSpectrum(*iid_values(operator, draws, self._seed), draws))
        null = self.found[self._index[key]]
        norm = float(np.linalg.norm(values))
        ranks = {"null_stable_rank": stable_rank(null.values), "null_effective_rank": effective_rank(null.values)}
        return {"null": self._index[key], "null_norm": null.largest * norm, "limit": null.limit * norm, **ranks}


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _place(part: MixingMatrix) -> dict[str, Any]:
    names = ("layer", "role", "kind", "block", "depth", "main")
    weight = part.weight
    size = {"shape": tuple(weight.shape), "parameters": weight.numel(), "frobenius": float(double(weight).norm())}
    return {name: getattr(part, name) for name in names} | size | {"head": None, "stride": part.stride}


def _of_matrix(part: MixingMatrix, nulls: _Nulls) -> MatrixSpectrum:
    values = matrix_values(double(part.weight))
    # A matrix and its transpose have the same spectrum, so one null serves both.
    rows, columns = sorted(part.weight.shape)
    null = nulls.figures((rows, columns), lambda g: matrix_values(_normal((rows, columns), g)), values)
    norm = float(np.linalg.norm(values))
    null["limit"] = tracy_widom_edge(rows, columns, norm)
    edge = marchenko_pastur_edge(rows, columns, norm)
    return MatrixSpectrum(**_place(part), **null, operator="matrix", grid=None, values=values, edge=edge)


def _of_convolution(part: MixingMatrix, largest_grid: int | None, nulls: _Nulls) -> MatrixSpectrum:
    grid = _grid(part, largest_grid)
    how = (grid, part.stride, part.dilation, part.groups)
    values = convolution_values(part.weight, *how)
    shape = tuple(part.weight.shape)
    edge = _convolution_edge(part, values)
    fewest = 1 if not math.isnan(edge) else _DRAWS if shape[1] == 1 else _LARGE_DRAWS
    null = nulls.figures((shape, how), lambda g: convolution_values(_normal(shape, g), *how), values, fewest)
    if not math.isnan(edge):
        null["limit"] = _convolution_limit(part, grid, values)
    return MatrixSpectrum(**_place(part), **null, operator="convolution", grid=grid, values=values, edge=edge)


def _convolution_edge(part: MixingMatrix, values: np.ndarray) -> float:
    """Every K(f) of iid taps is an iid matrix [out, in] of a group, with the operator's mean square."""
    rows, columns = part.weight.shape[0] // part.groups, part.weight.shape[1]
    if min(rows, columns) == 1 or part.stride != (1, 1):
        return math.nan
    rms = float(np.sqrt((values**2).mean()))
    return marchenko_pastur_edge(rows, columns, rms * math.sqrt(min(rows, columns)))


def _convolution_limit(part: MixingMatrix, grid: tuple[int, int], values: np.ndarray) -> float:
    """The Tracy-Widom edge of the largest of all K(f): one matrix for each group and each pair of frequencies f and -f."""
    rows, columns = part.weight.shape[0] // part.groups, part.weight.shape[1]
    rms = float(np.sqrt((values**2).mean()))
    tests = part.groups * (grid[0] * grid[1] // 2 + 2)
    return tracy_widom_edge(rows, columns, rms * math.sqrt(min(rows, columns)), tests=tests)


def _grid(part: MixingMatrix, largest: int | None) -> tuple[int, int]:
    assert part.grid is not None
    if tuple(part.weight.shape[2:]) == part.stride and part.dilation == (1, 1):
        return part.stride
    sides = zip(part.grid, part.weight.shape[2:], part.stride, part.dilation)
    rows, columns = (_side(n, d * (k - 1) + 1, s, largest) for n, k, s, d in sides)
    return rows, columns


def _side(length: int, extent: int, stride: int, largest: int | None) -> int:
    while largest is not None and length > largest:
        length = -(-length // 2)
    return -(-max(length, extent) // stride) * stride


def _of_products(products: HeadProducts, nulls: _Nulls) -> Iterator[MatrixSpectrum]:
    left, right = double(products.left), double(products.right)
    draw = partial(_iid_product, tuple(left.shape[1:]), tuple(right.shape[1:]))
    shape = (left.shape[1], right.shape[2])
    for head, values in enumerate(product_values(left, right)):
        null = nulls.figures(("product", *left.shape[1:], right.shape[2]), draw, values)
        yield MatrixSpectrum(
            layer=products.layer,
            role=products.role,
            kind=products.kind,
            block=products.block,
            depth=products.depth,
            main=False,
            head=head,
            operator="product",
            shape=shape,
            grid=None,
            stride=(1, 1),
            parameters=0,
            frobenius=float(np.linalg.norm(values)),
            values=values,
            edge=math.nan,
            **null,
        )


def _iid_product(left: tuple[int, ...], right: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    return product_values(_normal(left, generator), _normal(right, generator))
