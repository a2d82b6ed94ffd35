"""Which images the pages look at: a bundled sample, a folder of the app's, an upload, or a data set
of timm. The URL says it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import streamlit as st

import mixer_probe as mp
from mixer_probe.core.errors import ImagesError, StoreError
from mixer_probe.core.files import reason
from mixer_probe.core.fingerprint import folder_state
from mixer_probe.core.text import visible
from mixer_probe.core.validate import shown, whole_number
from mixer_probe.images import Images
from mixer_probe.images.classes import class_name
from mixer_probe_app import disk, url_state
from mixer_probe_app.local_files import (
    PICTURES,
    UPLOADED,
    labels,
    local_files,
    resolve,
    roots,
    uploads,
)
from mixer_probe_app.store import cached

BUNDLED = {"demo": "CIFAR-10 sample", "photos": "120 photographs"}
COUNTS = (100, 200, 500, 1000)
DEFAULT_COUNT = 200
_IMAGES, _COUNT = "images", "n"
# An upload is unpacked to the disk: a small file must not become a large folder.
MOST_FILES, MOST_BYTES = 5000, 500 * 2**20
# File systems take names of 255 bytes.
_LONGEST_NAME = 200
_TIMM = re.compile(
    r"((torch|wds|tfds)/[A-Za-z0-9][\w.-]*|(hfds|hfids)/[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)",
    re.ASCII,
)
# What damaged zips make Python's readers raise; some are subclasses of others, and all are named.
_BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, MemoryError),
)


def source() -> str:
    """The images chosen: "demo", "photos", "folder:LABEL" or "NAME@LABEL" for a data set of timm
    below a folder."""
    said = url_state.get(_IMAGES) or "demo"
    choose(said)
    return said


def choose(text: str) -> None:
    """Look at other images from now on."""
    url_state.put(_IMAGES, None if text == "demo" else text)


def shown_source(text: str) -> str:
    """A source as people read it."""
    if text in BUNDLED:
        return BUNDLED[text]
    if text.startswith("folder:"):
        label = text.removeprefix("folder:")
        return (
            f"uploaded images {label.partition('/')[2]}"
            if label.startswith(f"{UPLOADED}/")
            else label
        )
    name, _, place = text.partition("@")
    return f"{name} in {place}"


def count() -> int:
    """How many images are wanted at most."""
    wanted = whole_number(url_state.get(_COUNT) or "")
    return wanted if wanted in COUNTS else DEFAULT_COUNT


def chooser(place: st.delta_generator.DeltaGenerator) -> None:
    """The boxes for images and their number."""
    sources = dict.fromkeys(
        [*BUNDLED, *(f"folder:{label}" for label in labels("images")), source()]
    )
    more = "More can be opened on the page Home."
    url_state.choose(
        place.selectbox, "Images", _IMAGES, [*sources], "demo", format_func=shown_source, help=more
    )
    most = "At most so many images, as many of each class as there are."
    url_state.choose(place.select_slider, "How many", _COUNT, COUNTS, DEFAULT_COUNT, help=most)


def images() -> Images:
    """At most `count()` of the images chosen; of the bundled CIFAR-10 sample those for testing.

    Raises ImagesError and StoreError with a sentence for sources that cannot be opened."""
    text = source()
    return _opened(text, "test" if text == "demo" else "").sample(count())


def sides() -> tuple[Images, Images]:
    """Images to fit on and as many others to test on: the two splits of the bundled CIFAR-10
    sample, or two halves."""
    if source() == "demo":
        return _opened("demo", "train").sample(count()), images()
    both = _opened(source(), "").sample(2 * count())
    test = both.sample(min(count(), len(both) // 2))
    held_out = set(test.keys)
    return both.subset([i for i, key in enumerate(both.keys) if key not in held_out]), test


def _opened(text: str, split: str) -> Images:
    """All images of a source. Files that were skipped are listed by those who show the images
    (`Images.skipped`)."""
    folder = resolve(text.removeprefix("folder:"), "images") if text.startswith("folder:") else None
    key = (text, split, None if folder is None else folder_state(folder))
    found = cached(
        "images",
        key,
        "Opening the images",
        lambda: open_source(text, split, folder),
        on_disk=False,
        warn=False,
    )
    if folder is not None and folder.is_relative_to(uploads().resolve()):
        disk.use(folder)
    return found


def open_source(text: str, split: str, folder: Path | None) -> Images:
    """All images of a source, whose `folder` is resolved. Raises ImagesError for a name that is no
    source, for images that cannot be read, and for links out of the folders of the app."""
    if text in BUNDLED:
        return mp.load_images(text, split=split or None)
    if folder is not None:
        found = dataclasses.replace(
            mp.load_images(folder, on_error="skip"), name=shown_source(text)
        )
        tops = tuple(roots().values())
        for i in range(len(found)):
            file = Path(os.path.realpath(found.reader.where(int(found.positions[i]))))
            if not any(file.is_relative_to(top) for top in tops):
                raise ImagesError(
                    f"{shown(found.ids[i])} is a link out of the folders of this app; start the "
                    "app with the folder that it leads to"
                )
        if folder.is_relative_to(uploads().resolve()):
            disk.hold(folder, found.reader)
        return found
    name, _, place = text.partition("@")
    if not _TIMM.fullmatch(name) or ".." in name or not place:
        raise ImagesError(
            f"{shown(text)} names no images: data sets are torch/NAME, wds/NAME, tfds/NAME, "
            "hfds/OWNER/NAME or hfids/OWNER/NAME; choose them on the page Home"
        )
    if os.path.lexists(name.partition("/")[2]):
        raise ImagesError(
            f"'{name}' would be read from a folder beside the app; start the app in another folder"
        )
    return mp.load_images(name, root=resolve(place, "images"))


def code(limit: int | None = None, split: str = "test") -> str:
    """The Python expression that opens these images in a script."""
    text, wanted = source(), count() if limit is None else limit
    if text in BUNDLED:
        extra = f', split="{split}"' if text == "demo" else ""
        return f'mp.load_images("{text}"{extra}, limit={wanted})'
    if text.startswith("folder:"):
        return (
            f"mp.load_images({str(resolve(text.removeprefix('folder:'), 'images'))!r}, "
            f'on_error="skip", limit={wanted})'
        )
    name, _, place = text.partition("@")
    return f"mp.load_images({name!r}, root={str(resolve(place, 'images'))!r}, limit={wanted})"


def setup() -> str:
    """The line of a script that makes `images`."""
    return f"images = {code()}"


def sides_setup() -> str:
    """The lines of a script that make `train` and `test` as `sides` does."""
    wanted = count()
    if source() == "demo":
        return f"train, test = {code(wanted, 'train')}, {code(wanted)}"
    return (
        f"both = {code(2 * wanted)}\n"
        f"test = both.sample(min({wanted}, len(both) // 2))\n"
        "held_out = set(test.keys)\n"
        "train = both.subset([i for i, key in enumerate(both.keys) if key not in held_out])"
    )


def has_classes(found: Images) -> bool:
    """Whether there are two classes or more."""
    return found.labels is not None and len(np.unique(found.labels)) > 1


def class_of(found: Images, i: int) -> str:
    """The name of the class of an image, or its index where classes have no names; "" without
    labels."""
    return "" if found.labels is None else class_name(int(found.labels[i]), found.class_names)


# -- uploads ---------------------------------------------------------------------------------------


def save_upload(files: Sequence[tuple[str, bytes]]) -> str:
    """Save uploaded pictures, or the pictures of a zip, in a folder of their own, and give it as a
    source.

    Of equal names, from other folders of a zip, the later ones get a number. Raises ImagesError for
    an upload without a picture, or too large; files that are no pictures are found when they are
    opened."""
    parts = [part for name, content in files for part in _pictures(name, content)]
    _check_size("the upload", [len(content) for _, content in parts])
    if not parts:
        raise ImagesError(
            f"no picture in the upload; pictures are files {', '.join(PICTURES)}, or a zip of them"
        )
    named: dict[str, tuple[str, bytes]] = {}
    for name, content in parts:
        path, number, free = PurePosixPath(name), 1, name
        while free.lower() in named:
            number += 1
            free = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        named[free.lower()] = (free, content)
    hashes = b"".join(
        name.encode() + hashlib.sha256(content).digest() for name, content in named.values()
    )
    digest = hashlib.sha256(hashes).hexdigest()[:12]
    folder = uploads() / digest
    try:
        for name, content in named.values():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"cannot keep the upload in {uploads()}: {reason(error)}") from error
    disk.use(folder)
    disk.tidy()
    local_files.clear()
    return f"folder:{UPLOADED}/{digest}"


def _pictures(name: str, content: bytes) -> list[tuple[str, bytes]]:
    """The pictures of an uploaded file by safe names."""
    if not name.lower().endswith(".zip"):
        return [(_safe(name), content)] if Path(name).suffix.lower() in PICTURES else []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [
                m
                for m in archive.infolist()
                if Path(m.filename).suffix.lower() in PICTURES and not m.is_dir()
            ]
            _check_size(shown(name), [m.file_size for m in members])
            return [(_safe(m.filename), archive.read(m)) for m in members]
    except ImagesError:
        raise
    except _BROKEN as error:
        raise ImagesError(
            f"{shown(name)} is no zip that can be read: {shown(str(error) or type(error).__name__)}"
        ) from error


def _check_size(what: str, sizes: Sequence[int]) -> None:
    if len(sizes) > MOST_FILES or sum(sizes) > MOST_BYTES:
        limits = f"{MOST_FILES:,} pictures or {MOST_BYTES >> 20} MB"
        raise ImagesError(
            f"{what} holds more than {limits}; start the app with their folder instead"
        )


def _safe(name: str) -> str:
    """The last folder (the class) and the file of a path, without a way up, and short enough for a
    file system."""
    # Split by hand: of a name that begins with two slashes, PurePosixPath keeps both as a part.
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", "..", ".")]
    found = []
    for part in parts[-2:]:
        text = visible(part.replace(":", "_").lstrip(".")).replace("\\", "_") or "_"
        stem, suffix = os.path.splitext(text)
        while len((stem + suffix).encode()) > _LONGEST_NAME:
            stem = stem[:-1]
        found.append(stem + suffix)
    return "/".join(found)
