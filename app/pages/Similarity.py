"""Similarity: where two networks place the same images alike, and how two layers differ image by image."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import data, held
from mixer_probe_app import similarities as sim
from mixer_probe_app import similarity_parts as parts
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin

QUESTION = (
    "Which layers of two networks represent the same images similarly, and at which depth do the networks differ most? Each "
    "block of one network is compared with all blocks of the other."
)
_ESTIMATOR = "Most papers report the biased estimator; with few images it is above 0 even for unrelated layers."


def main() -> None:
    names = begin("Similarity", QUESTION)
    if not names:
        return
    left, middle, right, last = st.columns(4)
    rows = held.select(left, "Rows", "sim-rows", names, format_func=shown)
    columns = held.select(middle, "Columns", "sim-columns", names, sim.partner_of(rows, names), format_func=shown)
    measure = held.select(right, "Measure", "sim-measure", list(sim.LABELS), format_func=sim.LABELS.__getitem__)
    estimator = sim.ESTIMATORS[0]
    if measure in sim.OF_CKA:
        estimator = held.segments(last, "Estimator of CKA", "sim-estimator", sim.ESTIMATORS, help=_ESTIMATOR)
    if rows == columns:
        st.info("Both are the same network: select a second one in the sidebar, or in the boxes above, to see where they differ.")
    with guarded():
        images = data.images()
        a, b = sim.side(rows, images), sim.side(columns, images)
        matrix = sim.matrix(a, b, measure, estimator)
        parts.show_matrix(matrix)
        parts.show_layers(a, b, matrix, estimator, images)
        st.caption(plain(images.credit))


with guarded():
    main()
