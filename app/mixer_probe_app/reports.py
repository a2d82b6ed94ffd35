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
from mixer_probe.core.text import csv_text
from mixer_probe.report import make_sections
from mixer_probe_app.seen import Seen
from mixer_probe_app.show import slug
from mixer_probe_app.store import find, made

_CHOOSE = "Choose a results.json written by `mixer-probe demo` or `mixer-probe report`"


@dataclass(frozen=True)
class Written:
    """A report in its forms, and the key under which its pictures are kept."""

    key: Hashable
    sections: tuple[Section, ...]
    html: str
    json: str
    tables: bytes


def gather(chosen: Sequence[Seen]) -> tuple[list[Result], list[Seen]]:
    """The results of what was ticked, each once, and what is no longer kept."""
    results: list[Result] = []
    gone = []
    for item in chosen:
        found = item.results()
        if found is None:
            gone.append(item)
            continue
        results += [r for r in found if isinstance(r, Result) and not any(r is other for other in results)]
    return results, gone


def written(results: Sequence[Result], settings: Mapping[str, Any], key: Hashable) -> Written:
    """The report of these results, drawn once for `key`."""
    return made("reports", ("seen", key), "Rendering the report", lambda: _write(results, settings, key), lane="draw", keep=False)


def is_written(key: Hashable) -> bool:
    """Whether the report of these results is there already."""
    return find("reports", ("seen", key)) is not None


def opened(content: bytes) -> Written:
    """The report of a results file.

    Raises StoreError for any file that does not hold what it should: an upload may hold anything."""
    key = hashlib.sha256(content).hexdigest()
    return made("reports", ("file", key), "Reading the results", lambda: _read(content, key), lane="draw", keep=False)


def _read(content: bytes, key: str) -> Written:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        file.write_bytes(content)
        try:
            return _write(mp.load_results(file), _settings(content), key)
        except MixerProbeError as error:
            said = str(error).replace(str(file), "this file")
            raise StoreError(f"{said}. {_CHOOSE}") from error
        except Exception as error:
            raise StoreError(f"this file is not a complete results file ({type(error).__name__}). {_CHOOSE}") from error


def _settings(content: bytes) -> dict[str, Any]:
    settings = json.loads(content).get("settings")
    return settings if isinstance(settings, dict) else {}


def _write(results: Sequence[Result], settings: Mapping[str, Any], key: Hashable) -> Written:
    with tempfile.TemporaryDirectory() as folder:
        page = mp.write_report(results, Path(folder) / "report.html", settings=settings)
        file = mp.save_results(results, Path(folder) / "results.json", settings)
        html, text = page.read_text(encoding="utf-8"), file.read_text(encoding="utf-8")
    return Written(key, tuple(make_sections(results)), html, text, _tables(results))


def _tables(results: Sequence[Result]) -> bytes:
    """One CSV a result."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, result in enumerate(results, 1):
            archive.writestr(f"{number:02d}-{slug(type(result).__name__)}.csv", csv_text(result.to_frame()))
    return stream.getvalue()
