"""What the app says: labels that cannot act as markup, and errors as sentences that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import streamlit as st
import torch

from mixer_probe.errors import CheckpointError, ImagesError, MixerProbeError, ModelError, StoreError

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~^=])")

# The first that fits an error says what to do about it.
_ADVICE: tuple[tuple[type[BaseException], str], ...] = (
    (CheckpointError, "Choose another network, or turn on 'Random weights' where only the architecture matters."),
    (ModelError, "Choose another network, or turn on 'Random weights' for one whose weights are not on this machine."),
    (ImagesError, "Choose other images."),
    (StoreError, "Choose the results.json that `mixer-probe demo` or `mixer-probe report` wrote."),
    (MemoryError, "Choose fewer images or a smaller network."),
    (torch.OutOfMemoryError, "Choose fewer images or a smaller network."),
)


def plain(text: object) -> str:
    """`text` for places that read markdown, so that it shows as it is: no markup, no link, no formula."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def join(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


@contextmanager
def guarded() -> Iterator[None]:
    """Show an error made on purpose, or full memory, as a message; the rest of the page goes on."""
    try:
        yield
    except MixerProbeError as error:
        st.error(f"{plain(error)}\n\n{advice(error)}".strip(), icon=":material/error:")
    except (MemoryError, torch.OutOfMemoryError) as error:
        st.error(f"There is not enough memory for this.\n\n{advice(error)}", icon=":material/error:")


def advice(error: BaseException) -> str:
    """What a person can do about an error; "" where its own sentence says it all."""
    return next((text for kind, text in _ADVICE if isinstance(error, kind)), "")
