"""Files: written whole or not at all, by one process at a time, synced to disk; and error texts
with the system's own reason."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mixer_probe.core.errors import StoreError
from mixer_probe.core.text import escape

# Temporary files have names of their own, so that those of a killed process can be removed.
_UNDER_WAY = ".mixer-probe-*.tmp"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SURROGATE = re.compile("[\ud800-\udfff]")


# -- writing ---------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, made `printable`; otherwise as `write_bytes`."""
    return write_bytes(path, printable(text).encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path`, whole or not at all: to a temporary file beside it, which takes
    its place once on the disk.

    A full disk, an interrupt or a power failure leaves what was at `path`, and a killed process at
    most a file that `remove_leftovers` removes. The mode is that of any new file: 0666 less the
    umask. Parent folders are created. Returns `path`. Raises StoreError for a device or a pipe,
    which a file would replace, and if the system refuses, with its reason."""
    temporary = path.parent / _UNDER_WAY.replace("*", secrets.token_hex(8))
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise StoreError(
                f"cannot write {printable(path)}: it is a device or a pipe; give the name of a file"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, ValueError)):
            raise StoreError(f"cannot write {printable(path)}: {reason(error)}") from error
        raise
    return path


def make_folder(path: Path) -> Path:
    """Make a folder and those above it. Returns `path`. Raises StoreError if the system refuses,
    with its reason."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot create the folder {printable(path)}: {reason(error)}") from error
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`; for its only writer."""
    for file in folder.glob(_UNDER_WAY):
        file.unlink(missing_ok=True)


def is_leftover(file: Path) -> bool:
    """Whether a file is a temporary one of `write_bytes`."""
    return file.match(_UNDER_WAY)


def sync(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk; many at once, which takes as long as one.
    Raises OSError."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems of networks cannot wait for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


# -- error texts -----------------------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """Why the system refused, in its own words."""
    return printable(getattr(error, "strerror", None) or error)


def remedy(error: BaseException) -> str:
    """What to do about it: free space only where the disk is full."""
    return "free disk space" if is_full(error) else "fix this"


def is_full(error: BaseException) -> bool:
    """Whether an error has a full disk or quota as a cause."""
    return any(isinstance(cause, OSError) and cause.errno in _NO_ROOM for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the chain of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def printable(text: object) -> str:
    r"""The text with surrogates, which UTF-8 cannot encode, escaped: the
    name of a file whose bytes are b"caf\xe9" is printed as "caf\xe9"."""
    said = str(text)
    return said if said.isascii() else _SURROGATE.sub(lambda found: escape(found[0]), said)


def format_mismatch(content: object, expected: str) -> str:
    """In words, that JSON data states another format than is expected; "" where it does not."""
    found = content.get("format") if isinstance(content, dict) else None
    if found == expected:
        return ""
    return f"expected format '{expected}'" + (
        f", found '{found}'" if isinstance(found, str) else ""
    )


def checksum(content: Any) -> str:
    """SHA-256 of JSON data, whatever the order of its keys, in hexadecimal digits."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


# -- one writer ------------------------------------------------------------------------------------


@contextmanager
def only_writer(place: Path, lock: Path) -> Iterator[None]:
    """Hold the file `lock` while `place` is written to, so that two processes, or two threads,
    never write there at once.

    The system releases it when the process ends in any way; nothing is left behind. Where the file
    system has no locks, none is held. Raises StoreError if another process or thread writes there,
    or the lock cannot be created."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot write {printable(place)}: {reason(error)}") from error
        try:
            locked = _lock(handle)
            os.lseek(handle, 0, os.SEEK_SET)
            if not locked:
                pid = os.read(handle, 20).decode(errors="replace").partition("\n")[0]
                process = f"another process (pid {pid})" if pid.isdigit() else "another process"
                writer = "another thread of this process" if pid == str(os.getpid()) else process
                raise StoreError(
                    f"{printable(place)} is being written by {writer}; wait for it or give another "
                    "--out"
                )
            if _is_there(handle, lock):
                os.write(handle, f"{os.getpid()}\n".encode())
                break
        except OSError as error:
            os.close(handle)
            raise StoreError(f"cannot write {printable(place)}: {reason(error)}") from error
        except BaseException:
            os.close(handle)
            raise
        # The previous writer has just released and removed it.
        os.close(handle)
    try:
        yield
    finally:
        # Removed before it is closed: a later writer creates a new file.
        try:
            with suppress(OSError):
                if _is_there(handle, lock):
                    lock.unlink()
        finally:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file by the means of the system without waiting; returns whether it is locked
    now."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 2**20, os.SEEK_SET)  # beyond the number, which others read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _is_there(handle: int, lock: Path) -> bool:
    """Whether the open file is still the one at the path `lock`."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False
