"""The parts of the page Similarity: the matrix with its sentences, and the two layers of a cell side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st
from PIL import Image
from streamlit.delta_generator import DeltaGenerator

from mixer_probe.images import Images
from mixer_probe.similarity import SimilarityMatrix, best_matches
from mixer_probe_app import charts, held, show
from mixer_probe_app import similarities as sim
from mixer_probe_app.analyses import findings
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain

# In pixels.
_PICTURE = 64


def show_matrix(matrix: SimilarityMatrix) -> None:
    """Sentences, heatmap and best matches."""
    key = ("similarity", matrix.model_a, matrix.model_b, matrix.images, matrix.label, matrix.n)
    show.bullets([*sim.sentences(matrix), *findings([matrix], repr(key))])
    path = held.toggle(st, "Best-match path", "sim-path", help="Markers show the best match of each row.")
    drawn = charts.heatmap(matrix, looked_at(matrix), path, sim.PICK)
    name = f"{matrix.measure} {matrix.estimator} {_pair(matrix)} {matrix.n} images"
    show.chart(drawn, name, matrix.to_frame(), key=sim.CHART, on_select=sim.take_clicked, selection_mode=sim.PICK)
    st.caption(plain(_reading(matrix)))
    if not sim.same_network(matrix):
        with guarded():
            _show_matches(matrix, name)
    show.folded_table("Values", matrix.to_frame())


def looked_at(matrix: SimilarityMatrix) -> tuple[str, str]:
    """The two layers that are looked at: what the URL says, or where the networks differ most."""
    first = sim.least_alike(matrix)
    said = held.recall(sim.LAYER_A), held.recall(sim.LAYER_B)
    known = [{layer.name for layer in side} for side in (matrix.layers_a, matrix.layers_b)]
    a, b = (name if name in names else usual for name, names, usual in zip(said, known, first))
    return str(a), str(b)


def _pair(matrix: SimilarityMatrix) -> str:
    return " ".join(model.name if model else "" for model in (matrix.model_a, matrix.model_b))


def _reading(matrix: SimilarityMatrix) -> str:
    null, interval, definition = matrix.null, matrix.interval, matrix.definition
    alike = "Bright cells are pairs of layers that represent the same images similarly; click one to see its two layers below. "
    grey = (
        f"Grey cells are not closer than 95 % of their own null ({null.permutations} random pairings of the images). "
        if null
        else ""
    )
    bounds = f"95 % intervals: {interval.method}. " if interval else ""
    missing = "" if null else "The null and the interval are not computed here because this measure is slow. "
    about = f"{matrix.label}: {definition.about} {definition.source}. {matrix.reduce} over positions, n = {matrix.n} images. "
    return f"{alike}{grey}{bounds}{missing}Empty cells are undefined. Colours are clipped, values are raw. {about}"


def _show_matches(matrix: SimilarityMatrix, name: str) -> None:
    matches = best_matches(matrix)
    if np.isnan(matches.value).all():
        return
    st.subheader("Best match of each layer", divider="grey")
    show.chart(charts.match_curve(matches), f"best matches {name}", matches.to_frame())
    lowest = "lowest" if matrix.definition.larger_is_closer else "highest"
    st.caption(
        f"For each layer of the rows, similarity to its best match among the columns: where the line is {lowest}, the networks "
        "differ most. The band is the 95 % interval, the dashed line the 95 % null of the best match."
    )


# -- two layers ------------------------------------------------------------------------------------------------------------


def show_layers(a: sim.Side, b: sim.Side, matrix: SimilarityMatrix, estimator: str, images: Images) -> None:
    """Two layers side by side, chosen by a click or by name."""
    st.header("Two layers side by side", divider="grey")
    first = sim.least_alike(matrix)
    left, right = st.columns(2)
    layers = (
        held.select(left, f"Layer of {plain(shown(a.choice))}", sim.LAYER_A, a.names, first[0]),
        held.select(right, f"Layer of {plain(shown(b.choice))}", sim.LAYER_B, b.names, first[1]),
    )
    st.caption(plain(_value(matrix, layers)))
    titles = [f"{layer} of {shown(side.choice)}" for side, layer in zip((a, b), layers)]
    with guarded():
        _show_neighbours(a, b, layers, titles, images)
    with guarded():
        _show_classes(a, b, layers, matrix, estimator)
    with guarded():
        _show_distances(a, b, layers, titles, images)


def _value(matrix: SimilarityMatrix, layers: tuple[str, str]) -> str:
    i, j = ([x.name for x in side].index(layer) for side, layer in zip((matrix.layers_a, matrix.layers_b), layers))
    return f"{matrix.label} of the two layers: {cell_text(matrix, i, j)}."


def cell_text(matrix: SimilarityMatrix, i: int = 0, j: int = 0) -> str:
    """ "0.31 [0.26, 0.35], null 0.06 on average and 0.07 at 95 %, n = 200"."""
    if np.isnan(matrix.values[i, j]):
        return f"not defined (n = {matrix.n})"
    interval, null = matrix.interval, matrix.null
    bounds = "" if interval is None or np.isnan(interval.low[i, j]) else f" [{interval.low[i, j]:.2f}, {interval.high[i, j]:.2f}]"
    chance = (
        ""
        if null is None
        else f", null {null.mean[i, j]:.2f} on average and {null.quantile95[i, j]:.2f} at 95 %".replace("-0.00", "0.00")
    )
    return f"{matrix.values[i, j]:.2f}{bounds}{chance}, n = {matrix.n}"


def _show_neighbours(a: sim.Side, b: sim.Side, layers: tuple[str, str], titles: Sequence[str], images: Images) -> None:
    st.subheader("Nearest images", divider="grey")
    if len(images) < sim.NEIGHBOURS + 2:
        st.info(f"{sim.NEIGHBOURS} neighbours require at least {sim.NEIGHBOURS + 2} images: select more in the sidebar.")
        return
    found, mutual = sim.neighbours(a, b, layers), sim.pair(a, b, layers)[0]
    query = held.number(st.container(width=220), "Image", "sim-image", 0, len(images) - 1, help="Index in the sample, from 0.")
    both = set(found.a[query]) & set(found.b[query])
    picture, text = st.columns([1, 5], vertical_alignment="center")
    picture.image(enlarged(images[query]), caption=plain(label_of(images, query)))
    text.markdown(plain(f"{len(both)} of its {sim.NEIGHBOURS} nearest images are the same in both layers (framed)."))
    text.caption(plain(f"Mean fraction over all images, {mutual.label}: {cell_text(mutual)}."))
    for title, order in zip(titles, (found.a[query], found.b[query])):
        st.markdown(f"**{plain(title)}**, the nearest first")
        _row(st.container(horizontal=True, gap="small"), images, order, both)


def _row(place: DeltaGenerator, images: Images, order: np.ndarray, framed: set[int]) -> None:
    for i in order:
        place.image(enlarged(images[int(i)], int(i) in framed), caption=plain(label_of(images, int(i))), width=_PICTURE)


def label_of(images: Images, i: int) -> str:
    """The class of an image, or its place in the sample."""
    return sim.class_of(images, i).strip("()") or f"image {i}"


def enlarged(picture: Image.Image, framed: bool = False) -> Image.Image:
    """A small image with whole pixels, a large one made smaller; framed where it is marked."""
    side, border = 3 * _PICTURE, 14 if framed else 0
    filtered = Image.Resampling.NEAREST if max(picture.size) < side else Image.Resampling.LANCZOS
    inner = picture.resize((side - 2 * border, side - 2 * border), filtered)
    whole = Image.new("RGB", (side, side), charts.CHOSEN)
    whole.paste(inner, (border, border))
    return whole


def _show_classes(a: sim.Side, b: sim.Side, layers: tuple[str, str], matrix: SimilarityMatrix, estimator: str) -> None:
    st.subheader("Within each class", divider="grey")
    measure = "cka_rbf" if matrix.kernel == "rbf" else matrix.measure
    fewest = sim.fewest_images(measure)
    if a.reps.labels is None:
        st.info(
            "These images have no class labels: select labelled images in the sidebar, or a folder with a subfolder per class."
        )
        return
    if not sim.enough_images(a.reps, fewest):
        more = "select more images in the sidebar, or images with more per class"
        st.info(plain(f"No class has {fewest} images, which {matrix.label} requires here: {more}."))
        return
    frame = sim.class_frame(sim.by_class(a, b, layers, measure, estimator))
    name = f"classes {matrix.measure} {_pair(matrix)} {' '.join(layers)}"
    show.chart(charts.class_bars(frame, matrix.definition.label), name, frame)
    left_out = len(np.unique(a.reps.labels)) - len(frame)
    st.caption(
        plain(
            f"{matrix.label} of the two layers within the images of one class (n = {_range(frame['n'])} each): agreement beyond "
            "class separation. Grey lines are 95 % intervals, red ticks the 95 % null of so few images."
            + (
                f" {left_out} classes with fewer than {fewest} images, or beyond the first {sim.MOST_CLASSES}, are omitted."
                if left_out
                else ""
            )
        )
    )


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _show_distances(a: sim.Side, b: sim.Side, layers: tuple[str, str], titles: Sequence[str], images: Images) -> None:
    st.subheader("Pairwise distances between images", divider="grey")
    frame, rsa = sim.distances(a, b, layers, images), sim.pair(a, b, layers)[1]
    name = f"distances {a.choice} {layers[0]} {b.choice} {layers[1]}"
    show.chart(charts.distance_scatter(frame, (titles[0], titles[1])), name, frame)
    st.caption(
        plain(
            f"One point per pair of images ({len(frame):,} pairs drawn at random): how dissimilar they are (1 − r of their "
            "features) in each layer. If both layers order the pairs in the same way, the points lie on a rising line. Scroll "
            f"to zoom, drag to move. Rank correlation of all pairs, {rsa.label}: {cell_text(rsa)}."
        )
    )
