"""Which images the pages look at: bundled, a folder of the app's, an upload, or a data set of timm. The URL says it."""

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
from mixer_probe_app import disk, held
from mixer_probe_app.offers import PICTURES, UPLOADED, labels, offers, resolve, roots, uploads
from mixer_probe_app.store import made

BUNDLED = {"demo": "CIFAR-10 sample", "photos": "120 photographs"}
COUNTS = (100, 200, 500, 1000)
DEFAULT_COUNT = 200
_IMAGES, _COUNT = "images", "n"
# An upload is unpacked to the disk: a small file must not become a large folder.
MOST_FILES, MOST_BYTES = 5000, 500 * 2**20
_TIMM = re.compile(r"((torch|wds|tfds)/[A-Za-z0-9][\w.-]*|(hfds|hfids)/[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)", re.ASCII)
# What damaged zips make Python's readers raise.
_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    MemoryError,
)


def source() -> str:
    """The images chosen: "demo", "photos", "folder:LABEL" or "NAME@LABEL" for a data set of timm below a folder."""
    said = held.recall(_IMAGES) or "demo"
    held.hold(_IMAGES, None if said == "demo" else said)
    return said


def choose(text: str) -> None:
    """Look at other images from now on."""
    held.hold(_IMAGES, None if text == "demo" else text)


def shown_source(text: str) -> str:
    """A source as people read it."""
    if text in BUNDLED:
        return BUNDLED[text]
    if text.startswith("folder:"):
        label = text.removeprefix("folder:")
        return f"uploaded images {label.partition('/')[2]}" if label.startswith(f"{UPLOADED}/") else label
    name, _, place = text.partition("@")
    return f"{name} in {place}"


def sources() -> list[str]:
    """What can be picked: bundled samples, folders, and the one chosen."""
    found = [*BUNDLED, *(f"folder:{label}" for label in labels("images"))]
    return found if source() in found else [*found, source()]


def count() -> int:
    """How many images the person wants at most."""
    said = held.recall(_COUNT) or ""
    wanted = whole_number(said)
    return wanted if wanted in COUNTS else DEFAULT_COUNT


def chooser(place: st.delta_generator.DeltaGenerator) -> None:
    """The boxes for images and their number."""
    source()
    held.select(
        place, "Images", _IMAGES, sources(), "demo", format_func=shown_source, help="More can be opened on the page Home."
    )
    held.steps(
        place, "How many", _COUNT, COUNTS, DEFAULT_COUNT, help="At most so many images, as many of each class as there are."
    )


def images(limit: int | None = None) -> Images:
    """At most `limit` (by default `count()`) of the images chosen; of the bundled CIFAR-10 sample those for testing.

    Raises ImagesError and StoreError with a sentence for sources that cannot be opened."""
    text = source()
    return _opened(text, "test" if text == "demo" else "").sample(count() if limit is None else limit)


def sides(limit: int | None = None) -> tuple[Images, Images]:
    """Images to fit on and as many others to test on: the two splits of the bundled CIFAR-10 sample, or two halves."""
    wanted = count() if limit is None else limit
    if source() == "demo":
        return _opened("demo", "train").sample(wanted), images(wanted)
    both = _opened(source(), "").sample(2 * wanted)
    test = both.sample(min(wanted, len(both) // 2))
    kept = set(test.keys)
    return both.subset([i for i, key in enumerate(both.keys) if key not in kept]), test


def _opened(text: str, split: str) -> Images:
    """All images of a source. What was left out is told by those who show them (`Images.skipped`)."""
    folder = resolve(text.removeprefix("folder:"), "images") if text.startswith("folder:") else None
    key = (text, split, None if folder is None else folder_state(folder))
    found = made("images", key, "Opening the images", lambda: _open(text, split, folder), keep=False, tell=False)
    if folder is not None and folder.is_relative_to(uploads().resolve()):
        disk.use(folder)
    return found


def _open(text: str, split: str, folder: Path | None) -> Images:
    if text in BUNDLED:
        return mp.load_images(text, split=split or None)
    if folder is not None:
        found = dataclasses.replace(mp.load_images(folder, on_error="skip"), name=shown_source(text))
        _check_inside(found)
        if folder.is_relative_to(uploads().resolve()):
            disk.hold(folder, found.reader)
        return found
    name, _, place = text.partition("@")
    if not _TIMM.fullmatch(name) or ".." in name or not place:
        raise ImagesError(
            f"{shown(text)} names no images: data sets are torch/NAME, wds/NAME, tfds/NAME, hfds/OWNER/NAME or hfids/OWNER/NAME; "
            "choose them on the page Home"
        )
    if os.path.lexists(name.partition("/")[2]):
        raise ImagesError(f"'{name}' would be read from a folder beside the app; start the app in another folder")
    return mp.load_images(name, root=resolve(place, "images"))


def _check_inside(found: Images) -> None:
    """Raise ImagesError for links to files outside of the app's folders."""
    tops = tuple(roots().values())
    for i in range(len(found)):
        file = os.path.realpath(found.reader.where(int(found.positions[i])))
        if not any(Path(file).is_relative_to(top) for top in tops):
            raise ImagesError(
                f"{shown(found.ids[i])} is a link out of the folders of this app; start the app with the folder that it leads to"
            )


def code(limit: int | None = None, split: str = "test") -> str:
    """The Python expression that opens these images in a script."""
    text, wanted = source(), count() if limit is None else limit
    if text in BUNDLED:
        extra = f', split="{split}"' if text == "demo" else ""
        return f'mp.load_images("{text}"{extra}, limit={wanted})'
    if text.startswith("folder:"):
        return f'mp.load_images({str(resolve(text.removeprefix("folder:"), "images"))!r}, on_error="skip", limit={wanted})'
    name, _, place = text.partition("@")
    return f"mp.load_images({name!r}, root={str(resolve(place, 'images'))!r}, limit={wanted})"


def sides_code(limit: int | None = None) -> str:
    """The Python lines that make `train` and `test` as `sides` does."""
    wanted = count() if limit is None else limit
    if source() == "demo":
        return f"train, test = {code(wanted, 'train')}, {code(wanted)}"
    return (
        f"both = {code(2 * wanted)}\n"
        f"test = both.sample(min({wanted}, len(both) // 2))\n"
        "kept = set(test.keys)\n"
        "train = both.subset([i for i, key in enumerate(both.keys) if key not in kept])"
    )


def keep(files: Sequence[tuple[str, bytes]]) -> str:
    """Keep uploaded pictures, or the pictures of a zip, in a folder of their own, and give it as a source.

    Raises ImagesError for an upload without a picture in it, or too large; files that are no pictures are told when opened."""
    parts = _apart([part for name, content in files for part in _pictures_of(name, content)])
    if len(parts) > MOST_FILES or sum(len(content) for _, content in parts) > MOST_BYTES:
        raise ImagesError(_too_much("the upload"))
    if not parts:
        raise ImagesError(f"no picture in the upload; pictures are files {', '.join(PICTURES)}, or a zip of them")
    digest = hashlib.sha256(b"".join(name.encode() + hashlib.sha256(content).digest() for name, content in parts)).hexdigest()[
        :12
    ]
    folder = uploads() / digest
    try:
        for name, content in parts:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"cannot keep the upload in {uploads()}: {reason(error)}") from error
    disk.use(folder)
    disk.tidy()
    offers.clear()
    return f"folder:{UPLOADED}/{digest}"


def _pictures_of(name: str, content: bytes) -> list[tuple[str, bytes]]:
    if name.lower().endswith(".zip"):
        return _unzipped(name, content)
    return [(_safe(name), content)] if Path(name).suffix.lower() in PICTURES else []


def _unzipped(name: str, content: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).suffix.lower() in PICTURES and not m.is_dir()]
            if len(members) > MOST_FILES or sum(m.file_size for m in members) > MOST_BYTES:
                raise ImagesError(_too_much(shown(name)))
            return [(_safe(m.filename), archive.read(m)) for m in members]
    except ImagesError:
        raise
    except _BROKEN as error:
        raise ImagesError(f"{shown(name)} is no zip that can be read: {shown(str(error) or type(error).__name__)}") from error


def _too_much(what: str) -> str:
    return f"{what} holds more than {MOST_FILES:,} pictures or {MOST_BYTES >> 20} MB; start the app with their folder instead"


def _apart(parts: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The pictures under names of their own: of equal ones, from other folders of a zip, the later ones get a number."""
    found: dict[str, bytes] = {}
    free_names: list[str] = []
    for name, content in parts:
        path, number, free = PurePosixPath(name), 1, name
        while free.lower() in found:
            number += 1
            free = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        found[free.lower()] = content
        free_names.append(free)
    return list(zip(free_names, found.values(), strict=True))


def _safe(name: str) -> str:
    """The last folder (the class) and the file of a path, without a way up."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return "/".join(_short(visible(part.replace(":", "_").lstrip(".")).replace("\\", "_") or "_") for part in parts[-2:])


def _short(part: str) -> str:
    """At most 200 bytes, since file systems take 255; the suffix stays."""
    stem, suffix = os.path.splitext(part)
    while len((stem + suffix).encode()) > 200:
        stem = stem[:-1]
    return stem + suffix


def has_classes(found: Images) -> bool:
    """Whether there are classes to probe for."""
    return found.labels is not None and len(np.unique(found.labels)) > 1
