"""Activations of a run by image and channel, of which a part is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np

from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import reason, remedy
from mixer_probe.core.memory import ROWS, WORKING, at_once, slices
from mixer_probe.core.rows import Rows
from mixer_probe.similarity.inputs import RepresentationsLike

# Bytes of activations that are held in float64; ranks, squares and sums take several times as many.
HELD = WORKING // 16


def array_of(reps: RepresentationsLike, name: str) -> Any:
    """The numbers of a layer: an array, or of a store what reads the rows that it is asked for."""
    return getattr(reps, "array", reps.__getitem__)(name)


class ImageMeans(Rows):
    """Activations [image, channel] of a layer in float64, averaged over positions where there are
    any; `means[rows]` reads those of some images.

    `channels` are some of them, in that order; None for all."""

    def __init__(
        self, reps: RepresentationsLike, name: str, channels: np.ndarray | None = None
    ) -> None:
        super().__init__(array_of(reps, name))
        self._of, self._channels = (reps, name), channels
        self._stored = self.dtype if self.ndim == 2 else np.dtype(np.float64)
        width = self.shape[-1] if channels is None else len(channels)
        self.dtype, self.ndim, self.shape = np.dtype(np.float64), 2, (self.shape[0], width)

    def only(self, channels: np.ndarray) -> ImageMeans:
        """The same for some channels."""
        return ImageMeans(*self._of, channels)

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = np.asarray(self._array[rows])
        if self._channels is not None:
            values = values[..., self._channels]
        if values.ndim == 3:
            values = values.mean(1, dtype=np.float64)
        return np.asarray(values, dtype=np.float64)

    def by_channels(self) -> Iterator[np.ndarray]:
        """Activations [image, channel] of some channels at a time, in order: as many as fit into
        `HELD` bytes. Where these are not all of a run on disk, a temporary file has them channel by
        channel.

        Raises StoreError where that cannot be written."""
        n, width = self.shape
        parts = [*slices(width, at_once(8 * n, HELD))]
        if len(parts) == 1 or isinstance(self._array, np.ndarray):
            known = np.arange(width) if self._channels is None else self._channels
            yield from (self.only(known[part])[:] for part in parts)
            return
        size = at_once(8 * width, HELD, least=ROWS) // ROWS * ROWS
        try:
            with TemporaryFile() as file:
                for rows in slices(n, size):
                    values = self[rows].astype(self._stored)
                    for part in parts:
                        columns = part.stop - part.start
                        place = n * part.start + rows.start * columns
                        file.seek(place * self._stored.itemsize)
                        file.write(values[:, part].tobytes())
                file.seek(0)
                for part in parts:
                    count = n * (part.stop - part.start)
                    content = file.read(count * self._stored.itemsize)
                    found = np.frombuffer(content, self._stored).reshape(n, -1)
                    yield found.astype(np.float64)
        except OSError as error:
            raise StoreError(
                f"could not write to the temporary folder {gettempdir()} ({reason(error)}): "
                f"{remedy(error)} and try again"
            ) from error
