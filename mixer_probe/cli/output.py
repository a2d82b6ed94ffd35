"""Results on the terminal and in files."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mixer_probe.cli.options import console
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.text import visible
from mixer_probe.parallel import ranks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mixer_probe.core.result import Result

# Columns that a terminal has no room for: names, captions and sentences say the same.
_WIDE = (
    "trained",
    "kind",
    "p",
    "n",
    "n_test",
    "classes",
    "chance",
    "metric",
    "seeds",
    "orders",
    "draws",
)


def kept_in(out: Path | None) -> dict[str, Any]:
    """Options of `run_analyses` that keep what is finished in the folder of a command, so that it
    goes on after an interrupt; none without a folder."""
    from mixer_probe.study import ResultCache

    return {} if out is None else {"runs": out / "runs", "steps": ResultCache(out / "parts")}


def finish(
    results: Sequence[Result],
    out: Path | None,
    title: str,
    as_json: bool,
    *,
    drawn: dict[str, Figure] | None = None,
    files: Mapping[str, str | bytes] | None = None,
    tables: bool = False,
    sentences: Sequence[str] | None = None,
) -> None:
    """Where `out` is a folder: a table of each type of result, results.json, the report with its
    figures, those `drawn` besides, and `files` by name. Then all rows as JSON, or the `sentences`
    (by default those of the report), with the `tables` where no file holds them.

    Of several processes of torchrun only the first does so. Raises MeasureError, with the first
    reason, where nothing but skipped analyses is left."""
    from mixer_probe.core.section import Table as ReportTable
    from mixer_probe.core.skipped import Skipped
    from mixer_probe.report import make_sections
    from mixer_probe.report.export import export_report, tables_by_kind
    from mixer_probe.report.script import print_findings

    if not ranks().first:
        return
    skipped = [r.reason for r in results if isinstance(r, Skipped)]
    if skipped and len(skipped) == len(results):
        raise MeasureError(skipped[0])
    if out is None:
        sections = make_sections(results)
    else:
        sections = export_report(
            results, out, title, {"command": command_line()}, drawn or {}, files
        )
    if as_json:
        print_json(
            {
                name: json.loads(frame.to_json(orient="records"))
                for name, frame in tables_by_kind(results).items()
            }
        )
        return
    for sentence in sentences or ():
        console.line_of(sentence)
    for section in sections if sentences is None else ():
        print_findings(section, console)
        for item in section.content if tables and out is None else ():
            if isinstance(item, ReportTable):
                shown = [i for i, name in enumerate(item.frame.columns) if name not in _WIDE]
                print_rows(
                    [item.header[i] for i in shown],
                    [[row[i][0] for i in shown] for row in item.rows],
                )
    if out is not None:
        print_report(out)


def command_line() -> str:
    """What was typed, as a shell reads it."""
    return " ".join(["mixer-probe", *map(shlex.quote, sys.argv[1:])])


def print_report(out: Path) -> None:
    """Where the report is."""
    console.line_of(str((out / "report.html").resolve()))


def print_frame(frame: pd.DataFrame) -> None:
    """A table with numbers of four digits."""
    rows = [
        [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.itertuples(index=False)
    ]
    print_rows([str(column).replace("_", " ") for column in frame.columns], rows)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of texts."""
    table = Table(box=None, pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    console.print(table)


def print_json(content: Any) -> None:
    """JSON for a machine, not wrapped to the width of the terminal."""
    console.file.write(json.dumps(content, indent=1) + "\n")
