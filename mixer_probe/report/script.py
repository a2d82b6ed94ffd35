"""What scripts share that study one question: their options, and how they leave and print what they
found."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rich.console import Console

from mixer_probe.core.result import Result
from mixer_probe.core.section import Section
from mixer_probe.report.export import export_report


def script_parser(
    name: str, description: str | None, *, models: str = "networks", smoke: str, data: str = ""
) -> argparse.ArgumentParser:
    """The options of every study: --models, --device, --out (runs/NAME by default) and --smoke;
    with `data` (what the images have to be) also --data, --split and --limit. `smoke` says how
    little a smoke run does."""
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        help=f"{models}, as load_model takes them; the bundled ones by default",
    )
    if data:
        parser.add_argument("--data", default="demo", help=f"{data}, as load_images takes them")
        parser.add_argument("--split", help="split of the data set")
        parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / name, help="folder for the report"
    )
    parser.add_argument("--smoke", action="store_true", help=f"{smoke}: does it run?")
    return parser


def publish(
    results: Sequence[Result],
    options: argparse.Namespace,
    title: str,
    *,
    silent: Collection[str] | Callable[[Section], bool] = (),
) -> list[Section]:
    """Export the results to `options.out` and print the findings, but for sections that
    are `silent` (anchors, or a test).

    Returns the sections. Raises StoreError as `export_report`."""
    settings = {key: str(value) for key, value in vars(options).items()} | {
        "command": shlex.join(["python", *sys.argv])
    }
    sections = export_report(results, options.out, title, settings)
    console = Console(width=160)
    for section in sections:
        if not (silent(section) if callable(silent) else section.anchor in silent):
            print_findings(section, console)
    console.print(
        str((options.out / "report.html").resolve()), markup=False, highlight=False, soft_wrap=True
    )
    return sections


def print_findings(section: Section, console: Console) -> None:
    """Print the title and the sentences of a section."""
    console.print(section.title, style="bold", markup=False, highlight=False)
    for paragraph in section.paragraphs:
        console.print(paragraph, markup=False, highlight=False, soft_wrap=True)
