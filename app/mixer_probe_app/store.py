"""What the app keeps between clicks: networks, and results by what they were made from. One calculation at a time."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

import mixer_probe as mp
from mixer_probe.errors import MixerProbeError, MixerProbeWarning, ModelError
from mixer_probe.models import Model
from mixer_probe.progress import listen
from mixer_probe_app.choice import MOST, UNTRAINED
from mixer_probe_app.messages import plain

T = TypeVar("T")

# How many results of a kind are kept; representations and pictures are the large ones.
_SIZES = {"representations": 2 * MOST, "pictures": 48, "uploads": 2}
_USUAL_SIZE = 64
_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")

# Hooks sit on shared networks, and matplotlib's settings are global: a second session waits for the first.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class Kept:
    """A result and the warnings that came with it."""

    value: Any
    warnings: tuple[str, ...]


class Shelf:
    """The `size` things last used, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Kept | None:
        """What is kept under `key`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, kept: Kept) -> None:
        """Keep it, and let go of what was not used for longest."""
        with self._lock:
            self._kept[key] = kept
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


@st.cache_resource(show_spinner=False)
def shelf(kind: str) -> Shelf:
    """The results of one kind, shared by all sessions."""
    return Shelf(_SIZES.get(kind, _USUAL_SIZE))


def made(kind: str, key: Hashable, title: str, make: Callable[[], T]) -> T:
    """The result kept under `key`, or a new one from `make`, with a progress bar under `title` meanwhile.

    `key` has to name everything that decides the result: hashes of weights and images, and the settings."""
    kept = shelf(kind).get(key)
    if kept is None:
        with _working(title):
            # Another session may have made it while this one was waiting.
            kept = shelf(kind).get(key) or _observed(make)
            shelf(kind).put(key, kept)
    for text in kept.warnings:
        st.warning(plain(text), icon=":material/warning:")
    found: T = kept.value
    return found


def _observed(make: Callable[[], Any]) -> Kept:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MixerProbeWarning)
        value = make()
    return Kept(value, tuple(dict.fromkeys(str(w.message) for w in caught)))


@contextmanager
def _working(title: str) -> Iterator[None]:
    """Hold the one place for calculations, and show how far it is. Each report is also where Streamlit can stop the run."""
    place = st.empty()
    bar = place.progress(0.0, text=plain(title))
    while not _one_at_a_time.acquire(timeout=0.5):
        bar.progress(0.0, text=f"{plain(title)}: waiting for another calculation to end")

    def show(step: str, done: int, total: int) -> None:
        bar.progress(min(1.0, done / max(1, total)), text=f"{plain(step)} ({done} of {total})")

    try:
        listen(show)
        yield
    finally:
        listen(None)
        _one_at_a_time.release()
        place.empty()


def model(choice: str) -> Model:
    """The network `choice`. Raises ModelError; a failure is remembered, since looking for weights can take a minute."""
    failed: dict[str, str] = st.session_state.setdefault("failed models", {})
    if choice in failed:
        raise ModelError(failed[choice])
    try:
        return _load(choice)
    except MixerProbeError as error:
        failed[choice] = str(error)
        raise


def forget_failures() -> None:
    """Let networks that could not be loaded be tried again."""
    st.session_state.pop("failed models", None)


@st.cache_resource(max_entries=MOST, show_spinner="Loading a network …")
def _load(choice: str) -> Model:
    if choice.startswith(_ELSEWHERE):
        raise ModelError(
            f"'{choice}' is neither a bundled network nor a timm name; `mixer-probe report` on a command line takes it"
        )
    with _one_at_a_time:
        if choice.startswith("zoo:"):
            return mp.load_model(choice)
        return mp.load_model(choice.removesuffix(UNTRAINED), pretrained=not choice.endswith(UNTRAINED))
