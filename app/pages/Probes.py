"""Probes: how well the class can be read from every block."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import pandas as pd
import streamlit as st
from mixer_probe_app import (
    begin,
    bullets,
    download_csv,
    findings,
    folded_table,
    guarded,
    plain,
    probe,
    probe_curves,
    shared_images,
)

from mixer_probe.probing import ProbeResult

QUESTION = "How well can a linear map read the class of an image after every block, and how much of that needs no training?"
HOW_MANY = (200, 500, 1000)


def main() -> None:
    names = begin("Probes", QUESTION)
    if not names:
        return
    limit = st.select_slider(
        "Images to fit on, and as many others to test on", HOW_MANY, help="CIFAR-10 test images, as many of each class."
    )
    results = []
    for name in names:
        with guarded():
            results.append(probe(name, limit))
    if results:
        _show(results, f"probes {' '.join(names)} {limit} images")
        st.caption(plain(shared_images("test", limit).credit))


def _show(results: list[ProbeResult], name: str) -> None:
    first = results[0]
    st.altair_chart(probe_curves(results), width="stretch")
    st.caption(
        f"Ridge probes on the {first.reduce} over positions, fitted on {first.n_train} images of {first.classes} classes and "
        f"tested on {first.n_test} others; the penalty was chosen for each layer by leave-one-out accuracy in fitting. Bands are "
        "95 % Wilson intervals, dashed lines the same architecture with random weights, the dotted grey line is chance. "
        "Point at a mark for its numbers."
    )
    key = tuple((r.model, r.images_train, r.images_test) for r in results)
    bullets(findings(results, ("probes", key)))
    table = pd.concat([r.to_frame() for r in results], ignore_index=True)
    download_csv(table, name)
    folded_table("The numbers", table)


main()
