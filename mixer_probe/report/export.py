"""`export_report`: what a study leaves in a folder - the report, its pictures as SVG and PNG, and
the results as JSON and CSV.

The files of a report come into their folder together, when all of them are written, and those of
the report before go: pictures of two reports are never beside each other as if they were one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import make_folder, only_writer, printable, reason, sync
from mixer_probe.core.result import FILE_NAME, Result, results_text
from mixer_probe.core.section import Picture, Section, encode
from mixer_probe.core.text import csv_text
from mixer_probe.report.html import make_sections, report_page

# Where files are written to, where they lie when all are there, and the list of those in the folder
# with their checksums.
_NEW, _READY, _LIST = ".mixer-probe-new", ".mixer-probe-ready", ".mixer-probe-files.json"


class Export:
    """The files of one report on their way to the folder `out`."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def write(self, name: str, content: str | bytes) -> None:
        """A file of this name, with folders above it where the name has them. Raises StoreError if
        it cannot be written."""
        file = self._out / _NEW / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else printable(content).encode())
        except OSError as error:
            raise StoreError(
                f"cannot write {printable(self._out / name)}: {reason(error)}"
            ) from error

    def draw(self, name: str, figure: Figure, svg: bytes | None = None) -> None:
        """NAME.svg (drawn already: `svg`) and NAME.png. Raises StoreError if they cannot be
        written."""
        self.write(f"{name}.svg", encode(figure, "svg+xml") if svg is None else svg)
        self.write(f"{name}.png", encode(figure, "png"))


@contextmanager
def exporting(out: Path) -> Iterator[Export]:
    """Hold the folder `out`, and put the files of an `Export` there when the block ends without an
    error.

    Until then the report that is there stays; then its files go, but for those that somebody has
    changed since. A process that is killed in between leaves what the next one completes. Raises
    StoreError if the folder cannot be made or written to, or if another process writes there."""
    make_folder(out)
    with only_writer(out, out / ".mixer-probe.lock"):
        new = out / _NEW
        try:
            with _disk(out):
                _replace_files(out)
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
            yield Export(out)
            with _disk(out):
                files = {
                    f.relative_to(new).as_posix(): f for f in sorted(new.rglob("*")) if f.is_file()
                }
                listed = {name: _checksum(file) for name, file in files.items()}
                (new / _LIST).write_text(json.dumps(listed, indent=1))
                sync([new, *new.rglob("*")])
                new.rename(out / _READY)
                _replace_files(out)
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write to {printable(out)}: {reason(error)}") from error


def _replace_files(out: Path) -> None:
    """Replace the files of the report before by those that are ready, if any are; the same again
    after it was broken off."""
    ready = out / _READY
    if not ready.exists():
        return
    # The list goes last: without it, only the empty folder is left.
    if (ready / _LIST).exists():
        listed = _listed(ready)
        for name, known in _listed(out).items():
            # What is listed and not ready any more is in its place already.
            if (name not in listed or (ready / name).exists()) and _checksum(out / name) == known:
                (out / name).unlink()
        for name in listed:
            if (ready / name).exists():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(ready / name, out / name)
        os.replace(ready / _LIST, out / _LIST)
    shutil.rmtree(ready)
    sync([out])


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _listed(folder: Path) -> dict[str, str]:
    """Checksums of the files that a report has in this folder, by name; none of them outside."""
    try:
        listed = json.loads((folder / _LIST).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    names = listed if isinstance(listed, dict) else {}
    return {
        name: known
        for name, known in names.items()
        if ".." not in (path := PurePosixPath(name)).parts and not path.root
    }


def export_report(
    results: Sequence[Result],
    out: Path,
    title: str,
    settings: Mapping[str, Any] | None = None,
    drawn: Mapping[str, Figure] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> list[Section]:
    """Write a table of each kind of result, results.json, the pictures of the report and those
    `drawn` besides, report.html, and `files` by name. They replace those of an earlier report in
    this folder, all at once.

    `settings` are what it takes to do it again, as in `write_report`. Returns the sections of the
    report, whose paragraphs are the findings. Raises StoreError where nothing can be written, where
    another process writes, and for no result at all."""
    with exporting(out) as export:
        sections = make_sections(results)
        page = report_page(sections, results, title, settings)
        for name, frame in tables_by_kind(results).items():
            export.write(f"{name}.csv", csv_text(frame))
        export.write(FILE_NAME, results_text(results, settings, title))
        for picture in (
            p for section in sections for p in section.content if isinstance(p, Picture)
        ):
            export.draw(
                picture.file_name, picture.figure, picture.encoded if picture.vector else None
            )
        for name, figure in (drawn or {}).items():
            export.draw(name, figure)
        for name, content in (files or {}).items():
            export.write(name, content)
        export.write("report.html", page)
    return sections


def tables_by_kind(results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """One table for all results of a kind, by the title of the kind as a file name."""
    kinds = dict.fromkeys(type(r) for r in results)
    tables = {kind: [r.to_frame() for r in results if type(r) is kind] for kind in kinds}
    return {
        kind.title.lower().replace(" ", "-"): pd.concat(t, ignore_index=True)
        for kind, t in tables.items()
    }
