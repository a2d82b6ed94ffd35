"""Probes: how accurately the class, or a position, is predicted from the activations of each block."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import data, held
from mixer_probe_app import probe_parts as parts
from mixer_probe_app import probes as pr
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin

from mixer_probe.images import Images

QUESTION = "How accurately does a simple classifier predict the class from the activations of each block, trained and untrained?"
VIEWS = {
    "Accuracy": parts.show_accuracy,
    "Controls": parts.show_controls,
    "Classes": parts.show_classes,
    "Places": parts.show_class_by_place,
    "Neighbours": parts.show_neighbours,
}
_TWIN = "The same architectures with re-initialised weights, on the same images. Takes twice the time."
_PLACES = ("the class", "the position")


def main() -> None:
    names = begin("Probes", QUESTION)
    if not names:
        return
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="large")
    view = held.segments(row, "View", "probes-view", list(VIEWS))
    twin = held.toggle(row, "Untrained baselines", "probes-twin", True, help=_TWIN)
    with guarded():
        if view == "Places":
            what = held.segments(st, "Target of the probe at each position", "probes-place", _PLACES)
            if what == _PLACES[1]:
                parts.show_position(names, data.images(), twin)
                return
        train, test = data.sides()
        _show(view, names, train, test, twin)


def _show(view: str, names: tuple[str, ...], train: Images, test: Images, twin: bool) -> None:
    pr.check(train, test)
    VIEWS[view](names, train, test, twin)
    st.caption(plain(test.credit))


with guarded():
    main()
