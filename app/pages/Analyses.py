"""Analyses: every analysis of the catalogue, for the networks and images that are chosen."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import catalogued, held, show
from mixer_probe_app.messages import guarded, join, plain
from mixer_probe_app.page import begin
from mixer_probe_app.store import model

from mixer_probe.core.analysis import Analysis, Room
from mixer_probe.core.result import Result, results_text
from mixer_probe.core.skipped import Skipped
from mixer_probe.core.text import csv_text
from mixer_probe.models import Model
from mixer_probe.report.deliver import tables_by_kind

QUESTION = "Every analysis of mixer_probe with its question. Results are shown as in a report."
ROOM, NAME = "analysis-room", "analysis"
_BASELINES = "Also analyse the same architectures with re-initialised weights. Takes up to twice the time."
NEEDS = {
    "weights": "weights",
    "images": "images",
    "activations": "activations of images",
    "pairs": "activations of images",
    "all networks": "all networks and images",
}


def main() -> None:
    rooms = catalogued.rooms()
    room = rooms.get(held.recall(ROOM) or "", next(iter(rooms.values())))
    named = held.recall(NAME)
    chosen = room[named] if named in room.names else room.analyses[0]
    names = begin(catalogued.PAGE, QUESTION, images=chosen.needs != "weights")
    if not names:
        return
    room = rooms[held.segments(st, "Topic", ROOM, list(rooms), format_func=str.capitalize)]
    analysis = room[_analysis(room)]
    with guarded():
        _run(room, analysis, names)


def _analysis(room: Room) -> str:
    """The name of the analysis that is chosen from the list."""
    titles = {a.name: a.title[0].upper() + a.title[1:] for a in room.analyses}
    questions = [f"{plain(a.question)} Needs: {NEEDS[a.needs]}{', labels' if a.labelled else ''}." for a in room.analyses]
    return held.radio(st, "Analysis", NAME, list(titles), format_func=titles.__getitem__, captions=questions)


def _run(room: Room, analysis: Analysis, names: tuple[str, ...]) -> None:
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="large")
    method = catalogued.METHODS[0]
    if room.name == "probing":
        method = held.select(row, "Probe method", "analysis-method", catalogued.METHODS, width=200)
    baselines = held.toggle(row, "Untrained baselines", "analysis-baselines", True, help=_BASELINES)
    images = catalogued.sides(analysis)
    loaded = _loaded(names)
    lacks = catalogued.lacking(analysis, list(loaded.values()), images[0]) if loaded else ""
    if lacks:
        st.info(plain(lacks), icon=":material/info:")
    if lacks or not loaded:
        return
    others = [name for name, network in loaded.items() if network.family not in analysis.families]
    if others:
        st.info(plain(f"It is not defined for {join(others)}, which is left out."), icon=":material/info:")
    settings = catalogued.settings(room, analysis, method, baselines)
    key = catalogued.key(room, analysis, list(loaded.values()), images, settings)
    # What takes long is begun on purpose; what is kept is shown at once.
    begun = catalogued.is_made(key) or st.session_state.get("analysis begun") == key
    if begun or st.button("Run", type="primary", icon=":material/play_arrow:"):
        st.session_state["analysis begun"] = key
        _show(catalogued.results(room, analysis, tuple(loaded), images, settings), key)


def _loaded(names: tuple[str, ...]) -> dict[str, Model]:
    """The networks that can be loaded; why another cannot is said."""
    found = {}
    for name in names:
        with guarded():
            found[name] = model(name)
    return found


def _show(results: list[Result], key: object) -> None:
    skipped = [r for r in results if isinstance(r, Skipped)]
    for left in skipped:
        st.info(plain(f"{left.step[0].upper()}{left.step[1:]} was skipped: {left.reason}"), icon=":material/info:")
    found = [r for r in results if not isinstance(r, Skipped)]
    if not results:
        st.info("These networks have nothing that the analysis looks at.", icon=":material/info:")
    if not found:
        return
    show.sections(catalogued.sections(found, key), key)
    with st.container(horizontal=True):
        for name, frame in tables_by_kind(found).items():
            show.button(f"{name}.csv", csv_text(frame), name, "csv", "text/csv")
        show.button("results.json", partial(results_text, found), "results", "json", "application/json")


with guarded():
    main()
