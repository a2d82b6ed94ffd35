"""Results on the disk, across restarts: what it is, what it was made from and which code made it decide its place.

Whatever is wrong with the disk, the app works without it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import mixer_probe as mp
from mixer_probe.core.files import write_bytes
from mixer_probe.errors import StoreError
from mixer_probe.results import from_dict, to_dict
from mixer_probe_app.offers import cache_folder

# In bytes. What was not used for longest goes first.
MOST = 4 * 2**30
_RESULTS = "results"


@cache
def code_version() -> str:
    """The version and, for a working copy, the state of the source: numbers of other code are never shown."""
    home = Path(str(mp.__file__)).parent
    state = [(str(f.relative_to(home)), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(home.rglob("*.py"))]
    return hashlib.sha256(repr((mp.__version__, state)).encode()).hexdigest()


def place(kind: str, key: Hashable, suffix: str) -> Path:
    """Where something of this kind, key and code is kept."""
    digest = hashlib.sha256(repr((kind, key, code_version())).encode()).hexdigest()[:32]
    return cache_folder() / _RESULTS / kind.replace(" ", "_") / (digest + suffix)


def read(kind: str, key: Hashable) -> tuple[Any, tuple[str, ...]] | None:
    """A result and its warnings, or None where there is none that can be read."""
    file = place(kind, key, ".json.gz")
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        found = from_dict(content["value"]), tuple(content["warnings"])
        os.utime(file)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, StoreError):
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    return found


def write(kind: str, key: Hashable, value: Any, warnings: tuple[str, ...]) -> None:
    """Keep a result whole or not at all; things that are no plain data (pictures, networks) are not kept."""
    try:
        text = json.dumps({"key": repr(key), "value": to_dict(value), "warnings": warnings})
    except TypeError:
        return
    file = place(kind, key, ".json.gz")
    with contextlib.suppress(OSError, StoreError):
        write_bytes(file, gzip.compress(text.encode(), compresslevel=3))
        tidy()


def tidy(most: int = MOST) -> None:
    """Remove what was not used for longest until the rest takes less than `most` bytes."""
    entries = [(entry.stat().st_mtime, _size(entry), entry) for entry in (cache_folder() / _RESULTS).glob("*/*")]
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= most:
            return
        shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        total -= size


def _size(entry: Path) -> int:
    return sum(f.stat().st_size for f in entry.rglob("*") if f.is_file()) if entry.is_dir() else entry.stat().st_size
