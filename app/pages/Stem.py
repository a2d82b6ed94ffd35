"""Stem and kernels: what the first layer reads, from where each position reads, and which parts of a network mix what."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import held, kernel_parts, kernels
from mixer_probe_app.messages import guarded
from mixer_probe_app.page import begin

QUESTION = (
    "Which patterns do the stem filters detect, and over what distance do later layers mix positions? These results are "
    "computed from the weights of a network."
)
PARTS = {
    "filters": ("Stem filters", kernel_parts.stem_filters),
    "kernels": ("Spatial kernels", kernel_parts.spatial_kernels),
    "tying": ("Kernel tying", kernel_parts.kernel_tying),
    "anatomy": ("Anatomy", kernel_parts.anatomy),
    "positions": ("Position embeddings", kernel_parts.position_embeddings),
}


def main() -> None:
    # Only tying looks at images, and asks for them.
    names = begin(kernels.PAGE, QUESTION, images=held.recall("stem-part") == "tying")
    if not names:
        return
    titles = {part: title for part, (title, _show) in PARTS.items()}
    part = held.segments(st, "Part", "stem-part", list(titles), format_func=titles.__getitem__, label_visibility="collapsed")
    with guarded():
        PARTS[part][1](names)


with guarded():
    main()
