"""Units of work: fixed ranges of images, of which a run is written one at a time.

A unit has whole shards of every layer, so that no two processes ever write to one file. What the
units are depends on the images and the layers alone, not on the machine or on how many processes
there are: the batches, and with them the last bits of all numbers, are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mixer_probe.core.memory import LARGE

# Images of a unit, where memory allows; what is lost when a process is killed.
LEAST = 1024
# Of large sets a unit has more images, up to this many units: enough for a few hundred processes.
MOST_UNITS = 512


@dataclass(frozen=True)
class Units:
    """`n` images in units of `size`, the last of which may be smaller."""

    n: int
    size: int

    @classmethod
    def of(cls, n: int, bytes_per_image: int) -> Units:
        """Units of 1,024 images times a power of two, or fewer where the numbers of one exceed
        `LARGE` bytes."""
        size = LEAST
        while n > MOST_UNITS * size:
            size *= 2
        while size > 1 and size * bytes_per_image > LARGE:
            size //= 2
        return cls(n, size)

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, index: int) -> range:
        return range(index * self.size, min((index + 1) * self.size, self.n))

    def of_image(self, image: int) -> int:
        """The unit that an image belongs to."""
        return image // self.size

    def batches(self, index: int, batch_size: int, start: int = 0) -> Iterator[range]:
        """The batches of a unit, from image `start` of the set on."""
        rows = self[index]
        first = max(start, rows.start)
        for begin in range(first, rows.stop, batch_size):
            yield range(begin, min(begin + batch_size, rows.stop))
