"""Position embeddings: how alike the embeddings of the patch positions are (Dosovitskiy et al.
2021, Fig. 7, centre)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from mixer_probe.core.errors import DegenerateWeightsWarning, ModelError
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.models.model import Model
from mixer_probe.stats import ratio
from mixer_probe.weights.offsets import pair_distance
from mixer_probe.weights.operators import double_array
from mixer_probe.weights.units import defined_mean

_NAMES = (
    "pos_embed",
    "absolute_pos_embed",
    "pos_embedding",
    "position_embedding",
    "position_embeddings",
)


@dataclass(frozen=True)
class PositionEmbeddings(Result):
    """Cosine similarities of the position embeddings of the patch grid.

    `similarity` [h, w, h, w]: entry [i, j] is the map of position (i, j) against all others.
    `norms` [h, w]. `prefix_similarity` [prefix, h, w] and `prefix_norms` [prefix] are those of
    class, distillation and register tokens that have a position embedding of their own. `patch` is
    the distance of neighbouring positions (rows, columns) in input px.

    `row_fraction`, `column_fraction` and `interaction_fraction` split the energy of the embeddings
    around their mean as a two-way analysis of variance does: what the row alone explains, what the
    column alone explains, and the rest. They add to 1. `centred` says whether the mean embedding
    was removed before the cosines."""

    title: ClassVar[str] = "Position embeddings"

    model: ModelRecord
    parameter: str
    learned: bool
    grid: tuple[int, int]
    patch: tuple[float, float]
    channels: int
    centred: bool
    similarity: Annotated[np.ndarray, "row", "column", "row", "column"]
    norms: Annotated[np.ndarray, "row", "column"]
    prefix_similarity: Annotated[np.ndarray, "prefix", "row", "column"]
    prefix_norms: Annotated[np.ndarray, "prefix"]
    row_fraction: float
    column_fraction: float
    interaction_fraction: float

    @property
    def prefix_tokens(self) -> int:
        """How many prefix tokens have a position embedding."""
        return len(self.prefix_norms)

    @property
    def null_fractions(self) -> tuple[float, float, float]:
        """Expected fractions of row, column and interaction for iid embeddings: degrees of freedom
        over h w - 1."""
        height, width = self.grid
        total = max(height * width - 1, 1)
        return (height - 1) / total, (width - 1) / total, (height - 1) * (width - 1) / total

    def by_distance(self) -> pd.DataFrame:
        """Mean similarity against distance: pairs of different positions in bins one patch wide,
        and the distance 0.

        Columns: distance_px (mean of the bin), cosine (mean), sd, pairs (unordered). Undefined
        cells count nowhere."""
        distance = pair_distance(self.grid, self.patch)
        own = np.triu(np.ones_like(distance, dtype=bool), 1)
        pairs = pd.DataFrame({"distance_px": distance[own], "cosine": self._flat()[own]}).dropna()
        bins = np.rint(pairs["distance_px"] / min(self.patch)).astype(int)
        table = pairs.groupby(bins.to_numpy()).agg(
            distance_px=("distance_px", "mean"),
            cosine=("cosine", "mean"),
            sd=("cosine", "std"),
            pairs=("cosine", "size"),
        )
        first = pd.DataFrame({"distance_px": [0.0], "cosine": [1.0], "sd": [0.0], "pairs": [0]})
        return pd.concat([first, table.reset_index(drop=True)], ignore_index=True)

    def alike(self) -> dict[str, float]:
        """Mean cosine of "neighbours" (patches that share an edge; diagonal ones do not), of pairs
        in the "same row", the "same column", and "elsewhere". NaN where there is no such pair."""
        rows, columns = (a.ravel() for a in np.indices(self.grid))
        same_row, same_column = rows[:, None] == rows, columns[:, None] == columns
        steps = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
        groups = {
            "neighbours": steps == 1,
            "same row": same_row & ~same_column,
            "same column": same_column & ~same_row,
            "elsewhere": ~same_row & ~same_column,
        }
        return {name: defined_mean(self._flat()[pairs]) for name, pairs in groups.items()}

    def _flat(self) -> np.ndarray:
        return self.similarity.reshape(math.prod(self.grid), -1)

    def to_frame(self) -> pd.DataFrame:
        """One row an unordered pair of different positions: their rows and columns, distance in px,
        cosine."""
        first, second = np.triu_indices(math.prod(self.grid), 1)
        at = [np.unravel_index(index, self.grid) for index in (first, second)]
        return pd.DataFrame(
            {
                "model": self.model.name,
                "row": at[0][0],
                "column": at[0][1],
                "other_row": at[1][0],
                "other_column": at[1][1],
                "distance_px": pair_distance(self.grid, self.patch)[first, second],
                "cosine": self._flat()[first, second],
            }
        )


def position_embeddings(model: Model, *, centred: bool = False) -> PositionEmbeddings:
    """Similarities of a ViT's absolute position embeddings, learned or fixed, in float64.

    `centred` removes the mean over the patch positions first, which all of them share. Embeddings
    of norm zero give NaN and a DegenerateWeightsWarning. Raises ModelError for a network without
    absolute position embedding, saying what it has instead."""
    inside = tuple(block.path + "." for block in model.structure.blocks)
    # A table [1, tokens, channels] or [1, rows, columns, channels]; attention pooling, after the
    # blocks, may have its own.
    tables = (
        (name, values)
        for name, values in _tensors(model.module)
        if name.rpartition(".")[2] in _NAMES and values.ndim in (3, 4)
        if not name.startswith(inside) and "pool" not in name.rpartition(".")[0]
    )
    name, values = next(tables, (None, None))
    if name is None or values is None:
        raise ModelError(f"{model.name} has no absolute position embedding: {_instead(model)}")
    # A network for images of any size keeps the table of its own size and resizes it in each pass.
    stated = getattr(model.module.get_submodule(model.structure.stem_path or ""), "grid_size", None)
    sides = (
        values.shape[1:3] if values.ndim == 4 else stated or model.structure.token_grid or (0, 0)
    )
    grid = (int(sides[0]), int(sides[1]))
    tokens = double_array(values.flatten(0, -2))
    n_prefix = len(tokens) - math.prod(grid)
    if not math.prod(grid) or not 0 <= n_prefix <= model.structure.prefix:
        raise ModelError(
            f"'{name}' of {model.name} has {len(tokens)} positions, which are no grid of patches "
            f"with up to {model.structure.prefix} prefix tokens"
        )
    prefix, patches = np.split(tokens, [n_prefix])
    shift = patches.mean(0) if centred else np.zeros(patches.shape[1])
    unit, prefix_unit = (
        ratio(rows, np.linalg.norm(rows, axis=1, keepdims=True))
        for rows in (patches - shift, prefix - shift)
    )
    if not np.isfinite(unit).all():
        text = (
            f"{model.name} has position embeddings that are zero or not finite; their similarities "
            "are NaN"
        )
        warnings.warn(text, DegenerateWeightsWarning, stacklevel=2)
    rows, columns, interaction = _two_way(patches.reshape(*grid, -1))
    return PositionEmbeddings(
        model=model.record,
        parameter=name,
        learned=isinstance(values, nn.Parameter) and values.requires_grad,
        grid=grid,
        patch=(model.input.size[1] / grid[0], model.input.size[2] / grid[1]),
        channels=patches.shape[1],
        centred=centred,
        similarity=(unit @ unit.T).reshape(*grid, *grid),
        norms=np.linalg.norm(patches, axis=1).reshape(grid),
        prefix_similarity=(prefix_unit @ unit.T).reshape(-1, *grid),
        prefix_norms=np.linalg.norm(prefix, axis=1),
        row_fraction=rows,
        column_fraction=columns,
        interaction_fraction=interaction,
    )


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _instead(model: Model) -> str:
    """What gives the network positions instead."""
    if model.family == "mixer":
        return (
            "a Mixer needs none, for its token-mixing weights differ from position to position; "
            "token_mixing shows what they read"
        )
    if model.family == "cnn":
        return "a CNN gets position information from zero padding at the border"
    names = [name for name, _ in _tensors(model.module)]
    if any("relative_position_bias" in n or "cpb_mlp" in n or "rel_pos" in n for n in names):
        return "it adds relative position biases to the attention of its blocks"
    if any("rope" in name.lower() for name, _ in model.module.named_modules()):
        return "it has rotary position embeddings, which turn queries and keys in every block"
    return "it treats its patches as a set"


def _two_way(table: np.ndarray) -> tuple[float, float, float]:
    """Fractions of sum |E - mean|^2 of embeddings [h, w, channel] due to rows, to columns, and to
    neither alone."""
    centred = table - table.mean((0, 1))
    total = float((centred**2).sum())
    if not total > 0:
        return math.nan, math.nan, math.nan
    rows, columns = centred.mean(1, keepdims=True), centred.mean(0, keepdims=True)
    by_row, by_column = (
        float((rows**2).sum()) * table.shape[1],
        float((columns**2).sum()) * table.shape[0],
    )
    return by_row / total, by_column / total, float(((centred - rows - columns) ** 2).sum()) / total
