"""What the app says: labels that cannot act as markup, and errors as sentences that say what to do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import streamlit as st
import torch

from mixer_probe.core.errors import CheckpointError, ImagesError, MixerProbeError, ModelError

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~^=])")

_SMALLER = "Choose fewer images or a smaller network."
_LOG = logging.getLogger("mixer_probe.app")

# The first that fits an error says what to do about it.
_ADVICE: tuple[tuple[type[BaseException], str], ...] = (
    (CheckpointError, "Choose another network, or the architecture of the checkpoint."),
    (ModelError, "Choose another network, or turn on 'Random weights' if its weights are not on this machine."),
    (ImagesError, "Choose other images in the sidebar or on the Home page."),
)


def plain(text: object) -> str:
    """`text` for places that read markdown, so that it shows as it is: no markup, no link, no formula."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def join(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


class Halted(Exception):  # noqa: N818 - nothing went wrong
    """A calculation that the person stopped: the page has said so, and the part that needs it is left out."""


@contextmanager
def guarded() -> Iterator[None]:
    """Show an error, or full memory, as a message; the rest of the page goes on. What nobody foresaw goes to the log as well."""
    try:
        yield
    except Halted:
        pass
    except MixerProbeError as error:
        st.error(f"{plain(error)}\n\n{advice(error)}".strip(), icon=":material/error:")
    except Exception as error:
        if out_of_memory(error):
            st.error(f"Out of memory.\n\n{_SMALLER}", icon=":material/error:")
            return
        _LOG.exception("a part of the page failed")
        st.error(
            f"This part of the page failed ({plain(type(error).__name__)}: {plain(str(error)[:300])}). This is a bug in "
            "mixer_probe, please report it.",
            icon=":material/bug_report:",
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def advice(error: BaseException) -> str:
    """What a person can do about an error; "" where its own sentence says it all."""
    return next((text for kind, text in _ADVICE if isinstance(error, kind)), "")
