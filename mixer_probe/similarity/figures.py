"""Figures of similarity. Bright cells are similar, whatever the measure; cells that chance explains
are grey."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy.cluster.hierarchy import dendrogram

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.validate import checked
from mixer_probe.core.words import short_name
from mixer_probe.models.layer import Layer
from mixer_probe.plotting.style import (
    COLOURS,
    GREY,
    MARKERS,
    SEQUENTIAL,
    model_label,
    plain,
    styled,
)
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.matches import LayerMatches, best_matches
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.summary import ModelSimilarity

_NULL_GREY = "#BDBDBD"
_NULL_TEXT = "not closer than 95 % of its null"
_KINDS = dict(zip(("block", "spatial", "channel", "stem", "norm", "head", "other"), COLOURS))
# Fraction of an axis that the strip of kinds takes, and the white line between it and the cells.
_STRIP, _GAP = 0.035, 0.012
# Beyond this many models the values in the cells of a summary are too small to read.
_MOST_VALUES = 40

# -- scales ----------------------------------------------------------------------------------------


def _limits(matrix: SimilarityMatrix) -> tuple[float, float]:
    """What the colours span: 0 to 1 for similarities, 0 to the largest distance for distances."""
    return 0.0, float(matrix.definition.highest)


def _colours(matrix: SimilarityMatrix) -> Colormap:
    # Small distances are alike, and alike is bright.
    return mpl.colormaps[SEQUENTIAL if matrix.definition.larger_is_closer else SEQUENTIAL + "_r"]


def _greyed(matrix: SimilarityMatrix) -> np.ndarray:
    """1 in cells that are not beyond their null, NaN in all others."""
    above = matrix.above_null
    if above is None:
        return np.full(matrix.values.shape, np.nan)
    return np.where(~above & ~np.isnan(matrix.values), 1.0, np.nan)


def _colourbar(
    matrix: SimilarityMatrix, figure: Figure, panels: Axes | Sequence[Axes], **options: Any
) -> Colorbar:
    low, high = _limits(matrix)
    ticks = np.linspace(low, high, 5 if "shrink" in options else 3)
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), _colours(matrix)), ax=panels, ticks=ticks, **options
    )
    bar.ax.set_yticklabels([f"{tick:.2f}".rstrip("0").rstrip(".") for tick in ticks])
    bar.outline.set_visible(False)
    if not matrix.definition.larger_is_closer:
        # Bright is at the top of every bar.
        bar.ax.invert_yaxis()
    return bar


def _shared_bar(
    figure: Figure, panels: Sequence[Axes], matrices: Sequence[SimilarityMatrix]
) -> None:
    first = matrices[0]
    bar = _colourbar(first, figure, panels, shrink=0.8, aspect=30, pad=0.01)
    alike = "" if first.definition.larger_is_closer else "; 0 is identical"
    bar.set_label(f"{first.label}, 0 to {_limits(first)[1]:.3g}{alike}")


def _key(figure: Figure, matrices: Sequence[SimilarityMatrix], more: Sequence[Artist] = ()) -> None:
    """What grey, strips and markers mean, below the panels."""
    keys = (
        [Patch(color=_NULL_GREY, label=_NULL_TEXT)]
        if any(m.null is not None for m in matrices)
        else []
    )
    sides = [layers for m in matrices for layers in (m.layers_a, m.layers_b) if _several(layers)]
    kinds = {layer.kind for layers in sides for layer in layers}
    handles = [
        *keys,
        *more,
        *(
            Patch(color=colour, label=f"{kind} layer")
            for kind, colour in _KINDS.items()
            if kind in kinds
        ),
    ]
    if handles:
        columns = min(len(handles), 2 if figure.get_figwidth() < 8 else 4)
        figure.legend(handles=handles, loc="outside lower left", fontsize=8, ncols=columns)


def _check_one_measure(matrices: Sequence[SimilarityMatrix]) -> None:
    labels = dict.fromkeys(m.label for m in matrices)
    if len(labels) > 1:
        raise MeasureError(
            f"one scale cannot hold {', '.join(labels)}: draw them with similarity_measures"
        )


# -- all networks against all ----------------------------------------------------------------------


@styled
def similarity_map(matrices: Sequence[SimilarityMatrix]) -> Figure:
    """All networks against all in one square: each network takes the same room, its layers go from
    first to last.

    `matrices` are of one measure and hold every pair of networks once, each network with itself
    too; pairs that are missing stay blank. Colours, grey cells and strips as in
    `similarity_heatmaps`."""
    _check_one_measure(matrices)
    sides = [(m.model_a, m.layers_a) for m in matrices] + [
        (m.model_b, m.layers_b) for m in matrices
    ]
    layers_of = {model_label(model): layers for model, layers in sides}
    names = list(
        dict.fromkeys(
            model_label(m) for matrix in matrices for m in (matrix.model_a, matrix.model_b)
        )
    )
    # Many networks mean upright names, which take room.
    figure = Figure(figsize=(8.6, 7.4) if len(names) < 5 else (10.5, 9.2))
    axes = figure.add_subplot()
    for matrix in matrices:
        a, b = names.index(model_label(matrix.model_a)), names.index(model_label(matrix.model_b))
        _block(axes, matrix, a, b, transposed=False)
        if a != b:
            _block(axes, matrix, a, b, transposed=True)
    centres, upright = np.arange(len(names)) + 0.5, len(names) < 5
    labels = [name.replace(" (", "\n(") for name in names]
    axes.set_xticks(centres, labels, rotation=0 if upright else 90, ha="center", va="top")
    axes.set_yticks(centres, labels)
    axes.tick_params(length=0)
    for edge in range(1, len(names)):
        axes.axhline(edge, color="white", linewidth=2.5)
        axes.axvline(edge, color="white", linewidth=2.5)
    axes.set(
        xlim=(0, len(names)),
        ylim=(0, len(names)),
        aspect="equal",
        title="Layer similarity, all pairs of networks",
    )
    axes.set(
        xlabel="layers of each network, first to last",
        ylabel="layers of each network, first to last",
    )
    axes.spines[:].set_visible(False)
    for which in ("x", "y"):
        _strips(
            axes, which, [(layers_of[name], float(start), 1.0) for start, name in enumerate(names)]
        )
    _shared_bar(figure, [axes], matrices)
    _key(figure, matrices)
    return figure


def _block(axes: Axes, matrix: SimilarityMatrix, a: int, b: int, transposed: bool) -> None:
    """One pair of networks as a square of side 1, row network `a` at y = a and column network `b`
    at x = b."""
    y, x = (
        (a + np.linspace(0, 1, len(matrix.layers_a) + 1)),
        (b + np.linspace(0, 1, len(matrix.layers_b) + 1)),
    )
    low, high = _limits(matrix)
    layers = [
        (np.clip(matrix.values, low, high), _colours(matrix)),
        (_greyed(matrix), ListedColormap([_NULL_GREY])),
    ]
    for values, cmap in layers:
        edges = (y, x, values.T) if transposed else (x, y, values)
        axes.pcolormesh(*edges, cmap=cmap, vmin=low, vmax=high, rasterized=True)
    rows, columns = np.argwhere(np.isnan(matrix.values)).T
    centres = ((x[:-1] + x[1:]) / 2)[columns], ((y[:-1] + y[1:]) / 2)[rows]
    axes.plot(
        *(centres[::-1] if transposed else centres),
        color="black",
        marker="x",
        markersize=2.5,
        linestyle="",
        mew=0.6,
    )


# -- one heatmap per pair --------------------------------------------------------------------------


@styled
@checked(MeasureError)
def similarity_heatmaps(
    matrices: Sequence[SimilarityMatrix], *, columns: int = 3, paths: bool = False
) -> Figure:
    """One heatmap per matrix, all of one measure, on the shared scale of that measure (values are
    clipped for the picture only).

    Bright is alike, for distances too. Grey cells are not closer than 95 % of their permutation
    null; crossed cells are not defined (NaN). Strips along the axes are coloured by the kind of
    layer where a side has several. `paths` draws the best match of each row: filled markers are
    beyond the null of the best match, open ones are not."""
    _check_one_measure(matrices)
    figure, panels = _panels(len(matrices), columns)
    for axes, matrix in zip(panels, matrices):
        _heatmap(axes, matrix)
        axes.set_title(_pair(matrix.model_a, matrix.model_b), fontsize=8.5)
        _depth_axis(axes, matrix.layers_b, "x", matrix.model_b)
        _depth_axis(axes, matrix.layers_a, "y", matrix.model_a)
        if paths:
            # The best match of each row, readable on any colour: white within black.
            matches, halos = (
                best_matches(matrix),
                {c: [withStroke(linewidth=2.6, foreground=c)] for c in ("black", "white")},
            )
            y, x = (
                np.arange(len(matches.best_match)),
                np.where(matches.best_match < 0, np.nan, matches.best_match),
            )
            size = min(26.0, 700 / max(len(y), len(matches.layers_b)))
            axes.plot(x, y, color="white", linewidth=1.3, path_effects=halos["black"], zorder=3)
            marker: dict[str, Any] = {
                "s": size,
                "edgecolors": "black",
                "linewidths": 1.1,
                "path_effects": halos["white"],
            }
            for chosen, face in ((matches.above, "white"), (~matches.above, "none")):
                axes.scatter(x[chosen], y[chosen], facecolors=face, zorder=4, **marker)
    _shared_bar(figure, panels, matrices)
    faces = {}
    if paths and any(m.null is not None for m in matrices):
        faces = {
            "best match of the row, above chance": "white",
            "best match, not above chance": _NULL_GREY,
        }
    elif paths:
        faces = {"best match of the row (no null)": "none"}
    ring: dict[str, Any] = {"color": "black", "linestyle": "", "marker": "o", "markersize": 5}
    _key(
        figure,
        matrices,
        [
            Line2D([], [], **ring, markerfacecolor=face, label=label)
            for label, face in faces.items()
        ],
    )
    return figure


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    width, height = (6.4, 5.0) if columns == 1 else (10.5, rows * 9.4 / columns + 0.9)
    figure = Figure(figsize=(width, height))
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _heatmap(axes: Axes, matrix: SimilarityMatrix) -> None:
    """Cells, grey, crosses and strips; A from bottom to top, B from left to right."""
    low, high = _limits(matrix)
    shape = matrix.values.shape
    axes.imshow(
        np.clip(matrix.values, low, high),
        cmap=_colours(matrix),
        vmin=low,
        vmax=high,
        origin="lower",
        aspect="auto",
    )
    if matrix.null is not None:
        axes.imshow(
            _greyed(matrix), cmap=ListedColormap([_NULL_GREY]), origin="lower", aspect="auto"
        )
    for row, column in np.argwhere(np.isnan(matrix.values)):
        axes.text(
            column, row, "×", ha="center", va="center", fontsize=max(3.5, min(7.0, 60 / max(shape)))
        )
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(-0.5, shape[0] - 0.5))
    _strips(axes, "x", [(matrix.layers_b, -0.5, float(shape[1]))])
    _strips(axes, "y", [(matrix.layers_a, -0.5, float(shape[0]))])
    axes.spines[:].set_visible(False)


def _several(layers: Iterable[Layer]) -> bool:
    return len({layer.kind for layer in layers}) > 1


def _strips(axes: Axes, which: str, sides: Sequence[tuple[Sequence[Layer], float, float]]) -> None:
    """Kinds of layers beside the cells: sides are (layers, start, extent) along the axis
    `which`."""
    shown = [side for side in sides if _several(side[0])]
    if not shown:
        return
    low, high = axes.get_ylim() if which == "x" else axes.get_xlim()
    base = low - (_STRIP + _GAP) * (high - low)
    for layers, start, extent in shown:
        edges = start + np.linspace(0, extent, len(layers) + 1)
        size, colours = _STRIP * (high - low), [_KINDS[layer.kind] for layer in layers]
        if which == "x":
            axes.bar(edges[:-1], size, np.diff(edges), base, align="edge", color=colours)
        else:
            axes.barh(edges[:-1], size, np.diff(edges), base, align="edge", color=colours)
    axes.set(**{"ylim" if which == "x" else "xlim": (base, high)})


def _depth_axis(
    axes: Axes, layers: Sequence[Layer], which: str, model: ModelRecord | None, named: bool = True
) -> None:
    """Ticks at layers spread over the depth, labelled with their relative depth, and the model's
    name where it is `named`."""
    count = min(len(layers), 4)
    at = np.unique(np.linspace(0, len(layers) - 1, count).round().astype(int))
    labels = [f"{layers[i].depth:.2f}".rstrip("0").rstrip(".") for i in at]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(at, labels, fontsize=7.5)
    if named:
        name = model_label(model)
        axis.set_label_text(
            f"relative depth,{chr(10) if len(name) > 22 else ' '}{name}", fontsize=7.5
        )


def _pair(a: ModelRecord | None, b: ModelRecord | None) -> str:
    first, second = model_label(a), model_label(b)
    joined = (first, "with itself") if first == second else (f"{first} ×", second)
    return ("\n" if sum(map(len, joined)) > 26 else " ").join(joined)


# -- one pair, several measures --------------------------------------------------------------------


@styled
def similarity_measures(matrices: Sequence[SimilarityMatrix]) -> Figure:
    """The same two networks under several measures, a panel each with its own scale as the measure
    declares it.

    Bright is alike in all panels and at the top of all bars. Grey, crossed cells and strips as in
    `similarity_heatmaps`. Measures without a lower bound are drawn from 0. Raises MeasureError for
    matrices of different pairs of networks."""
    pairs = dict.fromkeys(_pair(m.model_a, m.model_b) for m in matrices)
    if len(pairs) > 1:
        raise MeasureError(
            f"one figure shows one pair of networks under several measures, not {len(pairs)} pairs"
        )
    columns = min(len(matrices), 3 if len(matrices) <= 6 else 4)
    rows = -(-len(matrices) // columns)
    figure, panels = _panels(len(matrices), columns)
    figure.set_size_inches(
        4.8 if columns == 1 else 10.5,
        rows * (2.9 if columns == 3 else 2.5) + 1.0 + (columns < 3) * 1.0,
    )
    for place, (axes, matrix) in enumerate(zip(panels, matrices)):
        _heatmap(axes, matrix)
        _depth_axis(
            axes, matrix.layers_b, "x", named=place + columns >= len(panels), model=matrix.model_b
        )
        _depth_axis(axes, matrix.layers_a, "y", named=place % columns == 0, model=matrix.model_a)
        axes.set_title(
            "\n".join(textwrap.wrap(matrix.label, 30 if columns < 4 else 24)), fontsize=8.5
        )
        _colourbar(matrix, figure, axes, fraction=0.05, pad=0.02, aspect=22).ax.tick_params(
            labelsize=7
        )
    _key(figure, matrices)
    return figure


# -- best matches ----------------------------------------------------------------------------------


@styled
def match_figure(matches: Sequence[LayerMatches]) -> Figure:
    """Relative depth of each layer of A against that of its best match in B, a line per pair; the
    diagonal is equal depth.

    Filled markers are beyond the null of the best match, open ones are not, or have no null."""
    several = len({m.matrix_label for m in matches}) > 1
    labels = []
    for m in matches:
        first, second = (model_label(model) for model in (m.model_a, m.model_b))
        order = [] if len(matches) == 1 else [_order_text(m)]
        pair = f"{first}{chr(10) if len(first) + len(second) > 28 else ' '}→ {second}"
        labels.append("\n".join([pair, *order, *([m.matrix_label] if several else [])]))
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(8.6, max(4.6, 0.15 * lines + 0.8)))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)), label="equal depth")
    for number, (m, label) in enumerate(zip(matches, labels)):
        x = np.array([layer.depth for layer in m.layers_a])
        y = np.array([m.layers_b[i].depth if i >= 0 else np.nan for i in m.best_match])
        # Beyond eight pairs colours repeat, and markers move on so that no two pairs look the same.
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        style: dict[str, Any] = {
            "marker": marker,
            "markersize": 5.5,
            "color": COLOURS[number % len(COLOURS)],
        }
        axes.plot(x, y, **style, markerfacecolor="white", label="_open", clip_on=False)
        axes.plot(x[m.above], y[m.above], **style, linestyle="", label="_above", clip_on=False)
        axes.plot([], [], **style, label=label)
    alone = f": {_order_text(matches[0])}" if len(matches) == 1 else ""
    axes.set(
        title=f"Best match by depth{alone}",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        aspect="equal",
        anchor="W",
    )
    axes.set(
        xlabel="relative depth in the first network",
        ylabel="relative depth of the best match in the second",
    )
    handles, names = axes.get_legend_handles_labels()
    if any((~m.above & (m.best_match >= 0)).any() for m in matches):
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker="o",
                linestyle="",
                markersize=5.5,
                markerfacecolor="white",
            )
        )
        no_null = all(np.isnan(m.null95).all() for m in matches)
        names.append("open: no null" if no_null else "open: not above chance")
    figure.legend(handles, names, loc="outside right upper", fontsize=7.5)
    return figure


def _order_text(matches: LayerMatches) -> str:
    """Whether the best match increases with depth."""
    if np.isnan(matches.tau):
        return "one match for all layers"
    return (
        "increases with depth" if matches.climbs else "no significant order"
    ) + f" (τ = {matches.tau:.2f})"


# -- networks against networks ---------------------------------------------------------------------


@styled
def model_summary(summary: ModelSimilarity) -> Figure:
    """Networks against networks, in the order of the tree that clusters them, which stands above
    where there is one.

    Colours from 0 to 1; the numbers are the values."""
    count, tree = len(summary.models), len(summary.linkage) > 0
    side = max(3.2, 0.44 * count)
    figure = Figure(figsize=(side + 3.6, side + 2.2 + tree * 1.1))
    ratios = [1.1, side] if tree else [side]
    grid = figure.add_gridspec(1 + tree, 2, height_ratios=ratios, width_ratios=[side, 0.16])
    axes = figure.add_subplot(grid[-1, 0])
    if tree:
        above = figure.add_subplot(grid[0, 0])
        with mpl.rc_context({"lines.linewidth": 1.3}):
            dendrogram(
                summary.linkage,
                ax=above,
                no_labels=True,
                color_threshold=0,
                above_threshold_color=GREY,
            )
        above.set(xlim=(0, 10 * count), ylim=(0, None), xticks=[])
        above.set_ylabel("1 − value", fontsize=8)
        above.tick_params(labelsize=7.5)
        above.spines["bottom"].set_visible(False)
    # The leaves of a dendrogram are 10 apart.
    values, centres = (
        summary.values[np.ix_(summary.order, summary.order)],
        [10.0 * i + 5 for i in range(count)],
    )
    names = [model_label(summary.models[i]) for i in summary.order]
    extent = (0, 10 * count, 10 * count, 0)
    axes.imshow(
        np.clip(values, 0, 1), cmap=SEQUENTIAL, vmin=0, vmax=1, extent=extent, aspect="auto"
    )
    axes.set_xticks(centres, names, rotation=90, fontsize=8)
    axes.set_yticks(centres, names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.2f}"
        colour = "black" if np.isnan(value) or value > 0.55 else "white"
        if count <= _MOST_VALUES:
            axes.text(
                centres[column],
                centres[row],
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=7,
            )
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), SEQUENTIAL), cax=figure.add_subplot(grid[-1, 1])
    )
    bar.set_label(
        "calibrated: 0 is chance, 1 is equal" if summary.calibrated else "raw: 1 is equal"
    )
    bar.outline.set_visible(False)
    figure.suptitle(
        f"Mean best match over layers, {summary.label}",
        fontsize=10,
        fontweight="bold",
        x=0.02,
        ha="left",
    )
    return figure


# -- which measures find a layer again -------------------------------------------------------------


@styled
def layer_identification_bars(results: Sequence[LayerIdentification]) -> Figure:
    """Fraction of layers whose closest layer in the other network is the corresponding one, by
    measure.

    A pair of networks has one colour and marker; dotted lines are chance."""
    labels = list(dict.fromkeys(label for result in results for label in result.labels))[::-1]
    figure = Figure(
        figsize=(8.6, 0.16 * len(labels) * (len(results) + 1.4) + 1.6 + 0.3 * len(results))
    )
    axes = figure.add_subplot()
    for i, result in enumerate(results):
        shift = 0.0 if len(results) == 1 else 0.3 - 0.6 * i / (len(results) - 1)
        both = 100 * result.to_frame()["both"].to_numpy(float)
        y = np.array([labels.index(label) for label in result.labels]) + shift
        name = plain(
            " and ".join(short_name(model.name) for model in result.models)
            + f", {len(result.layers)} layers"
        )
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5.5,
        }
        axes.plot(both, y, **style, linestyle="", label=name, clip_on=False)
    for number, chance in enumerate(dict.fromkeys(r.chance for r in results)):
        axes.axvline(
            100 * chance,
            color=GREY,
            linewidth=1,
            linestyle=":",
            label="_" if number else "chance (random layer)",
            zorder=0,
        )
    for edge, _ in pairwise(range(len(labels))):
        axes.axhline(edge + 0.5, color="#E6E6E6", linewidth=0.7, zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlim=(-2, 102), ylim=(-0.6, len(labels) - 0.4), xlabel="layers identified (%)")
    axes.tick_params(axis="y", length=0)
    axes.set_title("Layer identification accuracy")
    figure.legend(loc="outside lower left", fontsize=8, ncols=1)
    return figure
