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

from mixer_probe.figures.style import SEQUENTIAL, short_name, styled
from mixer_probe.models.layer import Layer
from mixer_probe.results import ModelRecord
from mixer_probe.similarity import SimilarityMatrix

_NULL_GREY = "#BDBDBD"


@styled
def similarity_heatmaps(matrices: Sequence[SimilarityMatrix], *, columns: int = 3) -> Figure:
    """One heatmap a matrix on a shared scale from 0 to 1 (values are clipped for the picture only).

    Grey cells are not above the 95 % quantile of their permutation null; crossed cells are not defined (NaN)."""
    columns = min(columns if len(matrices) <= 6 else 5, len(matrices))
    rows = -(-len(matrices) // columns)
    size = 10.5 / columns
    figure = Figure(figsize=(max(10.5, size), rows * (size * 0.9 if columns > 1 else 4.2) + 0.9))
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, matrix in zip(panels, matrices):
        _heatmap(axes, matrix, small=columns > 3)
    for axes in panels[len(matrices) :]:
        axes.remove()
    _shared_bar(figure, list(panels[: len(matrices)]), matrices)
    return figure


def _heatmap(axes: Axes, matrix: SimilarityMatrix, small: bool) -> None:
    values = np.clip(matrix.values, 0, 1)
    axes.imshow(values, cmap=mpl.colormaps[SEQUENTIAL], vmin=0, vmax=1, origin="lower", aspect="auto")
    if matrix.null is not None:
        chance = np.where(matrix.values <= matrix.null.quantile95, 1.0, np.nan)
        axes.imshow(chance, cmap=ListedColormap([_NULL_GREY]), origin="lower", aspect="auto")
    for row, column in np.argwhere(np.isnan(matrix.values)):
        axes.text(column, row, "×", ha="center", va="center", fontsize=7)
    axes.set_title(_pair(matrix.model_a, matrix.model_b, small), fontsize=7 if small else 8.5)
    _depth_axis(axes, matrix.layers_b, "x", _name(matrix.model_b), small)
    _depth_axis(axes, matrix.layers_a, "y", _name(matrix.model_a), small)


def _depth_axis(axes: Axes, layers: Sequence[Layer], which: str, name: str, small: bool) -> None:
    """Ticks at layers spread over the depth, labelled with their relative depth."""
    count = min(len(layers), 3 if small else 4)
    at = np.unique(np.linspace(0, len(layers) - 1, count).round().astype(int))
    labels = [f"{layers[i].depth:.2f}".rstrip("0").rstrip(".") for i in at]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(at, labels, fontsize=6 if small else 7.5)
    if not small:
        axis.set_label_text(f"relative depth, {name}", fontsize=7.5)


def _shared_bar(figure: Figure, panels: list[Axes], matrices: Sequence[SimilarityMatrix]) -> None:
    first = matrices[0]
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), SEQUENTIAL), ax=panels, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(f"{first.measure.upper()} ({first.kernel}, {first.estimator})")
    bar.outline.set_visible(False)
    if any(m.null is not None for m in matrices):
        key = Patch(color=_NULL_GREY, label="not above the 95 % quantile of its null")
        figure.legend(handles=[key], loc="outside lower left", fontsize=8)


def _pair(a: ModelRecord | None, b: ModelRecord | None, small: bool) -> str:
    first, second = _name(a), _name(b)
    joined = (first, "with itself") if first == second else (f"{first} ×", second)
    return ("\n" if small or sum(map(len, joined)) > 26 else " ").join(joined)


def _name(model: ModelRecord | None) -> str:
    if model is None:
        return "?"
    return short_name(model.name) + ("" if model.trained or "untrained" in model.name else " (untrained)")
