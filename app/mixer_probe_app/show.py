"""Figures, charts, sentences and tables on a page, with their downloads."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from mixer_probe.core.section import Picture, Section
from mixer_probe.core.text import csv_text, slug
from mixer_probe_app import calls
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.store import cached, worker

# Figures are 10.5 inches wide at most: Streamlit makes pictures of more than 1,460 px smaller at
# every run of a page.
_DPI = 135
# Pixels of a saved chart per pixel on the screen, and its width where it takes that of the page.
_SCALE, _WIDTH = 2.0, 640
# Rows from which on a table scrolls.
_LONG = 25
Content = bytes | str | Callable[[], bytes | str]


def figure(
    draw: Callable[[], Figure],
    key: Hashable,
    name: str,
    caption: str,
    frame: pd.DataFrame | None = None,
    alt: str | None = None,
) -> None:
    """A matplotlib figure over the whole width, drawn once for `key`, with downloads of it and of
    its numbers as `name`. `alt` is its alternative text, by default the caption.

    The worker that draws also saves, since matplotlib's settings belong to the whole process."""

    def saved(kind: str) -> bytes:
        stream = io.BytesIO()
        draw().savefig(stream, format=kind, dpi=_DPI)
        return stream.getvalue()

    png = cached("pictures", key, "Drawing", lambda: saved("png"), queue="draw", on_disk=False)
    st.image(png, caption=plain(caption), width="stretch", alt=alt)

    def svg() -> bytes:
        return bytes(worker("draw").join(("svg", key), lambda: saved("svg")).future.result().value)

    downloads(name, frame, png=png, svg=svg)


def chart(
    drawn: alt.TopLevelMixin, name: str, frame: pd.DataFrame, key: str | None = None, **select: Any
) -> Any:
    """An altair chart over the whole width, with downloads of it (SVG, PNG) and of its numbers
    (CSV) as `name`.

    `select` goes to st.altair_chart (on_select="rerun", selection_mode=…); then what is selected is
    returned."""
    found = st.altair_chart(drawn, width="stretch", key=key, **select)
    downloads(
        name, frame, png=partial(saved_chart, drawn, "png"), svg=partial(saved_chart, drawn, "svg")
    )
    return found


def saved_chart(drawn: Any, kind: str) -> bytes:
    """A chart as a "png" or "svg" file; one that takes the width of its page gets one that prints
    well."""
    compound = isinstance(
        drawn, (alt.FacetChart, alt.ConcatChart, alt.HConcatChart, alt.VConcatChart)
    )
    free = not compound and not isinstance(getattr(drawn, "width", None), (int, float))
    sized = drawn.properties(width=_WIDTH) if free else drawn
    if kind == "svg":
        text = io.StringIO()
        sized.save(text, format="svg")
        return text.getvalue().encode()
    stream = io.BytesIO()
    sized.save(stream, format=kind, scale_factor=_SCALE)
    return stream.getvalue()


def downloads(
    name: str,
    frame: pd.DataFrame | None = None,
    *,
    png: Content | None = None,
    svg: Content | None = None,
) -> None:
    """Buttons that save a picture and its numbers as `name`; what is a function is computed when it
    is asked for."""
    csv = None if frame is None else csv_text(frame)
    with st.container(horizontal=True, gap="small"):
        for label, content, mime in (
            ("SVG", svg, "image/svg+xml"),
            ("PNG", png, "image/png"),
            ("CSV", csv, "text/csv"),
        ):
            if content is not None:
                button(label, content, name, label.lower(), mime)


def button(
    label: str, content: Content, name: str, suffix: str, mime: str, kind: str = "tertiary"
) -> None:
    """A button that saves `content` as a file."""
    file = f"{slug(name)}.{suffix}"
    look: Any = {
        "icon": ":material/download:",
        "type": kind,
        "on_click": "ignore",
        "help": f"Save {file}",
    }
    st.download_button(label, content, file, mime, key=f"{suffix} {name}", **look)


def bullets(sentences: Sequence[str]) -> None:
    """Sentences as a list, shown as they are."""
    st.markdown("\n".join(f"- {plain(text)}" for text in sentences))


def findings(results: Sequence[Any], *more: str) -> None:
    """What the report says about these results, in sentences, after `more` of them."""
    with guarded():
        bullets([*more, *calls.findings(results)])


def folded_table(title: str, frame: pd.DataFrame) -> None:
    """A table that opens by a click."""
    with st.expander(plain(title)):
        st.dataframe(frame, hide_index=True, width="stretch")


def caption(picture: Picture) -> None:
    """What a figure of a report shows, and how to read it."""
    st.caption(plain(f"{picture.shows} How to read it: {picture.reading}"))


Replaced = Mapping[str, Callable[[Picture], None] | None]


def report(results: Sequence[Any], replaced: Replaced = MappingProxyType({})) -> None:
    """The sections of a report of these results, as `sections` shows them."""
    with guarded():
        key = calls.key_of_results(results)
        sections(calls.sections(results, key), key, replaced)


def sections(
    found: Sequence[Section], key: Hashable, replaced: Replaced = MappingProxyType({})
) -> None:
    """The sections of a report, one after the other: findings, figures and tables. In place of
    figures whose names are `replaced`, what that shows; nothing for None."""
    for section in found:
        st.header(plain(section.title), anchor=section.anchor, divider="grey")
        for text in section.warnings:
            st.warning(plain(text), icon=":material/warning:")
        bullets(section.paragraphs)
        for number, item in enumerate(section.content):
            if isinstance(item, Picture):
                if item.name in replaced:
                    if (instead := replaced[item.name]) is not None:
                        instead(item)
                    continue
                text, name = (
                    f"{item.shows} How to read it: {item.reading}",
                    f"{section.anchor}-{number + 1}",
                )
                with st.expander(plain(item.shows)) if item.folded else nullcontext():
                    figure(item.draw, (key, section.anchor, number), name, text, alt=item.alt)
                continue
            # Cells with the digits that the report shows.
            texts = pd.DataFrame(
                [[text for text, _number in row] for row in item.rows], columns=item.header
            )
            if item.folded:
                folded_table(item.caption, texts)
                continue
            if len(texts) > _LONG:
                st.dataframe(texts, hide_index=True, width="stretch")
            else:
                # As text that wraps, since a grid would hide columns behind a scroll bar of its
                # own.
                st.table(texts.rename(columns=plain).map(plain), hide_index=True, width="stretch")
            st.caption(plain(item.caption))
