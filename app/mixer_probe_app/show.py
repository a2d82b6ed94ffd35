"""Pictures, charts, tables and their downloads."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.text import csv_text
from mixer_probe_app.messages import plain
from mixer_probe_app.store import made, worker

# Figures are 10.5 inches wide at most: Streamlit makes pictures of more than 1,460 px smaller at every run of a page.
_DPI = 135
_DOWNLOAD = ":material/download:"
# Pixels of a chart for each pixel on the screen.
_SCALE = 2.0
_WIDTH = 640
# Rows from which on a table scrolls.
_LONG = 25


def figure(
    draw: Callable[[], Figure], key: Hashable, name: str, caption: str, frame: pd.DataFrame | None = None, alt: str | None = None
) -> None:
    """A matplotlib figure over the whole width, drawn once for `key`, with downloads of it and of its numbers as `name`. `alt` is
    its alternative text, by default the caption."""
    png = made("pictures", key, "Drawing", lambda: _saved(draw, "png"), lane="draw", keep=False)
    st.image(png, caption=plain(caption), width="stretch", alt=alt)
    downloads(name, frame, png=png, svg=partial(_drawn_again, draw, key))


def _saved(draw: Callable[[], Figure], kind: str) -> bytes:
    stream = io.BytesIO()
    draw().savefig(stream, format=kind, dpi=_DPI)
    return stream.getvalue()


def _drawn_again(draw: Callable[[], Figure], key: Hashable) -> bytes:
    """As SVG, by the one who draws, since matplotlib's settings are of the whole process."""
    from mixer_probe_app.store import Kept

    return bytes(worker("draw").join(("svg", key), lambda: Kept(_saved(draw, "svg"), ())).future.result().value)


def chart(drawn: alt.TopLevelMixin, name: str, frame: pd.DataFrame, key: str | None = None, **select: Any) -> Any:
    """An altair chart over the whole width, with downloads of it (SVG, PNG) and of its numbers (CSV) as `name`.

    `select` goes to st.altair_chart (on_select="rerun", selection_mode=…); then what is selected is returned."""
    found = st.altair_chart(drawn, width="stretch", key=key, **select)
    downloads(name, frame, png=partial(_converted, drawn, "png"), svg=partial(_converted, drawn, "svg"))
    return found


def _converted(drawn: Any, kind: str) -> bytes:
    """As a file; a chart that takes the width of its page gets one that prints well."""
    compound = isinstance(drawn, (alt.FacetChart, alt.ConcatChart, alt.HConcatChart, alt.VConcatChart))
    free = not compound and not isinstance(getattr(drawn, "width", None), (int, float))
    sized = drawn.properties(width=_WIDTH) if free else drawn
    if kind == "svg":
        text = io.StringIO()
        sized.save(text, format="svg")
        return text.getvalue().encode()
    stream = io.BytesIO()
    sized.save(stream, format=kind, scale_factor=_SCALE)
    return stream.getvalue()


Content = bytes | str | Callable[[], bytes | str]


def downloads(name: str, frame: pd.DataFrame | None = None, *, png: Content | None = None, svg: Content | None = None) -> None:
    """Buttons that save a picture and its numbers as `name`; what is a function is made when it is asked for."""
    with st.container(horizontal=True, gap="small"):
        if svg is not None:
            button("SVG", svg, name, "svg", "image/svg+xml")
        if png is not None:
            button("PNG", png, name, "png", "image/png")
        if frame is not None:
            button("CSV", csv_text(frame), name, "csv", "text/csv")


def button(label: str, content: Content, name: str, suffix: str, mime: str) -> None:
    """A button that saves `content` as a file."""
    file = f"{slug(name)}.{suffix}"
    st.download_button(
        label,
        content,
        file,
        mime,
        icon=_DOWNLOAD,
        key=f"{suffix} {name}",
        type="tertiary",
        on_click="ignore",
        help=f"Save {file}",
    )


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
            figure(item.draw, key, name, f"{item.shows} How to read it: {item.reading}", alt=item.alt)
    elif item.folded:
        folded_table(item.caption, _texts(item))
    else:
        texts = _texts(item)
        if len(texts) > _LONG:
            st.dataframe(texts, hide_index=True, width="stretch")
        else:
            # As text that wraps, since a grid would hide columns behind a scroll bar of its own.
            st.table(texts.rename(columns=plain).map(plain), hide_index=True, width="stretch")
        st.caption(plain(item.caption))


def _texts(table: Table) -> pd.DataFrame:
    """Cells with the digits that the report shows."""
    return pd.DataFrame([[text for text, _number in row] for row in table.rows], columns=table.header)
