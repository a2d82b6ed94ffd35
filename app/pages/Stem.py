"""Stem and kernels: what the first layer detects, from where each position reads, and which parts
of a network mix what."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import kernels, url_state
from mixer_probe_app.messages import guarded
from mixer_probe_app.page import begin

QUESTION = (
    "Which patterns do the stem filters detect, and over what distance do later layers mix "
    "positions? These results are computed from the weights of a network."
)
PARTS = {
    "filters": ("Stem filters", kernels.stem_filters),
    "kernels": ("Spatial kernels", kernels.spatial_kernels),
    "tying": ("Kernel tying", kernels.kernel_tying),
    "anatomy": ("Anatomy", kernels.anatomy),
    "positions": ("Position embeddings", kernels.position_embeddings),
}


def main() -> None:
    # Only tying looks at images, and asks for them.
    names = begin(kernels.PAGE, QUESTION, images=url_state.get("stem-part") == "tying")
    if not names:
        return
    part = url_state.choose(
        st.segmented_control, "Part", "stem-part", PARTS, label_visibility="collapsed"
    )
    with guarded():
        PARTS[part][1](names)


with guarded():
    main()
