"""Report: results of the session as one HTML file, as numbers, and as a script that computes them
again; and results files."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import history, reports, show
from mixer_probe_app.local_files import labels, resolve
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin
from mixer_probe_app.store import lookup

from mixer_probe.core.result import Result

QUESTION = (
    "Export the results of this session: one HTML file that works offline, the numbers, and a "
    "Python script that reproduces them."
)
NOTHING = (
    "No results in this session yet. Open Token mixing, Similarity or another page; its results "
    "can then be selected here."
)
FILES = (
    "Create a results.json with `mixer-probe demo --out DIR` (the bundled networks) or with "
    "`mixer-probe report MODEL… --out DIR` (networks of your choice), then open it here."
)


def main() -> None:
    begin("Report", QUESTION, images=False)
    session, file = st.tabs(["This session", "Results file"])
    with session, guarded():
        chosen = choose()
        if chosen:
            export(chosen)
    with file, guarded():
        open_file()


def choose() -> list[history.Entry]:
    """The results of the session that are ticked."""
    entries = history.entries()
    if not entries:
        st.info(NOTHING, icon=":material/checklist:")
        return []
    chosen = []
    for page in dict.fromkeys(entry.page for entry in entries.values()):
        st.subheader(plain(page))
        for name, entry in entries.items():
            if entry.page == page and st.checkbox(
                plain(entry.label), value=True, key=f"tick {name}"
            ):
                chosen.append(entry)
    st.button(
        "Clear history", on_click=history.clear, icon=":material/delete_sweep:", type="tertiary"
    )
    if not chosen:
        st.info("Select at least one result.", icon=":material/check_box:")
    return chosen


def export(chosen: list[history.Entry]) -> None:
    """The report and the script of these results, each result once. The report takes seconds: it is
    rendered on demand."""
    results: list[Result] = []
    cached = []
    for entry in chosen:
        found = entry.results()
        if found is None:
            st.warning(
                f"{plain(entry.label)} is no longer cached; open {plain(entry.page)} again.",
                icon=":material/history:",
            )
            continue
        cached.append(entry)
        results += [
            r for r in found if isinstance(r, Result) and not any(r is other for other in results)
        ]
    if not results:
        return
    key = tuple((entry.kind, repr(entry.key)) for entry in chosen)
    content = None
    if (
        st.button("Create report", type="primary", icon=":material/draw:")
        or lookup(reports.KIND, key) is not None
    ):
        content = reports.written(
            results, {"command": "app", "seen": [entry.label for entry in chosen]}, key
        )
        save(content)
    script = history.script(cached)
    show.button("Script (Python)", script, "make_report", "py", "text/x-python", "secondary")
    with st.expander("Script", icon=":material/code:"):
        st.code(script, language="python")
    if content is not None:
        show.sections(content.sections, content.key)


def open_file() -> None:
    """The report of a results file in the folders of the app, or of an upload."""
    known = labels("results")
    label = None
    if known:
        label = st.selectbox(
            "In the app's folders", known, index=None, key="results file", placeholder="none chosen"
        )
    upload = st.file_uploader(
        "Or upload a results.json", type="json", help="Nothing in the file is executed."
    )
    if label is None and upload is None:
        st.info(FILES, icon=":material/upload_file:")
        return
    content = reports.opened(
        upload.getvalue() if upload is not None else resolve(str(label), "results").read_bytes()
    )
    save(content)
    show.sections(content.sections, content.key)


def save(content: reports.Report) -> None:
    """Buttons that save a report in its forms."""
    with st.container(horizontal=True):
        show.button("Report (HTML)", content.html, "report", "html", "text/html", "primary")
        show.button(
            "Numbers (JSON)", content.json, "results", "json", "application/json", "secondary"
        )
        show.button(
            "Tables (CSV, zipped)", content.tables, "tables", "zip", "application/zip", "secondary"
        )


with guarded():
    main()
