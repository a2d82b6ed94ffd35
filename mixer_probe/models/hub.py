"""The Hugging Face hub: find out at once that it cannot be reached, instead of trying again for a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

NOT_IN_CACHE = LocalEntryNotFoundError
_PATIENCE = 5.0


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Where the hub does not answer, only look in the cache: huggingface_hub would try every file six times."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers() -> bool:
    """Whether the hub can be reached, through whatever proxy huggingface_hub is set to use."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:
        return False
    return True


def cache_folder() -> str:
    """Where huggingface_hub keeps what it downloaded."""
    return str(constants.HF_HUB_CACHE)
