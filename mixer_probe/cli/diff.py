"""`diff`: which numbers of two reports moved beyond their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_probe.cli.options import AsJson, app, console, folder
from mixer_probe.cli.output import command_line, print_json
from mixer_probe.core.errors import StoreError

if TYPE_CHECKING:
    from mixer_probe.report.diff import ReportDiff


@app.command(epilog="Example: mixer-probe diff report-before report-after --out differences")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a report, or a results file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another report, of the same or comparable networks and images.")],
    same: Annotated[
        list[str] | None, typer.Option(help="Names of the same network in A and in B, as A=B; may be repeated.")
    ] = None,
    rtol: Annotated[float, typer.Option(min=0, help="Relative tolerance within which numbers count as identical.")] = 1e-5,
    most: Annotated[int, typer.Option(min=0, help="Numbers listed on the terminal.")] = 20,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with status 1 if a number changed or a result is missing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a report of the differences and its tables.", parser=folder, metavar="PATH")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the numbers that changed beyond their intervals between two reports, and those that differ without an interval."""
    from mixer_probe.report.diff import compare_reports

    found = compare_reports(a, b, same=_names(same or ()), rtol=rtol)
    if out is not None:
        _deliver(found, out)
    if as_json:
        print_json(_content(found))
    else:
        _print(found, most, out)
    if exit_code and (found.moved.any() or found.only_a or found.only_b):
        raise typer.Exit(1)


def _names(same: Sequence[str]) -> dict[str, str]:
    """Names in A and in B. Raises StoreError unless each is A=B."""
    names: dict[str, str] = {}
    for text in same:
        old, sign, new = text.partition("=")
        if not (old and sign and new):
            raise StoreError(f"--same is A=B, the name of a network in A and in B, not '{text}'")
        names[old] = new
    return names


def _deliver(found: ReportDiff, out: Path) -> None:
    from mixer_probe.core.text import csv_text
    from mixer_probe.report import deliver

    settings = {"command": command_line()}
    files = {"differences-without-intervals.csv": csv_text(found.changes_frame())}
    deliver([found], out, f"Differences between {found.name_a} and {found.name_b}", settings, files=files)


def _print(found: ReportDiff, most: int, out: Path | None) -> None:
    from mixer_probe.report.sections_diff import RULE, change_text, findings, number_text

    frame = found.to_frame()
    _say(findings(found))
    _list("Changed beyond their intervals:", [number_text(row) for _, row in frame[frame["moved"]].iterrows()], most)
    _list("Differ, without an interval:", [change_text(change) for change in found.changes], most)
    _say([RULE] if len(frame) else [])
    _say([f"Written to {out}."] if out is not None else [])


def _list(title: str, lines: Sequence[str], most: int) -> None:
    if lines and most:
        left = len(lines) - most
        _say([title, *(f"  {line}" for line in lines[:most]), *([f"  and {left} more: see --most, --out"] if left > 0 else [])])


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _content(found: ReportDiff) -> dict[str, Any]:
    """The comparison for a machine."""
    import json
    from dataclasses import asdict

    return {
        "a": found.name_a,
        "b": found.name_b,
        "same": found.same,
        "matched": found.matched,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "notes": found.notes,
        "with_interval": found.compared,
        "differ": len(found.values),
        "moved": int(found.moved.sum()),
        "expected_by_chance": found.expected,
        "left_at_5_percent_false_discoveries": int((found.q_value < 0.05).sum()),
        "numbers": json.loads(found.to_frame().to_json(orient="records")),
        "without_interval": found.plain,
        "changes": [_plain(asdict(change)) for change in found.changes],
    }


def _plain(change: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as words, which JSON lacks."""
    return {
        k: str(v) if isinstance(v, float) and (v != v or v in (float("inf"), float("-inf"))) else v for k, v in change.items()
    }
