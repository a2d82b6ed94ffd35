"""`Layer`: one place in a network, and what the axes of its tensor mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np

from mixer_probe.core.result import storable

Family = Literal["mixer", "vit", "cnn"]
Kind = Literal["stem", "block", "spatial", "channel", "norm", "head", "other"]


class Axes(Enum):
    """What the axes of a module's output mean. N counts positions (and prefix tokens), C channels,
    B images."""

    BNC = "image, position, channel"
    BCN = "image, channel, position"
    BCU = "image, channel, hidden unit"
    BCHW = "image, channel, row, column"
    BHWC = "image, row, column, channel"
    BNHD = "image, position, head, channel of the head"
    BHND = "image, head, position, channel of the head"
    BC = "image, channel"


@storable
@dataclass(frozen=True)
class Layer:
    """One named place in a network, in the order in which a forward pass finishes them.

    `name` is the module path (with `#k` for call k of a module that runs several times a forward
    pass), `depth` is relative: 0 at the stem, i/L after block i of L, 1 at the final norm and head.
    `grid` is (rows, columns) of the positions, None where positions are no grid (hidden units of a
    token-mixing MLP) or where there are none (heads). `positions` counts them without the
    `prefix_tokens` (class, distillation and register tokens) and is 0 for pooled layers.
    """

    name: str
    kind: Kind
    depth: float
    grid: tuple[int, int] | None
    channels: int
    prefix_tokens: int
    positions: int
    axes: str = field(default=Axes.BNC.name, repr=False)
    order: int = field(default=0, repr=False)

    @property
    def module(self) -> str:
        """The module path without the call number."""
        return self.name.partition("#")[0]

    @property
    def call(self) -> int:
        """Which call of the module this is, from 0."""
        return int(self.name.partition("#")[2] or 0)


def spread(layers: Sequence[Layer], count: int) -> list[int]:
    """Indices of at most `count` layers, evenly spread, the first and the last among them."""
    return (
        [int(i) for i in np.unique(np.linspace(0, len(layers) - 1, count).round())]
        if len(layers)
        else []
    )
