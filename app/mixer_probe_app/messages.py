"""What the app says: labels that cannot act as markup, and errors as sentences that say what to
do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
import torch

from mixer_probe.core.errors import CheckpointError, ImagesError, MixerProbeError, ModelError

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~^=])")
_LOG = logging.getLogger("mixer_probe.app")

# The first that fits an error says what to do about it.
_ADVICE: tuple[tuple[type[BaseException], str], ...] = (
    (CheckpointError, "Choose another network, or the architecture of the checkpoint."),
    (
        ModelError,
        "Choose another network, or turn on 'Untrained baseline' if its weights are not on this "
        "machine.",
    ),
    (ImagesError, "Choose other images in the sidebar or on the Home page."),
)


def plain(text: object) -> str:
    """`text` for places that read markdown, so that it shows as it is: no markup, no link, no
    formula."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """A computation that the person stopped: the page has said so, and the part that needs it is
    left out."""


def show_error(error: MixerProbeError) -> None:
    """The sentence of an error, and what a person can do about it."""
    advice = next((text for kind, text in _ADVICE if isinstance(error, kind)), "")
    st.error(f"{plain(error)}\n\n{advice}".strip(), icon=":material/error:")


@contextmanager
def guarded() -> Iterator[None]:
    """Show an error, or full memory, as a message; the rest of the page goes on. What nobody
    foresaw goes to the log as well."""
    try:
        yield
    except Cancelled:
        pass
    except MixerProbeError as error:
        show_error(error)
    except Exception as error:
        if isinstance(
            error, (MemoryError, torch.OutOfMemoryError)
        ) or "can't allocate memory" in str(error):
            st.error(
                "Out of memory.\n\nChoose fewer images or a smaller network.",
                icon=":material/error:",
            )
            return
        _LOG.exception("a part of the page failed")
        st.error(
            f"This part of the page failed ({plain(type(error).__name__)}: "
            f"{plain(str(error)[:300])}). This is a bug in mixer_probe, please report it.",
            icon=":material/bug_report:",
        )
