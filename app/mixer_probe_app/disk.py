"""Results on the disk, across restarts, at a place that follows from what was computed, from what,
and by which code.

Whatever is wrong with the disk, the app works without it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows removes no file that is open
    fcntl = None  # type: ignore[assignment]

import mixer_probe as mp
from mixer_probe.capture import Representations
from mixer_probe.capture.store import writing
from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import write_bytes
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe_app.local_files import UPLOADED, cache_folder

# In bytes; what was not used for longest leaves first.
MOST = 4 * 2**30
_RESULTS = "results"


@cache
def code_version() -> str:
    """The version and, for a working copy, the state of the source: numbers of other code are never
    shown."""
    home = Path(str(mp.__file__)).parent
    state = [
        (str(f.relative_to(home)), f.stat().st_size, f.stat().st_mtime_ns)
        for f in sorted(home.rglob("*.py"))
    ]
    return hashlib.sha256(repr((mp.__version__, state)).encode()).hexdigest()


def place(kind: str, key: Hashable, suffix: str) -> Path:
    """The path of something of this kind, key and code."""
    digest = hashlib.sha256(repr((kind, key, code_version())).encode()).hexdigest()[:32]
    return cache_folder() / _RESULTS / kind.replace(" ", "_") / (digest + suffix)


def read(kind: str, key: Hashable) -> tuple[Any, tuple[str, ...]] | None:
    """A result and its warnings, or None where there is none that can be read; a damaged file, or
    one of another key, is removed.

    Nothing is unpickled: results are JSON with plain arrays."""
    file = place(kind, key, ".json.gz")
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        if content["key"] != repr(key):
            raise ValueError("of another key")
        found = from_dict(content["value"]), tuple(map(str, content["warnings"]))
    except FileNotFoundError:
        return None
    except Exception:  # whatever a damaged file says
        _remove(file)
        return None
    use(file)
    return found


def write(kind: str, key: Hashable, value: Any, warnings: tuple[str, ...]) -> None:
    """Save a result whole or not at all; things that are no plain data (pictures, networks) are not
    saved."""
    try:
        text = json.dumps({"key": repr(key), "value": to_dict(value), "warnings": warnings})
    except TypeError:
        return
    with contextlib.suppress(OSError, StoreError):
        write_bytes(place(kind, key, ".json.gz"), gzip.compress(text.encode(), compresslevel=3))
        tidy()


def store(key: Hashable, extract: Callable[[Path | None], Representations]) -> Representations:
    """Representations at a place of their own on the disk: those that `extract` finds there or
    computes there.

    What is there and cannot be read is computed again; without a place, and where another process
    writes, in memory."""
    entry = place("representations", key, ".zarr")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return extract(None)
    try:
        was_there = entry.exists()
        found = extract(entry)
        if was_there:
            for layer in found.layers:  # chunks are checked when they are read
                found[layer.name]
    except StoreError:
        found = extract(entry if _remove(entry) else None)
    hold(entry, found)
    use(entry)
    tidy()
    return found


# -- limits ----------------------------------------------------------------------------------------


def use(entry: Path) -> None:
    """Mark a file or folder as used now, by its time of access; its time of change identifies what
    it holds."""
    with contextlib.suppress(OSError):
        os.utime(entry, ns=(time.time_ns(), entry.stat().st_mtime_ns))


def hold(entry: Path, reader: object) -> None:
    """Protect a file or folder from being removed, by this process and by others, as long as
    `reader` lives."""
    handle = _lock(entry, exclusive=False)
    if handle is not None:
        weakref.finalize(reader, os.close, handle)


def tidy(most: int = MOST) -> None:
    """Remove what was not used for longest, results and uploads alike, until the rest takes less
    than `most` bytes. What somebody holds or writes stays."""
    home = cache_folder()
    entries = []
    for entry in (*(home / _RESULTS).glob("*/[!.]*"), *(home / UPLOADED).glob("[!.]*")):
        with contextlib.suppress(OSError):  # another process tidies too
            status = entry.stat()
            size = status.st_size
            if entry.is_dir():
                size = 0
                for folder, _, names in os.walk(entry):
                    for name in names:
                        with contextlib.suppress(OSError):
                            size += os.lstat(os.path.join(folder, name)).st_size
                # Measuring it was no use of it.
                os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns))
            entries.append((status.st_atime_ns, size, entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= most:
            return
        total -= size if _remove(entry) else 0


def _remove(entry: Path) -> bool:
    """Remove a file or folder that nobody holds or writes; whether it is gone."""
    try:
        with writing(entry):
            handle = _lock(entry, exclusive=True)
            if handle is None:
                return not entry.exists()
            # Away at once, so that nobody finds half of it.
            gone = entry.with_name(f".{entry.name}.{os.getpid()}.gone")
            try:
                os.replace(entry, gone)
            finally:
                os.close(handle)
            shutil.rmtree(gone, ignore_errors=True) if gone.is_dir() else gone.unlink(
                missing_ok=True
            )
            return True
    except (OSError, StoreError):
        return False


def _lock(entry: Path, *, exclusive: bool) -> int | None:
    """A handle that locks a file or folder; None where that is not possible now."""
    try:
        handle = os.open(entry, os.O_RDONLY)
    except OSError:
        return None
    if fcntl is not None:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
    return handle
