"""Report: open the results of a run, read them here, save them as one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import hashlib
import json
import tempfile
from typing import Any

import streamlit as st
from mixer_probe_app import begin, guarded, sections
from mixer_probe_app.store import made

import mixer_probe as mp
from mixer_probe.errors import MixerProbeError, StoreError
from mixer_probe.report import make_sections
from mixer_probe.report.section import Section

QUESTION = "Open the results of a whole run, read them here, and save them as one HTML file that works without a network."


def main() -> None:
    begin("Report", QUESTION, choose=False)
    upload = st.file_uploader("results.json", type="json", help="Nothing in the file is executed.")
    if upload is None:
        st.info(
            "Make a results.json with `mixer-probe demo --out DIR` (the bundled networks) or with "
            "`mixer-probe report MODEL… --out DIR` (networks of your choice), then open it here.",
            icon=":material/upload_file:",
        )
        return
    content = upload.getvalue()
    key = hashlib.sha256(content).hexdigest()
    with guarded():
        found, page = made("uploads", key, "Reading the results", lambda: _read(content))
        st.download_button("Report (HTML)", page, "report.html", "text/html", icon=":material/download:", type="primary")
        sections(found, key)


def _read(content: bytes) -> tuple[list[Section], str]:
    """The sections of a results file and its HTML page.

    Raises StoreError for any file that does not hold what it should: an upload may hold anything."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.json"
            file.write_bytes(content)
            results = mp.load_results(file)
            page = mp.write_report(results, Path(folder) / "report.html", settings=_settings(content))
            return make_sections(results), page.read_text(encoding="utf-8")
    except MixerProbeError as error:
        raise StoreError(str(error).replace(str(file), "this file")) from error
    except Exception as error:
        raise StoreError(f"this file is no complete results file ({type(error).__name__})") from error


def _settings(content: bytes) -> dict[str, Any]:
    settings = json.loads(content).get("settings")
    return settings if isinstance(settings, dict) else {}


main()
