"""The active regions of channels over the pixels of images, and their overlap with masks, in two
passes over the images.

The first pass finds the threshold of every channel, exactly: the largest activations are held, as
many as the quantile leaves above it, 0.5 % of all. The second upsamples the maps to the pixels and
counts those above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from mixer_probe.capture import ImageSource, stream
from mixer_probe.channels.upsampling import anchors, interpolation
from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.memory import at_once, slices
from mixer_probe.core.progress import task
from mixer_probe.core.validate import check_fraction
from mixer_probe.images import Images
from mixer_probe.images.concepts import Concepts, image_size, mask_geometry
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

# Longer side of the masks as they are compared by default; Bau et al. took 113 of 227.
_SIDE = 112


# -- thresholds ------------------------------------------------------------------------------------


def n_above(values: int, quantile: float, where: str = "a channel") -> int:
    """How many of `values` may be above a threshold with P(a > T) <= 1 - quantile; `where` they are
    is for the error.

    Raises MeasureError if not even one may be, and for a quantile that is none."""
    check_fraction("quantile", quantile, MeasureError)
    found = math.floor((1 - quantile) * values + 1e-9)
    if found < 1:
        raise MeasureError(
            f"{where} has {values} values (images x positions), of which none may be above the "
            f"quantile {quantile}: take {math.ceil((1 - 1e-9) / (1 - quantile))} or more, or a "
            "lower quantile"
        )
    return found


@dataclass
class Highest:
    """The largest values of each channel in a batch, the smallest, and whether all are finite."""

    values: Annotated[Tensor, "channel", "k"]
    lowest: Annotated[Tensor, "channel"]
    finite: Annotated[Tensor, "channel"]


def highest(
    layer: Layer, positions: Tensor, _prefix: Tensor | None, *, keep: Mapping[str, int]
) -> Highest:
    """Reducer: the highest values of one layer [image, position, channel] for
    `Threshold.update`."""
    wide = positions if positions.dtype is torch.float64 else positions.float()
    rows = wide.permute(2, 0, 1).reshape(layer.channels, -1)
    values = rows.topk(min(keep[layer.name], rows.shape[1]), dim=1).values
    return Highest(values, rows.amin(1), torch.isfinite(rows).all(1))


@dataclass(eq=False)
class Threshold(Accumulator):
    """The thresholds of a layer's channels, exact whatever the batches: at most `above` values
    exceed each."""

    above: int
    _kept: Highest | None = state_field(None)

    def update(self, found: Highest) -> None:
        """Add a batch."""
        if self._kept is None:
            self._kept = found
            return
        values = torch.cat([self._kept.values, found.values.to(self._kept.values.device)], 1)
        self._kept = Highest(
            values.topk(min(self.above + 1, values.shape[1]), dim=1).values,
            torch.minimum(self._kept.lowest, found.lowest.to(values.device)),
            self._kept.finite & found.finite.to(values.device),
        )

    def merge(self, other: Threshold) -> None:
        """Add the other images of `other`. Raises MeasureError if it holds another number of
        values."""
        if self.above != other.above:
            raise MeasureError(
                f"thresholds with {self.above} and {other.above} values above do not merge"
            )
        if other._kept is not None:
            self.update(other._kept)

    def compute(self) -> tuple[np.ndarray, np.ndarray]:
        """The thresholds [channel], the smallest value that no more than `above` values exceed, and
        which channels have one.

        Channels that are constant or not finite have none (NaN). Raises MeasureError for fewer
        values than that."""
        if self._kept is None or self._kept.values.shape[1] <= self.above:
            raise MeasureError(f"too few values were seen for {self.above} above the threshold")
        values = self._kept.values.cpu().numpy().astype(np.float64)
        defined = self._kept.finite.cpu().numpy() & (values[:, 0] > self._kept.lowest.cpu().numpy())
        return np.where(defined, values[:, self.above], np.nan), defined


def thresholds(
    model: Model,
    source: ImageSource,
    layers: Sequence[Layer],
    quantile: float,
    batch_size: int,
    autocast: str | None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Threshold.compute` of every layer over all positions of all images. Raises MeasureError if
    there are too few."""
    counts = {layer.name: len(source) * max(layer.positions, 1) for layer in layers}
    running = {
        name: Threshold(n_above(n, quantile, f"a channel of '{name}'"))
        for name, n in counts.items()
    }
    reducer = partial(highest, keep={name: each.above + 1 for name, each in running.items()})
    title = f"{model.name}: thresholds"
    for piece in stream(
        model, source, layers, reducer, batch_size=batch_size, autocast=autocast, title=title
    ):
        for name, found in piece.found.items():
            running[name].update(found)
    return {name: each.compute() for name, each in running.items()}


# -- pixels ----------------------------------------------------------------------------------------


def sample_pixels(size: Sequence[int], step: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels that are compared: the middle one of every `step`; None: so
    that 112 a side or fewer are.

    Raises MeasureError for a step below 1 or beyond the image."""
    chosen = max(1, math.ceil(max(size) / _SIDE)) if step is None else step
    if not 1 <= chosen <= min(size):
        raise MeasureError(
            f"step={chosen}: take every pixel (1) up to every {min(size)}th of images of {size[0]} "
            f"x {size[1]}"
        )
    rows, columns = (np.arange(chosen // 2, pixels, chosen)[: pixels // chosen] for pixels in size)
    return rows, columns


class ResizedMasks:
    """Masks of all images at the sampled pixels of the network's input, one bit per pixel: n x
    concepts x pixels / 8 bytes."""

    def __init__(self, shape: tuple[int, int], planes: Sequence[np.ndarray], concepts: int) -> None:
        self.shape = shape
        self.pixels = shape[0] * shape[1]
        self.concepts = concepts
        self._bits = np.stack(
            [np.packbits(plane.reshape(concepts, -1), axis=1) for plane in planes]
        )

    def planes(self, images: np.ndarray) -> np.ndarray:
        """0 and 1 as uint8, [image, concept, pixel]."""
        return np.unpackbits(self._bits[images], axis=-1, count=self.pixels)

    def sizes(self) -> np.ndarray:
        """Pixels of each concept in each image, [image, concept]."""
        return np.array(
            [self.planes(np.array([i]))[0].sum(1, dtype=np.int64) for i in range(len(self._bits))]
        )


def resized_masks(
    model: Model,
    source: ImageSource,
    concepts: Concepts,
    places: Sequence[int],
    pixels: tuple[np.ndarray, np.ndarray],
) -> ResizedMasks:
    """The masks at `places` of the images of `source`, through the network's resizing and cropping,
    at the sampled `pixels`.

    Raises ImagesError for masks that cannot be read or have another size than their image."""
    spec = model.input
    size = (spec.size[1], spec.size[2])
    geometry = (
        mask_geometry(spec.size, spec.crop_pct, spec.crop_mode)
        if isinstance(source, Images)
        else None
    )
    planes = []
    with task(f"masks of {concepts.name}", len(places)) as advance:
        for i, place in enumerate(places):
            shape = image_size(source, i) if isinstance(source, Images) else size
            layers = concepts.mask(place, shape)
            if geometry is not None:
                layers = np.stack([geometry(layer) for layer in layers])
            planes.append(
                concepts.planes(layers[:, pixels[0]][:, :, pixels[1]])
                & concepts.known[place][:, None, None]
            )
            advance(1)
    return ResizedMasks((len(pixels[0]), len(pixels[1])), planes, len(concepts.names))


@dataclass(frozen=True)
class Upsampler:
    """Maps of one layer to pixels: `rows` [pixel row, grid row] and `columns` [pixel column, grid
    column]."""

    grid: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray

    def __call__(self, maps: Tensor) -> Tensor:
        """[n, positions] to [n, pixels] in float64."""
        rows, columns = (
            torch.from_numpy(weights).to(maps.device) for weights in (self.rows, self.columns)
        )
        wide = maps.to(torch.float64).reshape(len(maps), *self.grid)
        return (rows @ wide @ columns.T).flatten(1)


def upsampler(model: Model, layer: Layer, pixels: tuple[np.ndarray, np.ndarray]) -> Upsampler:
    """Bilinear interpolation of a layer's maps, anchored at the centres of receptive fields; see
    `channels.upsampling`."""
    assert layer.grid is not None
    rows, columns = anchors(model, layer)
    return Upsampler(
        layer.grid,
        interpolation(rows, layer.grid[0], pixels[0]),
        interpolation(columns, layer.grid[1], pixels[1]),
    )


@dataclass
class ActivationMask:
    """The pixels of a batch above the thresholds: how many (1 and 0 for images) [image, channel],
    and which, image by image and in each channel by channel."""

    area: Tensor
    pixel: Tensor


def active_images(
    layer: Layer, positions: Tensor, _prefix: Tensor | None, *, levels: Mapping[str, Tensor]
) -> ActivationMask:
    """Reducer: images in which any position is above the threshold. NaN is above nothing."""
    area = (positions > _like(levels[layer.name], positions)).any(1)
    return ActivationMask(area.to(torch.int32), torch.empty(0, dtype=torch.int32))


def _like(levels: Tensor, positions: Tensor) -> Tensor:
    """The thresholds in the type of the positions: they are activations, so that no digit is
    lost."""
    return levels.to(
        positions.device, torch.float64 if positions.dtype is torch.float64 else torch.float32
    )


def active_pixels(
    layer: Layer,
    positions: Tensor,
    _prefix: Tensor | None,
    *,
    levels: Mapping[str, Tensor],
    maps: Mapping[str, Upsampler],
) -> ActivationMask:
    """Reducer: pixels of the upsampled maps that are above the thresholds.

    Interpolation never leaves the range of the values, so that only maps with a position above the
    threshold are upsampled."""
    up, T = maps[layer.name], levels[layer.name].to(positions.device)
    image, channel = (positions > _like(T, positions)).any(1).nonzero(as_tuple=True)
    area = torch.zeros(
        positions.shape[0], layer.channels, dtype=torch.int32, device=positions.device
    )
    found = []
    for part in slices(len(image), at_once(4 * len(up.rows) * len(up.columns))):
        i, c = image[part], channel[part]
        active = up(positions[i, :, c]) > T[c, None]
        area[i, c] = active.sum(1, dtype=torch.int32)
        found.append(active.nonzero()[:, 1].to(torch.int32))
    return ActivationMask(area, torch.cat(found) if found else torch.empty(0, dtype=torch.int32))


# -- overlaps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Sums over the images for every permutation of the masks, the first of which is the identity.

    `both` and `active` [channel, permutation, concept] are active pixels (or images) where the
    concept is, and where it is known; `there` [concept] where the concept is; `area` [image,
    channel] active pixels (or images)."""

    both: np.ndarray
    active: np.ndarray
    there: np.ndarray
    area: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """[channel, permutation, concept]; NaN for concepts that are nowhere."""
        union = self.active + self.there - self.both
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.there > 0, self.both / union, np.nan)


@dataclass(eq=False)
class Overlap(Accumulator):
    """The overlap of a layer's `channels` with permuted masks of `concepts`: under permutation a
    image i has the mask of image orders[a, i]."""

    channels: int
    orders: Annotated[np.ndarray, "permutation", "image"]
    concepts: int
    _area: Annotated[np.ndarray, "image", "channel"] = state_field(None)
    _both: Annotated[np.ndarray, "channel", "column"] = state_field(None)

    def __post_init__(self) -> None:
        self._area = np.zeros((self.orders.shape[1], self.channels))
        self._both = np.zeros((self.channels, len(self.orders) * self.concepts))

    def update(self, found: ActivationMask, start: int) -> list[sparse.csr_array]:
        """Add a batch whose first image is `start`; returns its active pixels [channel, pixel]
        image by image, for `count`."""
        area, pixel = found.area.cpu().numpy(), found.pixel.cpu().numpy()
        self._area[start : start + len(area)] = area
        rows, stop = [], 0
        for row in area if len(pixel) else ():
            pointers = np.concatenate([[0], row.cumsum()])
            own = pixel[stop : stop + pointers[-1]]
            stop += pointers[-1]
            shape = (len(row), int(own.max(initial=-1)) + 1)
            rows.append(
                sparse.csr_array((np.ones(len(own), dtype=np.float32), own, pointers), shape=shape)
            )
        return rows

    def count(self, active: sparse.csr_array, masks: np.ndarray, first: int) -> None:
        """Add an image: its active pixels and masks [pixel, column] for columns (permutation,
        concept) from `first` on."""
        # Counts in one image are whole numbers below 2^24, which float32 has exactly.
        self._both[:, first : first + masks.shape[1]] += active @ masks[: active.shape[1]]

    def merge(self, other: Overlap) -> None:
        """Add the images of `other`. Raises MeasureError for other channels, concepts or
        permutations."""
        if (self.channels, self.concepts) != (other.channels, other.concepts) or not np.array_equal(
            self.orders, other.orders
        ):
            raise MeasureError("overlaps of other channels, concepts or permutations do not merge")
        self._area += other._area
        self._both += other._both

    def compute(self, there: np.ndarray, known: np.ndarray) -> Counts:
        """The counts of all images, from `there` pixels [image, concept] and where a concept is
        `known` [image, concept]."""
        size = (self.channels, len(self.orders), self.concepts)
        return Counts(
            self._both.reshape(size),
            _permuted_sums(self._area, known, self.orders),
            there.sum(0),
            self._area,
        )


def whole_images(
    area: np.ndarray, there: np.ndarray, known: np.ndarray, orders: np.ndarray, pixels: int
) -> Counts:
    """Counts where a concept fills an image of `pixels` (1: images are counted) or is not in it,
    `there` [image, concept]."""
    both, active = (_permuted_sums(area, values, orders) for values in (there, known))
    return Counts(both, active, there.sum(0) * pixels, area)


def _permuted_sums(area: np.ndarray, what: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Sums over images of area times `what` [image, concept] of the permuted images, [channel,
    permutation, concept]."""
    if what.all():
        return np.broadcast_to(
            area.sum(0)[:, None, None], (area.shape[1], len(orders), what.shape[1])
        )
    wide = what.astype(np.float64)
    return np.stack([area.T @ wide[order] for order in orders], axis=1)


def overlaps(
    model: Model,
    source: ImageSource,
    layers: Sequence[Layer],
    levels: Mapping[str, np.ndarray],
    masks: ResizedMasks,
    maps: Mapping[str, Upsampler],
    known: np.ndarray,
    orders: np.ndarray,
    batch_size: int,
    autocast: str | None,
) -> dict[str, Counts]:
    """Counts of every layer with masks."""
    running = {layer.name: Overlap(layer.channels, orders, masks.concepts) for layer in layers}
    reducer = partial(active_pixels, levels=_tensors(levels), maps=maps)
    # Permutations of an image's masks at once, in float32.
    chunk = at_once(4 * masks.pixels * masks.concepts)
    title = f"{model.name}: dissection"
    for piece in stream(
        model, source, layers, reducer, batch_size=batch_size, autocast=autocast, title=title
    ):
        active = {
            name: running[name].update(found, piece.start) for name, found in piece.found.items()
        }
        for j in range(piece.n):
            own = {name: rows[j] for name, rows in active.items() if rows and rows[j].nnz}
            order = orders[:, piece.start + j]
            for part in slices(len(order), chunk) if own else ():
                planes = masks.planes(order[part]).reshape(-1, masks.pixels)
                columns = np.ascontiguousarray(planes.T, dtype=np.float32)
                for name, row in own.items():
                    running[name].count(row, columns, part.start * masks.concepts)
    there = masks.sizes()
    return {name: each.compute(there, known) for name, each in running.items()}


def areas(
    model: Model,
    source: ImageSource,
    layers: Sequence[Layer],
    levels: Mapping[str, np.ndarray],
    maps: Mapping[str, Upsampler] | None,
    batch_size: int,
    autocast: str | None,
) -> dict[str, np.ndarray]:
    """Active pixels [image, channel] of every layer; without `maps` 1 for images in which any
    position is active."""
    of_images = partial(active_images, levels=_tensors(levels))
    reducer = (
        of_images if maps is None else partial(active_pixels, levels=_tensors(levels), maps=maps)
    )
    found: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    title = f"{model.name}: dissection"
    for piece in stream(
        model, source, layers, reducer, batch_size=batch_size, autocast=autocast, title=title
    ):
        for name, active in piece.found.items():
            found[name].append(active.area.cpu().numpy().astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _tensors(levels: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(level) for name, level in levels.items()}


def annotated(source: ImageSource, concepts: Concepts) -> tuple[list[int], list[int]]:
    """Indices of the images that have annotations, and the places of these.

    Raises ImagesError if there is none, and for ids that two images share."""
    if len(set(source.ids)) < len(source.ids):
        raise ImagesError(
            f"two images of '{source.record.name}' have one id, so that annotations fit both"
        )
    place = {name: i for i, name in enumerate(concepts.ids)}
    chosen = [i for i, name in enumerate(source.ids) if name in place]
    if not chosen:
        raise ImagesError(
            f"no image of '{source.record.name}' is annotated in {concepts.name}: its first image "
            f"is called '{source.ids[0]}', the first annotated one '{concepts.ids[0]}'"
        )
    return chosen, [place[source.ids[i]] for i in chosen]
