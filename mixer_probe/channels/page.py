"""A page about one channel, like the label in a museum: its images, where in them, its numbers, its classes, who resembles it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from mixer_probe.capture import ImageSource, input_pictures
from mixer_probe.channels.partners import ChannelPartners
from mixer_probe.channels.selectivity import ClassSelectivity
from mixer_probe.channels.statistics import ChannelStatistics
from mixer_probe.channels.top import By, TopImages, activation_maps, top_and_lowest, top_means
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity.inputs import RepresentationsLike

# (model, layer, channel, correlation, p corrected for all pairs of channels)
Partner = tuple[str, str, int, float, float]


@storable
@dataclass(frozen=True)
class Exhibit:
    """Images at one end of a channel, the most extreme first.

    `values` and `ids` [k]; `pictures` uint8 RGB [k, height, width, 3]; `maps` [k, rows, columns] are the channel's activations;
    `boxes` [k, 4] are (top, left, bottom, right) of the grid cell of the peak as shares of height and width, the whole image
    where several cells share the peak; `classes` [k] are the names of the images' classes, none without labels."""

    values: np.ndarray
    ids: np.ndarray
    pictures: np.ndarray
    maps: np.ndarray
    boxes: np.ndarray
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChannelPage(Result):
    """What is known of one channel: the images that drive it most and least, statistics, selectivity by class, partners
    elsewhere.

    `statistics` are numbers by name, empty if none were given; `auroc` and `dprime` [class] likewise; `selectivity_p` is
    corrected for classes and for the channels of the layer, and `relation` is what the channel does with the class that it
    tells best ("responds to", "is suppressed by", or "separates" where its sign has no meaning). `partners` are (model,
    layer, channel, correlation, corrected p). `rule` says why the channel has a page, where that was by a rule."""

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
    relation: str = "separates"
    partners: tuple[Partner, ...] = ()
    rule: str = ""

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
                "class": exhibit.classes or "",
                "value": exhibit.values,
                "n_images": self.n,
            }
        )


@checked(MeasureError)
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
    reps: RepresentationsLike | None = None,
    batch_size: int = 64,
) -> list[ChannelPage]:
    """Pages of some channels of some layers, from one pass over the images and a short one a page over those shown.

    `channels` are one or several by layer. `by` ranks images by the peak over positions or the "mean", which is what selectivity
    reads.

    Pictures larger than `pixels` are made smaller. `statistics` and `selectivity` of the same model fill their parts of the page
    where they hold the layer, and `partners` those of which the layer is A. `reps` is a run of the same model on the same images
    with means over positions: by="mean" then needs no pass. Raises LayerError and ImagesError as `top_images`, and MeasureError
    for `reps` of another network or of other images, and for `statistics` or `selectivity` of another network."""
    _check_network(model, statistics=statistics, selectivity=selectivity)
    if reps is not None and by == "mean":
        found = top_means(model, images, reps, channels, k)
    else:
        found = top_and_lowest(model, images, channels, k, by=by, batch_size=batch_size)
    pages = []
    for ends in found:
        for channel in ends[0].channels.tolist():
            exhibits = [_exhibit(model, images, end, channel, pixels, batch_size) for end in ends]
            pages.append(_page(ends[0], channel, exhibits, statistics, selectivity, partners))
    return pages


def _check_network(model: Model, **given: ChannelStatistics | ClassSelectivity | None) -> None:
    """Raise MeasureError unless all results are of this network as it is now."""
    own = model.record
    for name, result in given.items():
        if result is not None and result.model.fingerprint != own.fingerprint:
            raise MeasureError(
                f"{name}= is of {result.model.name}, whose weights, settings or preprocessing are not those of {own.name}: "
                "measure this network as it is now"
            )


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
        partners=_partners(partners, found.model.fingerprint, found.layer.name, channel),
        **_classes(selectivity, found.layer.name, channel),
    )


def _exhibit(model: Model, images: ImageSource | Tensor, end: TopImages, channel: int, pixels: int, batch_size: int) -> Exhibit:
    i = end.place(channel)
    maps = activation_maps(model, images, end.index[i], end.layer.name, channel, batch_size=batch_size)
    return Exhibit(
        values=end.values[i],
        ids=end.ids[i],
        pictures=_smaller(input_pictures(model, images, end.index[i]), pixels),
        maps=maps,
        boxes=_boxes(end, maps),
        classes=_class_names(images, end.index[i]),
    )


def _boxes(end: TopImages, maps: np.ndarray) -> np.ndarray:
    """The cells of the peaks of the maps as shares of height and width, [k, 4].

    The whole image where cells share the peak, as the zeros of a ReLU do."""
    flat = maps.reshape(len(maps), -1) * (-1 if end.lowest else 1)
    height, width = end.input_size
    boxes = replace(end, position=flat.argmax(1)[None]).boxes[0] / np.array([height, width, height, width])
    shared = (flat == flat.max(1, keepdims=True)).sum(1) > 1
    return np.where(shared[:, None], [0.0, 0.0, 1.0, 1.0], boxes)


def _class_names(images: ImageSource | Tensor, index: np.ndarray) -> tuple[str, ...]:
    """The classes of the images at `index`; none for images without labels."""
    if isinstance(images, Tensor) or images.labels is None:
        return ()
    return tuple(class_name(int(label), images.class_names) for label in images.labels[index])


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
    auroc = found.auroc[i][channel]
    known = np.isfinite(auroc).any()
    return {
        "class_names": found.class_names,
        "auroc": auroc,
        "relation": found.relation(i, float(auroc[np.nanargmax(np.abs(auroc - 0.5))])) if known else "separates",
        "dprime": found.dprime[i][channel],
        "selectivity_p": float(found.p_value[i][channel]),
    }


def with_partners(page: ChannelPage, partners: Sequence[ChannelPartners]) -> ChannelPage:
    """The page with the best partners of its channel in those of `partners` of which its layer is A."""
    return replace(page, partners=_partners(partners, page.model.fingerprint, page.layer.name, page.channel))


def _partners(found: Sequence[ChannelPartners], network: str, layer: str, channel: int) -> tuple[Partner, ...]:
    """The best partner of the channel in each of the results of which it is a channel of A, the strongest first."""
    fitting = [p for p in found if p.model_a.fingerprint == network and p.layer_a.name == layer and p.partner[channel, 0] >= 0]
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
