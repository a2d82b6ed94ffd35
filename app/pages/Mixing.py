"""Mixing: from where each position reads, what the heads of a ViT attend to, and which features
positions share."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import spatial, url_state
from mixer_probe_app.messages import guarded
from mixer_probe_app.page import begin

QUESTION = (
    "From where does a position read, and how does this change with depth? Mixers, ViTs and CNNs "
    "are compared on one grid, by their Jacobians over real images."
)
PARTS = {
    "jacobian": ("Spatial mixing", spatial.reading),
    "attention": ("Attention heads", spatial.attention),
    "components": ("Principal components", spatial.components),
}


def main() -> None:
    names = begin(spatial.PAGE, QUESTION)
    if not names:
        return
    part = url_state.choose(
        st.segmented_control, "Part", "mix-part", PARTS, label_visibility="collapsed"
    )
    with guarded():
        PARTS[part][1](names)


with guarded():
    main()
