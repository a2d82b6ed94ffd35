"""Figures of feature visualizations, always beside the real images that activate the unit most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import COLOURS, GREY, model_label, plain, styled
from mixer_probe.visualization import METHODS, FeatureVisualization

_LABELS = {"fourier": "Fourier", "maco": "MACO"}
_TILE = 0.92
_GAP = 0.14
_NAME = 1.95


@dataclass(frozen=True)
class _Row:
    """One unit of one result."""

    result: FeatureVisualization
    unit: int

    @property
    def name(self) -> str:
        lines = (
            model_label(self.result.model),
            self.result.layer.name,
            self.result.label(self.unit),
            self.result.objective,
        )
        return "\n".join(plain(line if len(line) <= 30 else line[:29] + "…") for line in lines)


@styled
@checked(MeasureError)
def feature_pictures(
    results: Sequence[FeatureVisualization], *, faded: bool = True, limit: int | None = 8
) -> Figure:
    """Optimised pictures of every method and seed beside the strongest real images: one row per
    unit, at most `limit` (None for all).

    Under each picture its activation, and how far that is above the median real image as a multiple
    of the strongest real one. `faded` makes pixels of MACO's pictures paler the less the objective
    depended on them; activations are of the whole picture. Raises MeasureError without results."""
    rows = _rows(results)[:limit]
    methods = [m for m in METHODS if any(m in row.result.methods for row in rows)]
    widths = [max(len(row.result.seeds) for row in rows)] * len(methods)
    groups = [*widths, max(row.result.real_values.shape[1] for row in rows)]
    width, height = (
        _NAME + _TILE * sum(groups) + _GAP * len(groups),
        0.75 + (_TILE + 0.24) * len(rows),
    )
    figure = Figure(figsize=(width, height))
    # Every picture has its place; the layout of the style would move them apart.
    figure.set_layout_engine("none")
    # One column per picture, and a narrow one after each group.
    ratios = [ratio for n in groups for ratio in (*(_TILE,) * n, _GAP)][:-1]
    edges = {
        "left": _NAME / width,
        "right": 1 - 0.06 / width,
        "top": 1 - 0.3 / height,
        "bottom": 0.45 / height,
    }
    grid = GridSpec(
        len(rows), len(ratios), figure=figure, width_ratios=ratios, wspace=0.07, hspace=0.3, **edges
    )
    first = [sum(groups[:j]) + j for j in range(len(groups))]
    for i, row in enumerate(rows):
        result, unit = row.result, row.unit
        for start, method in zip(first, methods, strict=False):
            m = result.methods.index(method) if method in result.methods else None
            for s in range(len(result.seeds)) if m is not None else ():
                picture, value = (
                    result.pictures[unit, m, s].astype(float) / 255,
                    float(result.activation[unit, m, s]),
                )
                if faded and method == "maco" and np.isfinite(value):
                    # Never fully white: pixels that the unit ignores are still part of the picture.
                    opacity = 0.3 + 0.7 * result.opacity[unit, m, s, ..., None] / 255
                    picture = opacity * picture + 1 - opacity
                axes = figure.add_subplot(grid[i, start + s])
                _picture(axes, picture, value, float(result.relative[unit, m, s]))
                if not np.isfinite(value):
                    axes.text(
                        0.5,
                        0.5,
                        "no\nresponse",
                        transform=axes.transAxes,
                        ha="center",
                        va="center",
                        fontsize=8,
                    )
        median, values = result.real_median[unit], result.real_values[unit]
        for j, value in enumerate(values):
            relative = (value - median) / (values[0] - median) if values[0] > median else np.nan
            axes = figure.add_subplot(grid[i, first[-1] + j])
            _picture(axes, result.real_pictures[unit, j] / 255.0, float(value), float(relative))
        box = grid[i, 0].get_position(figure)
        middle = (box.y0 + box.y1) / 2
        figure.text(
            box.x0 - 0.08 / width,
            middle,
            row.name,
            ha="right",
            va="center",
            fontsize=7,
            linespacing=1.25,
        )
    for start, name in zip(
        first, (*(_LABELS[m] for m in methods), "strongest real images"), strict=True
    ):
        box = grid[0, start].get_position(figure)
        figure.text(
            box.x0,
            box.y1 + 0.06 / height,
            name,
            ha="left",
            va="bottom",
            fontsize=9.5,
            fontweight="bold",
        )
    note = (
        "below each: activation (relative to the strongest real image, both above the median real "
        "image)"
    )
    figure.text(0.5, 0.02, note, ha="center", va="bottom", fontsize=8, color=GREY)
    return figure


def _rows(results: Sequence[FeatureVisualization]) -> list[_Row]:
    if not results:
        raise MeasureError("give at least one feature visualization to draw")
    return [_Row(result, unit) for result in results for unit in range(len(result.units))]


def _picture(axes: Axes, picture: np.ndarray, value: float, relative: float) -> None:
    """A picture over its activation and how strong that is relative to the strongest real image."""
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    number = f"{value:.3g}".replace("-", "−") if np.isfinite(value) else "NaN"
    beside = (
        f" ({relative:.2g}×)".replace("(-", "(−")
        if np.isfinite(value) and np.isfinite(relative)
        else ""
    )
    axes.set_xlabel(number + beside, fontsize=7, labelpad=2)


@styled
@checked(MeasureError)
def feature_ascent(results: Sequence[FeatureVisualization], *, limit: int | None = 8) -> Figure:
    """The objective during the ascent, averaged over transformed views: a panel per unit (at most
    `limit`), a line per seed.

    Grey lines are the strongest real image (dashed) and the median one (dotted). Raises
    MeasureError without results."""
    rows = _rows(results)[:limit]
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(max(5.5, 0.6 + 2.6 * columns), 0.8 + 2.2 * lines))
    for i, row in enumerate(rows):
        axes = figure.add_subplot(lines, columns, i + 1)
        for m, method in enumerate(row.result.methods):
            for trace in row.result.trace[row.unit, m]:
                axes.plot(
                    np.arange(1, row.result.steps + 1),
                    trace,
                    color=COLOURS[METHODS.index(method)],
                    linewidth=1,
                )
        axes.axhline(row.result.real_values[row.unit, 0], color=GREY, linewidth=1, linestyle="--")
        axes.axhline(row.result.real_median[row.unit], color=GREY, linewidth=1, linestyle=":")
        axes.set_title(row.name.replace("\n", " · ", 1).rsplit("\n", 1)[0], fontsize=8)
        axes.set_xlabel("step")
        if i % columns == 0:
            axes.set_ylabel("activation")
    shown = [m for m in METHODS if any(m in row.result.methods for row in rows)]
    keys = [Line2D([], [], color=COLOURS[METHODS.index(m)], label=_LABELS[m]) for m in shown]
    keys.append(Line2D([], [], color=GREY, linestyle="--", label="strongest real image"))
    keys.append(Line2D([], [], color=GREY, linestyle=":", label="median real image"))
    figure.legend(handles=keys, loc="outside lower center", ncols=4)
    return figure
