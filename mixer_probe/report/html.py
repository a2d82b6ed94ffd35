"""`write_report`: results to one HTML file that needs nothing else."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import timm
import torch

import mixer_probe
from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import write_text
from mixer_probe.core.result import ImagesRecord, Result
from mixer_probe.core.section import Section
from mixer_probe.report.views import all_views


def write_report(
    results: Sequence[Result],
    path: str | os.PathLike[str],
    *,
    title: str = "What did these networks learn?",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Draw all results into one self-contained HTML file and return its path.

    `settings` are shown at the end: what it takes to make the report again (`command` and `script`
    are shown as such). The file appears whole or not at all. Raises StoreError if there is nothing
    to report or nowhere to write."""
    return write_text(Path(path), report_page(make_sections(results), results, title, settings))


def report_page(
    sections: Sequence[Section],
    results: Sequence[Result],
    title: str,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """What `write_report` writes, of results whose `sections` are made already. Raises StoreError
    for no section."""
    if not sections:
        raise StoreError(
            "there is no result to report; give what token_mixing, compare, linear_probe, ... "
            "returned"
        )
    folder, given = resources.files("mixer_probe.report"), settings or {}
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain = {k: v for k, v in given.items() if k not in ("command", "script")}
    # Attributions of all images that results were measured on.
    records = [
        value for r in results for value in vars(r).values() if isinstance(value, ImagesRecord)
    ]
    page: str = environment.get_template("template.html.j2").render(
        title=title,
        sections=sections,
        warnings=list(
            dict.fromkeys(
                text
                for section in sections
                if section.anchor == "models"
                for text in section.warnings
            )
        ),
        settings={
            "command": given.get("command", ""),
            "script": given.get("script", ""),
            "json": json.dumps(plain, indent=2, default=str) if plain else "",
        },
        credits=list(
            dict.fromkeys(
                text for record in records for text in (record.credit, record.note) if text
            )
        ),
        versions=versions(),
    )
    return page


def make_sections(results: Sequence[Result]) -> list[Section]:
    """Sections in the order in which a reader wants them, each from all results of its kind."""
    sections: list[Section] = []
    for kind, view in all_views().items():
        found = [r for r in results if isinstance(r, kind)]
        if found:
            sections += view.sections(found)
    return sections


def versions() -> dict[str, str]:
    """What produced the numbers."""
    return {
        "mixer_probe": mixer_probe.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }
