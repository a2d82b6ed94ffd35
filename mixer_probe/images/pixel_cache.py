"""`PixelCache`: decoded, resized and cropped images in temporary files, so that several passes
decode each image once."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mixer_probe.core.memory import ON_DISK
from mixer_probe.images.decode import HeldReader, Reader
from mixer_probe.images.transforms import Transform, split_transform


@dataclass(frozen=True)
class PixelSteps:
    """A transform in two parts: `resize` to a PIL image, whose pixels have `shape` [C, H, W], and
    `normalise` of these pixels as floats in 0..1. `name` says all that decides the pixels."""

    resize: Callable[[Image.Image], Image.Image]
    normalise: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, int, int]
    name: str

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The image as uint8 [C, H, W]."""
        from torchvision.transforms.functional import pil_to_tensor

        return cast(torch.Tensor, pil_to_tensor(self.resize(image)).contiguous())

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the transform returns for an image with these pixels, to the last bit."""
        return self.normalise(pixels.to(torch.get_default_dtype()).div(255))


def pixel_steps(transform: Transform) -> PixelSteps | None:
    """The two parts of an evaluation transform of timm, with or without Normalize; None for any
    other, whose pixels may be random, or not 8-bit numbers."""
    from timm.data.transforms import CenterCropOrPad, MaybeToTensor, ResizeKeepRatio
    from torchvision.transforms import CenterCrop, Compose, Grayscale, Resize, ToTensor

    if type(transform) not in (Compose,):
        return None
    to_pixels, normalise = split_transform(transform)
    *steps, to_tensor = cast(Any, to_pixels).transforms or (None,)
    crops = (CenterCrop, CenterCropOrPad)
    if (
        type(to_tensor) not in (ToTensor, MaybeToTensor)
        or any(type(s) not in (*crops, Grayscale, Resize, ResizeKeepRatio) for s in steps)
        or not steps
        or type(steps[-1]) not in crops
    ):
        return None
    # What such a step does is decided by its attributes; others are of torch.nn.Module.
    given = [{k: v for k, v in vars(s).items() if not k.startswith("_")} for s in steps]
    if any(s.get("random_scale_prob") or s.get("random_aspect_prob") for s in given):
        return None
    channels = min(s.get("num_output_channels", 3) for s in given)
    name = repr([(type(step).__name__, of) for step, of in zip(steps, given, strict=True)])
    return PixelSteps(Compose(steps), normalise, (channels, *steps[-1].size), name)


@dataclass(frozen=True)
class Places:
    """Where the pixels of a batch lie in the file with this `inode`: `rows` [image], -1 for
    nowhere; `there` [image] are those that lie there already. `positions` and `states` [image] say
    which images these are, and how they were when they were looked for."""

    file: str
    inode: int
    rows: npt.NDArray[np.int64]
    there: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    states: npt.NDArray[np.int64]

    def fill(self, steps: PixelSteps, images: Iterator[Image.Image]) -> torch.Tensor | None:
        """The batch [B, C, H, W]; `images` are those that are not there yet, and are written. None
        where the file cannot be read or written. Raises what `images` raise."""
        found = torch.empty((len(self.rows), *steps.shape))
        read = torch.empty(steps.shape, dtype=torch.uint8)
        size = read.numel()
        try:
            # Opened per batch and not buffered: threads and processes share no place in the file.
            with open(self.file, "r+b", buffering=0) as stream:
                if os.fstat(stream.fileno()).st_ino != self.inode:
                    return None
                for i, row in enumerate(self.rows.tolist()):
                    stream.seek(max(row, 0) * size)
                    if self.there[i]:
                        pixels, done = read, stream.readinto(read.numpy().data)
                    else:
                        pixels, done = steps.pixels(next(images)), size
                        if row >= 0:
                            done = stream.write(pixels.numpy().data)
                    if done != size:  # the file is cut, or the disk full
                        return None
                    found[i] = steps.finish(pixels)
        except OSError:
            return None
        return found


class _Table:
    """The file with the pixels of the images of one reader by one transform: of every position its
    row, -1 for none, and the state of the image. The reader is held, so that no other gets its
    `id`."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.n = reader, 0
        # Goes with this object, and with a process that is killed. Other processes open it by its
        # number, or by its name where the system gives no path to that.
        self.stream: IO[bytes] = tempfile.TemporaryFile(prefix="mixer-probe-")  # noqa: SIM115
        self.file = f"/proc/{os.getpid()}/fd/{self.stream.fileno()}"
        if not os.path.exists(self.file):
            self.stream = named = tempfile.NamedTemporaryFile(prefix="mixer-probe-")  # noqa: SIM115
            self.file = named.name
        self.inode = os.fstat(self.stream.fileno()).st_ino
        self.rows = np.empty(0, np.int32)
        self.states = np.empty(0, np.int64)

    def grow(self, n: int) -> None:
        """Have place for `n` positions."""
        if n > len(self.rows):
            more = max(n, 2 * len(self.rows)) - len(self.rows)
            self.rows = np.concatenate([self.rows, np.full(more, -1, np.int32)])
            self.states = np.concatenate([self.states, np.zeros(more, np.int64)])


class PixelCache:
    """Pixels of images after decoding, resizing and cropping, before normalisation: 8-bit numbers
    in temporary files, which go with this object.

    Passes whose transforms differ in the normalisation alone share them. Images that change are
    decoded again, and so are those for which there is no room: at most `most` bytes are taken, and
    half of the free disk space. A full disk or a lost file ends the caching, and nothing else.
    Several threads may use one; pickled it is empty."""

    def __init__(self, most: int = ON_DISK) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._tables: dict[tuple[int, str], _Table] = {}
        self._bytes, self._ended, self._process = 0, False, os.getpid()

    def __reduce__(self) -> tuple[type[PixelCache], tuple[int]]:
        return PixelCache, (self._most,)

    def places(
        self, reader: Reader, steps: PixelSteps, positions: npt.NDArray[np.int64]
    ) -> Places | None:
        """Where the pixels of the images of `reader` at `positions` lie or are to be written; None
        where they are neither, such as those of images in memory."""
        # A process that was forked off would write to the same files.
        if isinstance(reader, HeldReader) or self._ended or os.getpid() != self._process:
            return None
        try:
            keys = reader.keys(positions.tolist())
        except Exception:
            return None  # decoding says what is wrong
        states = np.array([hash(key) for key in keys], dtype=np.int64)
        with self._lock:
            try:
                key = id(reader), steps.name
                if key not in self._tables:
                    self._tables[key] = _Table(reader)
                table = self._tables[key]
                table.grow(int(positions.max()) + 1)
                rows = table.rows[positions].astype(np.int64)
                there = (rows >= 0) & (table.states[positions] == states)
                rows[~there] = self._new_rows(table, int((~there).sum()), steps)
            except OSError:
                return None
        if (rows < 0).all():
            return None
        return Places(table.file, table.inode, rows, there, positions, states)

    def add(self, reader: Reader, steps: PixelSteps, places: Places) -> None:
        """The images of `places` lie there now."""
        new = ~places.there & (places.rows >= 0)
        with self._lock:
            table = self._tables.get((id(reader), steps.name))
            if table is not None:
                table.rows[places.positions[new]] = places.rows[new]
                table.states[places.positions[new]] = places.states[new]

    def end(self) -> None:
        """Remove all that is cached, and cache no more."""
        with self._lock:
            self._ended = True
            for table in self._tables.values():
                # Not closed: its number must not become that of another file.
                with suppress(OSError):
                    table.stream.truncate(0)

    def _new_rows(self, table: _Table, n: int, steps: PixelSteps) -> npt.NDArray[np.int64]:
        """Rows for `n` more images; -1 where there is no room."""
        size = int(np.prod(steps.shape))
        half = (shutil.disk_usage(tempfile.gettempdir()).free + self._bytes) // 2
        new = max(0, min(n, (min(self._most, half) - self._bytes) // size))
        rows = np.full(n, -1, dtype=np.int64)
        rows[:new] = range(table.n, table.n + new)
        table.n += new
        self._bytes += new * size
        return rows
