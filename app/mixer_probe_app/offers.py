"""What a person may open by path: checkpoints, runs, results and image folders below the folders that the app was started with,
and what was uploaded. Nothing else on the disk is read by name."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import platformdirs
import streamlit as st

from mixer_probe.core.errors import StoreError, closest
from mixer_probe.core.files import reason, write_bytes

Kind = Literal["checkpoint", "run", "results", "images"]

PATHS = "MIXER_PROBE_APP_PATHS"
CACHE = "MIXER_PROBE_CACHE"
UPLOADED = "uploaded"
CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# A folder of a data set has a million files; what is offered is looked for near the top.
_DEEPEST = 3
_MOST_FOLDERS = 2000


@dataclass(frozen=True)
class Offer:
    """Something that can be opened. `label` is what the URL says: the name of its root and the way from there."""

    kind: Kind
    label: str
    path: Path


@cache
def cache_folder() -> Path:
    """Where results and uploads are kept; MIXER_PROBE_CACHE says where else."""
    return Path(os.environ.get(CACHE) or platformdirs.user_cache_dir("mixer_probe"))


def uploads() -> Path:
    """The folder of what was uploaded."""
    return cache_folder() / UPLOADED


def roots() -> dict[str, Path]:
    """The folders and files that the app was started with, by name, and that of uploads.

    They come after `--` on the command line, or from MIXER_PROBE_APP_PATHS."""
    named = [*os.environ.get(PATHS, "").split(os.pathsep), *sys.argv[1:]]
    found: dict[str, Path] = {UPLOADED: uploads().resolve()}
    for text in filter(None, named):
        path = Path(text).expanduser().resolve()
        if path.exists() and path not in found.values():
            found[_free(path.name or "root", found)] = path
    return found


def _free(name: str, taken: dict[str, Path]) -> str:
    numbers = (f"{name}-{i}" for i in range(2, len(taken) + 3))
    return name if name not in taken else next(n for n in numbers if n not in taken)


@st.cache_data(ttl=20, show_spinner=False)
def offers() -> tuple[Offer, ...]:
    """Everything that can be opened, looked for a few levels below the roots."""
    found = [offer for name, root in roots().items() for offer in _below(name, root, 0, [_MOST_FOLDERS], root)]
    return tuple(sorted(found, key=lambda offer: (offer.kind, offer.label)))


def labels(kind: Kind) -> list[str]:
    """What there is of a kind."""
    return [offer.label for offer in offers() if offer.kind == kind]


def resolve(label: str, kind: Kind) -> Path:
    """The path behind a label. Raises StoreError for one that is not below the roots, links included, or is not there."""
    name, _, rest = label.partition("/")
    root = roots().get(name)
    path = Path(os.path.realpath(root / rest)) if root is not None and "\0" not in rest else None
    if root is None or path is None or not path.is_relative_to(root) or not os.path.exists(path):
        known = labels(kind)
        start = "start the app with `mixer-probe app FOLDER` to open files in a folder" if not known else closest(label, known)
        raise StoreError(f"there is no {_NAMES[kind]} '{label}' in the folders of this app; {start}")
    return path


_NAMES: dict[Kind, str] = {"checkpoint": "checkpoint", "run": "stored run", "results": "results file", "images": "image folder"}


def _below(label: str, path: Path, depth: int, left: list[int], root: Path) -> Iterator[Offer]:
    if path.is_file():
        yield from _file(label, path)
        return
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        return
    children = [child for child in _children(path) if inside(child, root)]
    if "zarr.json" in {child.name for child in children}:
        yield Offer("run", label, path)
        return
    if _holds_pictures(children):
        yield Offer("images", label, path)
    for child in children:
        if child.is_file():
            yield from _file(f"{label}/{child.name}", child)
        elif depth < _DEEPEST:
            yield from _below(f"{label}/{child.name}", child, depth + 1, left, root)


def inside(path: Path, *folders: Path) -> bool:
    """Whether a path leads, links included, to something in one of the folders."""
    try:
        return not path.is_symlink() or any(path.resolve().is_relative_to(folder) for folder in folders)
    except (OSError, RuntimeError):
        return False


def _children(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if not child.name.startswith("."))[:5000]
    except OSError:
        return []


def _file(label: str, path: Path) -> Iterator[Offer]:
    if path.suffix in CHECKPOINTS:
        yield Offer("checkpoint", label, path)
    elif path.name == "results.json":
        yield Offer("results", label, path)


def _holds_pictures(children: list[Path]) -> bool:
    """Pictures here, or one folder a class with pictures in each of the first ones."""
    if any(child.suffix.lower() in PICTURES for child in children):
        return True
    folders = [child for child in children if child.is_dir()][:3]
    return bool(folders) and all(any(c.suffix.lower() in PICTURES for c in _children(f)[:50]) for f in folders)


def keep_upload(name: str, content: bytes, suffix: str) -> str:
    """Keep an uploaded file under the hash of its content, and give its label. Raises StoreError where it cannot be kept."""
    file = uploads() / (hashlib.sha256(content).hexdigest()[:16] + suffix)
    try:
        if not file.exists():
            write_bytes(file, content)
    except (OSError, StoreError) as error:
        raise StoreError(f"cannot save the upload '{name}' in {uploads()}: {reason(error)}") from error
    offers.clear()
    return f"{UPLOADED}/{file.name}"
