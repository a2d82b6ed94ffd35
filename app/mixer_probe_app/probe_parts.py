"""The parts of the page Probes: one function a view, which calculates what it shows and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import streamlit as st

from mixer_probe.core.result import Result
from mixer_probe.images import Images
from mixer_probe.probing import ConfusionMatrix, PatchPosition, PositionProbe, ProbeResult
from mixer_probe_app import charts, held, show
from mixer_probe_app import probes as pr
from mixer_probe_app.analyses import findings
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.similarity_parts import enlarged

R = TypeVar("R")
Names = Sequence[str]

CONTROLS = ("Selectivity", "Random labels", "Description length")
_MOST_CLASSES, _MOST_PICTURES, _PICTURE = 30, 20, 72
CONFUSION, PICK, CLASS = "probes-confusion", "row", "probes-class"
_INTERVAL = "Bands are 95 % Wilson intervals over the test images, "
_TWINS = "dashed lines are untrained baselines, the dotted grey line is chance. "


def of_all(names: Names, make: Callable[[str], R]) -> list[R]:
    """The results of all networks; one that fails is a message and leaves the others."""
    found: list[R] = []
    for name in names:
        with guarded():
            found.append(make(name))
    return found


def _told(results: Sequence[Result]) -> None:
    """What the report says about these results."""
    key = ("probes", *(repr(pd.util.hash_pandas_object(r.to_frame()).sum()) for r in results), type(results[0]).__name__)
    show.bullets(findings(results, key))


def _name(view: str, names: Names, test: Images) -> str:
    return f"probes {view} {' '.join(names)} {len(test)} images"


# -- accuracy and neighbours -----------------------------------------------------------------------------------------------


def show_accuracy(names: Names, train: Images, test: Images, twin: bool) -> None:
    """Accuracy by depth."""
    method = held.segments(st, "Classifier", "probes-method", list(pr.METHODS), format_func=pr.METHODS.__getitem__)
    results = of_all(names, lambda name: pr.accuracy(pr.subject(name, train, test, twin), method))
    if results:
        _curves(results, _name(f"accuracy {method}", names, test))


def show_neighbours(names: Names, train: Images, test: Images, twin: bool) -> None:
    """Accuracy of the nearest neighbours, by depth and by their number."""
    results = of_all(names, lambda name: pr.accuracy(pr.subject(name, train, test, twin), "knn"))
    if not results:
        return
    _curves(results, _name("k-NN", names, test))
    st.subheader("Accuracy against number of neighbours", divider="grey")
    most = max(len(r.layers) for r in results)
    layer = held.steps(st, "Block, counted from 1", "probes-knn-block", range(1, most + 1), most)
    frame = charts.named(pr.path_frame(results, layer - 1))
    title = "test accuracy (%)"
    drawn = charts.curves(
        frame, "test_accuracy", title, across=("k", "number of neighbours k"), level=(results[0].chance, "chance")
    )
    show.chart(drawn, _name("k", names, test), frame)
    st.caption(
        "The nearest training images by cosine similarity vote for the class, weighted by similarity. For the curves above, the "
        "number of neighbours is selected per block by leave-one-out accuracy on the training images; networks with fewer blocks "
        "stay at their last."
    )


def _curves(results: Sequence[ProbeResult], name: str) -> None:
    _told(results)
    show.chart(charts.probe_curves(results), name, pr.frame_of(results))
    first = results[0]
    chosen = f"; {first.path_name} was selected per layer on held-out training images" if first.path_name else ""
    st.caption(
        plain(
            f"Probes ({first.estimator}) of the {first.reduce} over positions, trained on {first.n_train} images of "
            f"{first.classes} classes and tested on {first.n_test} others{chosen}. "
            f"{_INTERVAL}{_TWINS}Hover over a mark for its values."
        )
    )
    show.folded_table("Table", pr.frame_of(results))


# -- controls --------------------------------------------------------------------------------------------------------------


def show_controls(names: Names, train: Images, test: Images, twin: bool) -> None:
    """Control tasks, random labels and description length."""
    which = held.segments(st, "Control", "probes-control", CONTROLS)
    work = {CONTROLS[0]: _selectivity, CONTROLS[1]: _random_labels, CONTROLS[2]: _description_length}[which]
    work(names, lambda name: pr.subject(name, train, test, twin), _name(which, names, test))


Subjects = Callable[[str], pr.Subject]


def _selectivity(names: Names, subject: Subjects, name: str) -> None:
    results = of_all(names, lambda choice: pr.control(subject(choice)))
    if not results:
        return
    _told(results)
    frame, first = charts.named(pr.frame_of(results)), results[0]
    bounds = ("selectivity_low", "selectivity_high")
    drawn = charts.curves(frame, "selectivity", "selectivity (fraction of images)", bounds=bounds, level=(0, "no selectivity"))
    show.chart(drawn, name, frame)
    st.caption(
        plain(
            f"Accuracy on the groups {', '.join(first.groups)} minus that on {len(first.controls)} random groupings of the same "
            "classes (Hewitt and Liang 2019). A probe that separates all classes can learn any grouping of them, so selectivity "
            "above 0 is the advantage of the semantic grouping. Bands are 95 % intervals, dashed lines untrained baselines."
        )
    )
    both = charts.named(pr.grouping_frame(results))
    level = (float(first.chance[0]), "largest group")
    dashes = ("groups", ("semantic", "random"))
    show.chart(charts.curves(both, "accuracy", "test accuracy (%)", dashes=dashes, level=level), f"{name} accuracy", both)
    st.caption(
        "Accuracy on the semantic groups with its 95 % interval; dashed: on random groupings, band from the lowest to the "
        "highest."
    )
    show.folded_table("Table", frame)


def _random_labels(names: Names, subject: Subjects, name: str) -> None:
    results = of_all(names, lambda choice: pr.random_labels(subject(choice)))
    if not results:
        return
    _told(results)
    frame = charts.named(pr.random_frame(results))
    dashes = ("labels", ("found", "expected"))
    show.chart(charts.curves(frame, "accuracy", "accuracy on permuted labels (%)", dashes=dashes), name, frame)
    st.caption(
        "Probes of permuted labels. Solid lines: observed accuracy with 95 % intervals; dashed lines: expected accuracy under "
        "permuted labels. Accuracy above that indicates leakage of test images or an error of evaluation; one layer in twenty "
        "lies outside by chance."
    )
    show.folded_table("Table", pr.frame_of(results))


def _description_length(names: Names, subject: Subjects, name: str) -> None:
    results = [code for found in of_all(names, lambda choice: pr.description_length(subject(choice))) for code in found]
    if not results:
        return
    _told(results)
    frame, first = charts.named(pr.frame_of(results)), results[0]
    title = "compression (uniform code ÷ online code)"
    more = {"bits": "bits", "uniform_bits": "bits of the uniform code"}
    show.chart(charts.curves(frame, "compression", title, percent=False, level=(1, "no compression"), more=more), name, frame)
    st.caption(
        plain(
            f"Compression of the labels of {first.n} images by the online code given a layer (Voita and Titov 2020), for "
            f"{pr.CODE_LAYERS} layers: labels are encoded block by block, each by a probe trained on the blocks before. 1 means "
            f"no compression. Bands are 95 % intervals over {first.bits.shape[1]} orders of the images, dashed lines untrained "
            "baselines."
        )
    )
    show.folded_table("Table", frame)


# -- classes ---------------------------------------------------------------------------------------------------------------


def show_classes(names: Names, train: Images, test: Images, twin: bool) -> None:
    """Accuracy per class and confusions between classes."""
    results = of_all(names, lambda name: (name, *_confused(name, train, test, twin)))
    if not results:
        return
    left, right = st.columns(2)
    chosen = held.select(left, "Network", "probes-network", [name for name, _, _ in results], format_func=shown)
    probe, found = next((probe, found) for name, probe, found in results if name == chosen)
    layers = [layer.name for layer in found.layers]
    layer = held.select(right, "Layer", "probes-layer", layers, layers[-1])
    _told([found])
    name = _one_confusion(found, layers.index(layer), f"confusion {chosen} {layer}")
    with guarded():
        _one_class([(n, f) for n, _, f in results], name)
    if not chosen.startswith("run:"):
        with guarded():
            _mistakes(probe, layers.index(layer), name, test)
    with guarded():
        _all_classes([f for _, _, f in results], layers.index(layer))


def _confused(name: str, train: Images, test: Images, twin: bool) -> tuple[ProbeResult, ConfusionMatrix]:
    one = pr.subject(name, train, test, twin)
    probe = pr.accuracy(one, "ridge")
    return probe, pr.confusion(one, probe, "ridge")


def _one_confusion(found: ConfusionMatrix, layer: int, name: str) -> str:
    order = pr.hardest(found, layer, _MOST_CLASSES)
    said = held.recall(CLASS)
    chosen = said if said in found.class_names else order[0]
    frame = pr.layer_rows(found.to_frame(), found.layers[layer].name)
    seen = frame[frame["true"].isin(order) & frame["predicted"].isin(order)]
    drawn = charts.confusion_cells(seen, order, chosen, PICK)
    show.chart(drawn, name, frame, key=CONFUSION, on_select=take_class, selection_mode=PICK)
    some = "" if len(order) == len(found.class_names) else f" The {len(order)} classes with most errors are shown."
    st.caption(
        f"Correct predictions lie on the diagonal. A bright cell off the diagonal is a class (row) often predicted as another "
        f"(column). Click a row, or select its class, for details below.{some}"
    )
    return held.select(st.container(width=320), "Class", CLASS, list(found.class_names), order[0])


def take_class() -> None:
    """Look at the class of the row that was clicked."""
    state = st.session_state.get(CONFUSION) or {}
    with contextlib.suppress(KeyError, IndexError, TypeError):
        held.hold(CLASS, str(state["selection"][PICK][0]["true"]))


def _one_class(results: Sequence[tuple[str, ConfusionMatrix]], name: str) -> None:
    st.subheader(plain(f"Accuracy on class {name} by depth"), divider="grey")
    frame = charts.named(pd.concat([found.per_class() for _, found in results], ignore_index=True))
    frame = frame[frame["class"] == name].reset_index(drop=True)
    title = "test accuracy (%)"
    more = {"images": "n test images"}
    show.chart(charts.curves(frame, "accuracy", title, more=more), f"class {name}", frame)
    st.caption("Accuracy of a ridge probe on the test images of this class after each block, with 95 % intervals.")


def _mistakes(probe: ProbeResult, layer: int, name: str, test: Images) -> None:
    found = pr.wrong(probe, layer, name)
    total = int((probe.labels == probe.class_labels[list(probe.class_names).index(name)]).sum())
    st.markdown(
        plain(
            f"{len(found)} of {total} test images of {name} are misclassified after {probe.layers[layer].name}; captions give "
            "the predicted class."
        )
    )
    row = st.container(horizontal=True, gap="small")
    for i, answer in found[:_MOST_PICTURES]:
        row.image(enlarged(test[i]), caption=plain(answer), width=_PICTURE)


def _all_classes(results: Sequence[ConfusionMatrix], layer: int) -> None:
    st.subheader("All classes", divider="grey")
    tables = [pr.layer_rows(f.per_class(), f.layers[min(layer, len(f.layers) - 1)].name) for f in results]
    frame = charts.named(pd.concat(tables, ignore_index=True))
    easy = frame.groupby("class")["accuracy"].mean().sort_values().index
    ends = [*easy[: _MOST_CLASSES // 2], *easy[-(_MOST_CLASSES // 2) :]]
    show.chart(charts.class_points(frame[frame["class"].isin(ends)]), "classes", frame)
    some = "" if len(easy) <= len(ends) else f" Of {len(easy)} classes, those with the highest and lowest accuracy are shown."
    st.caption(f"Test accuracy per class with 95 % intervals; the class with the highest accuracy is on top.{some}")


# -- places ----------------------------------------------------------------------------------------------------------------


def show_class_by_place(names: Names, train: Images, test: Images, twin: bool) -> None:
    """Probe accuracy by position; without untrained baselines."""
    results = of_all(names, lambda name: pr.class_by_place(name, train, test))
    if not results:
        return
    _told(results)
    step = held.steps(st, "Depth, from first to last", "probes-map", range(1, pr.MOST_MAPS + 1), pr.MOST_MAPS)
    scale = _scale([values for r in results for values in r.accuracy], results[0].chance)
    row = st.container(horizontal=True, gap="small")
    for result in results:
        with row.container(width=charts.MAP_WIDTH):
            _class_map(result, step - 1, scale)
    first = results[0]
    st.caption(
        plain(
            f"Accuracy on {first.n_test} test images of a ridge probe at each position of a block, each trained on "
            f"{first.n_train} images; chance is {100 * first.chance:.1f} %. All maps share one colour scale. A uniform map means "
            f"that every position carries class information of the whole image. Blocks with more than {pr.MOST_POSITIONS} "
            f"positions are skipped; of the others at most {pr.MOST_MAPS} are shown."
        )
    )
    show.folded_table("Table", pr.frame_of(results))


def _scale(values: Sequence[np.ndarray], chance: float) -> tuple[float, float]:
    """From chance, or what is below it, to the best place of all."""
    known = np.concatenate([part.ravel() for part in values])
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0, 1.0
    return min(chance, float(known.min())), max(chance + 0.01, float(known.max()))


def _class_map(result: PositionProbe, step: int, scale: tuple[float, float]) -> None:
    i = min(step, len(result.layers) - 1)
    layer = result.layers[i]
    frame = result.to_frame()
    frame = frame[(frame["layer"] == layer.name) & (frame["place"] == "position")].rename(columns={"accuracy": "value"})
    _map(result, layer.name, frame.reset_index(drop=True), scale, "test accuracy (%)")
    st.caption(plain(f"Mean over positions: accuracy {100 * result.pooled[i]:.0f} %."))


def _map(result: Any, layer: str, frame: pd.DataFrame, scale: tuple[float, float], legend: str) -> None:
    title = f"{shown(result.model.name)}, {layer}"
    show.chart(charts.place_map(frame, title, scale, legend), f"map {legend} {result.model.name} {layer}", frame)


def show_position(names: Names, images: Images, twin: bool) -> None:
    """Decoding of the position of a patch; needs no classes."""
    results = of_all(names, lambda name: pr.place_of_patch(name, images, twin))
    if not results:
        return
    _told(results)
    frame = charts.named(pr.frame_of(results))
    bounds, title = ("low_distance_px", "high_distance_px"), "mean error (px of the input)"
    more = {"chance_distance_px": "chance (px)", "rows": "rows", "columns": "columns"}
    show.chart(charts.curves(frame, "distance_px", title, bounds=bounds, percent=False, more=more), "patch position", frame)
    st.caption(
        plain(
            f"Mean error of the position decoded from the activation of a token, trained on {results[0].n_train} images and "
            f"tested on {results[0].n_test} others; lower is better. Bands are 95 % intervals over images, dashed lines "
            "untrained baselines. The first point is the stem: position information in patch content."
        )
    )
    with guarded():
        _position_maps(results)
    show.folded_table("Table", frame)


def _position_maps(results: Sequence[PatchPosition]) -> None:
    most = max(len(r.layers) for r in results)
    step = held.steps(st, "Layer, from the stem to the last block", "probes-position-layer", range(1, most + 1), most)
    row = st.container(horizontal=True, gap="small")
    for result in results:
        i = min(step, len(result.layers)) - 1
        with row.container(width=charts.MAP_WIDTH):
            _map(result, result.layers[i].name, cells_frame(result.cells[i]), (0.0, 1.0), "accuracy per cell (%)")
    st.caption("Fraction of tokens of each grid cell whose cell is predicted correctly; it is often highest at the border.")


def cells_frame(cells: np.ndarray) -> pd.DataFrame:
    """One cell [rows, columns] a row."""
    rows, columns = np.indices(cells.shape)
    return pd.DataFrame({"row": rows.ravel(), "column": columns.ravel(), "value": cells.ravel()})
