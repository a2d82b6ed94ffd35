"""Progress of long work: one shared display with a bar per task, nested tasks included; silent
without a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int], None]
Listener = Callable[[str, int, int], None]

_display: Progress | None = None
_listener: Listener | None = None
_depth = 0


def listen(listener: Listener | None) -> None:
    """Send (title, done, total) of every step to `listener` as well; None stops that."""
    global _listener
    _listener = listener


@contextmanager
def task(title: str, total: int) -> Iterator[Advance]:
    """A task of `total` steps; call the yielded function with the number of steps just done.

    The bars are shown on a terminal, unless MIXER_PROBE_PROGRESS is 0 (never) or 1 (always)."""
    global _display, _depth
    _depth += 1
    wanted = os.environ.get("MIXER_PROBE_PROGRESS", "")
    if _depth == 1 and (wanted == "1" or (wanted != "0" and sys.stderr.isatty())):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        times = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        _display = Progress(
            TextColumn("{task.description}"), *times, console=Console(stderr=True), transient=True
        )
        _display.start()
    display = _display
    bar = display.add_task(title, total=total) if display else None
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        if display is not None and bar is not None:
            display.advance(bar, steps)
        if _listener:
            _listener(title, done, total)

    try:
        yield advance
    finally:
        if display is not None and bar is not None:
            display.remove_task(bar)
        _depth -= 1
        if _depth == 0 and _display:
            _display.stop()
            _display = None
