"""`Place`: a folder on this machine or, by a URL such as s3://bucket/runs/mixer, anywhere else that
fsspec reaches."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import printable, sync, write_bytes

if TYPE_CHECKING:
    from zarr.abc.store import Store


class Place:
    """A folder of files, by names with slashes. `path` is its path on this machine, None elsewhere.

    What a file system or a service refuses is an OSError. Raises StoreError for a URL that no
    installed package opens."""

    def __init__(self, where: str | os.PathLike[str]) -> None:
        text = os.fspath(where)
        self.path = None if "://" in text else Path(text)
        self._text = text.rstrip("/") if self.path is None else text
        if self.path is None:
            import fsspec

            try:
                # Listings change while other machines write.
                self._fs, self._root = fsspec.core.url_to_fs(self._text, use_listings_cache=False)
            except (ImportError, ValueError, OSError) as error:
                raise StoreError(f"cannot open {printable(text)}: {error}") from error

    def __str__(self) -> str:
        return printable(self._text)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        if self.path is not None:
            return (self.path / name).read_bytes()
        with _as_os_errors():
            content: bytes = self._fs.cat_file(f"{self._root}/{name}")
            return content

    def write(self, name: str, content: bytes) -> None:
        """A file that appears whole or not at all, and replaces one of the same name."""
        if self.path is not None:
            write_bytes(self.path / name, content)
            return
        with _as_os_errors():
            file = f"{self._root}/{name}"
            # A no-op where there are no folders, as in object stores.
            self._fs.makedirs(file.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(file, content)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Many files at once, of which each may be there in part until all are."""
        if self.path is None:
            with _as_os_errors():
                self._fs.pipe({f"{self._root}/{name}": content for name, content in files.items()})
            return
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.sync(files)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, where they are there."""
        for name in names:
            if self.path is not None:
                (self.path / name).unlink(missing_ok=True)
                continue
            with _as_os_errors():
                try:
                    self._fs.rm_file(f"{self._root}/{name}")
                except FileNotFoundError:
                    continue

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every file below a folder, by its name from here, with its bytes; none where there is no
        such folder."""
        if self.path is not None:
            found_here = {}
            for file in (self.path / folder).rglob("*"):
                # Another process may remove it meanwhile.
                with suppress(FileNotFoundError):
                    info = file.stat()
                    if stat.S_ISREG(info.st_mode):
                        found_here[file.relative_to(self.path).as_posix()] = info.st_size
            return found_here
        top_url = f"{self._root}/{folder}".rstrip("/")
        with _as_os_errors():
            found: dict[str, Any] = self._fs.find(top_url, detail=True)
        start = len(self._fs._strip_protocol(self._root)) + 1
        return {name[start:]: int(about["size"] or 0) for name, about in found.items()}

    def sync(self, names: Iterable[str]) -> None:
        """Wait until files, and the folders above them, are on the disk; elsewhere they are safe
        once they are written."""
        if self.path is not None:
            files = [self.path / name for name in names]
            folders = {folder for file in files for folder in file.parents}
            sync({*files, *(f for f in folders if f.is_relative_to(self.path))})

    def zarr(self, *, read_only: bool = False) -> Store:
        """The place as zarr takes it."""
        from zarr.storage import FsspecStore, LocalStore

        if self.path is not None:
            return LocalStore(self.path, read_only=read_only)
        options = {"use_listings_cache": False}
        return FsspecStore.from_url(self._text, storage_options=options, read_only=read_only)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """What the libraries of services raise as OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
