"""Probes: how accurately the class, or a position, is predicted from the activations of each
block."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import data, url_state
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin
from mixer_probe_app.probe_views import VIEWS

QUESTION = (
    "How accurately does a simple classifier predict the class from the activations of each block, "
    "trained and untrained?"
)
_BASELINES = (
    "The same architectures with re-initialised weights, on the same images. Takes twice the time."
)


def main() -> None:
    names = begin("Probes", QUESTION)
    if not names:
        return
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="large")
    view = url_state.choose(row.segmented_control, "View", "probes-view", list(VIEWS))
    baselines = url_state.toggle(row, "Untrained baselines", "probes-twin", True, help=_BASELINES)
    with guarded():
        VIEWS[view](names, baselines)
        st.caption(plain(data.images().credit))


with guarded():
    main()
