"""`GridActivations`: what one layer of a network gives at the cells of a grid over each image, the
same for several networks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, Representations, as_source, stream
from mixer_probe.capture.representations import IN_MEMORY
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models import Model
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.inputs import to_grid

Cells = tuple[int, int]


@dataclass(frozen=True, eq=False)
class GridActivations:
    """`values` [image, cell, channel] of one layer: averages over the positions of each cell of a
    `grid` (rows, columns), float32, in memory or in a temporary file."""

    model: ModelRecord
    layer: Layer
    images: ImagesRecord
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    grid: Cells
    values: np.ndarray

    @classmethod
    def of(
        cls,
        model: Model,
        images: ImageSource | Tensor,
        layer: str,
        grid: Cells,
        batch_size: int = 64,
    ) -> GridActivations:
        """Those of a network on images, in one pass. Raises LayerError for an unknown layer, and
        MeasureError where its positions do not fit the grid."""
        source, found = as_source(images), model.layer(layer)
        values = _array((len(source), grid[0] * grid[1], found.channels))

        def reducer(layer: Layer, positions: Tensor, prefix: Tensor | None) -> Tensor:
            return to_grid(positions.float(), layer, grid)

        for piece in stream(
            model, source, [found], reducer, batch_size=batch_size, title=f"{model.name}: {layer}"
        ):
            values[piece.start : piece.start + piece.n] = piece.found[layer].cpu().numpy()
        keys = keys_of(source)
        return cls(model.record, found, source.record, tuple(source.ids), keys, grid, values)

    @classmethod
    def stored(cls, run: Representations, layer: str, grid: Cells) -> GridActivations:
        """Those of a run with all positions (reduce="none"). Raises as `of`, and MeasureError for a
        run without positions."""
        found = next((one for one in run.layers if one.name == layer), None)
        array = run.array(layer)
        if found is None or len(array.shape) != 3:
            raise MeasureError(
                f"layer '{layer}' of {run.model.name} was stored without positions: extract it "
                "with reduce='none'"
            )
        values = _array((len(run.ids), grid[0] * grid[1], found.channels))
        for rows in slices(len(run.ids), ROWS):
            part = torch.from_numpy(np.array(array[rows], dtype=np.float32))
            values[rows] = to_grid(part, found, grid).numpy()
        return cls(run.model, found, run.images, run.ids, run.keys, grid, values)

    def rows(self, images: np.ndarray) -> Tensor:
        """Values [image * cell, channel] of some images."""
        return torch.from_numpy(self.values[images]).flatten(0, 1)


def _array(shape: tuple[int, ...]) -> np.ndarray:
    if 4 * math.prod(shape) <= IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    # The file has no name, and goes with the array.
    return np.memmap(tempfile.TemporaryFile(), dtype=np.float32, mode="w+", shape=shape)


def common_grid(layers: Sequence[Layer]) -> Cells:
    """The finest grid (rows, columns) each of whose cells holds the same number of whole positions
    of every layer. Raises LayerError for a layer whose positions form no grid, MeasureError where
    the whole image would be the only cell."""
    grids = []
    for layer in layers:
        if layer.grid is None:
            raise LayerError(
                f"the positions of layer '{layer.name}' form no grid of rows and columns: choose a "
                "layer that has one"
            )
        grids.append(layer.grid)
    rows, columns = (reduce(math.gcd, axis) for axis in zip(*grids, strict=True))
    if rows * columns == 1 and min(map(math.prod, grids)) > 1:
        raise MeasureError(
            f"grids of {' and '.join(f'{a}×{b}' for a, b in dict.fromkeys(grids))} positions have "
            "no cells in common but the whole image: choose other layers, or give a grid"
        )
    return rows, columns


def layer_at(model: Model, depth: float) -> str:
    """The name of the block nearest to a relative depth, above 0 to 1 (the last one). Raises
    MeasureError for others."""
    if not 0 < depth <= 1:
        raise MeasureError(f"a relative depth is above 0 and at most 1, not {depth:g}")
    return min(model.select("blocks"), key=lambda block: abs(block.depth - depth)).name
