"""Channel statistics in one pass: moments, quantiles, dead, always-on and massive channels, and
clusters of channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from mixer_probe.capture import ImageSource, Piece, Reading, as_source, stream
from mixer_probe.channels.clusters import channel_covariance
from mixer_probe.channels.layerwise import LAYER, Layerwise, finite_median
from mixer_probe.channels.moments import LayerMoments, channel_moments, measured
from mixer_probe.channels.quantiles import LEVELS, fraction_beyond, median_magnitude, quantiles_of
from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import MeasureError, NonFiniteWarning
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

__all__ = [
    "MASSIVE",
    "ChannelMoments",
    "ChannelStatistics",
    "channel_moments",
    "channel_statistics",
]

# How many times the layer's median magnitude an activation has to exceed to be called massive.
MASSIVE = 100.0
# A standard deviation below this fraction of the mean is rounding of float32.
_ROUNDING = 1e-6
# Columns that earlier versions may lack.
_LATER = "skew kurtosis fraction_massive largest_ratio nearest nearest_correlation cluster"


@dataclass(frozen=True)
class ChannelStatistics(Layerwise, Result):
    """Statistics per layer and channel, over all images and positions without prefix tokens. Arrays
    are tuples over layers, [channel].

    `std` is the population standard deviation, `skew` m3/m2^1.5 and `kurtosis` m4/m2^2 - 3 of the
    population (as SciPy's defaults), NaN for channels that do not vary. `fraction_zero` counts
    exact zeros, `fraction_nonpositive` values <= 0. `quantiles` [channel, level] are within
    `quantiles.RELATIVE_ERROR` of the order statistics at `levels`. `median_magnitude` [layer] is
    the median of |a| over all values of a layer that are not zero; `fraction_massive` is the
    fraction of values more than `massive_ratio` times as large (after Sun et al. 2024, whose own
    rule is 1000 times the median and above 100; see `largest_ratio`). `participation` [layer] is
    tr(C)^2 / tr(C^2) of the covariance of the channels. `nearest` is the channel of the same layer
    with the strongest correlation, of either sign, `nearest_correlation` that correlation,
    `cluster` the number of its cluster by average linkage of 1 - |r| cut at 1/2 (0: does not vary).
    Those from the covariance are absent (NaN, -1, 0) for layers wider than `moments.WIDEST`. `n`
    counts images; `values` the numbers behind a channel.

    A channel is dead when it has the same value for every image and position. Results of earlier
    versions lack the fields that have a default."""

    title: ClassVar[str] = "Channel statistics"

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    n: int
    values: Annotated[tuple[int, ...], "layer"]
    mean: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    std: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    minimum: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    maximum: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    fraction_zero: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    fraction_nonpositive: Annotated[tuple[np.ndarray, ...], "layer", "channel"]
    skew: Annotated[tuple[np.ndarray, ...], "layer?", "channel"] = ()
    kurtosis: Annotated[tuple[np.ndarray, ...], "layer?", "channel"] = ()
    quantiles: Annotated[tuple[np.ndarray, ...], "layer?", "channel", "level"] = ()
    levels: Annotated[tuple[float, ...], "level"] = LEVELS
    median_magnitude: Annotated[np.ndarray | None, "layer"] = None
    fraction_massive: Annotated[tuple[np.ndarray, ...], "layer?", "channel"] = ()
    massive_ratio: float = MASSIVE
    participation: Annotated[np.ndarray | None, "layer"] = None
    nearest: Annotated[tuple[np.ndarray, ...], "layer?", "channel"] = ()
    nearest_correlation: Annotated[tuple[np.ndarray, ...], "layer?", "channel"] = ()
    cluster: Annotated[tuple[np.ndarray, ...], "layer?", "channel"] = ()

    @property
    def dead(self) -> Annotated[tuple[np.ndarray, ...], "layer", "channel"]:
        """Per layer, which channels [channel] never change."""
        return tuple(low == high for low, high in zip(self.minimum, self.maximum, strict=True))

    @property
    def always_on(self) -> Annotated[tuple[np.ndarray, ...], "layer", "channel"]:
        """Per layer, which channels [channel] are above zero for every image and position, and not
        dead."""
        return tuple((low > 0) & ~dead for low, dead in zip(self.minimum, self.dead, strict=True))

    @property
    def largest_ratio(self) -> Annotated[tuple[np.ndarray, ...], "layer", "channel"]:
        """Per layer, the largest magnitude of each channel [channel] over the layer's median
        magnitude."""
        if self.median_magnitude is None:
            return ()
        peaks = (
            np.maximum(-low, high) for low, high in zip(self.minimum, self.maximum, strict=True)
        )
        return tuple(
            peak / median for peak, median in zip(peaks, self.median_magnitude, strict=True)
        )

    @property
    def massive(self) -> tuple[np.ndarray, ...]:
        """Per layer, which channels [channel] have an activation above `massive_ratio` times the
        layer's median magnitude."""
        return tuple(ratio > self.massive_ratio for ratio in self.largest_ratio)

    def layer_frame(self, i: int) -> pd.DataFrame:
        """One row per channel of layer `i`."""
        known = " ".join(name for name in _LATER.split() if getattr(self, name))
        if self.quantiles:
            known += f" {','.join(f'q{100 * level:g}' for level in self.levels)}=quantiles"
        columns = f"""{LAYER} channel mean std minimum maximum fraction_zero fraction_nonpositive
            dead always_on {known} n_images=n n_values=values"""
        return Frame("layer channel", columns).of(select(self, "layer", [i]))

    def of_channel(self, layer: str, channel: int) -> dict[str, float]:
        """The statistics of one channel by name, with the size of its cluster. Raises LayerError
        for an unknown layer."""
        i = self.index(layer)
        row = self.layer_frame(i).iloc[channel].drop(["model", "layer", "kind", "depth", "channel"])
        numbers = {str(name): float(value) for name, value in row.items()}
        if self.cluster:
            cluster = self.cluster[i]
            numbers["cluster_size"] = float(
                (cluster == cluster[channel]).sum() if cluster[channel] else 0
            )
        return numbers

    def summary(self) -> pd.DataFrame:
        """One row per layer: counts of dead, always-on and massive channels, spread, tails, zeros,
        participation ratio."""
        frame = self.to_frame()
        grouped = frame.groupby(
            ["model", "layer", "kind", "depth", "n_images", "n_values"], sort=False
        )
        table = grouped.agg(
            channels=("channel", "size"),
            dead=("dead", "sum"),
            always_on=("always_on", "sum"),
            median_std=("std", "median"),
            largest_std=("std", "max"),
            fraction_zero=("fraction_zero", "mean"),
            fraction_nonpositive=("fraction_nonpositive", "mean"),
        ).reset_index()
        if self.kurtosis:
            table["median_kurtosis"] = [finite_median(k) for k in self.kurtosis]
        if self.median_magnitude is not None:
            table["massive"] = [int(m.sum()) for m in self.massive]
            table["largest_ratio"] = [r.max() for r in self.largest_ratio]
        if self.participation is not None:
            table["participation"] = self.participation
            table["clusters"] = [int(c.max()) for c in self.cluster]
        return table


@dataclass(eq=False)
class ChannelMoments(Accumulator):
    """What channel statistics are computed from, by layer, on the device of the batches; its size
    does not depend on the number of images."""

    n: int = state_field(0)
    _state: dict[str, LayerMoments] = state_field(dict)

    def reading(
        self,
        model: Model,
        layers: Sequence[Layer],
        *,
        quantiles: bool = True,
        covariance: bool | None = None,
    ) -> Reading:
        """What adds the images of a pass; `quantiles` and `covariance` are those of
        `channel_statistics`."""
        reducer = partial(measured, quantiles=quantiles, covariance=covariance)

        def at_once(layer: Layer, positions: torch.Tensor, prefix: torch.Tensor | None) -> None:
            self.add(layer.name, reducer(layer, positions, prefix))

        def add(piece: Piece) -> None:
            found = {name: one for name, one in piece.found.items() if one is not None}
            self.update(found, piece.n)

        # No pass is repeated on the CPU: each layer is added at once, and the moments of a batch's
        # layers are never held together.
        return Reading(
            layers,
            at_once if model.device.type == "cpu" else reducer,
            add,
            into=self,
            name=f"channel moments of {', '.join(layer.name for layer in layers)}; quantiles "
            f"{quantiles}, covariance {covariance}",
            again=lambda: ChannelMoments().reading(
                model, layers, quantiles=quantiles, covariance=covariance
            ),
        )

    def update(self, found: Mapping[str, LayerMoments], images: int) -> None:
        """Add one batch: per layer what `channel_moments` returned, and how many images it was. The
        batch is taken over."""
        self.n += images
        for name, moments in found.items():
            self.add(name, moments)

    def add(self, name: str, moments: LayerMoments) -> None:
        """Add a batch's `channel_moments` of one layer alone; `n` does not count it. The batch
        is taken over."""
        if name in self._state:
            # A state that was loaded is on the CPU, whatever the device of the batches.
            held = self._state[name].to(moments.minimum.device)
            held.add(moments)
            moments = held
        self._state[name] = moments

    def merge(self, other: ChannelMoments) -> None:
        """Add the images of `other`, which stays as it is."""
        self.n += other.n
        for name, moments in other._state.items():
            if name in self._state:
                self._state[name].add(moments)
            else:
                self._state[name] = moments.copy()

    def compute(
        self, model: ModelRecord, images: ImagesRecord, layers: Sequence[Layer]
    ) -> ChannelStatistics:
        """The statistics of all images. Warns with NonFiniteWarning about layers with values that
        are not finite."""
        parts = []
        for layer in layers:
            state = self._state[layer.name]
            n, central = state.central.count, state.central
            sums = (central.mean, central.second / n, central.third / n, central.fourth / n)
            mean, m2, m3, m4 = (part.cpu().numpy() for part in sums)
            counted = (state.minimum, state.maximum, state.zeros, state.nonpositive)
            minimum, maximum, zeros, nonpositive = (
                part.cpu().numpy().astype(np.float64) for part in counted
            )
            # The rounding of a constant has no shape.
            varying = np.where(m2 > (_ROUNDING * mean) ** 2, m2, np.nan)
            finite, median = np.isfinite(mean), float("nan")
            quantiles, massive = (
                np.full((len(mean), len(LEVELS)), np.nan),
                np.full(len(mean), np.nan),
            )
            if state.counts is not None:
                counts = state.counts.cpu().numpy()
                median = median_magnitude(counts[finite])
                quantiles = np.where(
                    finite[:, None], quantiles_of(counts, minimum, maximum), np.nan
                )
                massive = np.where(finite, fraction_beyond(counts, MASSIVE * median), np.nan)
            scatter = None if state.scatter is None else state.scatter.cpu().numpy()
            parts.append(
                {
                    "values": n,
                    "mean": mean,
                    "std": np.sqrt(m2),
                    "minimum": minimum,
                    "maximum": maximum,
                    "fraction_zero": zeros / n,
                    "fraction_nonpositive": nonpositive / n,
                    "skew": m3 / varying**1.5,
                    "kurtosis": m4 / varying**2 - 3,
                    "quantiles": quantiles,
                    "median_magnitude": median,
                    "fraction_massive": massive,
                    **vars(channel_covariance(scatter, np.maximum(-minimum, maximum) * np.sqrt(n))),
                }
            )
            if not finite.all():
                warnings.warn(
                    f"{int((~finite).sum())} of {len(mean)} channels of layer '{layer.name}' of "
                    f"{model.name} have values that are NaN or infinite: their statistics are NaN, "
                    "and so is the participation ratio of the layer",
                    NonFiniteWarning,
                    stacklevel=4,
                )
        return ChannelStatistics.of_layers(
            parts, model=model, images=images, layers=tuple(layers), n=self.n
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
    """Statistics of every channel of the chosen layers over all images and positions, in one pass
    of constant memory.

    `quantiles=False` leaves out quantiles and massive activations, which take 10 KB a channel.
    `covariance` says whether to keep the covariance of a layer, 8 B a pair of channels, for
    participation ratio and clusters; None: up to `WIDEST` channels.

    Raises LayerError and ImagesError as `extract` does; warns with NonFiniteWarning."""
    source, selected, moments = as_source(images), model.select(layers), ChannelMoments()
    reading = moments.reading(model, selected, quantiles=quantiles, covariance=covariance)
    options: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast}
    title = f"{model.name}: channel statistics"
    for piece in stream(model, source, selected, reading.reducer, title=title, **options):
        reading.add(piece)
    return moments.compute(model.record, source.record, selected)
