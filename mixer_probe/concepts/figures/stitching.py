"""Figures of model stitching: accuracy recovered by pair of layers, and at equal depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.concepts.stitching import CONDITIONS, LABELS, Stitching
from mixer_probe.core.errors import MeasureError
from mixer_probe.models.layer import Layer
from mixer_probe.plotting.curves import chance_line, curve, key_below
from mixer_probe.plotting.style import (
    COLOURS,
    MARKERS,
    SEQUENTIAL,
    colour_bar,
    model_label,
    styled,
)

# Cells of larger maps have no room for their numbers.
_MOST_NUMBERS = 6


@styled
def stitching_maps(results: Sequence[Stitching], fit: str = "ridge") -> Figure:
    """One row of maps per direction, one column per condition: accuracy recovered by depth in the
    donor (upwards) and in the receiver (to the right), in colours from 0 to 1; values beyond have
    the colour of the end. Crosses where the receiver is not above chance by itself.

    Raises MeasureError without a result of this fit."""
    shown = _of_fit(results, fit)
    conditions = [name for name in CONDITIONS if any(name in r.conditions for r in shown)]
    figure = Figure(figsize=(2.1 * len(conditions) + 1.1, 2.35 * len(shown) + 0.3))
    panels = figure.subplots(len(shown), len(conditions), squeeze=False)
    for row, r in zip(panels, shown):
        for axes, condition in zip(row, conditions):
            if condition not in r.conditions:
                axes.set_visible(False)
                continue
            at = r.fits.index(fit), r.conditions.index(condition)
            _map(axes, r.recovered[at])
            axes.set_title(LABELS[condition], fontsize=8.5)
            _depths(axes.xaxis, r.receiver_layers, f"depth in {model_label(r.receiver)}")
            label = f"depth in {model_label(r.donor)}" if axes is row[0] else ""
            _depths(axes.yaxis, r.donor_layers, label)
    colour_bar(figure, panels, SEQUENTIAL, "accuracy recovered", low=0, shrink=0.8, aspect=30)
    return figure


def _of_fit(results: Sequence[Stitching], fit: str) -> list[Stitching]:
    shown = [r for r in results if fit in r.fits]
    if not shown:
        raise MeasureError(
            f"there is no stitching fitted by '{fit}' to draw; give results of stitch(..., "
            f"fit='{fit}')"
        )
    return shown


def _map(axes: Axes, values: np.ndarray) -> None:
    axes.imshow(
        np.clip(values, 0, 1), cmap=SEQUENTIAL, vmin=0, vmax=1, origin="lower", aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value) or max(values.shape) <= _MOST_NUMBERS:
            axes.text(
                column,
                row,
                "×" if np.isnan(value) else f"{value:.2f}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if value < 0.6 else "black",
            )
    axes.spines[:].set_visible(False)


def _depths(axis: Any, layers: Sequence[Layer], label: str) -> None:
    """Ticks at up to four layers, with their relative depths."""
    at = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 4)).round().astype(int))
    texts = [f"{layers[i].depth:.2f}".rstrip("0").rstrip(".") for i in at]
    axis.set_ticks(at, texts, fontsize=7)
    axis.set_label_text(label, fontsize=7.5)


@styled
def stitching_curves(results: Sequence[Stitching], fit: str = "ridge") -> Figure:
    """One panel per direction: accuracy recovered against depth in the receiver, from the layer of
    the donor at the nearest relative depth, with a curve per condition; bands are 95 % intervals.
    Grey lines: chance, and the receiver itself.

    Raises MeasureError without a result of this fit."""
    shown = _of_fit(results, fit)
    figure = Figure(figsize=(3.3 * len(shown) + 0.5, 3.0))
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    used: dict[str, Line2D] = {}
    for axes, r in zip(panels, shown):
        chance_line(axes, [0, 100])
        columns = np.arange(len(r.receiver_layers))
        x = [layer.depth for layer in r.receiver_layers]
        for k, condition in enumerate(r.conditions):
            i = CONDITIONS.index(condition)
            middle, low, high = (
                100 * values[r.fits.index(fit), k, r.matched, columns]
                for values in (r.recovered, r.recovered_low, r.recovered_high)
            )
            style = {"color": COLOURS[i], "marker": MARKERS[i]}
            curve(axes, x, middle, (low, high), style)
            if len(x) == 1:
                # A band of one place has no width.
                axes.vlines(x, low, high, color=COLOURS[i], linewidth=1)
            used[condition] = Line2D([], [], label=LABELS[condition], **style)  # type: ignore[arg-type]
        title = f"{model_label(r.donor)} to {model_label(r.receiver)}"
        axes.set(title=title, xlabel="relative depth in the receiver", xlim=(-0.03, 1.03))
        axes.title.set_fontsize(9)
    panels[0].set(ylabel="accuracy recovered (%)")
    key_below(figure, [used[name] for name in CONDITIONS if name in used])
    return figure
