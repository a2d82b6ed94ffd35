"""Figures of position embeddings: similarity maps (Dosovitskiy et al. 2021, Fig. 7, centre) and
similarity against distance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import (
    DIVERGING,
    GREY,
    colour_bar,
    heading,
    line_styles,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights.position import PositionEmbeddings


@styled
@checked(MeasureError)
def position_similarity(found: PositionEmbeddings, *, most: int = 8) -> Figure:
    """One map per position: the cosine similarity of its embedding with those of all positions, at
    its place in the grid.

    At most `most` rows and columns of positions are drawn, evenly spaced; blue is -1, white 0, red
    1."""
    # All positions along an axis, or every k-th, centred.
    steps = [-(-n // most) for n in found.grid]
    rows, columns = (
        range((n - 1) % step // 2, n, step) for n, step in zip(found.grid, steps, strict=True)
    )
    (height, width), (down, right) = found.grid, found.patch
    aspect = (height * down) / (width * right)
    figure = Figure(figsize=(max(0.72 * len(columns) + 1.9, 5.0), 0.72 * len(rows) * aspect + 0.9))
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        axes = panels[i, j]
        axes.imshow(
            found.similarity[row, column],
            cmap=DIVERGING,
            vmin=-1,
            vmax=1,
            interpolation="nearest",
            aspect=down / right,
        )
        axes.plot(column, row, marker="+", color="black", markersize=3, markeredgewidth=0.6)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, linewidth=0.4)
        if j == 0:
            axes.set_ylabel(str(row), fontsize=7, rotation=0, labelpad=6, va="center")
        if i == len(rows) - 1:
            axes.set_xlabel(str(column), fontsize=7)
    label = "cosine similarity" + (" (mean removed)" if found.centred else "")
    colour_bar(figure, panels, DIVERGING, label, shrink=0.8, aspect=24, pad=0.02)
    heading(figure, f"{model_label(found.model)} · {plain(found.parameter)}")
    figure.supxlabel("patch column", fontsize=9)
    figure.supylabel("patch row", fontsize=9)
    return figure


@styled
def position_curves(results: Sequence[PositionEmbeddings]) -> Figure:
    """Mean similarity of two positions against their distance, one line per model; the band is one
    standard deviation."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    styles = line_styles([r.model for r in results])
    for result in results:
        table, style = result.by_distance(), styles[result.model.name]
        bounds = (table["cosine"] - table["sd"], table["cosine"] + table["sd"])
        axes.plot(table["distance_px"], table["cosine"], label=model_label(result.model), **style)
        axes.fill_between(
            table["distance_px"], *bounds, color=style["color"], alpha=0.15, linewidth=0
        )
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set(
        xlabel="distance between patches (input px)", ylabel="cosine similarity", xlim=(0, None)
    )
    axes.set_title("Similarity of position embeddings against distance")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(2, len(results))
    )
    return figure
