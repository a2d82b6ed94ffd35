"""Image: one image, seen by every network: predictions, attributions, layers, and what shuffling it does."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import data, held
from mixer_probe_app.explained import show_attributions, show_layers, show_predictions
from mixer_probe_app.messages import guarded
from mixer_probe_app.page import begin
from mixer_probe_app.pictures import chooser
from mixer_probe_app.shuffled import show_shuffle

from mixer_probe.images import Images

QUESTION = (
    "What does each network predict for one image, which pixels contribute, which images are its nearest neighbours at each "
    "depth, "
    "and how do predictions change when patches or pixels are shuffled?"
)
PARTS = {
    "predictions": "Predictions",
    "attributions": "Attributions",
    "layers": "Layers",
    "shuffle": "Shuffle",
}


def main() -> None:
    names = begin("Image", QUESTION)
    picture = None
    images = _images()
    with guarded():
        picture = chooser(images)
    if not names or picture is None:
        return
    part = held.segments(st, "Part", "img-part", list(PARTS), format_func=PARTS.__getitem__, label_visibility="collapsed")
    with guarded():
        if part == "predictions":
            show_predictions(names, picture)
        elif part == "attributions":
            show_attributions(names, picture)
        elif part == "layers":
            show_layers(names, picture, images)
        else:
            show_shuffle(names, picture, images)


def _images() -> Images | None:
    """The images chosen, None with a message where they cannot be opened: an upload can still be looked at."""
    with guarded():
        return data.images()
    return None


with guarded():
    main()
