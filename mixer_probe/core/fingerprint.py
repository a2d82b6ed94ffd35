"""Identity of images: hashes of their content, and checks that two sets hold the same pictures, or
none in common.

A key is the hash of one image: of the bytes of its file, of its pixels where it is held in memory,
of its numbers where it is a finished input. What was done to an image stands behind its key after a
tilde: the picture is the same under every distortion.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.memory import RESIDENT, at_once
from mixer_probe.core.threads import in_threads

_LENGTH = 32
_ALTERED = "~"
# Hashing and reading leave the interpreter lock.
THREADS = min(8, os.cpu_count() or 1)
# What is remembered of a file with a path of usual length.
_BYTES_EACH = 400
_MOST_FILES = at_once(_BYTES_EACH, RESIDENT)
_PART = "\0"
# A file written again within one tick of the file system's clock keeps its time stamp: a younger
# one is read every time.
_SETTLED_NS = 2 * 10**9

_known_files: dict[str, tuple[int, str]] = {}


class Identified(Protocol):
    """Images, or what was measured on them, image by image."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One name per image."""

    @property
    def keys(self) -> tuple[str, ...]:
        """One hash of the content per image."""


def digest(*parts: str | bytes) -> str:
    """sha256 of the parts, each with its length, so that no other parts give the same bytes."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def file_keys(files: Sequence[str], verify: bool = False) -> list[str]:
    """Key of every file, or part of a file (`part_of_file`): the hash of its bytes, read on several
    cores.

    A file is read once per process as long as its size, times and inode are unchanged; `verify`
    reads it anyway. Raises what the operating system raises."""

    def key_of(file: str) -> str:
        path, _, part = file.partition(_PART)
        stat = os.stat(path)
        state, known = file_state(stat), _known_files.get(file)
        if known and known[0] == state and not verify:
            return known[1]
        if part:
            key = bytes_key(read_part(file))
        else:
            with open(path, "rb") as stream:
                key = hashlib.file_digest(stream, "sha256").hexdigest()[:_LENGTH]
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
            learn_keys({file: (state, key)})
        else:
            _known_files.pop(file, None)
        return key

    return in_threads(key_of, files, THREADS)


def known_keys(files: Iterable[str]) -> dict[str, tuple[int, str]]:
    """What this process knows of these files, for `learn_keys` in another one: the state in which
    each was read, and its key."""
    return {file: _known_files[file] for file in files if file in _known_files}


def learn_keys(known: Mapping[str, tuple[int, str]]) -> None:
    """Remember what another process read, which counts as long as the files are in that state here
    too."""
    if len(_known_files) + len(known) > _MOST_FILES:
        _known_files.clear()
    _known_files.update(islice(known.items(), _MOST_FILES))


def file_state(stat: os.stat_result) -> int:
    """One number for the size, times and inode of a file, the same on every machine that mounts
    it."""
    return hash((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def part_of_file(path: str, offset: int, size: int) -> str:
    """What `file_keys` and `read_part` call so many bytes of a file."""
    return f"{path}{_PART}{offset}{_PART}{size}"


def read_part(file: str, most: int | None = None) -> bytes:
    """The bytes, at `most` so many, of a part of a file. Raises OSError where the file is
    shorter."""
    path, offset, size = file.split(_PART)
    wanted = int(size) if most is None else min(most, int(size))
    with open(path, "rb") as stream:
        stream.seek(int(offset))
        content = stream.read(wanted)
    if len(content) < wanted:
        raise OSError(f"{path} ends {wanted - len(content)} bytes before the image does")
    return content


def folder_state(folder: str | os.PathLike[str]) -> str:
    """Hash over the names, sizes and times of all files below a folder: it changes when one is
    added, removed or changed."""
    found, seen = [], set()
    for path, children, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children.sort()
        for name in sorted(names):
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(path, name))
                found.append(
                    f"{os.path.join(path, name)} {stat.st_size} {stat.st_mtime_ns} "
                    f"{stat.st_ctime_ns}"
                )
    return digest(*found)


def bytes_key(content: bytes) -> str:
    """Key of an image file that is held in memory; that of the same file on the disk."""
    return hashlib.sha256(content).hexdigest()[:_LENGTH]


def picture_key(image: Image.Image) -> str:
    """Key of a decoded image: mode, size, pixels and, where it has them, palette and
    transparency."""
    palette = repr(image.getpalette()) if image.mode == "P" else ""
    head = f"{image.mode} {image.size} {palette} {image.info.get('transparency')!r}"
    return digest(head, image.tobytes())[:_LENGTH]


def tensor_keys(images: torch.Tensor) -> tuple[str, ...]:
    """Keys of finished inputs [n, ...]: type, shape and numbers of each."""
    rows = images.detach().cpu().contiguous()
    head = f"{rows.dtype} {tuple(rows.shape[1:])}"
    return tuple(
        digest(head, row.reshape(-1).view(torch.uint8).numpy().tobytes())[:_LENGTH] for row in rows
    )


def altered_key(key: str, *how: str) -> str:
    """Key of an image to which something was done; the picture stays that of `key`."""
    picture = key.partition(_ALTERED)[0]
    return f"{picture}{_ALTERED}{digest(key, *how)[:_LENGTH]}"


def picture_of(key: str) -> str:
    """The key of the image before anything was done to it."""
    return key.partition(_ALTERED)[0]


def images_fingerprint(
    keys: Iterable[str], labels: np.ndarray | None, class_names: Sequence[str] | None, split: str
) -> str:
    """Hash over the content of images in their order, their labels, the names of the classes, and
    the split.

    Not over the names of the images or of their folder: the same pictures are the same wherever
    they lie."""
    marks = b"none" if labels is None else np.ascontiguousarray(labels, dtype=np.int64).tobytes()
    names = "none" if class_names is None else digest(*class_names)
    return digest("".join(f"{key}\n" for key in keys), marks, names, split)


def pictures_fingerprint(keys: Iterable[str]) -> str:
    """Hash over the pictures in their order, whatever they are labelled and whatever was done to
    them."""
    return digest("".join(f"{picture_of(key)}\n" for key in keys))


def keys_by_name(fingerprint: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Keys of images whose content is unavailable: from their names in a set with this
    fingerprint."""
    return tuple(digest(fingerprint, name)[:_LENGTH] for name in ids)


def keys_of(images: Identified) -> tuple[str, ...]:
    """The `keys` of images or representations, `keys_by_name` where their class has none."""
    keys = getattr(images, "keys", None)
    if keys is not None:
        return tuple(keys)
    record: Any = getattr(images, "record", None)
    about = getattr(images, "images", None) or record
    return keys_by_name(about.fingerprint, images.ids)


def check_same_images(a: Identified, b: Identified) -> None:
    """Raise MeasureError unless both hold the same pictures, by their content, in the same
    order."""
    keys_a, keys_b = ([picture_of(key) for key in keys_of(side)] for side in (a, b))
    if len(keys_a) != len(keys_b):
        alone = len(set(keys_a) ^ set(keys_b))
        raise MeasureError(
            f"different images: {len(keys_a)} images against {len(keys_b)}, of which {alone} are "
            "in only one set; compare the same images"
        )
    different = [i for i, (x, y) in enumerate(zip(keys_a, keys_b, strict=True)) if x != y]
    if different:
        first = different[0]
        name, other = a.ids[first], b.ids[first]
        what = (
            "the same images in a different order"
            if sorted(keys_a) == sorted(keys_b)
            else "different images"
        )
        called = f"two images named '{name}'" if name == other else f"'{name}' against '{other}'"
        raise MeasureError(
            f"{what}: {len(different)} of {len(keys_a)} images differ, the first at position "
            f"{first}: {called}; compare the same images in the same order"
        )


def apart(keys: Sequence[str], fit: Iterable[int], hold: Iterable[int]) -> np.ndarray:
    """The rows `fit` without those whose pictures are among the rows `hold`, so that duplicates are
    in one part only."""
    held = {picture_of(keys[i]) for i in hold}
    return np.array([i for i in fit if picture_of(keys[i]) not in held], dtype=np.int64)


def check_apart(train: Identified, test: Identified) -> None:
    """Raise ImagesError if a picture, by its content, is in both."""
    of_train, of_test = ([picture_of(key) for key in keys_of(side)] for side in (train, test))
    seen = dict(zip(reversed(of_train), reversed(train.ids), strict=True))
    shared = [
        (name, seen[picture])
        for picture, name in zip(of_test, test.ids, strict=True)
        if picture in seen
    ]
    if shared:
        name, there = shared[0]
        called = f"'{name}'" if name == there else f"'{name}' ('{there}' there)"
        raise ImagesError(
            f"{len(shared)} test images are also in train, the first is {called}; use disjoint sets"
        )
