"""Results as one HTML file, as JSON and as tables; results files that come from elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError, StoreError
from mixer_probe.core.result import Result
from mixer_probe.core.section import Section
from mixer_probe.core.text import csv_text, slug
from mixer_probe.report import make_sections
from mixer_probe_app.store import cached

_CHOOSE = "Choose a results.json written by `mixer-probe demo` or `mixer-probe report`"
KIND = "reports"


@dataclass(frozen=True)
class Report:
    """A report in its forms, and the key under which its pictures are cached."""

    key: Hashable
    sections: tuple[Section, ...]
    html: str
    json: str
    tables: bytes


def render(results: Sequence[Result], settings: Mapping[str, Any], key: Hashable) -> Report:
    """The report of these results; its tables are one CSV per result."""
    with tempfile.TemporaryDirectory() as folder:
        page = mp.write_report(results, Path(folder) / "report.html", settings=settings)
        file = mp.save_results(results, Path(folder) / "results.json", settings)
        html, text = page.read_text(encoding="utf-8"), file.read_text(encoding="utf-8")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, result in enumerate(results, 1):
            archive.writestr(
                f"{number:02d}-{slug(type(result).__name__)}.csv", csv_text(result.to_frame())
            )
    return Report(key, tuple(make_sections(results)), html, text, stream.getvalue())


def written(results: Sequence[Result], settings: Mapping[str, Any], key: Hashable) -> Report:
    """The report of these results, rendered once for `key`."""
    return cached(
        KIND,
        key,
        "Rendering the report",
        lambda: render(results, settings, key),
        queue="draw",
        on_disk=False,
    )


def opened(content: bytes) -> Report:
    """The report of a results file, read by `load_results`.

    Raises StoreError for any file that does not hold what it should: an upload may hold
    anything."""
    key = hashlib.sha256(content).hexdigest()

    def read() -> Report:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.json"
            file.write_bytes(content)
            try:
                results = mp.load_results(file)
                settings = json.loads(content).get("settings")
                return render(results, settings if isinstance(settings, dict) else {}, key)
            except MixerProbeError as error:
                said = str(error).replace(str(file), "this file")
                raise StoreError(f"{said}. {_CHOOSE}") from error
            except Exception as error:
                raise StoreError(
                    f"this file is not a complete results file ({type(error).__name__}). {_CHOOSE}"
                ) from error

    return cached(KIND, key, "Reading the results", read, queue="draw", on_disk=False)
