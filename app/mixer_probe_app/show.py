"""Pictures, tables and downloads."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial

import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from mixer_probe.report.section import Picture, Section, Table
from mixer_probe_app.messages import plain
from mixer_probe_app.store import made

_DPI = 160


def figure(draw: Callable[[], Figure], key: Hashable, name: str, caption: str, frame: pd.DataFrame | None = None) -> None:
    """A matplotlib figure over the whole width, drawn once for `key`, with downloads of it and of its numbers as `name`."""
    png = made("pictures", key, "Drawing", lambda: _png(draw()))
    st.image(png, caption=plain(caption), width="stretch")
    with st.container(horizontal=True):
        st.download_button("Picture (PNG)", png, f"{slug(name)}.png", "image/png", icon=_DOWNLOAD, key=f"png {key}")
        if frame is not None:
            download_csv(frame, name)


_DOWNLOAD = ":material/download:"


def _png(drawn: Figure) -> bytes:
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def download_csv(frame: pd.DataFrame, name: str) -> None:
    """A button that saves the numbers as `name`.csv."""
    text = frame.to_csv(index=False)
    st.download_button("Numbers (CSV)", text, f"{slug(name)}.csv", "text/csv", icon=_DOWNLOAD, key=f"csv {name}")


def bullets(sentences: Sequence[str]) -> None:
    """Sentences as a list, shown as they are."""
    st.markdown("\n".join(f"- {plain(text)}" for text in sentences))


def folded_table(title: str, frame: pd.DataFrame) -> None:
    """A table that opens by a click."""
    with st.expander(plain(title)):
        st.dataframe(frame, hide_index=True, width="stretch")


def slug(name: str) -> str:
    """A name that is safe as a file name."""
    return "-".join(filter(None, "".join(c if c.isalnum() or c in "._" else "-" for c in name).split("-")))


def sections(found: Sequence[Section], key: Hashable) -> None:
    """The sections of a report, one after the other."""
    for section in found:
        st.header(plain(section.title), anchor=section.anchor, divider="grey")
        for text in section.warnings:
            st.warning(plain(text), icon=":material/warning:")
        bullets(section.paragraphs)
        for number, item in enumerate(section.content):
            _item(item, (key, section.anchor, number), f"{section.anchor}-{number + 1}")


def _item(item: Picture | Table, key: Hashable, name: str) -> None:
    if isinstance(item, Picture):
        with st.expander(plain(item.shows)) if item.folded else nullcontext():
            figure(partial(_drawn, item), key, name, f"{item.shows} How to read it: {item.reading}")
    elif item.folded:
        folded_table(item.caption, _texts(item))
    else:
        st.dataframe(_texts(item), hide_index=True, width="stretch")
        st.caption(plain(item.caption))


def _drawn(picture: Picture) -> Figure:
    return picture.figure


def _texts(table: Table) -> pd.DataFrame:
    """Cells with the digits that the report shows."""
    return pd.DataFrame([[text for text, _number in row] for row in table.rows], columns=table.header)
