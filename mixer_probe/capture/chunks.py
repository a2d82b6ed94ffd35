"""zarr stores that note what is written, and that miss what is not there."""

from __future__ import annotations

import hashlib
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class MissingChunkError(Exception):
    """A file of an array is not there; zarr would take its values for the fill value."""


class Noting(WrapperStore[Any]):
    """Notes size and SHA-256 of everything that is written, in `written` by name."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: dict[str, dict[str, Any]] = {}

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        content = value.to_bytes()
        self.written[key] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        await self._store.set(key, value)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file. Chunks are written whole, and what an interrupted process left of one is of
        no use."""
        if "/c/" in key:
            return None
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        return found


class Strict(WrapperStore[Any]):
    """Raises `MissingChunkError` for chunks that are not there, or empty."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file."""
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        if "/c/" in key and not (found and len(found)):
            raise MissingChunkError(key)
        return found
