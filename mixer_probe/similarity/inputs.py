"""What similarity and probing take: representations by layer, and feature matrices in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.core.rows import Rows
from mixer_probe.models.layer import Layer

Features = np.ndarray | Tensor

# A spread below this fraction of the magnitude is rounding: float32 features cannot vary by so
# little.
CONSTANT = 1e-12
# Float32 features of at least this many columns are multiplied in float32, a block of columns at a
# time.
WIDE = 2048
# Mean squares beyond this or its inverse are scaled, so that their fourth powers stay in the range
# of numbers.
_SMALLEST = 1e-60


class RepresentationsLike(Protocol):
    """Representations of the same images in the layers of one network."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In execution order."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class index of each image, None without labels."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One name per image."""

    @property
    def keys(self) -> tuple[str, ...]:
        """One hash of the content per image."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by index."""

    @property
    def model(self) -> ModelRecord:
        """The network."""

    @property
    def images(self) -> ImagesRecord:
        """The images."""

    @property
    def reduce(self) -> str:
        """How positions were reduced: "mean", "prefix" or "none"."""

    def __getitem__(self, name: str, /) -> np.ndarray:
        """Features of a layer: [image, channel], or [image, position, channel] where `reduce` is
        "none"."""


def as_matrix(X: Any, what: str) -> Tensor:
    """`X` as a float64 tensor [image, feature], on its own device where that has float64.

    Raises MeasureError for anything but two axes."""
    shape = tuple(np.shape(X))
    if len(shape) != 2 or shape[1] == 0:
        raise MeasureError(
            f"{what} has shape {shape}, expected a matrix [image, feature]: flatten it with "
            "X.reshape(len(X), -1) or reduce it over positions (reduce='mean') first"
        )
    if isinstance(X, Tensor):
        tensor = X.detach()
        return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)
    array = np.asarray(X)
    if array.dtype == np.float32 and array.flags.writeable:
        return torch.from_numpy(array).to(torch.float64)
    # A copy, because torch warns about memory that it may not write to.
    return torch.from_numpy(np.array(X, dtype=np.float64))


def batch_size(a: Mapping[str, Sized], b: Mapping[str, Sized]) -> int:
    """Images of a batch, of which `a` and `b` hold one row each by layer.

    Raises MeasureError where the layers hold different numbers, and without layers."""
    counts = {len(rows) for rows in (*a.values(), *b.values())}
    if len(counts) != 1:
        raise MeasureError(
            "the layers of one batch hold different numbers of images: "
            f"{sorted(counts) or 'no layer'}"
        )
    return counts.pop()


def centred(X: Tensor) -> Tensor:
    """`X` [n, p] minus its column means, divided by its root mean square; all NaN if `X` is
    constant or not finite.

    One scale for the whole matrix keeps fourth powers in range and changes no similarity that is
    scale-invariant."""
    X = centred_(X.clone())
    return X.div_(_mean_square(X).sqrt())


def centred_(X: Tensor) -> Tensor:
    """As `centred`, in place and with a scale only where numbers would leave their range: for wide
    features every pass over them counts."""
    mean = X.mean(0)
    X -= mean
    power, level = float(_mean_square(X)), float(_mean_square(mean))
    if not math.isfinite(power + level):
        # Squares leave the range of numbers where the numbers themselves do not.
        largest = torch.maximum(X.abs().max(), mean.abs().max())
        if not torch.isfinite(largest):
            return X.fill_(torch.nan)
        X /= largest
        power, level = float(_mean_square(X)), float(_mean_square(mean / largest))
    if not power > CONSTANT**2 * (power + level):
        return X.fill_(torch.nan)
    return X if _SMALLEST < power < 1 / _SMALLEST else X.div_(power**0.5)


def _mean_square(X: Tensor) -> Tensor:
    # A norm reads the numbers once and writes nothing.
    square: Tensor = torch.linalg.vector_norm(X).square() / X.numel()
    return square


def is_constant(X: Tensor) -> bool:
    """Whether all rows of `X` [n, p] are equal but for rounding."""
    X = X / X.abs().max()
    return not (X - X.mean(0)).square().mean() > CONSTANT**2 * X.square().mean()


def checked_pair(X: Any, Y: Any, minimum: int) -> tuple[Tensor | None, Tensor | None]:
    """Both as float64 matrices on one device, None in place of one that is constant.

    Raises MeasureError for other than two axes, different n, fewer than `minimum` images, NaN or
    infinite values."""
    x = as_matrix(X, "X")
    y = as_matrix(Y, "Y").to(x.device)
    if len(x) != len(y):
        raise MeasureError(f"X has {len(x)} images and Y has {len(y)}: use the same images")
    if len(x) < minimum:
        raise MeasureError(f"{len(x)} images are too few: this measure needs at least {minimum}")
    for name, values in (("X", x), ("Y", y)):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise MeasureError(f"{name} contains {bad} values that are NaN or infinite")
    return (None if is_constant(x) else x), (None if is_constant(y) else y)


class LayerFeatures(Sequence[Tensor]):
    """The layers of `reps` as a sequence of `centred` float64 matrices [image, feature], read when
    asked for.

    `rows` takes some of the images only. Positions, where there are any, become features: all of
    them, or averages over the cells of a common `grid` (rows, columns). `project`, if given,
    changes the raw features of a layer by its index. `channels` are the features that the layers
    state, `widths` those of the layers read so far, and `undefined` the names among them that are
    constant or not finite."""

    def __init__(
        self,
        reps: RepresentationsLike,
        grid: tuple[int, int] | None = None,
        rows: np.ndarray | None = None,
        project: Callable[[int, Tensor], Tensor] | None = None,
    ) -> None:
        self.reps = reps
        self.grid = grid
        self.rows = rows
        self.project = project
        self.channels = tuple(features_of(layer, reps.reduce, grid) for layer in reps.layers)
        self.widths: dict[str, int] = {}
        self.undefined: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.reps.layers)

    @property
    def n(self) -> int:
        """Images."""
        return len(self.reps.ids) if self.rows is None else len(self.rows)

    @property
    def features(self) -> tuple[int, ...]:
        """Features of each layer: those it was read with, else those it states."""
        return tuple(
            self.widths.get(layer.name, p)
            for layer, p in zip(self.reps.layers, self.channels, strict=True)
        )

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        # The features were converted for this call alone.
        features = centred_(self.raw(index))
        if torch.isnan(features[0, 0]):
            self.mark_undefined(index)
        return features

    def take(self, rows: np.ndarray) -> LayerFeatures:
        """The same layers for some of these images; what is found of them is noted here too."""
        chosen = rows if self.rows is None else self.rows[rows]
        taken = LayerFeatures(self.reps, self.grid, chosen, self.project)
        taken.widths, taken.undefined = self.widths, self.undefined
        return taken

    def narrow(self, index: int) -> Tensor | None:
        """Features of a layer in float32, where they are given in that and at least `WIDE`; else
        None."""
        if self.channels[index] < WIDE or self.project is not None:
            return None
        X = self._values(index, slice(None) if self.rows is None else self.rows)
        if X.ndim != 2 or X.dtype != np.float32 or len(X) != self.n:
            return None
        self.widths[self.reps.layers[index].name] = X.shape[1]
        return _as_tensor(X)

    def mark_undefined(self, index: int) -> None:
        """Note that a layer is constant or not finite."""
        self.undefined[self.reps.layers[index].name] = None

    def usable(self, index: int) -> Tensor | None:
        """Raw features of a layer [n, p]; None if they are constant or not finite."""
        features = self.raw(index)
        if torch.isfinite(features).all() and not is_constant(features):
            return features
        self.mark_undefined(index)
        return None

    def raw(self, index: int) -> Tensor:
        """Features [n, p] of a layer as they are.

        Raises MeasureError if there is not one row per image, or positions do not fit the grid."""
        whole = slice(None) if self.rows is None else self.rows
        features = self._read(index, whole)
        if len(features) != self.n:
            raise MeasureError(
                f"layer '{self.reps.layers[index].name}' has {len(features)} rows for {self.n} "
                "images"
            )
        return features

    def slices(self, index: int, size: int) -> Iterator[Tensor]:
        """The raw features of a layer, `size` images at a time."""
        for rows in slices(self.n, size):
            yield self._read(index, rows if self.rows is None else self.rows[rows])

    def _read(self, index: int, rows: slice | np.ndarray) -> Tensor:
        layer = self.reps.layers[index]
        features = as_matrix(self._values(index, rows), f"layer '{layer.name}'")
        if self.project is not None:
            features = self.project(index, features)
        self.widths[layer.name] = features.shape[1]
        return features

    def _values(self, index: int, rows: slice | np.ndarray) -> np.ndarray:
        layer = self.reps.layers[index]
        values = read_rows(self.reps, layer.name, rows)
        return flattened(values, layer, self.grid) if values.ndim == 3 else values


def read_rows(reps: RepresentationsLike, name: str, rows: slice | np.ndarray) -> np.ndarray:
    """Some images' features of a layer: only those are read where the representations can."""
    reader = getattr(reps, "rows", None)
    return np.asarray(reader(name, rows) if reader is not None else reps[name][rows])


def features_of(layer: Layer, reduce: str, grid: tuple[int, int] | None) -> int:
    """Features that a layer will have: its channels, times the positions that are kept."""
    if reduce != "none" or not layer.positions:
        return layer.channels
    return layer.channels * (grid[0] * grid[1] if grid else layer.positions)


def flattened(values: np.ndarray, layer: Layer, grid: tuple[int, int] | None) -> np.ndarray:
    """`values` [image, position, channel] as [image, position * channel], averaged over the cells
    of `grid` if given.

    Raises MeasureError where positions form no grid, or a coarser one than `grid`."""
    if grid is None:
        return values.reshape(len(values), -1)
    parts = (
        _as_tensor(values[start : start + ROWS]) for start in range(0, max(1, len(values)), ROWS)
    )
    return torch.cat([to_grid(part, layer, grid).flatten(1) for part in parts]).numpy()


def _as_tensor(values: np.ndarray) -> Tensor:
    """`values` as a tensor: a copy of memory that may not be written to, which torch warns
    about."""
    return torch.from_numpy(np.require(values, requirements=("C", "W")))


def to_grid(values: Tensor, layer: Layer, grid: tuple[int, int]) -> Tensor:
    """`values` [image, position, channel] averaged over the cells of a coarser `grid`: [image,
    cell, channel].

    Cells that positions do not fill evenly overlap by one position. Raises MeasureError as
    `flattened`."""
    if layer.grid is None:
        raise MeasureError(
            f"the positions of layer '{layer.name}' form no grid of rows and columns, so they fit "
            "no other"
        )
    if layer.grid[0] < grid[0] or layer.grid[1] < grid[1]:
        raise MeasureError(
            f"layer '{layer.name}' has a grid of {layer.grid[0]}×{layer.grid[1]} positions, too "
            f"coarse for {grid[0]}×{grid[1]}: take a grid that every layer has"
        )
    if layer.grid == grid:
        return values
    image = values.transpose(1, 2).reshape(len(values), -1, *layer.grid)
    return torch.nn.functional.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)


def layer_matrix(reps: RepresentationsLike, name: str) -> np.ndarray | Rows:
    """Features [image, channel] of a layer; those of a store are read when rows are asked for.

    Raises MeasureError if it has positions, or not one row per image."""
    reader = getattr(reps, "array", None)
    features = np.asarray(reps[name]) if reader is None else reader(name)
    if features.ndim != 2:
        raise MeasureError(
            f"layer '{name}' of {reps.model.name} has shape {features.shape}, but [image, channel] "
            "is needed: extract with reduce='mean' or reduce='prefix'"
        )
    if len(features) != len(reps.ids):
        raise MeasureError(f"layer '{name}' has {len(features)} rows for {len(reps.ids)} images")
    found: np.ndarray | Rows = features
    return found
