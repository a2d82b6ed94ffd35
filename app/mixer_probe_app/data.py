"""Which images the pages look at: bundled, a folder of the app's, an upload, or a data set of timm. The URL says it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import streamlit as st
from PIL import Image

import mixer_probe as mp
from mixer_probe.errors import ImagesError, StoreError
from mixer_probe.images import Images
from mixer_probe.images.decode import reason, to_rgb
from mixer_probe_app import held
from mixer_probe_app.offers import PICTURES, UPLOADED, labels, offers, resolve, uploads
from mixer_probe_app.store import made

BUNDLED = {"demo": "CIFAR-10 sample", "photos": "120 photographs"}
COUNTS = (100, 200, 500, 1000)
DEFAULT_COUNT = 200
_IMAGES, _COUNT = "images", "n"
# An upload is unpacked to the disk: a small file must not become a large folder.
MOST_FILES, MOST_BYTES = 5000, 500 * 2**20


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
    return int(said) if said.isdigit() and int(said) in COUNTS else DEFAULT_COUNT


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
    kept = set(test.ids)
    return both.subset([i for i, name in enumerate(both.ids) if name not in kept]), test


def _opened(text: str, split: str) -> Images:
    """All images of a source. What was left out is told by those who show them (`Images.skipped`)."""
    folder = resolve(text.removeprefix("folder:"), "images") if text.startswith("folder:") else None
    key = (text, split, None if folder is None else folder.stat().st_mtime_ns)
    return made("images", key, "Opening the images", lambda: _open(text, split, folder), keep=False, tell=False)


def _open(text: str, split: str, folder: Path | None) -> Images:
    if text in BUNDLED:
        return mp.load_images(text, split=split or None)
    if folder is not None:
        return dataclasses.replace(mp.load_images(folder, on_error="skip"), name=shown_source(text))
    name, _, place = text.partition("@")
    if "/" not in name or not place:
        raise ImagesError(f"'{text}' names no images: choose them on the page Home")
    return mp.load_images(name, root=resolve(place, "images"))


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
        "train = both.subset([i for i, name in enumerate(both.ids) if name not in set(test.ids)])"
    )


def keep(files: Sequence[tuple[str, bytes]]) -> str:
    """Keep uploaded pictures, or the pictures of a zip, in a folder of their own, and give it as a source.

    Raises ImagesError for an upload without a picture in it, or too large; files that are no pictures are told when opened."""
    parts = [part for name, content in files for part in _pictures_of(name, content)]
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
        raise StoreError(f"cannot keep the upload in {uploads()}: {error.strerror or error}") from error
    offers.clear()
    return f"folder:{UPLOADED}/{digest}"


def _check_one_opens(parts: Sequence[tuple[str, bytes]]) -> None:
    """Some may be broken, which is told where they are shown; with none that opens there is nothing to look at."""
    why = ""
    for _, content in parts:
        try:
            with Image.open(io.BytesIO(content)) as picture:
                to_rgb(picture)
            return
        except Exception as error:
            why = why or reason(error)
    raise ImagesError(f"none of the {len(parts)} files of the upload is a picture that can be read; '{parts[0][0]}': {why}")


def _pictures_of(name: str, content: bytes) -> list[tuple[str, bytes]]:
    if name.lower().endswith(".zip"):
        return _unzipped(name, content)
    return [(_safe(name), content)] if Path(name).suffix.lower() in PICTURES else []


def _unzipped(name: str, content: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).suffix.lower() in PICTURES and not m.is_dir()]
            if len(members) > MOST_FILES or sum(m.file_size for m in members) > MOST_BYTES:
                raise ImagesError(
                    f"'{name}' holds more than {MOST_FILES:,} pictures or {MOST_BYTES >> 20} MB; "
                    "start the app with their folder instead"
                )
            return [(_safe(m.filename), archive.read(m)) for m in members]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ImagesError(f"'{name}' is no zip that can be read: {error}") from error


def _safe(name: str) -> str:
    """The last folder (the class) and the file of a path, without a way up."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    return "/".join(part.replace(":", "_").lstrip(".") or "_" for part in parts[-2:])


def has_classes(found: Images) -> bool:
    """Whether there are classes to probe for."""
    return found.labels is not None and len(np.unique(found.labels)) > 1
