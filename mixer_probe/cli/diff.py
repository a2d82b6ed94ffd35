"""`diff`: which numbers of two reports moved beyond their intervals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixer_probe.cli.options import AsJson, OptionalOut, command, console
from mixer_probe.cli.output import command_line, print_json, print_report
from mixer_probe.core.errors import StoreError


@command("diff report-before report-after --out differences")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a report, or a results file.")],
    b: Annotated[
        Path,
        typer.Argument(
            metavar="B", help="Another report, of the same or comparable networks and images."
        ),
    ],
    same: Annotated[
        list[str] | None,
        typer.Option(help="Names of the same network in A and in B, as A=B; may be repeated."),
    ] = None,
    rtol: Annotated[
        float,
        typer.Option(min=0, help="Relative tolerance within which numbers count as identical."),
    ] = 1e-5,
    most: Annotated[int, typer.Option(min=0, help="Numbers listed on the terminal.")] = 20,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code", help="Exit with status 1 if a number changed or a result is missing."
        ),
    ] = False,
    out: OptionalOut = None,
    as_json: AsJson = False,
) -> None:
    """List the numbers that changed beyond their intervals between two reports, and those that
    differ without an interval."""
    from mixer_probe.core.text import csv_text
    from mixer_probe.report import export_report
    from mixer_probe.report.diff import compare_reports
    from mixer_probe.report.sections_diff import listing

    names: dict[str, str] = {}
    for text in same or ():
        old, sign, new = text.partition("=")
        if not (old and sign and new):
            raise StoreError(f"--same is A=B, the name of a network in A and in B, not '{text}'")
        names[old] = new
    found = compare_reports(a, b, same=names, rtol=rtol)
    if out is not None:
        files = {"differences-without-intervals.csv": csv_text(found.changes_frame())}
        title = f"Differences between {found.name_a} and {found.name_b}"
        export_report([found], out, title, {"command": command_line()}, files=files)
    if as_json:
        changes = [asdict(change) for change in found.changes]
        print_json(
            {
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
                # NaN and infinity as words, which JSON lacks.
                "changes": [
                    {
                        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
                        for k, v in change.items()
                    }
                    for change in changes
                ],
            }
        )
    else:
        for line in listing(found, most):
            console.line_of(line)
        if out is not None:
            print_report(out)
    if exit_code and (found.moved.any() or found.only_a or found.only_b):
        raise typer.Exit(1)
