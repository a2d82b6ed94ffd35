"""Pictures of similarity: heatmaps of layers against layers, with the cells that chance explains greyed."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mixer_probe.figures.style import SEQUENTIAL, model_label, styled
from mixer_probe.models.layer import Layer
from mixer_probe.results import ModelRecord
from mixer_probe.similarity import SimilarityMatrix

_NULL_GREY = "#BDBDBD"


@styled
def similarity_map(matrices: Sequence[SimilarityMatrix]) -> Figure:
    """All networks against all in one square: each network takes the same room, its layers go from first to last.

    `matrices` hold every pair of networks once, each network with itself too; pairs that are missing stay blank. Colours and
    grey cells as in `similarity_heatmaps`."""
    names = list(dict.fromkeys(model_label(m) for matrix in matrices for m in (matrix.model_a, matrix.model_b)))
    figure = Figure(figsize=(8.6, 7.4))
    axes = figure.add_subplot()
    for matrix in matrices:
        a, b = names.index(model_label(matrix.model_a)), names.index(model_label(matrix.model_b))
        _block(axes, matrix, a, b, transposed=False)
        if a != b:
            _block(axes, matrix, a, b, transposed=True)
    _block_axes(axes, names)
    _shared_bar(figure, [axes], matrices)
    return figure


def _block(axes: Axes, matrix: SimilarityMatrix, a: int, b: int, transposed: bool) -> None:
    """One pair of networks as a square of side 1, row network `a` at y = a and column network `b` at x = b."""
    y, x = (a + np.linspace(0, 1, len(matrix.layers_a) + 1)), (b + np.linspace(0, 1, len(matrix.layers_b) + 1))
    layers = [np.clip(matrix.values, 0, 1)]
    if matrix.null is not None:
        layers.append(np.where(matrix.values <= matrix.null.quantile95, 1.0, np.nan))
    for values, cmap in zip(layers, (mpl.colormaps[SEQUENTIAL], ListedColormap([_NULL_GREY]))):
        edges = (y, x, values.T) if transposed else (x, y, values)
        axes.pcolormesh(*edges, cmap=cmap, vmin=0, vmax=1, rasterized=True)


def _block_axes(axes: Axes, names: Sequence[str]) -> None:
    centres = np.arange(len(names)) + 0.5
    labels = [name.replace(" (", "\n(") for name in names]
    upright = len(names) < 5
    axes.set_xticks(centres, labels, rotation=0 if upright else 90, ha="center", va="top")
    axes.set_yticks(centres, labels)
    axes.tick_params(length=0)
    for edge in range(1, len(names)):
        axes.axhline(edge, color="white", linewidth=2.5)
        axes.axvline(edge, color="white", linewidth=2.5)
    axes.set(xlim=(0, len(names)), ylim=(0, len(names)), aspect="equal", title="Similarity of layers, all networks against all")
    axes.set_xlabel("layers of each network, first to last")
    axes.set_ylabel("layers of each network, first to last")
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def similarity_heatmaps(matrices: Sequence[SimilarityMatrix], *, columns: int = 3) -> Figure:
    """One heatmap a matrix on a shared scale from 0 to 1 (values are clipped for the picture only).

    Grey cells are not above the 95 % quantile of their permutation null; crossed cells are not defined (NaN)."""
    columns = min(columns, len(matrices))
    rows = -(-len(matrices) // columns)
    width, height = (6.4, 4.8) if columns == 1 else (10.5, rows * 9.4 / columns + 0.9)
    figure = Figure(figsize=(width, height))
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, matrix in zip(panels, matrices):
        _heatmap(axes, matrix)
    for axes in panels[len(matrices) :]:
        axes.remove()
    _shared_bar(figure, list(panels[: len(matrices)]), matrices)
    return figure


def _heatmap(axes: Axes, matrix: SimilarityMatrix) -> None:
    values = np.clip(matrix.values, 0, 1)
    axes.imshow(values, cmap=mpl.colormaps[SEQUENTIAL], vmin=0, vmax=1, origin="lower", aspect="auto")
    if matrix.null is not None:
        chance = np.where(matrix.values <= matrix.null.quantile95, 1.0, np.nan)
        axes.imshow(chance, cmap=ListedColormap([_NULL_GREY]), origin="lower", aspect="auto")
    for row, column in np.argwhere(np.isnan(matrix.values)):
        axes.text(column, row, "×", ha="center", va="center", fontsize=7)
    axes.set_title(_pair(matrix.model_a, matrix.model_b), fontsize=8.5)
    _depth_axis(axes, matrix.layers_b, "x", model_label(matrix.model_b))
    _depth_axis(axes, matrix.layers_a, "y", model_label(matrix.model_a))


def _depth_axis(axes: Axes, layers: Sequence[Layer], which: str, name: str) -> None:
    """Ticks at layers spread over the depth, labelled with their relative depth."""
    count = min(len(layers), 4)
    at = np.unique(np.linspace(0, len(layers) - 1, count).round().astype(int))
    labels = [f"{layers[i].depth:.2f}".rstrip("0").rstrip(".") for i in at]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(at, labels, fontsize=7.5)
    axis.set_label_text(f"relative depth, {name}", fontsize=7.5)


def _shared_bar(figure: Figure, panels: list[Axes], matrices: Sequence[SimilarityMatrix]) -> None:
    first = matrices[0]
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), SEQUENTIAL), ax=panels, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(f"{first.measure.upper()} ({first.kernel}, {first.estimator})")
    bar.outline.set_visible(False)
    if any(m.null is not None for m in matrices):
        key = Patch(color=_NULL_GREY, label="not above the 95 % quantile of its null")
        figure.legend(handles=[key], loc="outside lower left", fontsize=8)


def _pair(a: ModelRecord | None, b: ModelRecord | None) -> str:
    first, second = model_label(a), model_label(b)
    joined = (first, "with itself") if first == second else (f"{first} ×", second)
    return ("\n" if sum(map(len, joined)) > 26 else " ").join(joined)
