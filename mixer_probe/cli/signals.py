"""Signals that end a command: what an interrupt keeps, the others keep too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ended(BaseException):
    """A signal ends the process. Like KeyboardInterrupt, which the option parser takes for
    itself."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.code = 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Meanwhile SIGINT, SIGTERM and SIGHUP raise Ended, but for those that are ignored (as `nohup`
    has it)."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: found
            for number in numbers
            if (found := signal.getsignal(number)) is not signal.SIG_IGN
        }

    def end(number: int, _: object) -> None:
        # One is enough: a second one must not stop what the first one lets be kept. A second
        # interrupt still can.
        for other in before:
            if other != signal.SIGINT:
                signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
