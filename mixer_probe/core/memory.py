"""How much is computed at once, and whether it fits into the machine's memory.

Budgets are in bytes. Those of steps are the same on every machine, so that the order of additions,
and with it the last digits of a result, does not depend on it. What is refused does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch

from mixer_probe.core.errors import MixerProbeError

# Stays in the cache of a core, for steps that read the same numbers several times.
CACHE = 2**21
# Arrays of one step: the overhead of a step is small against its work, and a machine that runs a
# network does not notice them.
WORKING = 2**26
# One step where each further one reads or computes all the rest again, and one on a GPU, which
# fewer numbers do not fill.
LARGE = 2**29
# Held while more is computed with it: as much is left beside a network on a machine of 8 GiB.
RESIDENT = 2**31
# One thing that an exact form of a computation cannot do without: beyond this, another form is
# taken or none.
MOST = 2**32
# Cached on disk, in temporary files that only save time.
ON_DISK = 2**33

# Images of one step of what adds up over images.
ROWS = 1024


def at_once(bytes_each: int, budget: int = WORKING, least: int = 1) -> int:
    """How many items of `bytes_each` fit into `budget` bytes, and `least` where fewer do."""
    return max(least, budget // max(1, bytes_each))


def slices(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `n` items in order."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def of_device(where: torch.device) -> int:
    """Bytes of a step that reads its numbers several times: `CACHE` on a CPU, else `LARGE`."""
    return CACHE if where.type == "cpu" else LARGE


def room(most: float = math.inf) -> float:
    """Bytes that one thing may take here: `most`, and at most 80 % of the machine's memory where
    the system says how much that is; network and copies have the rest."""
    try:
        return min(most, 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return most


def check_fits(
    needed: float, what: str, instead: str, error: type[MixerProbeError], most: float = math.inf
) -> None:
    """Raise `error` if `what`, which takes `needed` bytes, has no `room`; it says what to do
    `instead`."""
    if needed > room(most):
        raise error(
            f"{what} take {needed / 2**30:.4g} GiB and do not fit into "
            f"{room(most) / 2**30:.4g} GiB: {instead}"
        )


class SmallTensors:
    """Copies small tensors on the CPU into blocks of memory that many of them share.

    Allocated one by one, those that outlive a step lie between its large tensors. When these are
    freed, the gaps are too small for the next ones, and the process grows with every step."""

    def __init__(self, dtype: torch.dtype, numbers: int = 2**21) -> None:
        self._dtype, self._numbers = dtype, numbers
        self._free = self._block()

    def __call__(self, value: Any) -> Any:
        """A copy of a tensor of this type that fits into a block; anything else is returned as it
        is."""
        if (
            not isinstance(value, torch.Tensor)
            or value.dtype != self._dtype
            or value.numel() > self._numbers
        ):
            return value
        if value.numel() > len(self._free):
            self._free = self._block()
        place, self._free = self._free.tensor_split([value.numel()])
        return place.view(value.shape).copy_(value)

    def _block(self) -> torch.Tensor:
        with torch.inference_mode(False):
            return torch.empty(self._numbers, dtype=self._dtype)
