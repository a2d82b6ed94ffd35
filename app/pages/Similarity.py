"""Similarity: where two networks place the same images alike."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import streamlit as st
from mixer_probe_app import (
    begin,
    bullets,
    download_csv,
    findings,
    folded_table,
    guarded,
    heatmap,
    plain,
    shared_images,
    shown,
    similarity,
)

from mixer_probe.similarity import SimilarityMatrix

QUESTION = "Which blocks of two networks place the same images alike? Every block of one is compared with all of the other."
HOW_MANY = (200, 500, 1000)


def main() -> None:
    names = begin("Similarity", QUESTION)
    if not names:
        return
    left, middle, right = st.columns(3)
    rows = left.selectbox("Rows", names, format_func=shown)
    columns = middle.selectbox("Columns", names, index=min(1, len(names) - 1), format_func=shown)
    limit = right.select_slider("Images of the bundled sample", HOW_MANY, help="CIFAR-10 test images, as many of each class.")
    with guarded():
        _show(similarity(rows, columns, limit), f"cka {rows} {columns} {limit} images")
        st.caption(plain(shared_images("test", limit).credit))


def _show(matrix: SimilarityMatrix, name: str) -> None:
    st.altair_chart(heatmap(matrix), width="stretch")
    chance = matrix.null.permutations if matrix.null else 0
    st.caption(
        f"Linear CKA, {matrix.estimator} estimator, {matrix.reduce} over positions, n = {matrix.n} images. Point at a cell for "
        "its layers, its value and its null. Grey cells are not above the 95 % quantile of their own null "
        f"({chance} random pairings of the images), in empty ones it is not defined. Colours are clipped to 0..1, values are raw."
    )
    key = (matrix.model_a, matrix.model_b, matrix.images, matrix.estimator)
    bullets(findings([matrix], ("similarity", key)))
    download_csv(matrix.to_frame(), name)
    folded_table("The numbers", matrix.to_frame())


main()
