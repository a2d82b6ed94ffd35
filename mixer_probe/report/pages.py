"""`save_pages`: figures as the pages of one PDF file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from mixer_probe.errors import StoreError

_DPI = 300


def save_pages(figures: Iterable[Figure], path: Path) -> Path:
    """Write figures as the pages of one PDF, each in its own size, pictures at 300 dpi; whole or not at all.

    Fonts are embedded as TrueType, which printers and journals take. Without a date the same numbers give the same file.
    Raises StoreError if it cannot be written."""
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        with mpl.rc_context({"pdf.fonttype": 42}), PdfPages(temporary, metadata={"CreationDate": None, "Creator": None}) as pages:
            for figure in figures:
                pages.savefig(figure, dpi=_DPI)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True) if temporary else None
    return path
