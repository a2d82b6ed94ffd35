"""The engine under every analysis of activations: images through a network, a reduction a layer, batch by batch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mixer_probe.capture.hooks import Reducer, capture
from mixer_probe.errors import ImagesError, MixerProbeError, OutOfMemoryWarning
from mixer_probe.images import model_transform
from mixer_probe.models.layer import Layer
from mixer_probe.models.load import resolve_dtype
from mixer_probe.models.model import Model
from mixer_probe.progress import task
from mixer_probe.results import ImagesRecord

T = TypeVar("T")


@runtime_checkable
class ImageSource(Protocol):
    """What can be streamed: `mixer_probe.images.Images`, or a tensor of finished inputs through `as_source`."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def record(self) -> ImagesRecord: ...

    def __len__(self) -> int: ...

    def batches(
        self, transform: Callable[[Any], torch.Tensor], batch_size: int, start: int = 0, *, pin_memory: bool = False
    ) -> Iterator[torch.Tensor]: ...


class TensorImages:
    """Finished inputs [n, 3, H, W] as images without labels; no transform is applied to them."""

    labels = None
    class_names = None

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.ndim != 4 or not len(tensor):
            raise ImagesError(f"a tensor of images has shape [n, 3, height, width], not {tuple(tensor.shape)}")
        self._tensor = tensor
        self.ids = tuple(str(i) for i in range(len(tensor)))

    @property
    def record(self) -> ImagesRecord:
        """The tensor's size and hash."""
        digest = hashlib.sha256(self._tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        return ImagesRecord("tensor", "", len(self), 0, digest)

    def __len__(self) -> int:
        return len(self._tensor)

    def batches(
        self, transform: Callable[[Any], torch.Tensor], batch_size: int, start: int = 0, *, pin_memory: bool = False
    ) -> Iterator[torch.Tensor]:
        """Slices of the tensor."""
        yield from self._tensor[start:].split(batch_size)


def as_source(images: ImageSource | torch.Tensor) -> ImageSource:
    """Images as they are, or a tensor of finished inputs wrapped. Raises ImagesError for anything else."""
    if isinstance(images, torch.Tensor):
        return TensorImages(images)
    if not isinstance(images, ImageSource):
        raise ImagesError(f"images are what load_images returns or a tensor [n, 3, H, W], not a {type(images).__name__}")
    if not len(images):
        raise ImagesError("there are no images to look at")
    return images


@dataclass(frozen=True)
class Piece:
    """What one forward pass gave: results for the images `start` to `start + n`."""

    start: int
    n: int
    found: dict[str, Any]


def stream(
    model: Model,
    images: ImageSource | torch.Tensor,
    layers: Sequence[Layer],
    reducer: Reducer[Any],
    *,
    batch_size: int = 64,
    start: int = 0,
    autocast: str | torch.dtype | None = None,
    title: str | None = None,
) -> Iterator[Piece]:
    """Run images through the network and yield, piece by piece, `{layer: reducer(layer, positions, prefix)}` on the device.

    Where the device runs out of memory the batch is halved, with a warning, and the work goes on. `autocast` is
    "bfloat16", "float16" or None. `start` skips that many images. Progress is shown under `title`."""
    source = as_source(images)
    transform = transform_of(model)
    with task(title or f"{model.name}", len(source)) as advance, capture(model, layers, reducer) as run:
        advance(start)
        position = start
        limit = batch_size
        for batch in source.batches(transform, batch_size, start=start, pin_memory=model.device.type == "cuda"):
            moved = batch.to(model.device, model.dtype, non_blocking=True)
            for found, n, limit in _run_halving(run, moved, limit, _autocast(model, autocast)):  # noqa: B020 - kept on purpose
                yield Piece(position, n, found)
                position += n
                advance(n)


def transform_of(model: Model) -> Callable[[Any], torch.Tensor]:
    """The model's own timm transform: a PIL image to a normalised tensor [3, H, W]."""
    spec = model.input
    return model_transform(spec.size, spec.mean, spec.std, spec.interpolation, spec.crop_pct)


def _autocast(model: Model, dtype: str | torch.dtype | None) -> Callable[[], AbstractContextManager[Any]]:
    resolved = resolve_dtype(dtype)
    if resolved is None:
        return nullcontext
    return lambda: torch.autocast(model.device.type, dtype=resolved)


def _run_halving(
    run: Callable[[torch.Tensor], dict[str, Any]],
    batch: torch.Tensor,
    limit: int,
    context: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(results, images, batch size that fits) for parts of the batch, halved as often as memory demands."""
    waiting = list(batch.split(limit))
    while waiting:
        part = waiting.pop(0)
        try:
            with context():
                found = run(part)
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                raise MixerProbeError(
                    "the device has too little memory for one image; ask for fewer layers, reduce='mean' or device='cpu'"
                ) from error
            limit = max(len(part) // 2, 1)
            waiting = [half for whole in (part, *waiting) for half in whole.split(limit)]
            _warn_halved(limit)
            continue
        yield found, len(part), limit


def _warn_halved(limit: int) -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warnings.warn(f"out of memory on the device: going on with batches of {limit}", OutOfMemoryWarning, stacklevel=2)


def to_host(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces with their tensors in main memory.

    From a GPU the copies go to pinned memory and run beside the next forward pass; a piece is handed on when its copy is done.
    """
    waiting: tuple[Piece, torch.cuda.Event] | None = None
    for piece in pieces:
        if not _on_cuda(piece):
            yield Piece(piece.start, piece.n, pytree.tree_map(_to_cpu, piece.found))
            continue
        copy = Piece(piece.start, piece.n, pytree.tree_map(_to_pinned, piece.found))
        event = torch.cuda.Event()
        event.record()
        if waiting:
            yield _arrived(*waiting)
        waiting = copy, event
    if waiting:
        yield _arrived(*waiting)


def _arrived(piece: Piece, event: torch.cuda.Event) -> Piece:
    event.synchronize()  # type: ignore[no-untyped-call]
    return piece


def _on_cuda(piece: Piece) -> bool:
    return any(isinstance(t, torch.Tensor) and t.is_cuda for t in pytree.tree_leaves(piece.found))


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _to_pinned(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_cuda:
        return value
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
