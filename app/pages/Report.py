"""Report: tick what was seen, and take it home as one HTML file, as numbers, and as a script that makes them again."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import reports, seen, show
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.offers import labels, resolve
from mixer_probe_app.page import begin
from mixer_probe_app.seen import Seen

QUESTION = (
    "Export the results of this session: one HTML file that works offline, the numbers, and a Python script that reproduces them."
)
SEEN, FILE = "This session", "Results file"


def main() -> None:
    begin("Report", QUESTION, images=False)
    looked, file = st.tabs([SEEN, FILE])
    with looked, guarded():
        _what_was_seen()
    with file, guarded():
        _results_file()


def _what_was_seen() -> None:
    everything = seen.everything()
    if not everything:
        st.info(
            "No results in this session yet. Open Token mixing, Similarity or another page; its results can then be selected "
            "here.",
            icon=":material/checklist:",
        )
        return
    chosen = _ticked(everything)
    st.button("Clear history", on_click=seen.forget, icon=":material/delete_sweep:", type="tertiary")
    if not chosen:
        st.info("Select at least one result.", icon=":material/check_box:")
        return
    _offer(chosen)


def _ticked(everything: dict[str, Seen]) -> list[Seen]:
    chosen = []
    for page in dict.fromkeys(item.page for item in everything.values()):
        st.subheader(plain(page))
        for name, item in everything.items():
            if item.page == page and st.checkbox(plain(item.label), value=True, key=f"tick {name}"):
                chosen.append(item)
    return chosen


def _offer(chosen: list[Seen]) -> None:
    results, gone = reports.gather(chosen)
    for item in gone:
        st.warning(f"{plain(item.label)} is no longer cached; open {plain(item.page)} again.", icon=":material/history:")
    if not results:
        return
    script = seen.script([item for item in chosen if item not in gone])
    key = tuple((item.kind, repr(item.key)) for item in chosen)
    # Drawing takes seconds, and most visits are for the list: it is done when asked for, and then kept.
    if st.button("Create report", type="primary", icon=":material/draw:") or reports.is_written(key):
        settings = {"command": "app", "seen": [item.label for item in chosen]}
        content = reports.written(results, settings, key)
        _buttons(content)
        _script(script)
        show.sections(content.sections, content.key)
    else:
        _script(script)


def _script(script: str) -> None:
    _button("Script (Python)", script, "make_report.py", "text/x-python")
    with st.expander("Script", icon=":material/code:"):
        st.code(script, language="python")


def _buttons(content: reports.Written) -> None:
    with st.container(horizontal=True):
        _button("Report (HTML)", content.html, "report.html", "text/html", "primary")
        _button("Numbers (JSON)", content.json, "results.json", "application/json")
        _button("Tables (CSV, zipped)", content.tables, "tables.zip", "application/zip")


def _button(label: str, content: str | bytes, file: str, mime: str, kind: str = "secondary") -> None:
    st.download_button(label, content, file, mime, icon=":material/download:", type=kind, on_click="ignore", key=f"take {file}")  # type: ignore[call-overload]


def _results_file() -> None:
    known = labels("results")
    label = (
        st.selectbox("In the app's folders", known, index=None, key="results file", placeholder="none chosen") if known else None
    )
    upload = st.file_uploader("Or upload a results.json", type="json", help="Nothing in the file is executed.")
    if label is None and upload is None:
        st.info(
            "Create a results.json with `mixer-probe demo --out DIR` (the bundled networks) or with "
            "`mixer-probe report MODEL… --out DIR` (networks of your choice), then open it here.",
            icon=":material/upload_file:",
        )
        return
    content = reports.opened(upload.getvalue() if upload is not None else resolve(str(label), "results").read_bytes())
    _buttons(content)
    show.sections(content.sections, content.key)


with guarded():
    main()
