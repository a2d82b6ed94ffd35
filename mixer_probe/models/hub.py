"""The Hugging Face hub: find out at once that it cannot be reached, instead of trying again for a
minute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub import utils as hub
from huggingface_hub.errors import LocalEntryNotFoundError

NOT_IN_CACHE = LocalEntryNotFoundError
_PATIENCE = 5.0
_lock = threading.RLock()


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Where the hub does not answer, only look in the cache: huggingface_hub would try every file
    six times.

    Its setting holds for the whole process, so one thread at a time changes it, and only while the
    hub does not answer."""
    with _lock:
        before = constants.HF_HUB_OFFLINE
        if before or _answers():
            yield
            return
        _switch(True)
        try:
            yield
        finally:
            _switch(before)


def _switch(offline: bool) -> None:
    constants.HF_HUB_OFFLINE = offline
    # Before version 1, open sessions keep the setting that they began with.
    getattr(hub, "reset_sessions", lambda: None)()


def _answers() -> bool:
    """Whether the hub can be reached, through whatever proxy huggingface_hub is set to use."""
    try:
        hub.get_session().head(constants.ENDPOINT, timeout=_PATIENCE)  # type: ignore[attr-defined]
    except Exception:
        return False
    return True


def cache_folder() -> str:
    """Where huggingface_hub keeps what it downloaded."""
    return str(constants.HF_HUB_CACHE)
