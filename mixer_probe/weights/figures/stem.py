"""Figures of stem filters: as colour images, their principal components, and luminance against
frequency."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import (
    COLOURS,
    DIVERGING,
    GREY,
    colour_bar,
    heading,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights.figures.tiles import canvas_axes, tile
from mixer_probe.weights.stem import Order, StemComponents, StemFilters

_ORDERS = {
    "frequency": "low frequency first",
    "norm": "large norm first",
    "luminance": "grey first, colour last",
}


@styled
@checked(MeasureError)
def stem_pictures(
    stem: StemFilters,
    *,
    order_by: Order = "frequency",
    limit: int | None = None,
    columns: int | None = None,
) -> Figure:
    """Stem filters as colour pictures: grey is zero, each filter scaled by its largest |weight|.

    `order_by` is "frequency", "norm" or "luminance" (see `StemFilters.order_by`). At most `limit`
    filters are drawn (None for all). Filters of one channel are grey; filters of other than 1 or 3
    channels show their channels side by side, in red and blue."""
    order = stem.order_by(order_by)[:limit]
    pictures = filter_colours(stem.filters[order])
    if not columns:
        # About 3 wide to 2 high, with a full last row where a number near that gives one.
        ideal = (1.5 * len(order) / (pictures.shape[2] / pictures.shape[1])) ** 0.5
        near = range(max(1, round(0.75 * ideal)), round(1.3 * ideal) + 1)
        full = [n for n in near if len(order) % n == 0]
        columns = min(full or [max(1, min(len(order), round(ideal)))], key=lambda n: abs(n - ideal))
    canvas = tile(pictures, columns, 1.0)
    figure, axes = canvas_axes(canvas.shape)
    axes.imshow(np.clip(canvas, 0, 1), interpolation="nearest")
    channels, height, width = stem.shape[1:]
    colours = "gray" if channels in (1, 3) else DIVERGING
    colour_bar(figure, axes, colours, "weight ÷ largest |weight|", shrink=0.5, aspect=22, pad=0.01)
    shown = f"{len(order)} of {len(stem)}" if len(order) < len(stem) else f"all {len(order)}"
    axes.set_title(f"{model_label(stem.model)} · {plain(stem.layer)} · {shown} filters")
    size = f"{height}×{width} px" + ("" if channels in (1, 3) else f" in {channels} channels")
    axes.set_xlabel(
        f"each tile: one filter of {size}, stride {stem.stride[0]} px; {_ORDERS[order_by]}"
    )
    return figure


def filter_colours(filters: np.ndarray) -> np.ndarray:
    """Filters [unit, channel, h, w] as colours [unit, h, w', 3] in 0..1, zero in the middle."""
    largest = np.abs(filters).max((1, 2, 3), keepdims=True)
    scaled = np.divide(filters, largest, out=np.zeros(filters.shape), where=largest > 0)
    if filters.shape[1] in (1, 3):
        return np.broadcast_to(0.5 + 0.5 * scaled, (len(scaled), 3, *scaled.shape[2:])).transpose(
            0, 2, 3, 1
        )
    side_by_side = scaled.transpose(0, 2, 1, 3).reshape(len(scaled), scaled.shape[2], -1)
    colours: np.ndarray = mpl.colormaps[DIVERGING](0.5 + 0.5 * side_by_side)[..., :3]
    return colours


@styled
@checked(MeasureError)
def stem_component_pictures(found: StemComponents, *, columns: int = 7) -> Figure:
    """The principal components of the filters with their fractions of the energy, and these against
    those of iid filters."""
    count = len(found.components)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(10.0, max(0.95 * rows + 0.7, 2.6)))
    left, right = np.ravel(
        figure.subfigures(1, 2, squeeze=False, width_ratios=(0.88 * columns + 0.1, 3.2))
    )
    panels = left.subplots(rows, columns, squeeze=False).ravel()
    for k, axes in enumerate(panels[:count]):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.imshow(filter_colours(found.components[k : k + 1])[0], interpolation="nearest")
        fraction = found.fractions[k]
        percent = f"{100 * fraction:.1f} %" if fraction >= 0.0995 else f"{100 * fraction:.2g} %"
        axes.set_title(f"{k + 1}: {percent}", fontsize=7, fontweight="normal", loc="center", pad=2)
    for axes in panels[count:]:
        axes.remove()
    curve = right.subplots()
    ranks = np.arange(1, len(found.fractions) + 1)
    positive = found.fractions > 1e-12
    curve.plot(ranks[positive], 100 * found.fractions[positive], color=COLOURS[0], linewidth=1.2)
    curve.axhline(100 * found.null_fraction, color=GREY, linewidth=1, linestyle="--")
    curve.annotate(
        "iid filters, 95th percentile",
        (1, 100 * found.null_fraction),
        (0.02, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=7,
        color=GREY,
        ha="right",
    )
    explained = "variance explained (%)" if found.centred else "energy explained (%)"
    curve.set(xscale="log", yscale="log", xlabel="component", ylabel=explained)
    for axis in (curve.xaxis, curve.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    needed = ", ".join(
        f"{fraction:.0%} in {found.needed(fraction)}" for fraction in (0.5, 0.9, 0.99)
    )
    curve.set_title(needed, fontsize=7.5, fontweight="normal")
    heading(
        figure,
        f"{model_label(found.model)} · {plain(found.layer)} · principal components of "
        f"{found.units} filters",
    )
    return figure


@styled
def stem_colour(results: Sequence[StemFilters]) -> Figure:
    """Every filter by frequency and by the fraction of its energy in luminance: colour blobs lie
    low, edges high."""
    results = [r for r in results if r.shape[1] > 1]
    columns = min(3, max(1, len(results)))
    rows = max(1, -(-len(results) // columns))
    figure = Figure(figsize=(3.1 * columns + 0.9, 2.6 * rows + 0.3))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, stem in zip(panels, results):
        energy = stem.norm**2
        size = 25 * energy / energy.max() if energy.max() > 0 else np.ones(len(stem))
        axes.scatter(
            stem.frequency, stem.luminance, s=size + 0.5, color=COLOURS[0], alpha=0.5, linewidths=0
        )
        axes.axhline(1 / stem.shape[1], color=GREY, linewidth=1, linestyle="--")
        axes.set_title(model_label(stem.model), fontsize=7.5)
        axes.set(xlim=(0, 0.72), ylim=(-0.02, 1.02))
    for axes in panels[len(results) :]:
        axes.remove()
    figure.supxlabel("power centroid (cycles/px); area: energy", fontsize=9)
    figure.supylabel("fraction of energy in luminance", fontsize=9)
    return figure
