"""Objectives of feature visualization: one number per image and unit, from the activations of a
layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import LayerError, MeasureError, closest
from mixer_probe.models.layer import Axes, Layer

Kind = Literal["channel", "hidden unit", "class", "direction"]
OVERS = ("mean", "peak", "rms")


@dataclass(frozen=True)
class Objective:
    """The units of a layer, and how each becomes one number.

    `kind` says what `units` [unit] count: channels; hidden units of a token-mixing MLP; classes of
    a head; or rows of `directions` [unit, channel], of length 1. A channel or direction is a map
    over positions, a hidden unit of a token-mixing MLP one over channels; `over` says what becomes
    of it ("mean", "peak": the largest, "rms": the root of the mean square), unless only the `place`
    in it is asked for."""

    layer: Layer
    kind: Kind
    units: np.ndarray
    over: str
    place: int | None = None
    directions: Tensor | None = None

    @property
    def text(self) -> str:
        """The maximised quantity in words."""
        axis = "channel" if self.kind == "hidden unit" else "position"
        if self.kind == "class" or not self.layer.positions:
            return "the output itself"
        if self.place is not None:
            cell = ""
            if self.kind != "hidden unit" and self.layer.grid is not None:
                row, column = divmod(self.place, self.layer.grid[1])
                cell = f" (row {row}, column {column})"
            return f"at {axis} {self.place}{cell}"
        words = {"mean": "mean", "peak": "peak", "rms": "root mean square"}
        return f"{words[self.over]} over {axis}s"

    def maps(self, positions: Tensor, which: Tensor) -> Tensor:
        """Of every image [image, position, channel] the map of one unit, the row `which` [image] of
        `units`: [image, place]."""
        if self.directions is not None:
            chosen = self.directions.to(positions)[which]
            return torch.einsum("bnc,bc->bn", positions, chosen)
        index = torch.from_numpy(self.units).to(which.device)[which]
        image = torch.arange(len(positions), device=positions.device)
        return positions[image, index] if self.kind == "hidden unit" else positions[image, :, index]

    def number(self, maps: Tensor, dim: int = 1) -> Tensor:
        """One number per map: maps without the dimension `dim`."""
        if self.place is not None:
            return maps.select(dim, self.place)
        if self.over == "peak":
            return maps.amax(dim)
        if self.over == "rms":
            # The root has no derivative at 0.
            return maps.square().mean(dim).clamp_min(torch.finfo(maps.dtype).tiny).sqrt()
        return maps.mean(dim)

    def of_all(self, _layer: Layer, positions: Tensor, _prefix: Tensor | None) -> Tensor:
        """Reducer: the numbers of all units [image, unit] in float64."""
        if self.directions is not None:
            maps = positions.double() @ self.directions.to(positions.device).double().T
        else:
            index = torch.from_numpy(self.units).to(positions.device)
            maps = (
                positions[:, index].transpose(1, 2)
                if self.kind == "hidden unit"
                else positions[..., index]
            )
        return self.number(maps.double())


def make_objective(
    layer: Layer,
    units: int | Sequence[int] | None,
    direction: np.ndarray | Tensor | Sequence[float] | None,
    over: str | None,
    position: int | tuple[int, int] | None,
    channel: int | None,
) -> Objective:
    """Units, direction and reduction of a layer, checked.

    Raises LayerError for units, positions and channels that the layer does not have, MeasureError
    for an unknown `over`, a invalid direction, and options that exclude each other."""
    if over is not None and over not in OVERS:
        raise MeasureError(f"over is 'mean', 'peak' or 'rms', not '{over}'; {closest(over, OVERS)}")
    if (units is None) == (direction is None):
        raise MeasureError(
            "give either units (channels, hidden units or classes) or a direction in the space of "
            "the channels"
        )
    kind: Kind = "class" if layer.kind == "head" else "channel"
    if direction is not None:
        kind = "direction"
    elif layer.axes == Axes.BCU.name:
        kind = "hidden unit"
    place = _place(layer, kind, position, channel)
    if over is not None and place is not None:
        one = "position" if channel is None else "channel"
        raise MeasureError(
            f"over='{over}' uses the whole map and {one}= a single element of it; give one of the "
            "two"
        )
    if direction is not None:
        raw = (
            direction.detach().cpu().numpy()
            if isinstance(direction, Tensor)
            else np.asarray(direction, dtype=np.float64)
        )
        rows = torch.from_numpy(np.atleast_2d(raw).astype(np.float64))
        if rows.ndim != 2 or rows.shape[1] != layer.channels or not len(rows):
            raise MeasureError(
                f"a direction in '{layer.name}' has {layer.channels} numbers, one per channel, not "
                f"{raw.shape}"
            )
        length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if not bool((torch.isfinite(length) & (length > 0)).all()):
            raise MeasureError("a direction needs finite numbers that are not all 0")
        return Objective(layer, kind, np.arange(len(rows)), over or "mean", place, rows / length)
    count = layer.positions if kind == "hidden unit" else layer.channels
    chosen = np.atleast_1d(np.asarray(units))
    if (
        not len(chosen)
        or chosen.dtype.kind not in "iu"
        or chosen.ndim > 1
        or len(np.unique(chosen)) < len(chosen)
    ):
        raise MeasureError(f"units must be one number or several distinct ones, not {units}")
    outside = chosen[(chosen < 0) | (chosen >= count)]
    if len(outside):
        plural = "classes" if kind == "class" else f"{kind}s"
        raise LayerError(
            f"{kind} {outside[0]} is out of range: '{layer.name}' has {plural} 0 to {count - 1}"
        )
    # Channels of a layer norm sum to nearly nothing, and so does what a token-mixing unit reads of
    # them: its mean is a constant.
    default = "rms" if kind == "hidden unit" else "mean"
    return Objective(layer, kind, chosen.astype(np.int64), over or default, place)


def _place(
    layer: Layer, kind: Kind, position: int | tuple[int, int] | None, channel: int | None
) -> int | None:
    """The single position or channel of the map that is the objective; None for the whole map."""
    if channel is not None:
        if kind != "hidden unit":
            raise MeasureError(
                f"channel= is for hidden units of token mixing; the units of '{layer.name}' are "
                "its channels"
            )
        if not 0 <= channel < layer.channels:
            raise LayerError(
                f"channel {channel} is out of range: '{layer.name}' has channels 0 to "
                f"{layer.channels - 1}"
            )
    if position is None:
        return channel
    if kind == "hidden unit" or not layer.positions:
        raise MeasureError(f"'{layer.name}' has no positions to choose from; leave position out")
    if isinstance(position, tuple):
        if layer.grid is None:
            raise MeasureError(f"the positions of '{layer.name}' form no grid; give one number")
        (row, column), (rows, columns) = position, layer.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise LayerError(
                f"position {position} is out of range: the grid of '{layer.name}' is "
                f"{rows}×{columns}"
            )
        return row * columns + column
    if not 0 <= position < layer.positions:
        raise LayerError(
            f"position {position} is out of range: '{layer.name}' has positions 0 to "
            f"{layer.positions - 1}"
        )
    return position
