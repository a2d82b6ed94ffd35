"""Pictures of position embeddings: similarity maps (Dosovitskiy et al. 2021, Fig. 7, centre) and similarity against distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import DIVERGING, GREY, line_styles, model_label, plain, styled
from mixer_probe.weights.position import PositionEmbeddings


@styled
@checked(MeasureError)
def position_similarity(found: PositionEmbeddings, *, most: int = 8) -> Figure:
    """One map a position: the cosine similarity of its embedding with those of all positions, at its place in the grid.

    At most `most` rows and columns of positions are drawn, evenly spaced; blue is -1, white 0, red 1."""
    rows, columns = (_chosen(n, most) for n in found.grid)
    figure = Figure(figsize=(max(0.72 * len(columns) + 1.9, 5.0), 0.72 * len(rows) * _aspect(found) + 0.9))
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            _map(panels[i, j], found, (row, column))
            _place(panels[i, j], row if j == 0 else None, column if i == len(rows) - 1 else None)
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), DIVERGING), ax=panels, shrink=0.8, aspect=24, pad=0.02, ticks=[-1, 0, 1]
    )
    bar.set_label("cosine similarity" + (" (mean removed)" if found.centred else ""), fontsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(f"{model_label(found.model)} · {plain(found.parameter)}", fontsize=9, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel("patch column", fontsize=9)
    figure.supylabel("patch row", fontsize=9)
    return figure


def _chosen(count: int, most: int) -> list[int]:
    """Positions along one axis: all, or every k-th so that at most `most` are left, centred."""
    step = -(-count // most)
    return list(range((count - 1) % step // 2, count, step))


def _aspect(found: PositionEmbeddings) -> float:
    height, width = found.grid
    return (height * found.patch[0]) / (width * found.patch[1])


def _map(axes: Axes, found: PositionEmbeddings, place: tuple[int, int]) -> None:
    aspect = found.patch[0] / found.patch[1]
    axes.imshow(found.similarity[place], cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest", aspect=aspect)
    axes.plot(place[1], place[0], marker="+", color="black", markersize=3, markeredgewidth=0.6)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.4)


def _place(axes: Axes, row: int | None, column: int | None) -> None:
    if row is not None:
        axes.set_ylabel(str(row), fontsize=7, rotation=0, labelpad=6, va="center")
    if column is not None:
        axes.set_xlabel(str(column), fontsize=7)


@styled
def position_curves(results: Sequence[PositionEmbeddings]) -> Figure:
    """Mean similarity of two positions against their distance, one line a model; the band is one standard deviation."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    styles = line_styles([r.model for r in results])
    for result in results:
        _curve(axes, result, styles[result.model.name])
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="distance between patches (input px)", ylabel="cosine similarity", xlim=(0, None))
    axes.set_title("Similarity of position embeddings against distance")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(2, len(results)))
    return figure


def _curve(axes: Axes, result: PositionEmbeddings, style: dict[str, Any]) -> None:
    table = result.by_distance()
    axes.plot(table["distance_px"], table["cosine"], label=model_label(result.model), **style)
    low, high = table["cosine"] - table["sd"], table["cosine"] + table["sd"]
    axes.fill_between(table["distance_px"], low, high, color=style["color"], alpha=0.15, linewidth=0)
