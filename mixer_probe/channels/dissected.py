"""One channel against one concept, in pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, as_source, input_pictures, part_of
from mixer_probe.channels.dissection import Dissection, require_grids
from mixer_probe.channels.overlap import annotated, resized_masks, sample_pixels, upsampler
from mixer_probe.channels.top import activation_maps, top_images
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.images.concepts import Concepts
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class DissectedChannel(Result):
    """The annotated images that activate a channel most, its active regions in them, and where the
    concept is.

    `pictures` uint8 RGB [k, height, width, 3] at the size of the input; `maps` [k, rows, columns]
    the activations on the layer's grid; `lit` and `masks` bool [k, height, width] what is above the
    threshold and where the concept is (all or nothing for attributes). `iou`, `null95` and
    `p_value` are those of the whole set; `p_value`, corrected for channels and concepts, is NaN for
    another concept than the preferred one."""

    title: ClassVar[str] = "Dissected channel"
    frame = Frame(
        "rank",
        """model=model.name layer=layer.name channel concept rank image=ids value=values
        lit=lit.mean concept_fraction=masks.mean overlap n_images=n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layer: Layer
    channel: int
    concept: str
    iou: float
    null95: float
    p_value: float
    threshold: float
    n: int
    ids: Annotated[np.ndarray, "rank"]
    values: Annotated[np.ndarray, "rank"]
    pictures: Annotated[np.ndarray, "rank", "height", "width", 3]
    maps: Annotated[np.ndarray, "rank", "row", "column"]
    lit: Annotated[np.ndarray, "rank", "height", "width"]
    masks: Annotated[np.ndarray, "rank", "height", "width"]

    @property
    def overlap(self) -> Annotated[np.ndarray, "rank"]:
        """IoU in each image alone, [k]; NaN where both are empty."""
        both, either = (self.lit & self.masks).sum((1, 2)), (self.lit | self.masks).sum((1, 2))
        return np.where(either > 0, both / np.maximum(either, 1), np.nan)


@checked(MeasureError)
def dissected_channel(
    model: Model,
    images: ImageSource | Tensor,
    concepts: Concepts,
    dissection: Dissection,
    layer: str,
    channel: int,
    concept: str | None = None,
    *,
    k: int = 6,
    batch_size: int = 32,
) -> DissectedChannel:
    """The `k` annotated images that activate a channel most, with its active regions and where a
    concept is (None: the preferred one).

    `dissection` is that of the same model, images and concepts. Raises LayerError for a layer that
    it does not hold, one without a grid and a channel out of range, ImagesError for an unknown
    concept, and MeasureError for the dissection of another model, other images or other concepts,
    and for a channel that marks nothing."""
    i = dissection.index(layer)
    if dissection.model.fingerprint != model.record.fingerprint:
        raise MeasureError(f"this is a dissection of {dissection.model.name}, not of {model.name}")
    source, selected = as_source(images), dissection.layers[i]
    require_grids([selected], model, "pixels")
    chosen, places = annotated(source, concepts)
    taken = part_of(source, chosen)
    if taken.record.fingerprint != dissection.images.fingerprint:
        raise MeasureError(
            f"this dissection is of other images ({dissection.images.n} annotated ones of "
            f"{dissection.images.name}) than the {len(chosen)} annotated ones that were given: "
            "give those that were dissected, in the same order"
        )
    if tuple(concepts.names) != dissection.concepts:
        raise MeasureError(
            f"this dissection is of the concepts of {dissection.source}, which are not those of "
            f"{concepts.name}"
        )
    top = top_images(model, taken, layer, channel, k, batch_size=batch_size)
    c = int(dissection.preferred[i][channel]) if concept is None else dissection.concept(concept)
    threshold = float(dissection.threshold[i][channel])
    if c < 0 or np.isnan(threshold):
        raise MeasureError(
            f"channel {channel} of '{layer}' is constant or not finite, so that it marks nothing"
        )
    maps = activation_maps(model, taken, top.index[0], layer, channel, batch_size=batch_size)
    pixels = sample_pixels(model.input.size[1:], 1)
    up = upsampler(model, selected, pixels)
    shape = (len(maps), len(pixels[0]), len(pixels[1]))
    lit = (up(torch.from_numpy(maps).flatten(1)) > threshold).numpy().reshape(shape)
    shown, index = [places[j] for j in top.index[0]], top.index[0].tolist()
    if concepts.attributes is not None:
        masks = np.broadcast_to(concepts.attributes[shown, c][:, None, None], shape).copy()
    else:
        planes = resized_masks(model, part_of(taken, index), concepts, shown, pixels).planes(
            np.arange(len(shown))
        )
        masks = planes[:, c].reshape(shape).astype(bool)
    own = c == dissection.preferred[i][channel]
    return DissectedChannel(
        model=dissection.model,
        images=dissection.images,
        layer=selected,
        channel=channel,
        concept=dissection.concepts[c],
        iou=float(dissection.iou[i][channel, c]),
        null95=float(dissection.null95[i, c]),
        p_value=float(dissection.p_value[i][channel]) if own else float("nan"),
        threshold=threshold,
        n=dissection.n,
        ids=top.ids[0],
        values=top.values[0],
        pictures=input_pictures(model, taken, top.index[0]),
        maps=maps,
        lit=lit,
        masks=masks,
    )
