"""`deliver`: what a study leaves in a folder - the report, its pictures as SVG and PNG, and the results as JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mixer_probe.errors import StoreError
from mixer_probe.report.html import make_sections, write_sections
from mixer_probe.report.section import Picture, Section, drawing
from mixer_probe.results import Result, save_results, write_text_atomically


def deliver(
    results: Sequence[Result],
    out: Path,
    title: str,
    settings: Mapping[str, Any] | None = None,
    drawn: Mapping[str, Figure] | None = None,
) -> list[Section]:
    """Write a table of each kind of result, results.json, the pictures of the report and those `drawn` besides, and report.html.

    `settings` are what it takes to do it again, as in `write_report`. Returns the sections of the report, whose paragraphs are
    the findings. Raises StoreError where nothing can be written, and for no result at all."""
    prepare(out)
    for name, frame in tables_by_kind(results).items():
        write_text_atomically(out / f"{name}.csv", frame.to_csv(index=False))
    save_results(results, out / "results.json", settings, title)
    sections = make_sections(results)
    write_sections(sections, results, out / "report.html", title=title, settings=settings)
    for picture in (p for section in sections for p in section.content if isinstance(p, Picture)):
        save_picture(picture.figure, out, picture.file_name, picture.encoded if picture.vector else None)
    for name, figure in (drawn or {}).items():
        save_picture(figure, out, name)
    return sections


def tables_by_kind(results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """One table for all results of a kind, by the title of the kind as a file name."""
    kinds = dict.fromkeys(type(r) for r in results)
    tables = {kind: [r.to_frame() for r in results if type(r) is kind] for kind in kinds}
    return {kind.title.lower().replace(" ", "-"): pd.concat(t, ignore_index=True) for kind, t in tables.items()}


def save_picture(figure: Figure, out: Path, name: str, svg: bytes | None = None) -> None:
    """NAME.svg (drawn already: `svg`) and NAME.png in `out`. Raises StoreError where they cannot be written."""
    try:
        with drawing():
            if svg is None:
                figure.savefig(out / f"{name}.svg", dpi=160, metadata={"Date": None})
            else:
                (out / f"{name}.svg").write_bytes(svg)
            figure.savefig(out / f"{name}.png", dpi=160, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"cannot write pictures to {out}: {error.strerror or error}") from error


def prepare(out: Path) -> None:
    """Make the folder. Raises StoreError if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {out}: {error.strerror or error}") from error
