"""The views of the page Probes, each of which computes what it shows and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import streamlit as st

from mixer_probe.core.section import table_of
from mixer_probe.images import Images
from mixer_probe.probing import ConfusionMatrix, ProbeResult
from mixer_probe.probing.analyses import POSITION_LAYERS
from mixer_probe.probing.runs import source_labels
from mixer_probe_app import calls, charts, data, show, url_state
from mixer_probe_app import probes as pr
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.pictures import square

R = TypeVar("R")
Names = Sequence[str]

CONTROLS: dict[str, Callable[[pr.Subject], Any]] = {
    "Selectivity": pr.control,
    "Random labels": pr.random_labels,
    "Description length": pr.description_length,
}
TARGETS = ("the class", "the position")
_MOST_CLASSES, _MOST_PICTURES, _PICTURE = 30, 20, 72
CONFUSION, PICK, CLASS = "probes-confusion", "row", "probes-class"
_ACCURACY = "test accuracy (%)"


def of_all(names: Names, compute: Callable[[str], R]) -> list[R]:
    """The results of all networks; one that fails is a message and leaves the others."""
    found: list[R] = []
    for name in names:
        with guarded():
            found.append(compute(name))
    return found


def show_view(results: Sequence[Any], name: str, drawn: Any, caption: str) -> None:
    """Findings, a chart with its caption, and the table of results."""
    show.findings(results)
    show.chart(drawn, name, charts.table(results))
    st.caption(plain(caption))
    show.folded_table("Table", table_of(results))


def show_accuracy(names: Names, baselines: bool) -> None:
    """Accuracy by depth."""
    method = url_state.choose(st.segmented_control, "Classifier", "probes-method", pr.METHODS)
    _, test, subjects = _subjects(baselines)
    results = of_all(names, lambda name: pr.accuracy(subjects(name), method))
    if results:
        _accuracy(results, f"probes accuracy {method} {' '.join(names)} {len(test)} images")


def _subjects(baselines: bool) -> tuple[Images, Images, Callable[[str], pr.Subject]]:
    """The images to fit and to test on, and the networks on them. Raises ImagesError before
    anything is computed for images that no probe can be fitted to."""
    train, test = data.sides()
    source_labels(train, test)
    return train, test, lambda name: pr.subject(name, train, test, baselines)


def _accuracy(results: Sequence[ProbeResult], name: str) -> None:
    picture = calls.pictures(results)[f"probe-accuracy-{results[0].method}"]
    show_view(results, name, charts.probe_curves(results), f"{picture.shows} {picture.reading}")


def show_neighbours(names: Names, baselines: bool) -> None:
    """Accuracy of the nearest neighbours, by depth and by their number."""
    _, test, subjects = _subjects(baselines)
    results = of_all(names, lambda name: pr.accuracy(subjects(name), "knn"))
    if not results:
        return
    _accuracy(results, f"probes k-NN {' '.join(names)} {len(test)} images")
    st.subheader("Accuracy against number of neighbours", divider="grey")
    most = max(len(r.layers) for r in results)
    layer = url_state.choose(
        st.select_slider, "Block, counted from 1", "probes-knn-block", range(1, most + 1), most
    )
    frame = charts.table(
        results, lambda result: result.layer_path(min(layer, len(result.layers)) - 1)
    )
    level = (results[0].chance, "chance")
    drawn = charts.curves(frame, "test_accuracy", _ACCURACY, digits=".1%", across="k", level=level)
    show.chart(drawn, f"probes k {' '.join(names)} {len(test)} images", frame)
    st.caption(
        "The nearest training images by cosine similarity vote for the class, weighted by "
        "similarity. For the curves above, the number of neighbours is selected per block by "
        "leave-one-out accuracy on the training images; networks with fewer blocks stay at their "
        "last."
    )


# -- controls --------------------------------------------------------------------------------------


def show_controls(names: Names, baselines: bool) -> None:
    """Control tasks, random labels and description length, as in a report."""
    which = url_state.choose(st.segmented_control, "Control", "probes-control", list(CONTROLS))
    _, _, subjects = _subjects(baselines)
    found = of_all(names, lambda name: CONTROLS[which](subjects(name)))
    results = [result for one in found for result in (one if isinstance(one, tuple) else (one,))]
    if results:
        show.report(results)


# -- classes ---------------------------------------------------------------------------------------


def show_classes(names: Names, baselines: bool) -> None:
    """Accuracy per class and confusions between classes."""
    _, test, subjects = _subjects(baselines)

    def confusion(name: str) -> tuple[str, ProbeResult, ConfusionMatrix]:
        one = subjects(name)
        probe = pr.accuracy(one, "ridge")
        return name, probe, pr.confusion(one, probe, "ridge")

    results = of_all(names, confusion)
    if not results:
        return
    left, right = st.columns(2)
    options = [name for name, _, _ in results]
    chosen = url_state.choose(
        left.selectbox, "Network", "probes-network", options, format_func=shown
    )
    probe, found = next((probe, found) for name, probe, found in results if name == chosen)
    layers = [layer.name for layer in found.layers]
    layer = url_state.choose(right.selectbox, "Layer", "probes-layer", layers, layers[-1])
    show.findings([found])
    name = show_confusion(found, layers.index(layer), f"confusion {chosen} {layer}")
    with guarded():
        st.subheader(plain(f"Accuracy on class {name} by depth"), divider="grey")
        frame = charts.table([found for _, _, found in results], lambda result: result.per_class())
        frame = frame[frame["class"] == name].reset_index(drop=True)
        more = {"images:Q": "n test images"}
        show.chart(
            charts.curves(frame, "accuracy", _ACCURACY, digits=".1%", more=more),
            f"class {name}",
            frame,
        )
        st.caption(
            "Accuracy of a ridge probe on the test images of this class after each block, with 95 "
            "% intervals."
        )
    if not chosen.startswith(RUN):
        with guarded():
            show_mistakes(probe, layers.index(layer), name, test)
    with guarded():
        show_all_classes([found for _, _, found in results], layers.index(layer))


def show_confusion(found: ConfusionMatrix, layer: int, name: str) -> str:
    """The confusion matrix of a layer, for the classes with most errors; returns the class chosen
    by a click or by name."""
    order = [found.class_names[k] for k in found.most_confused(layer, _MOST_CLASSES)]
    said = url_state.get(CLASS)
    frame = found.to_frame()
    frame = frame[frame["layer"] == found.layers[layer].name].reset_index(drop=True)
    seen = frame[frame["true"].isin(order) & frame["predicted"].isin(order)]
    drawn = charts.confusion_cells(
        seen, order, said if said in found.class_names else order[0], PICK
    )
    show.chart(drawn, name, frame, key=CONFUSION, on_select=take_class, selection_mode=PICK)
    some = (
        ""
        if len(order) == len(found.class_names)
        else f" The {len(order)} classes with most errors are shown."
    )
    st.caption(
        "Correct predictions lie on the diagonal. A bright cell off the diagonal is a class (row) "
        "often predicted as another (column). Click a row, or select its class, for details "
        f"below.{some}"
    )
    return url_state.choose(
        st.container(width=320).selectbox, "Class", CLASS, list(found.class_names), order[0]
    )


def take_class() -> None:
    """Look at the class of the row that was clicked, for callbacks."""
    name = charts.picked(CONFUSION, PICK).get("true")
    if name is not None:
        url_state.put(CLASS, str(name))


def show_mistakes(probe: ProbeResult, layer: int, name: str, test: Images) -> None:
    """The test images of a class that a layer gets wrong."""
    found = probe.mistakes(layer, name)
    total = int((probe.labels == probe.class_labels[list(probe.class_names).index(name)]).sum())
    st.markdown(
        plain(
            f"{len(found)} of {total} test images of {name} are misclassified after "
            f"{probe.layers[layer].name}; captions give the predicted class."
        )
    )
    row = st.container(horizontal=True, gap="small")
    for i, answer in found[:_MOST_PICTURES]:
        row.image(square(test[i], 3 * _PICTURE), caption=plain(answer), width=_PICTURE)


def show_all_classes(results: Sequence[ConfusionMatrix], layer: int) -> None:
    """Accuracy per class, of all or of those with the highest and lowest."""
    st.subheader("All classes", divider="grey")
    names = {r.model.name: r.layers[min(layer, len(r.layers) - 1)].name for r in results}
    frame = charts.table(results, lambda result: result.per_class())
    frame = frame[frame["layer"] == frame["model"].map(names)].reset_index(drop=True)
    easy = frame.groupby("class")["accuracy"].mean().sort_values().index
    ends = [*easy[: _MOST_CLASSES // 2], *easy[-(_MOST_CLASSES // 2) :]]
    show.chart(charts.class_points(frame[frame["class"].isin(ends)]), "classes", frame)
    some = (
        ""
        if len(easy) <= len(ends)
        else f" Of {len(easy)} classes, those with the highest and lowest accuracy are shown."
    )
    st.caption(
        "Test accuracy per class with 95 % intervals; the class with the highest accuracy is on "
        f"top.{some}"
    )


# -- positions -------------------------------------------------------------------------------------


def show_positions(names: Names, baselines: bool) -> None:
    """What is decoded at each position: the class, or the position itself, which needs no
    classes."""
    target = url_state.choose(
        st.segmented_control, "Target of the probe at each position", "probes-place", TARGETS
    )
    if target == TARGETS[1]:
        show_patch_position(names, data.images(), baselines)
        return
    train, test, _ = _subjects(baselines)
    results = of_all(names, lambda name: pr.class_by_position(name, train, test))
    if not results:
        return
    show.findings(results)
    steps = range(1, POSITION_LAYERS + 1)
    step = url_state.choose(
        st.select_slider, "Depth, from first to last", "probes-map", steps, POSITION_LAYERS
    )
    values = np.concatenate([part.ravel() for r in results for part in r.accuracy])
    values, chance = values[np.isfinite(values)], results[0].chance
    scale = (
        (min(chance, float(values.min())), max(chance + 0.01, float(values.max())))
        if len(values)
        else (0.0, 1.0)
    )
    row = st.container(horizontal=True, gap="small")
    for result in results:
        i = min(step, len(result.layers)) - 1
        layer, frame = result.layers[i].name, result.to_frame()
        frame = frame[(frame["layer"] == layer) & (frame["place"] == "position")].rename(
            columns={"accuracy": "value"}
        )
        with row.container(width=charts.MAP_WIDTH):
            _map(result, layer, frame.reset_index(drop=True), scale, _ACCURACY)
            st.caption(plain(f"Mean over positions: accuracy {100 * result.pooled[i]:.0f} %."))
    first = results[0]
    st.caption(
        plain(
            f"Accuracy on {first.n_test} test images of a ridge probe at each position of a block, "
            f"each trained on {first.n_train} images; chance is {100 * first.chance:.1f} %. All "
            "maps share one colour scale. A uniform map means that every position carries class "
            f"information of the whole image. Blocks with more than {pr.MOST_POSITIONS} positions "
            f"are skipped; of the others at most {POSITION_LAYERS} are shown."
        )
    )
    show.folded_table("Table", table_of(results))


def _map(
    result: Any, layer: str, frame: pd.DataFrame, scale: tuple[float, float], legend: str
) -> None:
    title = f"{shown(result.model.name)}, {layer}"
    show.chart(
        charts.position_map(frame, title, scale, legend),
        f"map {legend} {result.model.name} {layer}",
        frame,
    )


def show_patch_position(names: Names, images: Images, baselines: bool) -> None:
    """Decoding of the position of a patch, by depth and by cell of the grid."""
    results = of_all(names, lambda name: pr.patch_position(name, images, baselines))
    if not results:
        return
    options: Any = {"bounds": ("low_distance_px", "high_distance_px"), "zero": False}
    options["more"] = {
        "chance_distance_px:Q .4~g": "chance (px)",
        "rows:Q": "rows",
        "columns:Q": "columns",
    }
    show_view(
        results,
        "patch position",
        charts.curves(
            charts.table(results), "distance_px", "mean error (px of the input)", **options
        ),
        "Mean error of the position decoded from the activation of a token, trained on "
        f"{results[0].n_train} images and tested on {results[0].n_test} others; lower is better. "
        "Bands are 95 % intervals over images, dotted lines untrained baselines. The first point "
        "is the stem: position information in patch content.",
    )
    most = max(len(r.layers) for r in results)
    steps = range(1, most + 1)
    step = url_state.choose(
        st.select_slider,
        "Layer, from the stem to the last block",
        "probes-position-layer",
        steps,
        most,
    )
    row = st.container(horizontal=True, gap="small")
    for result in results:
        i = min(step, len(result.layers)) - 1
        with row.container(width=charts.MAP_WIDTH), guarded():
            _map(
                result,
                result.layers[i].name,
                charts.cells_frame(result.cells[i]),
                (0.0, 1.0),
                "accuracy per cell (%)",
            )
    st.caption(
        "Fraction of tokens of each grid cell whose cell is predicted correctly; it is often "
        "highest at the border."
    )


VIEWS = {
    "Accuracy": show_accuracy,
    "Controls": show_controls,
    "Classes": show_classes,
    "Places": show_positions,
    "Neighbours": show_neighbours,
}
