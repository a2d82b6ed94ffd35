"""Similarity: which layers of two networks represent the same images similarly, and how two layers
differ image by image."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import numpy as np
import pandas as pd
import streamlit as st
from mixer_probe_app import charts, data, show, url_state
from mixer_probe_app import similarities as sim
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin
from mixer_probe_app.pictures import square

from mixer_probe.images import Images
from mixer_probe.similarity import LayerMatches, SimilarityMatrix, best_matches
from mixer_probe.similarity.alignment import CKA_NAMES
from mixer_probe.similarity.findings import pair_sentences, value_text
from mixer_probe.similarity.within_classes import MOST_CLASSES, class_images, images_per_class

QUESTION = (
    "Which layers of two networks represent the same images similarly, and at which depth do the "
    "networks differ most? Each block of one network is compared with all blocks of the other."
)
_ESTIMATOR = (
    "Most papers report the biased estimator; with few images it is above 0 even for unrelated "
    "layers."
)
_SAME = (
    "Both are the same network: select a second one in the sidebar, or in the boxes above, to see "
    "where they differ."
)
_UNLABELLED = (
    "These images have no class labels: select labelled images in the sidebar, or a folder with a "
    "subfolder per class."
)
CHART, CELL = "sim-heatmap", "cell"
LAYER_A, LAYER_B = "sim-a", "sim-b"
# In pixels.
_PICTURE = 64


def main() -> None:
    names = begin("Similarity", QUESTION)
    if not names:
        return
    left, middle, right, last = st.columns(4)
    rows = url_state.choose(left.selectbox, "Rows", "sim-rows", names, format_func=shown)
    other = sim.other_network(rows, names)
    columns = url_state.choose(
        middle.selectbox, "Columns", "sim-columns", names, other, format_func=shown
    )
    measure = url_state.choose(right.selectbox, "Measure", "sim-measure", sim.LABELS)
    estimator = sim.ESTIMATORS[0]
    if measure in CKA_NAMES:
        widget = last.segmented_control
        estimator = url_state.choose(
            widget, "Estimator of CKA", "sim-estimator", sim.ESTIMATORS, help=_ESTIMATOR
        )
    if rows == columns:
        st.info(_SAME)
    with guarded():
        images = data.images()
        a, b = sim.side(rows, images), sim.side(columns, images)
        matrix = sim.matrix(a, b, measure, estimator)
        matches = best_matches(matrix)
        usual = first_cell(matrix, matches)
        show_matrix(matrix, matches, usual)
        show_layers(a, b, matrix, usual, estimator, images)
        st.caption(plain(images.credit))


def first_cell(matrix: SimilarityMatrix, matches: LayerMatches) -> tuple[str, str]:
    """The two layers to begin with: that which differs most, and its best match; the last ones of a
    network with itself."""
    i = None if matrix.of_one_network else matches.least_similar
    if i is None:
        return matrix.layers_a[-1].name, matrix.layers_b[-1].name
    return matrix.layers_a[i].name, matrix.layers_b[matches.best_match[i]].name


def show_matrix(matrix: SimilarityMatrix, matches: LayerMatches, usual: tuple[str, str]) -> None:
    """Findings, the matrix as a heat map, and the best match of each layer."""
    show.findings([matrix], *pair_sentences(matrix))
    path = url_state.toggle(
        st, "Best-match path", "sim-path", help="Markers show the best match of each row."
    )
    known = [{layer.name for layer in layers} for layers in (matrix.layers_a, matrix.layers_b)]
    said = url_state.get(LAYER_A), url_state.get(LAYER_B)
    a, b = (str(s if s in names else first) for s, names, first in zip(said, known, usual))
    drawn = charts.heatmap(matrix, (a, b), path, CELL)
    name = f"{matrix.measure} {matrix.estimator} {_pair(matrix)} {matrix.n} images"
    show.chart(drawn, name, matrix.to_frame(), key=CHART, on_select=take_cell, selection_mode=CELL)
    null, interval, definition = matrix.null, matrix.interval, matrix.definition
    grey = "The null and the interval are not computed here because this measure is slow. "
    if null:
        grey = (
            f"Grey cells are not closer than 95 % of their own null ({null.permutations} random "
            "pairings of the images). "
        )
    bounds = f"95 % intervals: {interval.method}. " if interval else ""
    st.caption(
        plain(
            "Bright cells are pairs of layers that represent the same images similarly; click one "
            f"to see its two layers below. {grey}{bounds}Empty cells are undefined. Colours are "
            f"clipped, values are raw. {matrix.label}: {definition.about} {definition.source}. "
            f"{matrix.reduce} over positions, n = {matrix.n} images."
        )
    )
    if not matrix.of_one_network and not np.isnan(matches.value).all():
        with guarded():
            st.subheader("Best match of each layer", divider="grey")
            show.chart(charts.match_curve(matches), f"best matches {name}", matches.to_frame())
            lowest = "lowest" if definition.larger_is_closer else "highest"
            st.caption(
                "For each layer of the rows, similarity to its best match among the columns: where "
                f"the line is {lowest}, the networks differ most. The dashed line is the 95 % null "
                "of the best match."
            )
    show.folded_table("Values", matrix.to_frame())


def take_cell() -> None:
    """Look at the two layers of the cell that was clicked, for callbacks."""
    cell = charts.picked(CHART, CELL)
    if {"layer_a", "layer_b"} <= cell.keys():
        url_state.put(LAYER_A, str(cell["layer_a"]))
        url_state.put(LAYER_B, str(cell["layer_b"]))


def _pair(matrix: SimilarityMatrix) -> str:
    return " ".join(model.name if model else "" for model in (matrix.model_a, matrix.model_b))


# -- two layers ------------------------------------------------------------------------------------


def show_layers(
    a: sim.Side,
    b: sim.Side,
    matrix: SimilarityMatrix,
    usual: tuple[str, str],
    estimator: str,
    images: Images,
) -> None:
    """Two layers side by side, chosen by a click or by name."""
    st.header("Two layers side by side", divider="grey")
    left, right = st.columns(2)
    labels = [f"Layer of {plain(shown(one.choice))}" for one in (a, b)]
    layers = (
        url_state.choose(left.selectbox, labels[0], LAYER_A, a.reps.names(), usual[0]),
        url_state.choose(right.selectbox, labels[1], LAYER_B, b.reps.names(), usual[1]),
    )
    i, j = (
        [x.name for x in known].index(layer)
        for known, layer in zip((matrix.layers_a, matrix.layers_b), layers)
    )
    st.caption(plain(f"{matrix.label} of the two layers: {value_text(matrix, i, j)}."))
    titles = (f"{layers[0]} of {shown(a.choice)}", f"{layers[1]} of {shown(b.choice)}")
    pair = sim.LayerPair(a, b, layers)
    with guarded():
        show_neighbours(pair, titles, images)
    with guarded():
        show_classes(pair, matrix, estimator)
    with guarded():
        st.subheader("Pairwise distances between images", divider="grey")
        frame, rsa = pair.distances(images), pair.shared()[1]
        name = f"distances {a.choice} {layers[0]} {b.choice} {layers[1]}"
        show.chart(charts.distance_scatter(frame, titles), name, frame)
        st.caption(
            plain(
                f"One point per pair of images ({len(frame):,} pairs drawn at random): how "
                "dissimilar they are (1 − r of their features) in each layer. If both layers order "
                "the pairs in the same way, the points lie on a rising line. Scroll to zoom, drag "
                f"to move. Rank correlation of all pairs, {rsa.label}: {value_text(rsa)}."
            )
        )


def show_neighbours(pair: sim.LayerPair, titles: Sequence[str], images: Images) -> None:
    """The nearest images of one image in both layers; those in both are framed."""
    st.subheader("Nearest images", divider="grey")
    if len(images) < sim.NEIGHBOURS + 2:
        st.info(
            f"{sim.NEIGHBOURS} neighbours require at least {sim.NEIGHBOURS + 2} images: select "
            "more in the sidebar."
        )
        return
    found, mutual = pair.neighbours(), pair.shared()[0]
    place = st.container(width=220)
    query = url_state.number(
        place, "Image", "sim-image", 0, len(images) - 1, help="Index in the sample, from 0."
    )
    both = set(found[0][query]) & set(found[1][query])
    label = lambda i: plain(data.class_of(images, i) or f"image {i}")  # noqa: E731
    picture, text = st.columns([1, 5], vertical_alignment="center")
    picture.image(square(images[query], 3 * _PICTURE), caption=label(query))
    text.markdown(
        plain(
            f"{len(both)} of its {sim.NEIGHBOURS} nearest images are the same in both layers "
            "(framed)."
        )
    )
    text.caption(plain(f"Mean fraction over all images, {mutual.label}: {value_text(mutual)}."))
    for title, order in zip(titles, found):
        st.markdown(f"**{plain(title)}**, the nearest first")
        row = st.container(horizontal=True, gap="small")
        for i in map(int, order[query]):
            row.image(
                square(images[i], 3 * _PICTURE, charts.CHOSEN if i in both else None),
                caption=label(i),
                width=_PICTURE,
            )


def show_classes(pair: sim.LayerPair, matrix: SimilarityMatrix, estimator: str) -> None:
    """The measure within the images of each class."""
    st.subheader("Within each class", divider="grey")
    measure, reps = matrix.definition.name, pair.a.reps
    fewest = images_per_class(measure)
    if reps.labels is None:
        st.info(_UNLABELLED)
        return
    if not class_images(reps, fewest):
        more = "select more images in the sidebar, or images with more per class"
        st.info(plain(f"No class has {fewest} images, which {matrix.label} requires here: {more}."))
        return
    found = pair.by_class(measure, estimator)
    parts = [m.to_frame().assign(**{"class": m.images.split if m.images else ""}) for m in found]
    frame = pd.concat(parts, ignore_index=True)
    name = f"classes {matrix.measure} {_pair(matrix)} {' '.join(pair.layers)}"
    show.chart(charts.class_bars(frame, matrix.definition.label), name, frame)
    low, high = frame["n"].min(), frame["n"].max()
    n = str(low) if low == high else f"{low} to {high}"
    left_out, more = len(np.unique(reps.labels)) - len(frame), ""
    if left_out:
        more = (
            f" {left_out} classes with fewer than {fewest} images, or beyond the first "
            f"{MOST_CLASSES}, are omitted."
        )
    st.caption(
        plain(
            f"{matrix.label} of the two layers within the images of one class (n = {n} each): "
            "agreement beyond class separation. Grey lines are 95 % intervals, red ticks the 95 % "
            f"null of so few images.{more}"
        )
    )


with guarded():
    main()
