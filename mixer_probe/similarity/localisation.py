"""Localisation CKA after Raghu et al. 2021, "Do Vision Transformers See Like Convolutional Neural Networks?" (section 6): the
similarity of the representation at one position with the patches of the input image at every position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, as_source, part_of, stream
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity.comparison import Grid, as_grid
from mixer_probe.similarity.hsic import MINIMUM_IMAGES, gram, unit_gram
from mixer_probe.similarity.inputs import centred, to_grid
from mixer_probe.similarity.nulls import draw_pairings, null_of
from mixer_probe.stats import check_permutations


@dataclass(frozen=True)
class LocalisationCKA(Result):
    """Unbiased linear CKA of positions with patches of the input, for every layer of one network and `n` images.

    `values` [L, S, S] are of position s (second axis) with input patch t (third axis), row by row on a common `grid` (rows,
    columns) of S cells; `input_size` is (height, width) in pixels. `null95` [L, S, S] is what a cell stays within in 95 % of
    `permutations` random pairings of the images, the same for all cells, and `maximum95` [L] what the closest cell of a layer
    does; NaN without a null. `patches` [S, S] are of the input patches with one another: neighbours in a photograph are alike,
    so a layer that sees its own patch only is not at 0 elsewhere. NaN marks cells whose pixels or features are constant."""

    title: ClassVar[str] = "Localisation of representations"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    grid: tuple[int, int]
    values: np.ndarray
    null95: np.ndarray
    n: int
    permutations: int
    seed: int
    input_size: tuple[int, int]
    maximum95: np.ndarray | None = None
    patches: np.ndarray | None = None

    @property
    def self_share(self) -> np.ndarray:
        """Share [L] of the positions whose closest patch is their own; NaN where none is defined."""
        own = np.diagonal(self.values, axis1=1, axis2=2)
        defined = ~np.isnan(own)
        closest = np.where(np.isnan(self.values), -np.inf, self.values).argmax(axis=2) == np.arange(own.shape[1])
        with np.errstate(invalid="ignore"):
            share: np.ndarray = (closest & defined).sum(axis=1) / defined.sum(axis=1)
        return share

    @property
    def distance(self) -> np.ndarray:
        """Mean distance in pixels [L] from a position's centre to the patches, weighted by how far a cell is above its null;
        NaN if none is, or without a null. `distance_of_patches` is what equal weights give."""
        weights = np.nan_to_num(np.clip(self.values - self.null95, 0, None))
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = (weights * self._distances).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))
        return mean

    @property
    def distance_of_patches(self) -> float:
        """Mean distance in pixels over all pairs of cells: `distance` of a layer that sees all patches alike."""
        return float(self._distances.mean())

    @property
    def _distances(self) -> np.ndarray:
        """Distances in pixels [S, S] between the centres of the cells."""
        (rows, columns), (height, width) = self.grid, self.input_size
        y, x = np.meshgrid((np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns, indexing="ij")
        centres = np.stack([y.ravel(), x.ravel()], axis=1)
        distances: np.ndarray = np.linalg.norm(centres[:, None] - centres[None, :], axis=2)
        return distances

    def to_frame(self) -> pd.DataFrame:
        """One layer a row: mean CKA with the own patch and with all others, distance, and the share of cells above the null."""
        own = np.eye(self.values.shape[1], dtype=bool)
        with np.errstate(invalid="ignore"):
            above = self.values > self.null95
        known = ~np.isnan(self.values) & ~np.isnan(self.null95)
        columns = {
            "layer": [layer.name for layer in self.layers],
            "depth": [layer.depth for layer in self.layers],
            "self_share": self.self_share,
            "own": [_mean(values[own]) for values in self.values],
            "others": [_mean(values[~own]) for values in self.values],
            "distance_px": self.distance,
            "share_above_null": [_mean(row[seen]) for row, seen in zip(above, known, strict=True)],
            "n": self.n,
        }
        return pd.DataFrame(columns)


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined, NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


@checked(MeasureError)
def localisation_cka(
    model: Model,
    images: ImageSource | Tensor,
    layers: str | Sequence[str] = "blocks",
    *,
    grid: Grid = 7,
    limit: int = 512,
    permutations: int = 100,
    batch_size: int = 32,
    seed: int = 0,
    autocast: str | None = None,
) -> LocalisationCKA:
    """Unbiased linear CKA of every position of every layer with every patch of the input, in one pass over the images.

    Positions are averaged over the cells of `grid`, and a patch is the pixels of the transformed image under one cell; cells
    that do not divide the image overlap by a pixel. Of more than `limit` images a random sample is taken, as even over the
    classes as it can be. A layer whose positions have seen their own patch alone is closest to it; one whose positions hold
    the same about the whole image is as close to all of them.

    Features of n images and all layers on the grid are held in main memory, then Gram matrices [cells, n, n] of one layer.
    Raises MeasureError for a layer without positions on a grid or with a coarser one (with the grid that fits), fewer than 4
    images, 1 to 18 permutations; and what `stream` raises."""
    check_permutations(permutations)
    cells = as_grid(grid)
    assert cells is not None
    chosen = model.select(layers)
    _check_grids(chosen, cells)
    source = _sampled(as_source(images), limit, seed)
    patches, features = _read(model, source, chosen, cells, batch_size, autocast)
    table = _Table(patches, model.device)
    values = np.stack([table.add(features.pop(layer.name)) for layer in chosen])
    null95, maximum95 = _thresholds(model, table, permutations, seed)
    return LocalisationCKA(
        model=model.record,
        images=source.record,
        layers=chosen,
        grid=cells,
        values=values,
        null95=null95,
        n=len(source),
        permutations=permutations,
        seed=seed,
        input_size=model.input.size[1:],
        maximum95=maximum95,
        patches=table.own,
    )


def _check_grids(layers: Sequence[Layer], grid: tuple[int, int]) -> None:
    """Raise MeasureError unless every layer has positions on a grid as fine as `grid`."""
    grids = [layer.grid for layer in layers if layer.grid is not None]
    if len(grids) < len(layers):
        names = ", ".join(layer.name for layer in layers if layer.grid is None)
        raise MeasureError(
            f"localisation needs positions on a grid of rows and columns, which {names} does not have: leave it out"
        )
    rows, columns = (min(sizes) for sizes in zip(*grids, strict=True))
    if rows < grid[0] or columns < grid[1]:
        coarse = next(layer for layer in layers if layer.grid and (layer.grid[0] < grid[0] or layer.grid[1] < grid[1]))
        size = (min(rows, grid[0]), min(columns, grid[1]))
        raise MeasureError(
            f"layer '{coarse.name}' has fewer positions than a grid of {grid[0]}×{grid[1]}: take grid={size}, which all these "
            "layers have, or other layers"
        )


def _sampled(source: ImageSource, limit: int, seed: int) -> ImageSource:
    """At most `limit` of the images. Raises MeasureError for too few of them, and images that cannot be sampled."""
    if min(limit, len(source)) < MINIMUM_IMAGES:
        raise MeasureError(f"{min(limit, len(source))} images are too few: CKA needs at least {MINIMUM_IMAGES}")
    if len(source) <= limit:
        return source
    sample = getattr(source, "sample", None)
    if sample is None:
        return part_of(source, np.sort(np.random.default_rng(seed).permutation(len(source))[:limit]))
    sampled: ImageSource = sample(limit, seed)
    return sampled


class _Watched:
    """Images that keep the patches of every batch on its way to the network, so that each image is read once."""

    def __init__(self, source: ImageSource, grid: tuple[int, int]) -> None:
        self.ids, self.labels, self.class_names, self.record = source.ids, source.labels, source.class_names, source.record
        self.keys = keys_of(source)
        self._source, self._grid = source, grid
        self._seen: list[list[Tensor]] = []

    def __len__(self) -> int:
        return len(self._source)

    def batches(
        self, transform: Callable[[Any], Tensor], batch_size: int, start: int = 0, *, pin_memory: bool = False
    ) -> Iterator[Tensor]:
        """Those of the source."""
        for batch in self._source.batches(transform, batch_size, start, pin_memory=pin_memory):
            self._seen.append(cut_patches(batch, self._grid))
            yield batch

    def patches(self) -> list[Tensor]:
        """Pixels [image, value] of every cell, of all batches so far."""
        return [torch.cat(parts) for parts in zip(*self._seen, strict=True)]


def cut_patches(images: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """The pixels of `images` [n, 3, H, W] under every cell of the grid, row by row: copies [n, values] in float32.

    Cells are those of adaptive pooling: they overlap by a pixel where the grid does not divide the image."""
    rows, columns = (_spans(size, parts) for size, parts in zip(images.shape[2:], grid, strict=True))
    return [images[:, :, y, x].flatten(1).to(torch.float32, copy=True) for y in rows for x in columns]


def _spans(size: int, parts: int) -> list[slice]:
    return [slice(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]


def _on_grid(grid: tuple[int, int], layer: Layer, positions: Tensor, _prefix: Tensor | None) -> Tensor:
    """A copy [image, cell, channel] in main memory: all images of a layer are needed at once."""
    return to_grid(positions.float(), layer, grid).to("cpu", copy=True)


def _read(
    model: Model,
    source: ImageSource,
    layers: Sequence[Layer],
    grid: tuple[int, int],
    batch_size: int,
    autocast: str | None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Pixels [image, value] of every cell, and features [image, cell, channel] of every layer."""
    watched = _Watched(source, grid)
    parts: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    for piece in stream(model, watched, layers, partial(_on_grid, grid), batch_size=batch_size, autocast=autocast):
        for name, values in piece.found.items():
            parts[name].append(values)
    return watched.patches(), {name: torch.cat(found) for name, found in parts.items()}


def _thresholds(model: Model, table: _Table, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`null95` [L, S, S] and `maximum95` [L]; NaN without permutations."""
    orders = torch.cat([p.partners() for p in draw_pairings(table.n, permutations, seed)])[1:]
    with task(f"{model.name}: null of localisation CKA", permutations) as advance:
        drawn = table.shuffled(orders, advance)
    nulls = [null_of(values) for values in drawn]
    nothing = np.full(drawn[0].shape[1:], np.nan)
    quantiles = np.stack([null.quantile95 if null else nothing for null in nulls])
    return quantiles, np.array([null.maximum95 if null else np.nan for null in nulls])


def unit_grams(cells: Sequence[Tensor]) -> Tensor:
    """U-centred Gram matrices of norm 1 of features [n, p] a cell, as rows [cell, n * n]: their products are unbiased CKA.

    NaN for a cell that is constant or not finite."""
    grams = (gram(centred(X.to(torch.float64)), "linear", 0.5) for X in cells)
    return torch.stack([unit_gram(K, "unbiased").flatten() for K in grams])


class _Table:
    """Positions of one layer after another against the patches of the input.

    What stays of a layer for the null are the upper triangles of its Gram matrices in float32: they are symmetric with a
    diagonal of 0, and the null is far above the rounding. So one shuffle of the patches serves all layers."""

    def __init__(self, patches: Sequence[Tensor], device: torch.device) -> None:
        # Apple's GPUs have no float64.
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._patches = unit_grams([patch.to(self._device) for patch in patches])
        self.n = len(patches[0])
        self._rows, self._columns = torch.triu_indices(self.n, self.n, 1, device=self._device)
        self._triangles: list[Tensor] = []

    @property
    def own(self) -> np.ndarray:
        """CKA of the patches with one another, [S, S]."""
        table: np.ndarray = (self._patches @ self._patches.T).cpu().numpy()
        return table

    def add(self, features: Tensor) -> np.ndarray:
        """CKA [S, S] of the positions of a layer, `features` [n, S, channel], with the patches."""
        positions = unit_grams([features[:, s].to(self._device) for s in range(features.shape[1])])
        # Both triangles count.
        self._triangles.append(2 * positions.index_select(1, self._rows * self.n + self._columns).float())
        values: np.ndarray = (positions @ self._patches.T).cpu().numpy()
        return values

    def shuffled(self, orders: Tensor, advance: Callable[[int], None]) -> list[np.ndarray]:
        """CKA [permutations, S, S] of each layer with the images of the patches in the `orders` [permutations, n]."""
        patches, cells = self._patches.float(), len(self._patches)
        found = [np.empty((len(orders), cells, cells), dtype=np.float32) for _ in self._triangles]
        for place, order in enumerate(orders.to(self._device)):
            shuffled = patches.index_select(1, order[self._rows] * self.n + order[self._columns]).T
            for drawn, triangles in zip(found, self._triangles, strict=True):
                drawn[place] = (triangles @ shuffled).cpu().numpy()
            advance(1)
        return found
