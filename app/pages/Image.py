"""Image: one image in every network: predictions, attributions, layers, and the effect of
shuffling."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import data, url_state
from mixer_probe_app.explained import show_attributions, show_layers, show_predictions
from mixer_probe_app.messages import guarded
from mixer_probe_app.page import begin
from mixer_probe_app.pictures import chooser
from mixer_probe_app.shuffled import show_shuffle

QUESTION = (
    "What does each network predict for one image, which pixels contribute, which images are its "
    "nearest neighbours at each depth, and how do predictions change when patches or pixels are "
    "shuffled?"
)
PARTS = {
    "predictions": ("Predictions", show_predictions),
    "attributions": ("Attributions", show_attributions),
    "layers": ("Layers", show_layers),
    "shuffle": ("Shuffle", show_shuffle),
}


def main() -> None:
    names = begin("Image", QUESTION)
    picture = images = None
    with guarded():
        # Where they cannot be opened, an upload can still be looked at.
        images = data.images()
    with guarded():
        picture = chooser(images)
    if not names or picture is None:
        return
    part = url_state.choose(
        st.segmented_control, "Part", "img-part", PARTS, label_visibility="collapsed"
    )
    with guarded():
        PARTS[part][1](names, picture, images)


with guarded():
    main()
