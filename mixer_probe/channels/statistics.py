"""Channel statistics in one pass: mean, spread, range, share of zeros, dead channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from mixer_probe.capture import ImageSource, as_source, stream, to_host
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.results import ImagesRecord, ModelRecord, Result

Moments = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ChannelStatistics(Result):
    """Per layer and channel, over all images and positions (prefix tokens apart). Arrays are tuples over layers, [channel].

    `std` is the population standard deviation. `share_zero` counts exact zeros, `share_nonpositive` values <= 0. A channel is
    dead when it has the same value for every image and position. `n` counts images; `values` the numbers behind a channel."""

    title: ClassVar[str] = "Channel statistics"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    n: int
    values: tuple[int, ...]
    mean: tuple[np.ndarray, ...]
    std: tuple[np.ndarray, ...]
    minimum: tuple[np.ndarray, ...]
    maximum: tuple[np.ndarray, ...]
    share_zero: tuple[np.ndarray, ...]
    share_nonpositive: tuple[np.ndarray, ...]

    @property
    def dead(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] never change."""
        return tuple(low == high for low, high in zip(self.minimum, self.maximum, strict=True))

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and channel."""
        return pd.concat([self._layer_frame(i) for i in range(len(self.layers))], ignore_index=True)

    def _layer_frame(self, i: int) -> pd.DataFrame:
        layer = self.layers[i]
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": layer.name,
                "kind": layer.kind,
                "depth": layer.depth,
                "channel": np.arange(layer.channels),
                "mean": self.mean[i],
                "std": self.std[i],
                "minimum": self.minimum[i],
                "maximum": self.maximum[i],
                "share_zero": self.share_zero[i],
                "share_nonpositive": self.share_nonpositive[i],
                "dead": self.dead[i],
                "n_images": self.n,
                "n_values": self.values[i],
            }
        )

    def summary(self) -> pd.DataFrame:
        """One row a layer: channels, dead channels, median std, mean share of zeros."""
        frame = self.to_frame()
        grouped = frame.groupby(["model", "layer", "kind", "depth", "n_images", "n_values"], sort=False)
        return grouped.agg(
            channels=("channel", "size"),
            dead=("dead", "sum"),
            median_std=("std", "median"),
            largest_std=("std", "max"),
            share_zero=("share_zero", "mean"),
            share_nonpositive=("share_nonpositive", "mean"),
        ).reset_index()


class ChannelMoments:
    """Accumulator of channel statistics: `update` with a batch's `channel_moments`, `merge` with another, then `compute`.

    Means and squared deviations are merged in float64 by Chan, Golub and LeVeque (1983)."""

    def __init__(self) -> None:
        self.images = 0
        self._state: dict[str, _State] = {}

    def update(self, found: Mapping[str, Moments], images: int) -> None:
        """Add one batch: per layer what `channel_moments` returned, and how many images it was."""
        self.images += images
        for name, moments in found.items():
            self._add(name, _State.of(moments))

    def merge(self, other: ChannelMoments) -> None:
        """Add everything that `other` has seen."""
        self.images += other.images
        for name, state in other._state.items():
            self._add(name, state)

    def _add(self, name: str, state: _State) -> None:
        self._state[name] = self._state[name].joined(state) if name in self._state else state

    def compute(self, model: ModelRecord, images: ImagesRecord, layers: Sequence[Layer]) -> ChannelStatistics:
        """The statistics of all batches together."""
        states = [self._state[layer.name] for layer in layers]
        return ChannelStatistics(
            model=model,
            images=images,
            layers=tuple(layers),
            n=self.images,
            values=tuple(s.count for s in states),
            mean=tuple(s.mean for s in states),
            std=tuple(np.sqrt(s.squares / s.count) for s in states),
            minimum=tuple(s.minimum for s in states),
            maximum=tuple(s.maximum for s in states),
            share_zero=tuple(s.zeros / s.count for s in states),
            share_nonpositive=tuple(s.nonpositive / s.count for s in states),
        )


@dataclass(frozen=True)
class _State:
    count: int
    mean: np.ndarray
    squares: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    zeros: np.ndarray
    nonpositive: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> _State:
        count, variance, *rest = (np.asarray(m, dtype=np.float64) for m in moments)
        mean, minimum, maximum, zeros, nonpositive = rest
        return cls(int(count), mean, variance * count, minimum, maximum, zeros, nonpositive)

    def joined(self, other: _State) -> _State:
        total = self.count + other.count
        step = other.mean - self.mean
        return _State(
            total,
            self.mean + step * (other.count / total),
            self.squares + other.squares + step**2 * (self.count * other.count / total),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.zeros + other.zeros,
            self.nonpositive + other.nonpositive,
        )


def channel_moments(_layer: Layer, positions: torch.Tensor, _prefix: torch.Tensor | None) -> Moments:
    """Reducer: (count, variance, mean, minimum, maximum, zeros, values <= 0), each [channel] but the first."""
    wide = positions if positions.dtype is torch.float64 else positions.float()
    flat = wide.reshape(-1, wide.shape[-1])
    variance, mean = torch.var_mean(flat, 0, correction=0)
    count = torch.tensor(float(len(flat)))
    zeros, nonpositive = (flat == 0).sum(0), (flat <= 0).sum(0)
    return count, variance, mean, flat.amin(0), flat.amax(0), zeros, nonpositive


def channel_statistics(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] = "blocks",
    *,
    batch_size: int = 64,
    autocast: str | None = None,
) -> ChannelStatistics:
    """Statistics of every channel of the chosen layers over all images and positions, in one pass of constant memory.

    Raises LayerError and ImagesError as `extract` does."""
    source = as_source(images)
    selected = model.select(layers)
    title = f"{model.name}: channel statistics"
    moments = ChannelMoments()
    pieces = stream(model, source, selected, channel_moments, batch_size=batch_size, autocast=autocast, title=title)
    for piece in to_host(pieces):
        moments.update(piece.found, piece.n)
    return moments.compute(model.record, source.record, selected)
