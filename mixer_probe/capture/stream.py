"""Images through a network batch by batch, with a reduction per layer: the engine of every analysis
of activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils import _pytree as pytree

from mixer_probe.capture.compiled import compiled
from mixer_probe.capture.heap import kept_heap
from mixer_probe.capture.hooks import Reducer, capture
from mixer_probe.core.accumulator import Accumulator
from mixer_probe.core.errors import ImagesError, MixerProbeError, ModelError, OutOfMemoryWarning
from mixer_probe.core.fingerprint import (
    digest,
    images_fingerprint,
    learn_keys,
    pictures_fingerprint,
    tensor_keys,
)
from mixer_probe.core.hooks import passing
from mixer_probe.core.memory import SmallTensors
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord
from mixer_probe.core.validate import checked
from mixer_probe.images.labelled import Images, index_batches, indexed_batches
from mixer_probe.images.transforms import split_transform, transform_for
from mixer_probe.models.classes import LabelledImages
from mixer_probe.models.layer import Layer
from mixer_probe.models.load import resolve_dtype
from mixer_probe.models.model import Model
from mixer_probe.parallel import gather, ranks

T = TypeVar("T")


@runtime_checkable
class ImageSource(LabelledImages, Protocol):
    """What can be streamed: `mixer_probe.images.Images`, or a tensor through `as_source`."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One name per image."""

    @property
    def keys(self) -> tuple[str, ...]:
        """One hash of the content per image."""

    def batches(
        self,
        transform: Callable[[Any], torch.Tensor],
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[torch.Tensor]:
        """Transformed images [B, 3, H, W]: consecutive batches of the size `batches`, or the images
        at the indices of each batch that it gives.

        Such an iterable is consumed as images are made, a few batches ahead with `workers`."""


class TensorImages:
    """A tensor [n, C, H, W] as images without labels: finished inputs, or pixels if it is uint8.

    Finished inputs are floating point, of any number of channels, and go to the network as they
    are. Pixels are divided by 255 and normalised with the network's mean and std, and must have its
    size, for nothing is resized.

    Raises ImagesError for another shape or type."""

    labels = None
    class_names = None

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.ndim != 4 or not len(tensor):
            raise ImagesError(
                "a tensor of images has shape [n, channels, height, width], not "
                f"{tuple(tensor.shape)}"
            )
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise ImagesError(
                "a tensor of images is floating point (finished inputs) or uint8 (pixels, 0 to "
                f"255), not {tensor.dtype}"
            )
        self._tensor = tensor
        self.raw = tensor.dtype == torch.uint8
        self.ids = tuple(str(i) for i in range(len(tensor)))

    @property
    def record(self) -> ImagesRecord:
        """The tensor's size and hash."""
        keys = self.keys
        found = images_fingerprint(keys, None, None, "")
        return ImagesRecord("tensor", "", len(self), 0, found, pictures=pictures_fingerprint(keys))

    @property
    def keys(self) -> tuple[str, ...]:
        """Hash of the numbers of each image."""
        return tensor_keys(self._tensor)

    def __len__(self) -> int:
        return len(self._tensor)

    def subset(self, indices: Iterable[int] | np.ndarray) -> TensorImages:
        """The images at `indices` (integers, or a mask), in that order and by the names that they
        have here."""
        rows = np.arange(len(self))[
            np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        ]
        found = TensorImages(self._tensor[torch.from_numpy(rows).to(self._tensor.device)])
        found.ids = tuple(self.ids[i] for i in rows)
        return found

    def batches(
        self,
        transform: Callable[[Any], torch.Tensor],
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[torch.Tensor]:
        """Parts of the tensor; those of pixels scaled and normalised as `transform` normalises
        images. Raises as `index_batches`."""
        normalise = (
            split_transform(transform)[1] if self.raw and hasattr(transform, "transforms") else None
        )
        for index in index_batches(batches, len(self)):
            consecutive = isinstance(index, range) and index.step == 1
            part = self._tensor[slice(index[0], index[-1] + 1) if consecutive else list(index)]
            yield part if normalise is None else normalise(part.float() / 255)


def as_source(images: ImageSource | torch.Tensor) -> ImageSource:
    """Images as they are, or a tensor wrapped as `TensorImages`. Raises ImagesError for anything
    else."""
    if isinstance(images, torch.Tensor):
        return TensorImages(images)
    if not callable(getattr(images, "batches", None)):
        raise ImagesError(
            "images are what load_images returns or a tensor [n, channels, H, W], not a "
            f"{type(images).__name__}"
        )
    if not len(images):
        raise ImagesError("the image set is empty: give at least one image")
    return images


# Sets of images whose files the ranks have divided.
_divided: WeakSet[Images] = WeakSet()


def divide_hashing(images: ImageSource) -> None:
    """Read the files of images for their keys, each rank of torchrun a part of them; every rank
    calls it."""
    here = ranks()
    if here.world == 1 or not isinstance(images, Images) or images in _divided:
        return
    _divided.add(images)
    part = images.subset(range(here.rank, len(images), here.world))
    with suppress(ImagesError):  # every rank will meet the file that cannot be read
        _ = part.keys
    for known in gather(part.known_keys()):
        learn_keys(known)


def part_of(images: ImageSource | torch.Tensor, rows: Iterable[int] | np.ndarray) -> ImageSource:
    """The images at `rows` (integers, or a mask), in that order. Raises ImagesError for a source
    without `subset(indices)`."""
    check_parts(images)
    part: ImageSource = as_source(images).subset(rows)  # type: ignore[attr-defined]
    return part


def check_parts(images: ImageSource | torch.Tensor) -> None:
    """Raise ImagesError for images of which single ones cannot be taken."""
    if not isinstance(images, torch.Tensor) and not callable(getattr(images, "subset", None)):
        raise ImagesError(
            f"single images are needed, and a {type(images).__name__} has no subset(indices) that "
            "gives them: give what load_images returns, or a tensor"
        )


@dataclass(frozen=True)
class Piece:
    """Results of one forward pass: for the images `start` to `start + n`."""

    start: int
    n: int
    found: dict[str, Any]

    def map(self, change: Callable[[Any], Any]) -> Piece:
        """The same piece with `change` applied to every value inside the results."""
        return Piece(self.start, self.n, pytree.tree_map(change, self.found))


@dataclass(frozen=True)
class Reading:
    """What is read in a pass: the results of `reducer` at its `layers`, which `add` takes piece by
    piece.

    `rows` are indices of images in ascending order, which alone are read, None for all; pieces
    then count these from 0.

    One that adds up over images says so: `into` is the accumulator, `name` says what and how, and
    `again` makes the same reading with an empty accumulator. `extract` then reads each unit of a
    run by itself, keeps the state of each, and merges them in order into `into`, whatever processes
    they come from."""

    layers: Sequence[Layer]
    reducer: Reducer[Any]
    add: Callable[[Piece], object]
    rows: np.ndarray | None = None
    into: Accumulator | None = None
    name: str = ""
    again: Callable[[], Reading] | None = None

    @property
    def key(self) -> str:
        """What is added up, and of which images."""
        if self.rows is None:
            return self.name
        return f"{self.name}; of {len(self.rows)} images, {digest(self.rows.tobytes())[:16]}"

    def of(self, start: int, n: int) -> tuple[int, np.ndarray]:
        """Of the images `start` to `start + n`: how many that are read come before, and which
        of them are read."""
        if self.rows is None:
            return start, np.arange(n)
        first, last = np.searchsorted(self.rows, (start, start + n))
        return int(first), self.rows[first:last] - start


@checked(ImagesError)
def stream(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: Sequence[Layer],
    reducer: Reducer[Any],
    *,
    batch_size: int = 64,
    rows: Iterable[range] | None = None,
    autocast: str | torch.dtype | None = None,
    title: str | None = None,
    also: Sequence[Reading] = (),
    workers: int | Literal["auto"] = "auto",
) -> Iterator[Piece]:
    """Run images through the network and yield, piece by piece, `{layer: reducer(layer, positions,
    prefix)}`.

    The results are on the device. Where that runs out of memory the batch is halved, with a
    warning, and the stream continues. `autocast` is "bfloat16", "float16" or None. `rows` gives the
    indices of each batch, consecutive ones, as they are asked for; by default all images are taken,
    `batch_size` at a time. `workers` are processes that decode, see `Images.batches`. Progress is
    shown under `title`. Those of `also` read in the same forward passes, each before the piece is
    yielded. Between pieces the network is as before: no hooks, its own training flags."""
    readings = [Reading(layers, reducer, lambda _piece: None), *also]
    source = as_source(images)
    transform = transform_of(model)
    dtype = resolve_dtype(autocast)
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ModelError(
            f"autocast is 'bfloat16' or 'float16', not '{autocast}'; for other types use "
            "load_model(dtype=...)"
        )
    most, device = batch_size, model.device.type
    blocks = [block.module for block in model.structure.blocks] if model.compiled else []
    given = batch_size if rows is None else rows
    with (
        task(title or model.name, len(source)) as advance,
        kept_heap if device == "cpu" else nullcontext(),
    ):
        for batch, index in indexed_batches(
            source, transform, given, workers=workers, pin_memory=device == "cuda"
        ):
            position = index[0]
            while len(batch):
                part = batch[:most]
                places = [(reading, *reading.of(position, len(part))) for reading in readings]
                now = [(reading, rows) for reading, _, rows in places if len(rows)]
                with passing(position):
                    found = _reduced(model, blocks, now, dtype, part)
                if found is None:
                    # Only now is the error gone, and with it the tensors of the pass that failed.
                    most = len(part) // 2
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                    text = f"out of memory on the device: going on with batches of {most}"
                    warnings.warn(text, OutOfMemoryWarning, stacklevel=3)
                    continue
                own, *others = (
                    Piece(first, len(rows), {a.name: found[a.name].pop(0) for a in reading.layers})
                    for reading, first, rows in places
                    if len(rows)
                )
                for (reading, _), piece in zip(now[1:], others, strict=True):
                    reading.add(piece)
                yield own
                position += len(part)
                advance(len(part))
                batch = batch[len(part) :]


def _reduced(
    model: Model,
    to_compile: Sequence[nn.Module],
    readings: Sequence[tuple[Reading, np.ndarray]],
    autocast: torch.dtype | None,
    part: torch.Tensor,
) -> dict[str, list[Any]] | None:
    """What one forward pass gives each of the readings, with the rows of `part` that it reads, in
    their order by layer; None if the device has too little memory for that many images."""
    names = [{layer.name for layer in reading.layers} for reading, _ in readings]
    # None for all; on the device before the pass, which then need not wait for them.
    chosen = [
        torch.from_numpy(rows).to(model.device) if len(rows) < len(part) else None
        for _, rows in readings
    ]
    layers = list(
        {layer.name: layer for reading, _ in readings for layer in reading.layers}.values()
    )

    together = SmallTensors(torch.float32) if model.device.type == "cpu" else None

    def reducer(layer: Layer, positions: torch.Tensor, prefix: torch.Tensor | None) -> list[Any]:
        found = []
        for (reading, _), index, own in zip(readings, chosen, names, strict=True):
            if layer.name in own:
                given = positions, prefix
                if index is not None:
                    given = positions[index], None if prefix is None else prefix[index]
                result = reading.reducer(layer, *given)
                found.append(result if together is None else pytree.tree_map(together, result))
        return found

    try:
        # Autocast inside: a capture disables whatever autocast it is created in.
        with (
            capture(model, layers, reducer) as run,
            compiled(to_compile),
            nullcontext()
            if autocast is None
            else torch.autocast(model.device.type, dtype=autocast),
        ):
            return run(part.to(model.device, model.dtype, non_blocking=True))
    except torch.OutOfMemoryError as error:
        if len(part) == 1:
            raise MixerProbeError(
                "the device has too little memory for one image; ask for fewer layers, "
                "reduce='mean' or device='cpu'"
            ) from error
        return None


def transform_of(model: Model) -> Callable[[Any], torch.Tensor]:
    """The model's own timm transform: a PIL image to a normalised tensor [C, H, W]."""
    return transform_for(model.input)


@checked(ImagesError)
def pixel_batches(
    model: Model, images: ImageSource | torch.Tensor, batch_size: int = 64
) -> Iterator[torch.Tensor]:
    """The images as the network sees them before its normalisation, [B, C, H, W] in 0..1 on the
    CPU."""
    source = as_source(images)
    to_pixels = split_transform(transform_of(model))[0]
    finished = isinstance(source, TensorImages) and not source.raw
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.input.mean, model.input.std))
    for batch in source.batches(to_pixels, batch_size):
        yield (
            (batch.cpu() * std.to(batch.dtype) + mean.to(batch.dtype)).clamp(0, 1)
            if finished
            else batch.cpu()
        )


def input_pictures(
    model: Model,
    images: ImageSource | torch.Tensor,
    index: Iterable[int],
    pixels: int | None = None,
) -> np.ndarray:
    """The input of the network for the images at `index`, uint8 RGB [n, height, width, 3]: resized
    and cropped, not normalised.

    Where the network takes other than three channels, their mean in grey. Larger ones are reduced
    to `pixels` on the longer side.

    Raises ImagesError for sources that give no single images."""
    given = torch.cat(list(pixel_batches(model, part_of(images, index))))
    colours = given if given.shape[1] == 3 else given.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    pictures = np.asarray((colours.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
    height, width = pictures.shape[1:3]
    scale = 1.0 if pixels is None else pixels / max(height, width)
    if scale >= 1:
        return pictures
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures]
    )


def to_host(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces with their tensors in main memory.

    From a GPU the copies go to pinned memory on a stream of their own, beside the next forward
    pass; a piece is handed on when its copy is done."""
    waiting: _Copy | None = None
    for piece in pieces:
        copy = _Copy(piece) if any(map(_is_cuda, pytree.tree_leaves(piece.found))) else None
        if waiting:
            yield waiting.arrived()
        waiting = copy
        if copy is None:
            yield piece.map(lambda value: value.cpu() if isinstance(value, torch.Tensor) else value)
    if waiting:
        yield waiting.arrived()


# One stream per device, made when it is first needed.
_copy_stream = lru_cache(torch.cuda.Stream)


class _Copy:
    """A piece on its way from a GPU to pinned memory."""

    def __init__(self, piece: Piece) -> None:
        stream = _copy_stream(
            next(t.device for t in pytree.tree_leaves(piece.found) if _is_cuda(t))
        )
        stream.wait_stream(torch.cuda.current_stream(stream.device))

        def to_pinned(value: Any) -> Any:
            if not _is_cuda(value):
                return value
            # The allocator must not reuse the memory before the copy is done.
            value.record_stream(torch.cuda.current_stream(value.device))
            return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(
                value, non_blocking=True
            )

        with torch.cuda.stream(stream):
            self._piece = piece.map(to_pinned)
            self._event = stream.record_event()

    def arrived(self) -> Piece:
        """The piece in main memory, when all of it is there."""
        self._event.synchronize()
        return self._piece


def _is_cuda(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_cuda
