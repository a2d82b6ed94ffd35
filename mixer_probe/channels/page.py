"""A page about one channel, like the label in a museum: its images, where in them, its numbers, its classes, who resembles it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from mixer_probe.capture import ImageSource
from mixer_probe.channels.partners import ChannelPartners
from mixer_probe.channels.selectivity import ClassSelectivity
from mixer_probe.channels.statistics import ChannelStatistics
from mixer_probe.channels.top import By, TopImages, activation_maps, input_pictures, top_and_lowest
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.results import ImagesRecord, ModelRecord, Result, storable

# (model, layer, channel, correlation, p corrected for all pairs of channels)
Partner = tuple[str, str, int, float, float]


@storable
@dataclass(frozen=True)
class Exhibit:
    """Images at one end of a channel, the most extreme first.

    `values` and `ids` [k]; `pictures` uint8 RGB [k, height, width, 3]; `maps` [k, rows, columns] are the channel's activations;
    `boxes` [k, 4] are (top, left, bottom, right) of the grid cell of the peak as shares of height and width."""

    values: np.ndarray
    ids: np.ndarray
    pictures: np.ndarray
    maps: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class ChannelPage(Result):
    """What is known of one channel: the images that drive it most and least, statistics, selectivity by class, partners
    elsewhere.

    `statistics` are numbers by name, empty if none were given; `auroc` and `dprime` [class] likewise; `selectivity_p` is
    corrected for classes and for the channels of the layer. `partners` are (model, layer, channel, correlation, corrected p)."""

    title: ClassVar[str] = "Channel page"

    model: ModelRecord
    images: ImagesRecord
    layer: Layer
    channel: int
    n: int
    by: str
    top: Exhibit
    lowest: Exhibit
    statistics: dict[str, float] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    auroc: np.ndarray = field(default_factory=lambda: np.empty(0))
    dprime: np.ndarray = field(default_factory=lambda: np.empty(0))
    selectivity_p: float = float("nan")
    partners: tuple[Partner, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row an image shown."""
        ends = {"highest": self.top, "lowest": self.lowest}
        return pd.concat([self._rows(name, exhibit) for name, exhibit in ends.items()], ignore_index=True)

    def _rows(self, end: str, exhibit: Exhibit) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": self.layer.name,
                "channel": self.channel,
                "end": end,
                "rank": np.arange(1, len(exhibit.ids) + 1),
                "image": exhibit.ids,
                "value": exhibit.values,
                "n_images": self.n,
            }
        )


def channel_pages(
    model: Model,
    images: ImageSource | Tensor,
    channels: Mapping[str, int | Sequence[int]],
    *,
    k: int = 9,
    by: By = "peak",
    pixels: int = 128,
    statistics: ChannelStatistics | None = None,
    selectivity: ClassSelectivity | None = None,
    partners: Sequence[ChannelPartners] = (),
    batch_size: int = 64,
) -> list[ChannelPage]:
    """Pages of some channels of some layers, from one pass over the images and a short one a page over those shown.

    `channels` are one or several by layer. `by` ranks images by the peak over positions or the "mean", which is what selectivity
    reads.

    Pictures larger than `pixels` are made smaller. `statistics` and `selectivity` of the same model fill their parts of the page
    where they hold the layer, and `partners` those of which the layer is A. Raises LayerError and ImagesError as `top_images`."""
    pages = []
    for ends in top_and_lowest(model, images, channels, k, by=by, batch_size=batch_size):
        for channel in ends[0].channels.tolist():
            exhibits = [_exhibit(model, images, end, channel, pixels, batch_size) for end in ends]
            pages.append(_page(ends[0], channel, exhibits, statistics, selectivity, partners))
    return pages


def _page(
    found: TopImages,
    channel: int,
    exhibits: Sequence[Exhibit],
    statistics: ChannelStatistics | None,
    selectivity: ClassSelectivity | None,
    partners: Sequence[ChannelPartners],
) -> ChannelPage:
    return ChannelPage(
        model=found.model,
        images=found.images,
        layer=found.layer,
        channel=channel,
        n=found.n,
        by=found.by,
        top=exhibits[0],
        lowest=exhibits[1],
        statistics=_statistics(statistics, found.layer.name, channel),
        partners=_partners(partners, found.model.sha256, found.layer.name, channel),
        **_classes(selectivity, found.layer.name, channel),
    )


def _exhibit(model: Model, images: ImageSource | Tensor, end: TopImages, channel: int, pixels: int, batch_size: int) -> Exhibit:
    i = end.place(channel)
    height, width = end.input_size
    return Exhibit(
        values=end.values[i],
        ids=end.ids[i],
        pictures=_smaller(input_pictures(model, images, end.index[i]), pixels),
        maps=activation_maps(model, images, end.index[i], end.layer.name, channel, batch_size=batch_size),
        boxes=end.boxes[i] / np.array([height, width, height, width]),
    )


def _smaller(pictures: np.ndarray, pixels: int) -> np.ndarray:
    height, width = pictures.shape[1:3]
    scale = pixels / max(height, width)
    if scale >= 1:
        return pictures
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures])


def _statistics(found: ChannelStatistics | None, layer: str, channel: int) -> dict[str, float]:
    """Numbers of the channel by column name; empty where the statistics do not hold the layer."""
    if found is None or layer not in {known.name for known in found.layers}:
        return {}
    frame = found.to_frame()
    row = frame[(frame["layer"] == layer) & (frame["channel"] == channel)].iloc[0]
    skipped = ("model", "layer", "kind", "depth", "channel")
    numbers = {str(name): float(value) for name, value in row.items() if name not in skipped}
    i = found.index(layer)
    if found.cluster:
        numbers["cluster_size"] = float((found.cluster[i] == found.cluster[i][channel]).sum() if numbers["cluster"] else 0)
    return numbers


def _classes(found: ClassSelectivity | None, layer: str, channel: int) -> dict[str, Any]:
    if found is None or layer not in {known.name for known in found.layers}:
        return {}
    i = found.index(layer)
    return {
        "class_names": found.class_names,
        "auroc": found.auroc[i][channel],
        "dprime": found.dprime[i][channel],
        "selectivity_p": float(found.p_value[i][channel]),
    }


def _partners(found: Sequence[ChannelPartners], sha256: str, layer: str, channel: int) -> tuple[Partner, ...]:
    """The best partner of the channel in each of the results of which it is a channel of A, the strongest first."""
    fitting = [p for p in found if p.model_a.sha256 == sha256 and p.layer_a.name == layer and p.partner[channel, 0] >= 0]
    listed = [
        (
            p.model_b.name,
            p.layer_b.name,
            int(p.partner[channel, 0]),
            float(p.correlation[channel, 0]),
            float(p.p_corrected[channel]),
        )
        for p in fitting
    ]
    return tuple(sorted(listed, key=lambda partner: -abs(partner[3])))
