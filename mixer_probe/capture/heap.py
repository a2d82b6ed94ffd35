"""Keep freed memory in the process while a network runs on the CPU.

glibc hands large freed blocks back to the system, which clears them again before the next layer may
write to them: part of the time of a forward pass of a ViT or Mixer on two cores. Elsewhere
(musl, macOS, Windows) nothing is done.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from mixer_probe.core.threads import Overlapping

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Where glibc's own adjustment ends after a program has freed a large block, as every forward pass
# does. Larger blocks than that go back to the system even inside: kept, they leave holes, and the
# process may take twice the memory of a plain forward pass.
_USUAL_MMAP, _USUAL_TRIM = 2**25, 2**26


@Overlapping
@contextmanager
def kept_heap() -> Iterator[None]:
    """Inside, freed memory stays in the process; after the last of several that overlap, it goes
    back to the system."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM)
        libc.malloc_trim(0)


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
