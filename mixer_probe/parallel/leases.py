"""`Lease`: one process at a time does a piece of work, and another takes over from one that died.

A lease is a file that says who holds it and since when. It works wherever files do, also between
machines, and nothing else has to run. Two processes that ask at the same moment may both get it
where files cannot be created exclusively: what is done under a lease gives the same bytes whoever
does it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from mixer_probe.core.errors import StoreError
from mixer_probe.core.places import Place

# Seconds after which a holder that says nothing is taken for dead, and between two signs of life.
EXPIRES, RENEWED = 120.0, 20.0


class Lease:
    """The lease `name` in `place`. While it is held, a thread renews it. Raises OSError."""

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name = place, name
        self._key = secrets.token_hex(8)
        self._released = threading.Event()

    def take(self) -> bool:
        """Whether it is held now; False where another process that lives holds it."""
        if self.holder() is not None:
            return False
        self._write()
        held = self._read()
        if held is None or held.key != self._key:
            return False
        threading.Thread(target=self._renew, daemon=True).start()
        return True

    def release(self) -> None:
        """Give it back, unless another process has it by now."""
        self._released.set()
        with suppress(OSError):
            held = self._read()
            if held is not None and held.key == self._key:
                self._place.remove([self._name])

    def _renew(self) -> None:
        while not self._released.wait(RENEWED):
            # The next one may succeed.
            with suppress(OSError, StoreError):
                self._write()

    def holder(self) -> str | None:
        """Who holds it, another process that lives, in words; None where nobody does."""
        held, here = self._read(), socket.gethostname()
        if held is None or held.key == self._key or time.time() - held.time > EXPIRES:
            return None
        if held.host != here:
            return f"process {held.pid} on {held.host}"
        return f"process {held.pid}" if _lives(held.pid) else None

    def _read(self) -> _Holder | None:
        try:
            return _Holder(**json.loads(self._place.read(self._name)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self) -> None:
        held = _Holder(self._key, socket.gethostname(), os.getpid(), time.time())
        self._place.write(self._name, json.dumps(held._asdict()).encode())


class _Holder(NamedTuple):
    key: str
    host: str
    pid: int
    time: float


def _lives(pid: int) -> bool:
    """Whether there is a process of this number here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
