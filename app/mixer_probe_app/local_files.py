"""The files that the app may open by path: checkpoints, runs, results and image folders below the
folders that it was started with, and uploads. Nothing else on the disk is read by name."""

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
_NAMES: dict[Kind, str] = {
    "checkpoint": "checkpoint",
    "run": "stored run",
    "results": "results file",
    "images": "image folder",
}
# A folder of a data set has a million files; only its top levels are searched.
_DEEPEST, _MOST_FOLDERS, _MOST_CHILDREN = 3, 2000, 5000


@dataclass(frozen=True)
class LocalFile:
    """A file or folder that can be opened. `label` stands for it in the URL: the name of its root
    and the path below it."""

    kind: Kind
    label: str
    path: Path


@cache
def cache_folder() -> Path:
    """The folder of cached results and uploads, which MIXER_PROBE_CACHE can set."""
    return Path(os.environ.get(CACHE) or platformdirs.user_cache_dir("mixer_probe"))


def uploads() -> Path:
    """The folder of uploads."""
    return cache_folder() / UPLOADED


def roots() -> dict[str, Path]:
    """The folders and files that the app was started with, by name, and that of uploads.

    They come after `--` on the command line, or from MIXER_PROBE_APP_PATHS."""
    named = [*os.environ.get(PATHS, "").split(os.pathsep), *sys.argv[1:]]
    found: dict[str, Path] = {UPLOADED: uploads().resolve()}
    for text in filter(None, named):
        path = Path(text).expanduser().resolve()
        if path.exists() and path not in found.values():
            name = path.name or "root"
            names = (name, *(f"{name}-{i}" for i in range(2, len(found) + 3)))
            found[next(free for free in names if free not in found)] = path
    return found


@st.cache_data(ttl=20, show_spinner=False)
def local_files() -> tuple[LocalFile, ...]:
    """Everything that can be opened, found in the top levels below the roots."""
    found = [
        file
        for name, root in roots().items()
        for file in _below(name, root, 0, [_MOST_FOLDERS], root)
    ]
    return tuple(sorted(found, key=lambda file: (file.kind, file.label)))


def labels(kind: Kind) -> list[str]:
    """The labels of all files of a kind."""
    return [file.label for file in local_files() if file.kind == kind]


def resolve(label: str, kind: Kind) -> Path:
    """The path behind a label. Raises StoreError for one that is not below the roots, links
    included, or is not there."""
    name, _, rest = label.partition("/")
    root = roots().get(name)
    path = Path(os.path.realpath(root / rest)) if root is not None and "\0" not in rest else None
    if root is None or path is None or not path.is_relative_to(root) or not os.path.exists(path):
        known = labels(kind)
        start = (
            "start the app with `mixer-probe app FOLDER` to open files in a folder"
            if not known
            else closest(label, known)
        )
        raise StoreError(
            f"there is no {_NAMES[kind]} '{label}' in the folders of this app; {start}"
        )
    return path


def inside(path: Path, *folders: Path) -> bool:
    """Whether a path leads, links included, to something in one of the folders."""
    try:
        return not path.is_symlink() or any(
            path.resolve().is_relative_to(folder) for folder in folders
        )
    except (OSError, RuntimeError):
        return False


def keep_upload(name: str, content: bytes, suffix: str) -> str:
    """Save an uploaded file under the hash of its content, and give its label. Raises StoreError
    where it cannot be saved."""
    file = uploads() / (hashlib.sha256(content).hexdigest()[:16] + suffix)
    try:
        if not file.exists():
            write_bytes(file, content)
    except (OSError, StoreError) as error:
        raise StoreError(
            f"cannot save the upload '{name}' in {uploads()}: {reason(error)}"
        ) from error
    local_files.clear()
    return f"{UPLOADED}/{file.name}"


def _below(
    label: str, path: Path, depth: int, folders_left: list[int], root: Path
) -> Iterator[LocalFile]:
    if path.is_file():
        if path.suffix in CHECKPOINTS:
            yield LocalFile("checkpoint", label, path)
        elif path.name == "results.json":
            yield LocalFile("results", label, path)
        return
    folders_left[0] -= 1
    if folders_left[0] < 0 or depth > _DEEPEST:
        return
    children = [child for child in _children(path) if inside(child, root)]
    if "zarr.json" in {child.name for child in children}:
        yield LocalFile("run", label, path)
        return
    # Pictures here, or a folder per class with pictures in each of the first ones.
    classes = [child for child in children if child.is_dir()][:3]
    pictures = [
        any(c.suffix.lower() in PICTURES for c in _children(folder)[:50]) for folder in classes
    ]
    if any(child.suffix.lower() in PICTURES for child in children) or (pictures and all(pictures)):
        yield LocalFile("images", label, path)
    for child in children:
        yield from _below(f"{label}/{child.name}", child, depth + 1, folders_left, root)


def _children(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if not child.name.startswith("."))[
            :_MOST_CHILDREN
        ]
    except OSError:
        return []
