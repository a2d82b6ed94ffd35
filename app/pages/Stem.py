"""Stem: what the first layer of each network reads."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import begin, figure, guarded, plain, shown, stem

from mixer_probe.figures import stem_pictures
from mixer_probe.weights import StemFilters

QUESTION = "What does the first layer of each network read from the pixels? Every filter is drawn as a colour picture."
CAPTION = (
    "Mid-grey is weight zero, brighter is positive and darker negative in each colour; every filter has its own scale. "
    "Filters go from low to high frequency."
)


def main() -> None:
    for name in begin("Stem", QUESTION):
        st.header(plain(shown(name)))
        with guarded():
            _filters(name, stem(name))


def _filters(name: str, found: StemFilters) -> None:
    st.markdown(f"{len(found)} filters, stride {found.stride[0]} px, in the layer {plain(found.layer)}.")
    limit = None if len(found) <= 128 or st.toggle("All filters", key=f"all {name}") else 128
    key = ("stem", found.model.name, found.model.sha256, limit)
    figure(lambda: stem_pictures(found, limit=limit), key, f"stem {name}", CAPTION, found.to_frame())


main()
