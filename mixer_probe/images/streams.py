"""Images that come one after the other: by their place in tar shards, or from a stream that is read
again from its start.

Of either only names, keys, labels and places stay in memory.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixer_probe.core.fingerprint import (
    bytes_key,
    file_keys,
    file_state,
    part_of_file,
    picture_key,
    read_part,
)
from mixer_probe.core.threads import available_cores
from mixer_probe.images.decode import (
    WIDEST,
    HeldReader,
    content_key,
    is_deep,
    largest_value,
    open_image,
    ranged_keys,
    to_rgb,
)

# The header of most images is within their first bytes; of others all are read.
_HEAD = 2**12
# Samples that are examined at once, on several cores.
_AT_ONCE = 64
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
# What webdataset passes over in a shard.
_META = re.compile(r"__[^/]*__($|/)")


class Part(NamedTuple):
    """So many bytes of a shard."""

    shard: str
    offset: int
    size: int

    def read(self, most: int | None = None) -> bytes:
        """The bytes, at `most` so many. Raises OSError where the shard is shorter."""
        return read_part(part_of_file(*self), most)


Content: TypeAlias = Part | bytes | Image.Image
# Takes a name and an error; returns if what it belongs to shall be left out.
Problem: TypeAlias = Callable[[str, Exception], None]


# -- readers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ShardReader:
    """Images in tar files, by their places [n, 3]: index of the shard, first byte, bytes. `states`
    are those of the shards when they were indexed; `top` as in `FileReader`."""

    shards: tuple[str, ...]
    states: tuple[int, ...]
    places: npt.NDArray[np.int64]
    top: int | None = None

    def open(self, position: int) -> Image.Image:
        """See `Reader`."""
        self._check(self.places[position, 0])
        return open_image(self._part(position).read(), self.top)

    def where(self, position: int) -> str:
        """See `Reader`."""
        part = self._part(position)
        return f"the image at byte {part.offset} of {part.shard}"

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`: of the bytes of each image. Raises OSError for a shard that has changed."""
        for shard in np.unique(self.places[positions, 0]):
            self._check(shard)
        return ranged_keys(file_keys(self.files(positions), verify), self.top)

    def files(self, positions: Sequence[int]) -> list[str]:
        """See `Reader`."""
        return [part_of_file(*self._part(position)) for position in positions]

    def part(self, positions: Sequence[int]) -> ShardReader:
        """See `Reader`."""
        return replace(self, places=self.places[positions])

    def _part(self, position: int) -> Part:
        shard, offset, size = self.places[position].tolist()
        return Part(self.shards[shard], offset, size)

    def _check(self, shard: int) -> None:
        if file_state(os.stat(self.shards[shard])) != self.states[shard]:
            raise OSError(
                f"the shard {self.shards[shard]} has changed since it was indexed; load the images "
                "again"
            )


@dataclass(eq=False)
class StreamReader:
    """Images that `source` gives one after the other, each time it is called; `known` are their
    keys. One image is held at a time: a later position is reached by going forward, an earlier one
    from the start again."""

    source: Callable[[], Iterator[bytes | Image.Image]]
    known: tuple[str, ...] = field(repr=False)
    top: int | None = None
    _next: int = field(default=0, init=False, repr=False)
    _held: bytes | Image.Image = field(default=b"", init=False, repr=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stream: Iterator[bytes | Image.Image] = iter(())

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamReader, (self.source, self.known, self.top)

    def open(self, position: int) -> Image.Image:
        """See `Reader`. Raises OSError for a stream that has changed since it was first read."""
        content = self._content(position)
        return content if isinstance(content, Image.Image) else open_image(content, self.top)

    def where(self, position: int) -> str:
        """See `Reader`."""
        return ""

    def keys(self, positions: Sequence[int], verify: bool = False) -> Sequence[str]:
        """See `Reader`: as the images were when the stream was first read; `verify` reads it again
        and raises OSError where it has changed."""
        for position in sorted(positions) if verify else ():
            self._content(position)
        return ranged_keys([self.known[position] for position in positions], self.top)

    def files(self, positions: Sequence[int]) -> Sequence[str]:
        """See `Reader`."""
        return ()

    def part(self, positions: Sequence[int]) -> HeldReader:
        """See `Reader`: read in the order of the stream."""
        found = {position: self._content(position) for position in sorted(set(positions))}
        return HeldReader([found[position] for position in positions], self.top)

    def _content(self, position: int) -> bytes | Image.Image:
        with self._lock:
            if position < self._next - 1 or not self._next:
                self._stream, self._next = self.source(), 0
            try:
                while self._next <= position:
                    self._held = next(self._stream)
                    self._next += 1
                held = self._held
            except StopIteration:
                raise OSError(
                    f"the stream has ended before image {position}; load the images again"
                ) from None
            except BaseException:
                self._next = 0
                raise
        if content_key(held) != self.known[position]:
            raise OSError(
                "the stream gives another image than when it was first read; load the images again"
            )
        return held


# -- the first pass --------------------------------------------------------------------------------


@dataclass
class Found:
    """The images of a stream by columns: their numbers there, names, targets, and keys or else
    places in `shards`; `tops` has a `largest_value` for each with more than 8 bits of grey."""

    positions: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    shards: dict[str, int] = field(default_factory=dict)
    tops: list[int] = field(default_factory=list)


def first_pass(
    samples: Iterable[tuple[str, Content, Any]], limit: int | None, decode: bool, problem: Problem
) -> Found:
    """The first `limit` of the samples (name, content, target) that are images by their header, or
    with `decode` as a whole. Of the others `problem` is told."""
    stream, found = enumerate(samples), Found()

    def examined(content: Content) -> tuple[str, int | None] | Exception:
        try:
            return _examined(content, decode)
        except Exception as error:
            return error

    with ThreadPoolExecutor(available_cores()) as pool:
        while limit is None or len(found.names) < limit:
            most = _AT_ONCE if limit is None else min(_AT_ONCE, limit - len(found.names))
            chunk = list(islice(stream, most))
            if not chunk:
                break
            results = pool.map(examined, [content for _, (_, content, _) in chunk])
            for (position, (name, content, target)), result in zip(chunk, results, strict=True):
                if isinstance(result, Exception):
                    problem(f"image '{name or position}'", result)
                    continue
                key, top = result
                found.positions.append(position)
                found.names.append(name)
                found.targets.append(target)
                found.tops += [] if top is None else [top]
                if isinstance(content, Part):
                    shard = found.shards.setdefault(content.shard, len(found.shards))
                    found.places.extend((shard, content.offset, content.size))
                else:
                    found.keys.append(key)
    return found


def _examined(content: Content, decode: bool) -> tuple[str, int | None]:
    """The key, "" for a part, and the largest value of grey with more than 8 bits. Raises what the
    decoder raises."""
    if isinstance(content, Image.Image):
        return picture_key(content), None
    if isinstance(content, bytes):
        data, key = content, bytes_key(content)
    else:
        data, key = content.read(None if decode else _HEAD), ""
    try:
        deep = is_deep(open_image(data).mode)
    except Exception:
        if len(data) < _HEAD or isinstance(content, bytes):
            raise
        deep = is_deep(open_image(content.read()).mode)
    if deep and isinstance(content, Part):
        data = content.read()
    if decode:
        to_rgb(open_image(data, WIDEST))
    return key, largest_value([open_image(data)]) if deep else None


# -- tar files -------------------------------------------------------------------------------------


def indexable(path: str) -> bool:
    """Whether the images of a local tar file can be read by their place: it is not compressed."""
    try:
        with open(path, "rb") as stream:
            return not stream.read(6).startswith(_COMPRESSED)
    except OSError:
        return True


def members(
    shards: Sequence[str], states: dict[str, int], problem: Problem
) -> Iterator[dict[str, Any]]:
    """The files of tar shards as webdataset's `group_by_keys` takes them, in order: the content of
    labels (cls, json), of all others their `Part`. Only headers are read. `states` gets that of
    each shard.

    Of a shard that cannot be read to its end `problem` is told."""
    for shard in shards:
        try:
            states[shard] = file_state(os.stat(shard))
            with closing(tarfile.open(shard, "r:")) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]
                    name = member.name
                    if not member.isreg() or _META.match(name):
                        continue
                    part = Part(shard, member.offset_data, member.size)
                    label = name.lower().endswith((".cls", ".json"))
                    data = part.read() if label else part
                    yield {"fname": name, "data": data, "__url__": shard}
                _check_end(tar)
        except FileNotFoundError:
            problem(f"the shard {shard}", OSError("there is no such file"))
        except (OSError, EOFError, tarfile.TarError) as error:
            problem(f"the shard {shard}", error)
        yield {}


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError where the headers ended before the mark of the end, which tarfile does not
    say."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no tar header at byte {tar.offset}")
    if not block:
        raise tarfile.ReadError(f"it breaks off at byte {tar.offset}, without the mark of its end")
