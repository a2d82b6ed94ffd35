"""A page about one channel: its top and bottom images, activation maps, statistics, class
selectivity and best matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

from mixer_probe.capture import ImageSource, input_pictures
from mixer_probe.channels.partners import ChannelPartners
from mixer_probe.channels.selectivity import ClassSelectivity
from mixer_probe.channels.statistics import ChannelStatistics
from mixer_probe.channels.top import By, TopImages, maps_of, top_and_lowest, top_means
from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result, storable
from mixer_probe.core.validate import checked
from mixer_probe.images.classes import class_name
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity.inputs import RepresentationsLike

# An end of a layer, a channel, and the images of that channel there.
Shown = tuple[TopImages, int, np.ndarray]
# (model, layer, channel, correlation, p corrected for all pairs of channels) of a best-matching
# channel
Partner = tuple[str, str, int, float, float]


@storable
@dataclass(frozen=True)
class Exhibit:
    """Images at one end of a channel, the most extreme first.

    `values` and `ids` [k]; `pictures` uint8 RGB [k, height, width, 3]; `maps` [k, rows, columns]
    are the channel's activations; `boxes` [k, 4] are (top, left, bottom, right) of the grid cell of
    the peak as fractions of height and width, the whole image where several cells have the peak;
    `classes` [k] are the names of the images' classes, none without labels."""

    values: Annotated[np.ndarray, "rank"]
    ids: Annotated[np.ndarray, "rank"]
    pictures: Annotated[np.ndarray, "rank", "height", "width", 3]
    maps: Annotated[np.ndarray, "rank", "row", "column"]
    boxes: Annotated[np.ndarray, "rank", 4]
    classes: Annotated[tuple[str, ...], "rank?"] = ()

    @classmethod
    def of(
        cls,
        model: Model,
        images: ImageSource | Tensor,
        end: TopImages,
        channel: int,
        maps: np.ndarray,
        pixels: int,
    ) -> Exhibit:
        """The images at one end of a channel with their activation `maps`, their pictures with
        `pixels` on the longer side or fewer."""
        i = end.place(channel)
        flat = maps.reshape(len(maps), -1) * (-1 if end.lowest else 1)
        own = replace(select(end, "channel", [i]), position=flat.argmax(1)[None])
        boxes = own.boxes[0] / np.array([*end.input_size, *end.input_size])
        # Several cells have the peak where a ReLU leaves zeros.
        shared = (flat == flat.max(1, keepdims=True)).sum(1) > 1
        classes: tuple[str, ...] = ()
        if not isinstance(images, Tensor) and images.labels is not None:
            classes = tuple(
                class_name(int(label), images.class_names) for label in images.labels[end.index[i]]
            )
        return cls(
            values=end.values[i],
            ids=end.ids[i],
            pictures=input_pictures(model, images, end.index[i], pixels),
            maps=maps,
            boxes=np.where(shared[:, None], [0.0, 0.0, 1.0, 1.0], boxes),
            classes=classes,
        )


@dataclass(frozen=True)
class ChannelPage(Result):
    """One channel: the images that activate it most and least, statistics, selectivity by class,
    best-matching channels.

    `statistics` are numbers by name, empty if none were given; `auroc` and `dprime` [class]
    likewise; `selectivity_p` is corrected for classes and for the channels of the layer, and
    `relation` is the channel's response to its best-separated class ("responds to", "is suppressed
    by", or "separates" where its sign has no meaning). `partners` are the best-matching channels of
    other layers as (model, layer, channel, correlation, corrected p). `rule` is the rule that
    selected the channel, if any."""

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
    class_names: Annotated[tuple[str, ...], "class?"] = ()
    auroc: Annotated[np.ndarray, "class?"] = field(default_factory=lambda: np.empty(0))
    dprime: Annotated[np.ndarray, "class?"] = field(default_factory=lambda: np.empty(0))
    selectivity_p: float = float("nan")
    relation: str = "separates"
    partners: tuple[Partner, ...] = ()
    rule: str = ""

    @property
    def best_class(self) -> int | None:
        """Index of the best-separated class, whose AUROC is furthest from 1/2; None without one."""
        return (
            int(np.nanargmax(np.abs(self.auroc - 0.5))) if np.isfinite(self.auroc).any() else None
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per image shown."""
        frames = []
        for end, exhibit in (("highest", self.top), ("lowest", self.lowest)):
            rows = {
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
            frames.append(pd.DataFrame(rows))
        return pd.concat(frames, ignore_index=True)


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
    maps: Callable[[Sequence[Shown]], Sequence[np.ndarray]] | None = None,
    batch_size: int = 64,
) -> list[ChannelPage]:
    """Pages of the given channels, from one pass over the images and one over those shown.

    `channels` are one or several by layer. `by` ranks images by the peak over positions or the
    "mean", which selectivity is measured on.

    Pictures larger than `pixels` are reduced. `statistics` and `selectivity` of the same model
    fill their parts of the page where they contain the layer, and `partners` those of which the
    layer is A. `reps` is a run of the same model on the same images with means over positions:
    by="mean" then needs no pass, nor do the images shown where `maps` gives their activation maps.

    Raises LayerError and ImagesError as `top_images`, and MeasureError for `reps` of another
    network or of other images, and for `statistics` or `selectivity` of another network."""
    for name, given in (("statistics", statistics), ("selectivity", selectivity)):
        if given is not None and given.model.fingerprint != model.record.fingerprint:
            raise MeasureError(
                f"{name}= is of {given.model.name}, whose weights, settings or preprocessing are "
                f"not those of {model.name}: measure this network as it is now"
            )
    if reps is not None and by == "mean":
        found = top_means(model, images, reps, channels, k)
    else:
        found = top_and_lowest(model, images, channels, k, by=by, batch_size=batch_size)
    pages = []
    shown = [
        (end, channel, end.index[i])
        for ends in found
        for i, channel in enumerate(ends[0].channels.tolist())
        for end in ends
    ]
    named = [(end.layer.name, channel, index) for end, channel, index in shown]
    drawn = iter(maps_of(model, images, named, batch_size) if maps is None else maps(shown))
    for ends in found:
        record, layer = ends[0].images, ends[0].layer
        for channel in ends[0].channels.tolist():
            top, lowest = (
                Exhibit.of(model, images, end, channel, next(drawn), pixels) for end in ends
            )
            page = ChannelPage(
                ends[0].model, record, layer, channel, ends[0].n, ends[0].by, top, lowest
            )
            if statistics is not None and layer.name in statistics:
                page = replace(page, statistics=statistics.of_channel(layer.name, channel))
            if selectivity is not None and layer.name in selectivity:
                i = selectivity.index(layer.name)
                page = replace(
                    page,
                    class_names=selectivity.class_names,
                    auroc=selectivity.auroc[i][channel],
                    dprime=selectivity.dprime[i][channel],
                    selectivity_p=float(selectivity.p_value[i][channel]),
                )
                if (best := page.best_class) is not None:
                    page = replace(page, relation=selectivity.relation(i, float(page.auroc[best])))
            pages.append(with_partners(page, partners))
    return pages


def with_partners(page: ChannelPage, partners: Sequence[ChannelPartners]) -> ChannelPage:
    """The page with the best match of its channel in each of the `partners` of which its layer is
    A, the strongest first."""
    layer, channel = page.layer.name, page.channel
    listed = [
        (
            p.model_b.name,
            p.layer_b.name,
            int(match),
            float(p.correlation[channel, 0]),
            float(p.p_corrected[channel]),
        )
        for p in partners
        if p.model_a.fingerprint == page.model.fingerprint and p.layer_a.name == layer
        if (match := p.partner[channel, 0]) >= 0
    ]
    return replace(page, partners=tuple(sorted(listed, key=lambda partner: -abs(partner[3]))))
