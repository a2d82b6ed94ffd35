"""The pictures of a report drawn in parallel processes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from multiprocessing import get_context

from mixer_probe.core.section import Picture, Section

_pictures: list[Picture] = []


def draw_in_parallel(sections: Sequence[Section], workers: int) -> None:
    """Draw all pictures of the sections, which keep the files, in so many processes.

    The processes are copies of this one, and begin with all results in memory. Where a process
    cannot be copied safely, for it has further threads or is not on Linux, pictures are drawn when
    they are needed, as ever."""
    found = [p for section in sections for p in section.content if isinstance(p, Picture)]
    if sys.platform != "linux" or threading.active_count() > 1 or min(workers, len(found)) < 2:
        return
    _pictures[:] = found
    try:
        with get_context("fork").Pool(workers) as pool:
            for picture, file in zip(found, pool.map(_file, range(len(found)), 1), strict=True):
                # Where the property keeps what it has drawn.
                picture.__dict__["encoded"] = file
    finally:
        _pictures.clear()


def _file(index: int) -> bytes:
    return _pictures[index].encoded
