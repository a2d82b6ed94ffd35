"""Channel statistics in one pass: moments, quantiles, dead, always-on and massive channels, and channels that move together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from mixer_probe.capture import ImageSource, Reducer, as_source, stream
from mixer_probe.channels.clusters import Together, together, undefined
from mixer_probe.channels.moments import Central, LayerMoments, channel_moments, measured
from mixer_probe.channels.quantiles import LEVELS, median_magnitude, quantiles_of, share_beyond
from mixer_probe.core.errors import LayerError, MeasureError, NonFiniteWarning, closest
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

__all__ = ["MASSIVE", "ChannelMoments", "ChannelStatistics", "channel_moments", "channel_statistics"]

# How many times the layer's median magnitude an activation has to exceed to be called massive.
MASSIVE = 100.0
# A spread below this share of the magnitude is rounding of float32.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ChannelStatistics(Result):
    """Per layer and channel, over all images and positions (prefix tokens apart). Arrays are tuples over layers, [channel].

    `std` is the population standard deviation, `skew` m3/m2^1.5 and `kurtosis` m4/m2^2 - 3 of the population (as SciPy's
    defaults), NaN for channels that do not vary. `share_zero` counts exact zeros, `share_nonpositive` values <= 0. `quantiles`
    [channel, level] are within `quantiles.RELATIVE_ERROR` of the order statistics at `levels`. `median_magnitude` [layer] is
    the median of |a| over all values of a layer that are not zero; `share_massive` is the share of values more than
    `massive_ratio` times as large (after Sun et al. 2024, whose own rule is 1000 times the median and above 100; see
    `largest_ratio`). `participation` [layer] is tr(C)^2 / tr(C^2) of the covariance of the channels. `nearest` is the channel of
    the same layer with the strongest correlation, of either sign, `nearest_correlation` that correlation, `cluster` the number
    of its cluster by average linkage of 1 - |r| cut at 1/2 (0: does not vary). Those from the covariance are absent (NaN, -1, 0)
    for layers wider than `moments.WIDEST`. `n` counts images; `values` the numbers behind a channel.

    A channel is dead when it has the same value for every image and position."""

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
    skew: tuple[np.ndarray, ...] = ()
    kurtosis: tuple[np.ndarray, ...] = ()
    quantiles: tuple[np.ndarray, ...] = ()
    levels: tuple[float, ...] = LEVELS
    median_magnitude: np.ndarray | None = None
    share_massive: tuple[np.ndarray, ...] = ()
    massive_ratio: float = MASSIVE
    participation: np.ndarray | None = None
    nearest: tuple[np.ndarray, ...] = ()
    nearest_correlation: tuple[np.ndarray, ...] = ()
    cluster: tuple[np.ndarray, ...] = ()

    @property
    def dead(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] never change."""
        return tuple(low == high for low, high in zip(self.minimum, self.maximum, strict=True))

    @property
    def always_on(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] are above zero for every image and position, and not dead."""
        return tuple((low > 0) & ~dead for low, dead in zip(self.minimum, self.dead, strict=True))

    @property
    def largest_ratio(self) -> tuple[np.ndarray, ...]:
        """Per layer, the largest magnitude of each channel [channel] over the layer's median magnitude."""
        if self.median_magnitude is None:
            return ()
        peaks = (np.maximum(-low, high) for low, high in zip(self.minimum, self.maximum, strict=True))
        return tuple(peak / median for peak, median in zip(peaks, self.median_magnitude, strict=True))

    @property
    def massive(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] have an activation above `massive_ratio` times the layer's median magnitude."""
        return tuple(ratio > self.massive_ratio for ratio in self.largest_ratio)

    def index(self, layer: str) -> int:
        """The place of a layer. Raises LayerError that lists close names."""
        return place_of(layer, self.layers, self.model.name)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and channel."""
        return pd.concat([self._layer_frame(i) for i in range(len(self.layers))], ignore_index=True)

    def _layer_frame(self, i: int) -> pd.DataFrame:
        layer = self.layers[i]
        columns = {
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
            **self._shape_columns(i),
            "n_images": self.n,
            "n_values": self.values[i],
        }
        return pd.DataFrame(columns)

    def _shape_columns(self, i: int) -> dict[str, np.ndarray]:
        """Columns that results of earlier versions lack."""
        columns = {"always_on": self.always_on[i]}
        for name in ("skew", "kurtosis", "share_massive", "largest_ratio", "nearest", "nearest_correlation", "cluster"):
            arrays = getattr(self, name)
            if arrays:
                columns[name] = arrays[i]
        if self.quantiles:
            columns |= {f"q{100 * level:g}": self.quantiles[i][:, k] for k, level in enumerate(self.levels)}
        return columns

    def summary(self) -> pd.DataFrame:
        """One row a layer: channels, dead, always-on and massive ones, spread, tails, shares of zeros, participation ratio."""
        frame = self.to_frame()
        grouped = frame.groupby(["model", "layer", "kind", "depth", "n_images", "n_values"], sort=False)
        table = grouped.agg(
            channels=("channel", "size"),
            dead=("dead", "sum"),
            always_on=("always_on", "sum"),
            median_std=("std", "median"),
            largest_std=("std", "max"),
            share_zero=("share_zero", "mean"),
            share_nonpositive=("share_nonpositive", "mean"),
        ).reset_index()
        return table.assign(**self._summary_columns())

    def _summary_columns(self) -> dict[str, np.ndarray]:
        columns: dict[str, np.ndarray] = {}
        if self.kurtosis:
            columns["median_kurtosis"] = np.array([_median(k) for k in self.kurtosis])
        if self.median_magnitude is not None:
            columns["massive"] = np.array([int(m.sum()) for m in self.massive])
            columns["largest_ratio"] = np.array([r.max() for r in self.largest_ratio])
        if self.participation is not None:
            columns["participation"] = self.participation
            columns["clusters"] = np.array([int(c.max()) for c in self.cluster])
        return columns


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def place_of(name: str, layers: Sequence[Layer], model: str) -> int:
    """The index of the layer called `name`. Raises LayerError that lists close names."""
    names = [layer.name for layer in layers]
    if name not in names:
        raise LayerError(f"no layer '{name}' in these results of {model}; {closest(name, names)}")
    return names.index(name)


class ChannelMoments:
    """Accumulator of channel statistics: `update` with a batch's `channel_moments`, `merge` with another, then `compute`.

    Everything stays on the device of the batches; its size does not depend on the number of images."""

    def __init__(self) -> None:
        self.images = 0
        self._state: dict[str, LayerMoments] = {}

    def update(self, found: Mapping[str, LayerMoments], images: int) -> None:
        """Add one batch: per layer what `channel_moments` returned, and how many images it was. The batch is taken over."""
        self.images += images
        for name, moments in found.items():
            self.add(name, moments)

    def add(self, name: str, moments: LayerMoments) -> None:
        """Add a batch's `channel_moments` of one layer alone; `images` does not count it. The batch is taken over."""
        if name in self._state:
            self._state[name].add(moments)
        else:
            self._state[name] = moments

    def merge(self, other: ChannelMoments) -> None:
        """Add everything that `other` has seen; `other` stays as it is."""
        self.images += other.images
        for name, moments in other._state.items():
            if name in self._state:
                self._state[name].add(moments)
            else:
                self._state[name] = moments.copy()

    def compute(self, model: ModelRecord, images: ImagesRecord, layers: Sequence[Layer]) -> ChannelStatistics:
        """The statistics of all batches together. Warns with NonFiniteWarning about layers with values that are not finite."""
        found = [_Computed.of(self._state[layer.name]) for layer in layers]
        for layer, part in zip(layers, found, strict=True):
            _warn_non_finite(layer, part, model)
        return ChannelStatistics(
            model=model,
            images=images,
            layers=tuple(layers),
            n=self.images,
            values=tuple(f.values for f in found),
            mean=tuple(f.mean for f in found),
            std=tuple(f.std for f in found),
            minimum=tuple(f.minimum for f in found),
            maximum=tuple(f.maximum for f in found),
            share_zero=tuple(f.share_zero for f in found),
            share_nonpositive=tuple(f.share_nonpositive for f in found),
            skew=tuple(f.skew for f in found),
            kurtosis=tuple(f.kurtosis for f in found),
            quantiles=tuple(f.quantiles for f in found),
            median_magnitude=np.array([f.median_magnitude for f in found]),
            share_massive=tuple(f.share_massive for f in found),
            participation=np.array([f.together.participation for f in found]),
            nearest=tuple(f.together.nearest for f in found),
            nearest_correlation=tuple(f.together.correlation for f in found),
            cluster=tuple(f.together.cluster for f in found),
        )


@dataclass(frozen=True)
class _Computed:
    """The statistics of one layer."""

    values: int
    mean: np.ndarray
    std: np.ndarray
    skew: np.ndarray
    kurtosis: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    share_zero: np.ndarray
    share_nonpositive: np.ndarray
    quantiles: np.ndarray
    median_magnitude: float
    share_massive: np.ndarray
    together: Together

    @classmethod
    def of(cls, state: LayerMoments) -> _Computed:
        minimum, maximum, zeros, nonpositive = (
            _host(part).astype(np.float64) for part in (state.minimum, state.maximum, state.zeros, state.nonpositive)
        )
        n, mean, std, skew, kurtosis = _shape(state.central)
        quantiles, median, massive = _of_counts(state, minimum, maximum, np.isfinite(mean))
        return cls(
            n,
            mean,
            std,
            skew,
            kurtosis,
            minimum,
            maximum,
            zeros / n,
            nonpositive / n,
            quantiles,
            median,
            massive,
            _together(state, np.maximum(-minimum, maximum) * np.sqrt(n)),
        )


def _host(part: torch.Tensor) -> np.ndarray:
    return np.asarray(part.cpu().numpy())


def _shape(central: Central) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number of values, mean, std, skew and excess kurtosis."""
    n = central.count
    mean, m2, m3, m4 = (_host(part) for part in (central.mean, central.second / n, central.third / n, central.fourth / n))
    # Rounding of a constant has no shape.
    varies = m2 > (_ROUNDING * mean) ** 2
    m2_or_nan = np.where(varies, m2, np.nan)
    return n, mean, np.sqrt(m2), m3 / m2_or_nan**1.5, m4 / m2_or_nan**2 - 3


def _of_counts(
    state: LayerMoments, minimum: np.ndarray, maximum: np.ndarray, finite: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Quantiles [channel, level], median magnitude and share of massive values [channel]; NaN where there is no sketch."""
    missing = np.full(len(minimum), np.nan)
    if state.counts is None:
        return np.tile(missing[:, None], len(LEVELS)), float("nan"), missing
    counts = _host(state.counts)
    quantiles = quantiles_of(counts, minimum, maximum)
    median = median_magnitude(counts[finite])
    massive = share_beyond(counts, MASSIVE * median)
    return np.where(finite[:, None], quantiles, np.nan), median, np.where(finite, massive, np.nan)


def _together(state: LayerMoments, scale: np.ndarray) -> Together:
    if state.scatter is None:
        return Together(float("nan"), *undefined(len(scale)))
    return together(_host(state.scatter), scale)


def _warn_non_finite(layer: Layer, found: _Computed, model: ModelRecord) -> None:
    bad = int((~np.isfinite(found.mean)).sum())
    if bad:
        warnings.warn(
            f"{bad} of {len(found.mean)} channels of layer '{layer.name}' of {model.name} have values that are NaN or infinite: "
            "their statistics are NaN, and so is the participation ratio of the layer",
            NonFiniteWarning,
            stacklevel=5,
        )


@checked(MeasureError)
def channel_statistics(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: str | Sequence[str] = "blocks",
    *,
    batch_size: int = 32,
    autocast: str | None = None,
    quantiles: bool = True,
    covariance: bool | None = None,
) -> ChannelStatistics:
    """Statistics of every channel of the chosen layers over all images and positions, in one pass of constant memory.

    `quantiles=False` leaves out quantiles and massive activations, which take 10 KB a channel. `covariance` says whether to keep
    the covariance of a layer, 8 B a pair of channels, for participation ratio and clusters; None: up to `WIDEST` channels.

    Raises LayerError and ImagesError as `extract` does; warns with NonFiniteWarning."""
    source = as_source(images)
    selected = model.select(layers)
    reducer = partial(measured, quantiles=quantiles, covariance=covariance)
    moments = ChannelMoments()
    # On the CPU no pass is tried again, so that each layer can be added at once and no batch's copy of everything is kept.
    into = _into(moments, reducer) if model.device.type == "cpu" else reducer
    title = f"{model.name}: channel statistics"
    for piece in stream(model, source, selected, into, batch_size=batch_size, autocast=autocast, title=title):
        moments.update({name: found for name, found in piece.found.items() if found is not None}, piece.n)
    return moments.compute(model.record, source.record, selected)


def _into(moments: ChannelMoments, reducer: Reducer[LayerMoments]) -> Reducer[LayerMoments | None]:
    def add(layer: Layer, positions: torch.Tensor, prefix: torch.Tensor | None) -> None:
        moments.add(layer.name, reducer(layer, positions, prefix))

    return add
