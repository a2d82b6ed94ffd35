"""Analyses: every analysis of the catalogue, for the networks and images that are chosen."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import calls, show, url_state
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin

from mixer_probe.core.analysis import Analysis, Room
from mixer_probe.core.result import results_text
from mixer_probe.core.skipped import Skipped
from mixer_probe.core.text import csv_text
from mixer_probe.core.words import join
from mixer_probe.probing.methods import FITTERS
from mixer_probe.report.export import tables_by_kind

QUESTION = "Every analysis of mixer_probe with its question. Results are shown as in a report."
ROOM, NAME = "analysis-room", "analysis"
_BASELINES = (
    "Also analyse the same architectures with re-initialised weights. Takes up to twice the time."
)
NEEDS = {
    "weights": "weights",
    "images": "images",
    "activations": "activations of images",
    "pairs": "activations of images",
    "all networks": "all networks and images",
}


def main() -> None:
    rooms = calls.rooms()
    room = rooms.get(url_state.get(ROOM) or "", next(iter(rooms.values())))
    named = url_state.get(NAME)
    chosen = room[named] if named in room.names else room.analyses[0]
    names = begin(calls.ANALYSES, QUESTION, images=chosen.needs != "weights")
    if not names:
        return
    room = rooms[
        url_state.choose(
            st.segmented_control, "Topic", ROOM, list(rooms), format_func=str.capitalize
        )
    ]
    titles = {a.name: a.title[0].upper() + a.title[1:] for a in room.analyses}
    questions = [
        f"{plain(a.question)} Needs: {NEEDS[a.needs]}{', labels' if a.labelled else ''}."
        for a in room.analyses
    ]
    name = url_state.choose(st.radio, "Analysis", NAME, titles, captions=questions)
    with guarded():
        show_analysis(room, room[name], names)


def show_analysis(room: Room, analysis: Analysis, names: tuple[str, ...]) -> None:
    """Controls, and the results where they are cached or asked for: what takes long is begun on
    purpose."""
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="large")
    method = next(iter(FITTERS))
    if room.name == "probing":
        method = url_state.choose(
            row.selectbox, "Probe method", "analysis-method", tuple(FITTERS), width=200
        )
    baselines = url_state.toggle(
        row, "Untrained baselines", "analysis-baselines", True, help=_BASELINES
    )
    networks = calls.loaded(names)
    if not networks:
        return
    run = calls.CatalogueRun(room, analysis, tuple(networks), method, baselines)
    if missing := calls.missing(analysis, list(networks.values()), run.images[0]):
        st.info(plain(missing), icon=":material/info:")
        return
    others = [name for name, network in networks.items() if network.family not in analysis.families]
    if others:
        st.info(
            plain(f"It is not defined for {join(others)}, which is left out."),
            icon=":material/info:",
        )
    begun = run.is_cached or st.session_state.get("analysis begun") == run.key
    if not begun and not st.button("Run", type="primary", icon=":material/play_arrow:"):
        return
    st.session_state["analysis begun"] = run.key
    results = run.results()
    for left in (r for r in results if isinstance(r, Skipped)):
        st.info(
            plain(f"{left.step[0].upper()}{left.step[1:]} was skipped: {left.reason}"),
            icon=":material/info:",
        )
    found = [r for r in results if not isinstance(r, Skipped)]
    if not results:
        st.info("These networks have nothing that the analysis looks at.", icon=":material/info:")
    if not found:
        return
    show.sections(calls.sections(found, run.key), run.key)
    with st.container(horizontal=True):
        for kind, frame in tables_by_kind(found).items():
            show.button(f"{kind}.csv", csv_text(frame), kind, "csv", "text/csv")
        show.button(
            "results.json", partial(results_text, found), "results", "json", "application/json"
        )


with guarded():
    main()
