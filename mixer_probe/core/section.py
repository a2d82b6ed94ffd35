"""The parts of a report: sections with paragraphs, pictures and tables, without HTML."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mixer_probe.core.result import Result

T = TypeVar("T")

_FORMATS: dict[str, dict[str, Any]] = {
    "svg+xml": {"format": "svg", "metadata": {"Date": None}},
    "png": {"format": "png", "metadata": {"Software": None}},
    "webp": {"format": "webp", "pil_kwargs": {"quality": 82}},
}


_CLIP = re.compile(rb'(?<=<clipPath id=")[^"]+(?=")')


def _numbered_clips(svg: bytes) -> bytes:
    """The same drawing with its clip regions named by number.

    matplotlib names them by a hash of their corners, whose last bit differs from one drawing to the
    next: the solver of constrained layout goes through sets of objects in the order of their
    addresses."""
    names = list(dict.fromkeys(_CLIP.findall(svg)))
    numbers = {name: b"clip%d" % i for i, name in enumerate(names)}
    if not numbers:
        return svg
    named = re.compile(rb"(\bid=\"|url\(#)(" + b"|".join(map(re.escape, names)) + rb")(?=[\")])")
    return named.sub(lambda found: found[1] + numbers[found[2]], svg)


def encode(figure: Figure, kind: str, dpi: int = 160) -> bytes:
    """The figure as a file of the `kind` "svg+xml", "png" or "webp"; equal figures give equal
    files."""
    is_svg, stream, engine = kind == "svg+xml", io.BytesIO(), figure.get_layout_engine()
    # A fixed salt, and no date in the metadata, so that the file depends on the figure alone.
    with mpl.rc_context({"svg.hashsalt": "mixer-probe", "svg.fonttype": "path"}):
        if engine is not None:
            # With an engine, matplotlib lays out in an extra drawing before each file: done here,
            # the file is the same, sooner.
            (FigureCanvasSVG if is_svg else FigureCanvasAgg)(figure)
            own, figure.dpi = figure.dpi, dpi
            engine.execute(figure)
            figure.dpi = own
            figure.set_layout_engine(None)
        try:
            figure.savefig(stream, dpi=dpi, **_FORMATS[kind])
        finally:
            if engine is not None:
                figure.set_layout_engine(engine)
    return _numbered_clips(stream.getvalue()) if is_svg else stream.getvalue()


@dataclass(frozen=True)
class Picture:
    """A figure with a caption (`shows`), how to read it, and alternative text; drawn by `draw` on
    first use, once.

    Vector pictures are embedded as SVG, others as PNG of `dpi`, or as WebP where most of it is a
    `photo`: a third of the size. Those `folded` are opened by a click on the caption."""

    draw: Callable[[], Figure]
    shows: str
    reading: str
    alt: str
    vector: bool = True
    name: str = ""
    folded: bool = False
    dpi: int = 160
    photo: bool = False

    @property
    def file_name(self) -> str:
        """Its name, or what it shows, as the name of a file without suffix."""
        return re.sub(r"[^\w.?=-]+", "-", self.name or self.alt).replace("?", "-").strip("-.")[:120]

    @property
    def data(self) -> str:
        """The picture as a data URI."""
        return f"data:image/{self._kind};base64,{base64.b64encode(self.encoded).decode()}"

    @cached_property
    def figure(self) -> Figure:
        """The figure, drawn once."""
        return self.draw()

    @cached_property
    def encoded(self) -> bytes:
        """The picture as a file, drawn once: SVG where it is a vector picture."""
        return encode(self.figure, self._kind, self.dpi)

    @property
    def _kind(self) -> str:
        return "svg+xml" if self.vector else "webp" if self.photo else "png"


@dataclass(frozen=True)
class Table:
    """A table with a caption; numbers are shown with the digits that `formats` gives for a
    column."""

    caption: str
    frame: pd.DataFrame
    formats: dict[str, str] = field(default_factory=dict)
    folded: bool = False

    @property
    def header(self) -> list[str]:
        """Column titles."""
        return [str(column).replace("_", " ") for column in self.frame.columns]

    @property
    def rows(self) -> list[list[tuple[str, bool]]]:
        """Cells as (text, is a number)."""
        rows = []
        for values in self.frame.itertuples(index=False):
            cells = []
            for column, value in zip(self.frame.columns, values):
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                text = (
                    "–"
                    if number and value != value
                    else self.formats.get(column, "{}").format(value)
                )
                cells.append((text, number or column in self.formats))
            rows.append(cells)
        return rows


@dataclass(frozen=True)
class Section:
    """One question of the report with its answer. `warnings` are highlighted at its head, and `see`
    are anchors of other sections that it depends on."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    content: tuple[Picture | Table, ...] = ()
    warnings: tuple[str, ...] = ()
    see: tuple[str, ...] = ()


Renderer = Callable[[Sequence[Any]], list[Section]]


def table_of(results: Sequence[Result]) -> pd.DataFrame:
    """The tables of all results, one below the other."""
    return pd.concat([r.to_frame() for r in results], ignore_index=True)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Parts of at most `size`, in order."""
    return [items[start : start + size] for start in range(0, len(items), size)]
