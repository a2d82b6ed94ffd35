"""`deliver`: what a study leaves in a folder - the report, its pictures as SVG and PNG, and the results as JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mixer_probe.core.files import make_folder, write_bytes, write_text
from mixer_probe.core.text import csv_text
from mixer_probe.report.html import make_sections, write_sections
from mixer_probe.report.section import Picture, Section, encode
from mixer_probe.results import Result, save_results


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
    make_folder(out)
    for name, frame in tables_by_kind(results).items():
        write_text(out / f"{name}.csv", csv_text(frame))
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
    write_bytes(out / f"{name}.svg", encode(figure, "svg+xml") if svg is None else svg)
    write_bytes(out / f"{name}.png", encode(figure, "png"))
