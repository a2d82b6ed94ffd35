"""`save_pages`: figures as the pages of one PDF file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from mixer_probe.core.files import write_bytes

_DPI = 300


def save_pages(figures: Iterable[Figure], path: Path) -> Path:
    """Write figures as the pages of one PDF, each in its own size, pictures at 300 dpi; whole or
    not at all.

    Fonts are embedded as TrueType, which printers and journals take. Without a date the same
    numbers give the same file. Raises StoreError if it cannot be written."""
    stream = io.BytesIO()
    with (
        mpl.rc_context({"pdf.fonttype": 42}),
        PdfPages(stream, metadata={"CreationDate": None, "Creator": None}) as pages,
    ):
        for figure in figures:
            pages.savefig(figure, dpi=_DPI)
    return write_bytes(path, stream.getvalue())
