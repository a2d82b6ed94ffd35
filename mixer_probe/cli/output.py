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
from mixer_probe.core.text import visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mixer_probe.core.result import Result
    from mixer_probe.core.section import Section


def write_files(
    results: Sequence[Result],
    drawn: dict[str, Figure],
    out: Path,
    title: str,
    files: Mapping[str, str | bytes] | None = None,
) -> list[Section]:
    """A table of each kind of result, results.json, the report with its pictures, those `drawn` besides, and `files` by name."""
    from mixer_probe.report.deliver import deliver

    return deliver(results, out, title, {"command": " ".join(["mixer-probe", *map(shlex.quote, sys.argv[1:])])}, drawn, files)


# Columns that a terminal has no room for: names, captions and sentences say the same.
_WIDE = ("trained", "kind", "p", "n", "n_test", "classes", "chance", "metric", "seeds", "orders", "draws")


def print_sections(sections: Sequence[Section], tables: bool = False) -> None:
    """What the report says, in sentences, and its tables if asked for."""
    from mixer_probe.core.section import Table as ReportTable
    from mixer_probe.report.script import tell

    for section in sections:
        tell(section, console)
        for item in section.content if tables else ():
            if isinstance(item, ReportTable):
                kept = [i for i, name in enumerate(item.frame.columns) if name not in _WIDE]
                rows = [[row[i][0] for i in kept] for row in item.rows]
                print_rows([item.header[i] for i in kept], rows)


def tables_by_kind(results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """One table for all results of a kind, by the title of the kind as a file name."""
    from mixer_probe.report.deliver import tables_by_kind as tables

    return tables(results)


def print_frame(frame: pd.DataFrame) -> None:
    """A table with numbers of four digits."""
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
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
