"""The images that activate each channel of a layer most, and the positions of the peaks: a running
top-k over one pass.

Values start at minus infinity, so that a channel that is always negative has images too. Of equal
values the image that comes first is taken, and of equal positions in an image the first: no split
into batches and no order of merging changes the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import (
    ImageSource,
    Piece,
    Reading,
    as_source,
    mean_over_positions,
    part_of,
    stream,
)
from mixer_probe.channels.image_means import array_of
from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import LayerError, MeasureError, NonFiniteWarning
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import first_image
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.similarity.inputs import RepresentationsLike

By = Literal["peak", "mean"]
# Index of an empty rank: after every image among equal values.
_EMPTY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class TopImages(Result):
    """The `k` images that activate each channel most (`lowest`: least), the most extreme first.

    Arrays are [channel, k], the rows those of `channels`. `values` are what the images were ranked
    by: the channel's largest activation over positions (`by`="peak"; the smallest where `lowest`)
    or the mean over positions (`by`="mean"). `index` counts the images in their order, `ids` are
    their names. `position` is the place of the peak among the layer's positions, `row` and `column`
    the same on the layer's grid (-1 where it has none)."""

    title: ClassVar[str] = "Top images"
    frame = Frame(
        "channel rank",
        """model=model.name layer=layer.name layer.depth channel=channels rank value=values
        image=ids index position row column top,left,bottom,right=boxes by lowest n_images=n""",
    )

    model: ModelRecord
    images: ImagesRecord
    layer: Layer
    n: int
    by: str
    lowest: bool
    input_size: tuple[int, int]
    channels: Annotated[np.ndarray, "channel"]
    values: Annotated[np.ndarray, "channel", "rank"]
    index: Annotated[np.ndarray, "channel", "rank"]
    ids: Annotated[np.ndarray, "channel", "rank"]
    position: Annotated[np.ndarray, "channel", "rank"]

    @property
    def k(self) -> int:
        """Images per channel."""
        return int(self.values.shape[1])

    @property
    def row(self) -> Annotated[np.ndarray, "channel", "rank"]:
        """Row of the peak on the layer's grid, [channel, k]; -1 without a grid."""
        return (
            np.full_like(self.position, -1)
            if self.layer.grid is None
            else self.position // self.layer.grid[1]
        )

    @property
    def column(self) -> Annotated[np.ndarray, "channel", "rank"]:
        """Column of the peak on the layer's grid, [channel, k]; -1 without a grid."""
        return (
            np.full_like(self.position, -1)
            if self.layer.grid is None
            else self.position % self.layer.grid[1]
        )

    @property
    def boxes(self) -> Annotated[np.ndarray, "channel", "rank", 4]:
        """(top, left, bottom, right) in input pixels of the grid cell of each peak, [channel, k,
        4], ends not included.

        The whole image for layers without a grid. It is the cell and not the receptive field, which
        is larger, of all layers but a patch stem."""
        return np.stack(
            [*cell_box(self.row, self.column, self.layer.grid, self.input_size)], axis=-1
        )

    @checked(MeasureError)
    def place(self, channel: int) -> int:
        """The row of a channel. Raises LayerError for one that is not here."""
        found = np.flatnonzero(self.channels == channel)
        if not len(found):
            raise LayerError(
                f"channel {channel} of '{self.layer.name}' is not among these {len(self.channels)} "
                f"(from {self.channels.min()} to {self.channels.max()})"
            )
        return int(found[0])


def cell_box(
    row: np.ndarray, column: np.ndarray, grid: tuple[int, int] | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Top, left, bottom and right in pixels of the cells of a `grid` over an image of `size`
    (height, width)."""
    if grid is None:
        zero = np.zeros_like(row)
        return zero, zero, np.full_like(row, size[0]), np.full_like(row, size[1])
    (h, w), (height, width) = grid, size
    # The lower end is rounded up: a cell is never empty, even on a grid finer than the image.
    return (
        row * height // h,
        column * width // w,
        -(-(row + 1) * height // h),
        -(-(column + 1) * width // w),
    )


@dataclass
class Extremes:
    """The peak of every image of a batch and every channel, and its position: [image, channel]
    each."""

    values: Tensor
    position: Tensor


@checked(MeasureError)
def extremes(
    _layer: Layer,
    positions: Tensor,
    _prefix: Tensor | None,
    *,
    by: By = "peak",
    lowest: bool = False,
) -> Extremes:
    """Reducer: the extremes of one layer [image, position, channel] for `RunningTop.update`."""
    wide = positions if positions.dtype is torch.float64 else positions.float()
    peak, place = wide.min(1) if lowest else wide.max(1)
    return Extremes(wide.mean(1) if by == "mean" else peak, place)


@dataclass(eq=False)
class _Top:
    value: Annotated[Tensor, "rank", "channel"]
    index: Annotated[Tensor, "rank", "channel"]
    position: Annotated[Tensor, "rank", "channel"]


@checked(MeasureError)
@dataclass(eq=False)
class RunningTop(Accumulator):
    """The top images of all channels of a layer, on the device of the batches: their values,
    indices and positions."""

    k: int = 9
    lowest: bool = False
    n: int = state_field(0)
    non_finite: int = state_field(0)
    _kept: _Top | None = state_field(None)

    def _what(self) -> str:
        return f"the {self.k} {'lowest' if self.lowest else 'highest'}"

    @checked(MeasureError)
    def update(self, found: Extremes, start: int) -> None:
        """Add a batch of which the first image has the index `start`."""
        n, channels = found.values.shape
        self.n += n
        signed = -found.values if self.lowest else found.values
        undefined = torch.isnan(signed)
        self.non_finite += int(undefined.sum())
        index = torch.arange(start, start + n, device=signed.device)[:, None].expand(n, channels)
        # NaN would be sorted as the largest.
        self._take(signed.masked_fill(undefined, -torch.inf), index, found.position)

    def merge(self, other: RunningTop) -> None:
        """Add the other images of `other`. Raises MeasureError unless it keeps as many of the same
        end."""
        if (self.k, self.lowest) != (other.k, other.lowest):
            raise MeasureError(
                f"{self._what()} and {other._what()} do not merge: keep as many images, of the "
                "same end, in both"
            )
        self.n += other.n
        self.non_finite += other.non_finite
        if other._kept is not None:
            self._take(other._kept.value, other._kept.index, other._kept.position)

    def _take(self, value: Tensor, index: Tensor, position: Tensor) -> None:
        kept = self._kept
        if kept is None:
            shape = (self.k, value.shape[1])
            empty = torch.full(shape, _EMPTY, device=value.device)
            lowest = torch.full_like(value[:1], -torch.inf).expand(shape)
            kept = _Top(lowest, empty, torch.full_like(empty, -1))
        device = kept.value.device
        value = torch.cat([kept.value, value.to(device)])
        index = torch.cat([kept.index, index.to(device)])
        position = torch.cat([kept.position, position.to(device)])
        order = _ranked_rows(value, index)[: self.k]
        self._kept = _Top(*(part.gather(0, order) for part in (value, index, position)))

    def compute(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, indices of images and positions, [channel, k], the most extreme first; fewer than
        k of fewer images.

        Raises MeasureError if there were none."""
        if self._kept is None:
            raise MeasureError("no image was seen, so none can be the strongest")
        kept = (self._kept.value, self._kept.index, self._kept.position)
        value, index, position = (part[: self.n].T.cpu().numpy() for part in kept)
        return (-value if self.lowest else value), index, position


def _ranked_rows(value: Tensor, index: Tensor) -> Tensor:
    """The rows of each column by value, the largest first, of equals by index."""
    # The second sort keeps the order of the first.
    order = index.argsort(dim=0, stable=True)
    return order.gather(0, value.gather(0, order).argsort(dim=0, descending=True, stable=True))


@dataclass(eq=False)
class _EndMaps:
    value: Annotated[Tensor, "rank", "channel"]
    index: Annotated[Tensor, "rank", "channel"]
    maps: Annotated[Tensor, "rank", "channel", "position"]

    def of(self, channels: Tensor) -> _EndMaps:
        """A copy for some channels."""
        return _EndMaps(self.value[:, channels], self.index[:, channels], self.maps[:, channels])

    def put(self, channels: Tensor, found: _EndMaps) -> None:
        """Replace those of some channels."""
        self.value[:, channels] = found.value
        self.index[:, channels] = found.index
        self.maps[:, channels] = found.maps

    def best(self, k: int, other: _EndMaps) -> _EndMaps:
        """The first `k` of both by value."""
        value, index, maps = (
            torch.cat([mine, theirs.to(mine.device)])
            for mine, theirs in (
                (self.value, other.value),
                (self.index, other.index),
                (self.maps, other.maps),
            )
        )
        order = _ranked_rows(value, index)[:k]
        rows = order[..., None].expand(-1, -1, maps.shape[-1])
        return _EndMaps(value.gather(0, order), index.gather(0, order), maps.gather(0, rows))


@dataclass(eq=False)
class TopMaps(Accumulator):
    """Activation maps of the `k` images at both ends of every channel of some layers, by the mean
    over positions."""

    k: int
    n: int = state_field(0)
    # Images so far by layer: a pass that failed for want of memory is repeated with fewer.
    _seen: dict[str, int] = state_field(dict)
    _kept: dict[str, _EndMaps] = state_field(dict)

    def reading(self, layers: Sequence[Layer]) -> Reading:
        """What adds the images of a pass."""

        def read(layer: Layer, positions: Tensor, _prefix: Tensor | None) -> None:
            start = first_image()
            assert start is not None
            skip = min(max(self._seen.get(layer.name, 0) - start, 0), len(positions))
            self._seen[layer.name] = start + len(positions)
            self.update(layer, positions[skip:], start + skip)

        def add(piece: Piece) -> None:
            self.n += piece.n

        return Reading(layers, read, add)

    def update(self, layer: Layer, positions: Tensor, start: int) -> None:
        """Add a batch [image, position, channel] of a layer, of which the first image has the index
        `start`; `n` does not count it."""
        if not len(positions):
            return
        means = mean_over_positions(layer, positions, None)
        index = torch.arange(start, start + len(means), device=means.device)
        index = index[:, None].expand_as(means)
        for lowest in (False, True):
            value = (-means if lowest else means).masked_fill(means.isnan(), -torch.inf)
            name, order = f"{layer.name} {lowest}", _ranked_rows(value, index)[: self.k]
            value, kept = value.gather(0, order), self._kept.get(name)
            channels = torch.arange(means.shape[1], device=means.device)
            full = kept is not None and len(kept.value) == self.k
            if kept is not None and full and means.device.type == "cpu":
                # After many images few channels have a new one.
                channels = (value[0] > kept.value[-1]).nonzero()[:, 0]
                order, value = order[:, channels], value[:, channels]
            if not len(channels):
                continue
            maps = positions[order, :, channels].float()
            found = _EndMaps(value, index[:, channels].gather(0, order), maps)
            if kept is not None and full:
                kept.put(channels, kept.of(channels).best(self.k, found))
            else:
                self._kept[name] = found if kept is None else kept.best(self.k, found)

    def merge(self, other: TopMaps) -> None:
        """Add the images of `other`, which come after those here. Raises MeasureError unless it
        keeps as many."""
        if self.k != other.k:
            raise MeasureError(f"maps of {self.k} and of {other.k} images do not merge")
        self.n += other.n
        self._seen |= other._seen
        for name, found in other._kept.items():
            kept = self._kept.get(name)
            every = torch.arange(found.value.shape[1], device=found.value.device)
            self._kept[name] = found.of(every) if kept is None else kept.best(self.k, found)

    def compute(
        self, layer: Layer, channel: int, lowest: bool, index: np.ndarray
    ) -> np.ndarray | None:
        """The maps of a channel [image, row, column] of the images at `index`, as
        `activation_maps` gives them; None where these are not those at that end."""
        kept = self._kept.get(f"{layer.name} {lowest}")
        if kept is None or not np.array_equal(kept.index[:, channel].cpu(), index):
            return None
        maps = kept.maps[:, channel].cpu().numpy()
        return np.asarray(maps.reshape(len(maps), *(layer.grid or (1, -1))))

    @staticmethod
    def bytes_of(layers: Sequence[Layer], k: int) -> int:
        """How much is held."""
        return sum(2 * 4 * k * a.channels * max(a.positions, 1) for a in layers)


@checked(MeasureError)
def top_images(
    model: Model,
    images: ImageSource | Tensor,
    layer: str,
    channel: int | Sequence[int] | None = None,
    k: int = 9,
    *,
    lowest: bool = False,
    by: By = "peak",
    batch_size: int = 32,
    autocast: str | None = None,
) -> TopImages:
    """The `k` images that activate each channel of a layer most, in one pass whose memory does not
    grow with the images.

    `channel` is one, several or None for all. `lowest` gives those that activate it least. `by`
    ranks by the peak over positions or by the "mean" over them. Fewer than `k` images give as many
    as there are.

    Raises LayerError (unknown layer, channel out of range), MeasureError (k below 1, another `by`)
    and ImagesError; warns with NonFiniteWarning about NaN, which is ranked last."""
    return _ranked(model, images, {layer: channel}, k, (lowest,), by, batch_size, autocast)[0][0]


@checked(MeasureError)
def top_and_lowest(
    model: Model,
    images: ImageSource | Tensor,
    channels: Mapping[str, int | Sequence[int] | None],
    k: int = 9,
    *,
    by: By = "peak",
    batch_size: int = 32,
    autocast: str | None = None,
) -> list[tuple[TopImages, TopImages]]:
    """Both ends of `top_images`, the highest and the lowest, of channels of several layers in one
    pass over the images.

    `channels` are one, several or None for all, by layer. Returns a pair per layer, in the order
    given. Raises and warns as `top_images`."""
    return [
        (top, low)
        for top, low in _ranked(model, images, channels, k, (False, True), by, batch_size, autocast)
    ]


@checked(MeasureError)
def top_means(
    model: Model,
    images: ImageSource | Tensor,
    reps: RepresentationsLike,
    channels: Mapping[str, int | Sequence[int] | None],
    k: int = 9,
) -> list[tuple[TopImages, TopImages]]:
    """As `top_and_lowest` with by="mean", from the means in `reps`, without a pass over the images;
    positions are -1.

    Raises LayerError, and MeasureError for a run of another network, of other images or that holds
    no means; warns as `top_images`."""
    source = as_source(images)
    if reps.model.fingerprint != model.fingerprint or keys_of(reps) != keys_of(source):
        raise MeasureError(
            f"the run of {reps.model.name} on {reps.images.name} is of another network or of other "
            "images"
        )
    pairs = []
    for name, wanted in channels.items():
        layer = model.layer(name)
        chosen, values = _channels(wanted, layer), array_of(reps, name)
        if values.ndim != 2 or reps.reduce == "prefix":
            raise MeasureError(
                f"layer '{name}' of this run holds no means over positions: extract with "
                "reduce='mean'"
            )
        ends = RunningTop(k), RunningTop(k, lowest=True)
        for rows in slices(len(values), ROWS):
            means = torch.from_numpy(np.ascontiguousarray(values[rows][:, chosen]))
            for end in ends:
                end.update(Extremes(means, torch.full(means.shape, -1)), rows.start)
        _warn_non_finite(ends[0], layer, model)
        highest, lowest = (_result(end, model, source, layer, "mean", chosen) for end in ends)
        pairs.append((highest, lowest))
    return pairs


def _ranked(
    model: Model,
    images: ImageSource | Tensor,
    wanted: Mapping[str, int | Sequence[int] | None],
    k: int,
    ends: Sequence[bool],
    by: By,
    batch_size: int,
    autocast: str | None,
) -> list[list[TopImages]]:
    """The results of every wanted layer at every end, from one pass."""
    source, layers = as_source(images), [model.layer(name) for name in wanted]
    channels = {layer.name: _channels(wanted[layer.name], layer) for layer in layers}
    running = {layer.name: [RunningTop(k, lowest) for lowest in ends] for layer in layers}

    def both_ends(layer: Layer, positions: Tensor, prefix: Tensor | None) -> list[Extremes]:
        chosen = channels[layer.name]
        if len(chosen) < layer.channels:
            positions = positions[..., torch.from_numpy(chosen).to(positions.device)]
        return [extremes(layer, positions, prefix, by=by, lowest=lowest) for lowest in ends]

    title = f"{model.name}: top images"
    for piece in stream(
        model, source, layers, both_ends, batch_size=batch_size, autocast=autocast, title=title
    ):
        for name, found in piece.found.items():
            for top, end in zip(running[name], found, strict=True):
                top.update(end, piece.start)
    for layer in layers:
        _warn_non_finite(running[layer.name][0], layer, model)
    return [
        [
            _result(top, model, source, layer, by, channels[layer.name])
            for top in running[layer.name]
        ]
        for layer in layers
    ]


def _result(
    top: RunningTop, model: Model, source: ImageSource, layer: Layer, by: By, channels: np.ndarray
) -> TopImages:
    values, index, position = top.compute()
    ids = np.array(source.ids)[index]
    size = (model.input.size[1], model.input.size[2])
    return TopImages(
        model.record,
        source.record,
        layer,
        top.n,
        by,
        top.lowest,
        size,
        channels,
        values,
        index,
        ids,
        position,
    )


def _channels(channel: int | Sequence[int] | None, layer: Layer) -> np.ndarray:
    """The selected channels, sorted. Raises LayerError for one that the layer does not have."""
    if channel is None:
        return np.arange(layer.channels)
    chosen = np.unique(np.atleast_1d(np.asarray(channel, dtype=np.int64)))
    outside = chosen[(chosen < 0) | (chosen >= layer.channels)]
    if len(outside) or not len(chosen):
        wrong = f"channel {outside[0]} is out of range" if len(outside) else "no channel was chosen"
        raise LayerError(f"{wrong}: '{layer.name}' has channels 0 to {layer.channels - 1}")
    return chosen


def _warn_non_finite(top: RunningTop, layer: Layer, model: Model) -> None:
    if top.non_finite:
        warnings.warn(
            f"{top.non_finite} peaks of layer '{layer.name}' of {model.name} are NaN; these images "
            "are ranked last",
            NonFiniteWarning,
            stacklevel=5,
        )


@checked(MeasureError)
def activation_maps(
    model: Model,
    images: ImageSource | Tensor,
    index: Iterable[int],
    layer: str,
    channel: int,
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """The channel's activations on the layer's grid [n, rows, columns] for the images at `index`;
    [n, 1, positions] without a grid.

    Raises LayerError and ImagesError as `top_images`."""
    return maps_of(model, images, [(layer, channel, np.fromiter(index, int))], batch_size)[0]


def maps_of(
    model: Model,
    images: ImageSource | Tensor,
    wanted: Sequence[tuple[str, int, np.ndarray]],
    batch_size: int = 64,
    autocast: str | None = None,
    batches: Callable[[np.ndarray], list[range]] | None = None,
) -> list[np.ndarray]:
    """As `activation_maps` for each (layer, channel, index), in one pass over all these images, or
    over the `batches` of all that hold the images of some indices."""
    layers = {name: model.layer(name) for name, _, _ in wanted}
    for name, channel, _ in wanted:
        _channels(channel, layers[name])
    shown = np.unique(np.concatenate([index for *_, index in wanted]))
    found = [
        np.empty((len(index), max(layers[n].positions, 1)), np.float32) for n, _, index in wanted
    ]
    rows = [np.searchsorted(shown, index) if batches is None else index for *_, index in wanted]
    source = part_of(images, shown) if batches is None else images

    def read(layer: Layer, positions: Tensor, _prefix: Tensor | None) -> None:
        start = first_image()
        assert start is not None
        for (name, channel, _), own, maps in zip(wanted, rows, found, strict=True):
            here = np.flatnonzero((own >= start) & (own < start + len(positions)))
            if name == layer.name and len(here):
                of = torch.from_numpy(own[here] - start).to(positions.device)
                maps[here] = positions[of, :, channel].float().cpu().numpy()

    for _ in stream(
        model,
        source,
        [*layers.values()],
        read,
        batch_size=batch_size,
        rows=None if batches is None else batches(shown),
        autocast=autocast,
    ):
        pass
    return [
        maps.reshape(len(maps), *(layers[name].grid or (1, -1)))
        for (name, *_), maps in zip(wanted, found, strict=True)
    ]
