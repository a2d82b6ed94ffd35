"""Spectra: singular values, stable rank and norm of every mixing matrix by depth, compared with
those of iid weights.

Weights are taken as the layer applies them, without the norms, layer scales and biases around it.
Matrices of iid entries have a spectrum of their own (Marchenko and Pastur 1967), so each value is
compared with that of iid normal weights of the same shape and norm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom

from mixer_probe.core.errors import DegenerateWeightsWarning, LayerError, MeasureError, closest
from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.core.words import first_and_more
from mixer_probe.models.model import Model
from mixer_probe.weights.matrices import HeadProducts, MixingMatrix, mixing_matrices
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
    """Singular values of iid normal weights at Frobenius norm 1: means over the draws, the largest
    value of all draws, and the `limit` that the largest of one more draw exceeds in 5 % of cases
    (infinite for a single draw)."""

    values: Annotated[np.ndarray, "value"]
    largest: float
    limit: float
    draws: int


@storable
@dataclass(frozen=True)
class MatrixSpectrum:
    """One mixing matrix: `values` are its singular values, largest first.

    `kind` says what it mixes: "spatial" (positions), "channel", or "both" (a full k x k
    convolution). Queries and keys, which decide the positions that attention reads, are spatial;
    values and the output projection are channel. `operator` is "matrix", "convolution" (circular,
    on `grid`; values of all frequencies) or "product" (of the two matrices of one `head`; `shape`
    is that of the product). `frobenius` is the norm of the weight itself. `edge` is the
    Marchenko-Pastur edge of the same shape and mean square, NaN where it does not apply (products,
    depthwise and strided convolutions). `null` indexes `WeightSpectra.nulls`; the `null_*` fields
    are for iid weights of the same shape, operator and norm. `limit` is what the largest singular
    value of these exceeds in at most 5 % of cases: by Tracy and Widom's law where there is an edge,
    corrected for the frequencies of a convolution, and from the draws of the null elsewhere."""

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
    values: Annotated[np.ndarray, "value"] = field(repr=False)
    edge: float
    limit: float
    null: int
    null_norm: float
    null_stable_rank: float
    null_effective_rank: float

    @property
    def name(self) -> str:
        """The layer with its role, and the head."""
        return f"{self.layer} ({self.role})" + ("" if self.head is None else f" head {self.head}")

    @property
    def spectral_norm(self) -> float:
        """The largest singular value."""
        return float(self.values[0])

    @property
    def rms(self) -> float:
        """Root mean square of the singular values: the Frobenius norm of the operator over the root
        of its full rank."""
        return float(np.sqrt((self.values**2).mean()))

    @property
    def full_rank(self) -> int:
        """The number of singular values: the largest rank that the operator can have."""
        return len(self.values)

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius over squared spectral norm: at least 1, at most the full rank; NaN for
        zero weights."""
        return stable_rank(self.values)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); NaN for
        zero weights."""
        return effective_rank(self.values) if self.rms > 0 else math.nan

    @property
    def outliers(self) -> int:
        """How many singular values are above the `limit` of iid weights; matrices of iid weights
        have none in 95 % of cases."""
        return int((self.values > self.limit).sum())

    @property
    def outlier_energy(self) -> float:
        """Fraction of the squared Frobenius norm in the singular values above the `limit` of iid
        weights."""
        energy = self.values**2
        total = energy.sum()
        return float(energy[self.values > self.limit].sum() / total) if total > 0 else math.nan


@dataclass(frozen=True)
class WeightSpectra(Result):
    """The spectra of every mixing matrix inside the blocks, and of the downsampling between blocks,
    in order of depth.

    `entries` hold each weight once, and the products of attention heads besides (which have no
    parameters of their own). `left_out` pairs every other weight of two axes or more inside the
    blocks with the reason."""

    title: ClassVar[str] = "Spectra of mixing matrices"

    model: ModelRecord
    entries: Annotated[tuple[MatrixSpectrum, ...], "entry"]
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
        self,
        *,
        kind: str | None = None,
        role: str | None = None,
        block: str | None = None,
        main: bool | None = None,
    ) -> tuple[MatrixSpectrum, ...]:
        """The entries with these properties. Raises LayerError, with close names, for a value that
        no entry has."""
        options = {"kind": kind, "role": role, "block": block, "main": main}
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            known = list(dict.fromkeys(str(getattr(e, name)) for e in self.entries))
            if str(value) not in known:
                raise LayerError(
                    f"no {name} '{value}' among the mixing matrices of {self.model.name}; "
                    f"{closest(str(value), known)}"
                )
        return tuple(
            e
            for e in self.entries
            if all(getattr(e, name) == value for name, value in given.items())
        )

    def null_values(self, entry: MatrixSpectrum) -> np.ndarray:
        """Singular values that iid weights of the same shape and norm have, largest first."""
        scaled: np.ndarray = self.nulls[entry.null].values * np.linalg.norm(entry.values)
        return scaled

    def to_frame(self) -> pd.DataFrame:
        """One row per matrix (or product of a head)."""
        rows = [
            {
                "model": self.model.name,
                "layer": e.layer,
                "role": e.role,
                "kind": e.kind,
                "block": e.block,
                "depth": e.depth,
                "main": e.main,
                "head": e.head,
                "operator": e.operator,
                "shape": "×".join(map(str, e.shape)),
                "grid": "×".join(map(str, e.grid)) if e.grid else "",
                "parameters": e.parameters,
                "full_rank": e.full_rank,
                "frobenius_norm": e.frobenius,
                "rms": e.rms,
                "spectral_norm": e.spectral_norm,
                "stable_rank": e.stable_rank,
                "stable_rank_fraction": e.stable_rank / e.full_rank,
                "effective_rank": e.effective_rank,
                "effective_rank_fraction": e.effective_rank / e.full_rank,
                "edge": e.edge,
                "limit": e.limit,
                "null_norm": e.null_norm,
                "norm_over_null": e.spectral_norm / e.null_norm if e.null_norm > 0 else math.nan,
                "null_stable_rank_fraction": e.null_stable_rank / e.full_rank,
                "null_effective_rank_fraction": e.null_effective_rank / e.full_rank,
                "outliers": e.outliers,
                "outlier_energy": e.outlier_energy,
            }
            for e in self.entries
        ]
        return pd.DataFrame(rows)

    def by_depth(self) -> pd.DataFrame:
        """One row per block and kind: means over the main matrices of ranks as fractions of full
        rank, geometric means of norms.

        `norm_over_null` is the spectral norm divided by that of iid weights. Matrices of zeros are
        left out."""
        frame = self.to_frame()
        main = frame[frame["main"] & frame["spectral_norm"].gt(0)]
        rows = []
        for (depth, block, kind), table in main.groupby(["depth", "block", "kind"], sort=True):
            row = {
                "model": self.model.name,
                "block": block,
                "kind": kind,
                "depth": depth,
                "matrices": len(table),
            }
            row |= {name: float(table[name].mean()) for name in _FRACTIONS}
            rows.append(row | {name: float(np.exp(np.log(table[name]).mean())) for name in _NORMS})
        return pd.DataFrame(
            rows, columns=["model", "block", "kind", "depth", "matrices", *_FRACTIONS, *_NORMS]
        )


_FRACTIONS = (
    "stable_rank_fraction",
    "effective_rank_fraction",
    "null_stable_rank_fraction",
    "null_effective_rank_fraction",
    "outlier_energy",
)
_NORMS = ("rms", "spectral_norm", "norm_over_null")


def outlier_matrices(result: WeightSpectra, kind: str) -> tuple[int, int, float]:
    """How many main matrices of a kind have singular values above the limit of iid weights, of how
    many, and the binomial p-value of so many: each matrix of iid weights has such a value in 5 % of
    cases."""
    main = [e for e in result.entries if e.main and e.kind == kind and e.spectral_norm > 0]
    above = sum(e.outliers > 0 for e in main)
    return above, len(main), float(binom.sf(above - 1, len(main), 0.05))


@checked(MeasureError)
def weight_spectra(
    model: Model, *, largest_grid: int | None = 8, null_size: int = 1000, seed: int = 0
) -> WeightSpectra:
    """Singular values of every mixing matrix in the blocks of a Mixer, ViT or CNN, in float64,
    beside iid weights.

    A k x k convolution is taken as the circular operator (Sedghi, Gupta and Long 2019) with the
    layer's own stride on the layer's own input grid, halved until no side is above `largest_grid`
    (None: never), which keeps a subset of the frequencies; a grid smaller than the kernel is
    enlarged to it. Kernels that do not overlap (stride = size) have one matrix for all positions,
    taken once. The null of a shape is as many iid operators as have `null_size` singular values in
    all, at least one; where the largest value has no law in closed form ten, and three of
    convolutions with a stride, which are large.

    Attention has W_Q' W_K and W_O W_V of every head besides (without 1 / sqrt(d) and without query
    and key norms). Zero or non-finite weights give NaN and a DegenerateWeightsWarning. Raises
    MeasureError for null_size or largest_grid below 1."""
    found = mixing_matrices(model)
    spectra = _Spectra(null_size, seed)
    entries = [
        spectra.of_matrix(m) if m.grid is None else spectra.of_convolution(m, largest_grid)
        for m in found.matrices
    ]
    entries += [entry for products in found.products for entry in spectra.of_heads(products)]
    entries.sort(key=lambda e: e.depth)
    undefined = dict.fromkeys(e.layer for e in entries if not e.spectral_norm > 0)
    if undefined:
        text = (
            f"{model.name} has weights that are all zero or not finite, whose ranks are NaN: "
            f"{first_and_more(undefined, 3)}"
        )
        warnings.warn(text, DegenerateWeightsWarning, stacklevel=3)
    return WeightSpectra(
        model.record,
        tuple(entries),
        tuple(spectra.nulls),
        found.left_out,
        largest_grid,
        null_size,
        seed,
    )


class _Spectra:
    """Spectra of operators beside those of iid weights, drawn once for each shape of operator: a
    network has few shapes."""

    def __init__(self, null_size: int, seed: int) -> None:
        self._null_size, self._seed = null_size, seed
        self._index: dict[tuple[Any, ...], int] = {}
        self.nulls: list[IidSpectrum] = []

    def of_matrix(self, part: MixingMatrix) -> MatrixSpectrum:
        values = matrix_values(double(part.weight))
        # A matrix and its transpose have the same spectrum, so one null serves both.
        rows, columns = sorted(part.weight.shape)
        null = self._null(
            (rows, columns), lambda g: matrix_values(_normal((rows, columns), g)), values
        )
        norm = float(np.linalg.norm(values))
        null["limit"] = tracy_widom_edge(rows, columns, norm)
        edge = marchenko_pastur_edge(rows, columns, norm)
        return MatrixSpectrum(
            **_common_fields(part), **null, operator="matrix", grid=None, values=values, edge=edge
        )

    def of_convolution(self, part: MixingMatrix, largest_grid: int | None) -> MatrixSpectrum:
        """Every K(f) of iid taps is an iid matrix [out, in] of a group, with the operator's mean
        square: the edge is that of one, the limit that of the largest of all, one for each group
        and each pair of frequencies f and -f."""
        grid = part.frequency_grid(largest_grid)
        how = (grid, part.stride, part.dilation, part.groups)
        values = convolution_values(part.weight, *how)
        shape = tuple(part.weight.shape)
        rows, columns = shape[0] // part.groups, shape[1]
        iid = min(rows, columns) > 1 and part.stride == (1, 1)
        fewest = 1 if iid else _DRAWS if columns == 1 else _LARGE_DRAWS
        null = self._null(
            (shape, how), lambda g: convolution_values(_normal(shape, g), *how), values, fewest
        )
        edge = math.nan
        if iid:
            norm = float(np.sqrt((values**2).mean())) * math.sqrt(min(rows, columns))
            edge = marchenko_pastur_edge(rows, columns, norm)
            null["limit"] = tracy_widom_edge(
                rows, columns, norm, tests=part.groups * (grid[0] * grid[1] // 2 + 2)
            )
        return MatrixSpectrum(
            **_common_fields(part),
            **null,
            operator="convolution",
            grid=grid,
            values=values,
            edge=edge,
        )

    def of_heads(self, products: HeadProducts) -> Iterator[MatrixSpectrum]:
        left, right = double(products.left), double(products.right)
        shapes = tuple(left.shape[1:]), tuple(right.shape[1:])
        for head, values in enumerate(product_values(left, right)):
            key = ("product", *left.shape[1:], right.shape[2])
            null = self._null(
                key, lambda g: product_values(_normal(shapes[0], g), _normal(shapes[1], g)), values
            )
            yield MatrixSpectrum(
                layer=products.layer,
                role=products.role,
                kind=products.kind,
                block=products.block,
                depth=products.depth,
                main=False,
                head=head,
                operator="product",
                shape=(left.shape[1], right.shape[2]),
                grid=None,
                stride=(1, 1),
                parameters=0,
                frobenius=float(np.linalg.norm(values)),
                values=values,
                edge=math.nan,
                **null,
            )

    def _null(
        self,
        key: tuple[Any, ...],
        operator: Callable[[torch.Generator], np.ndarray],
        values: np.ndarray,
        fewest: int = 1,
    ) -> dict[str, Any]:
        """The null fields of an entry with these singular values."""
        if key not in self._index:
            self._index[key] = len(self.nulls)
            draws = max(fewest, -(-self._null_size // len(values)))
            self.nulls.append(IidSpectrum(*iid_values(operator, draws, self._seed), draws))
        null = self.nulls[self._index[key]]
        norm = float(np.linalg.norm(values))
        ranks = {
            "null_stable_rank": stable_rank(null.values),
            "null_effective_rank": effective_rank(null.values),
        }
        return {
            "null": self._index[key],
            "null_norm": null.largest * norm,
            "limit": null.limit * norm,
            **ranks,
        }


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _common_fields(part: MixingMatrix) -> dict[str, Any]:
    names = ("layer", "role", "kind", "block", "depth", "main", "stride")
    weight = part.weight
    size = {
        "shape": tuple(weight.shape),
        "parameters": weight.numel(),
        "frobenius": float(double(weight).norm()),
    }
    return {name: getattr(part, name) for name in names} | size | {"head": None}
