"""Figures of cost: multiply-accumulates by part, accuracy against cost, and growth with
resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from mixer_probe.core.errors import MeasureError
from mixer_probe.cost import AccuracyCost, CostGrowth, ModelCost
from mixer_probe.plotting.curves import key_below
from mixer_probe.plotting.style import COLOURS, GREY, line_styles, model_label, styled
from mixer_probe.stats import median_interval

# Parts of the multiply-accumulates: label, colour, and a hatch for prints in grey.
_PARTS = {
    "stem": ("stem", COLOURS[4], ""),
    "spatial": ("spatial mixing", COLOURS[0], ""),
    "channel": ("channel mixing", COLOURS[1], "///"),
    "rest": ("rest of the blocks", COLOURS[5], "..."),
    "head": ("classifier", COLOURS[6], ""),
}
# From this ratio of largest to smallest on, an axis is logarithmic.
_WIDE = 6


@styled
def mac_bars(costs: Sequence[ModelCost]) -> Figure:
    """Stacked bars of multiply-accumulates per image and network, by part of the network."""
    figure = Figure(figsize=(8.6, 0.34 * len(costs) + 1.15))
    axes = figure.add_subplot()
    left, rows = np.zeros(len(costs)), np.arange(len(costs))
    for part, (label, colour, hatch) in _PARTS.items():
        values = np.array([getattr(c.macs, part) for c in costs], dtype=float)
        if values.any():
            axes.barh(
                rows,
                values,
                left=left,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
                label=label,
            )
        left += values
    axes.set_yticks(rows, [model_label(c.model) for c in costs])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.margins(x=0.03)
    axes.set(
        xlim=(0, None),
        xlabel="multiply-accumulates per image",
        title="Multiply-accumulates by part of the network",
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


# Label, factor and unit of each cost.
_COST_LABELS = {
    "parameters": ("parameters", 1.0, ""),
    "MACs per image": ("multiply-accumulates per image", 1.0, ""),
    "peak activation bytes per image": ("peak activations per image (MiB)", 2.0**-20, "MiB"),
    "seconds per image": ("time per image", 1.0, "s"),
}


@styled
def accuracy_cost_frontier(result: AccuracyCost) -> Figure:
    """Accuracy against each cost, one row per measure. Bars are 95 % intervals over test images
    (few-shot: and over draws).

    The grey line is the Pareto frontier: no network to its left is as accurate. Hollow points are
    dominated beyond both intervals by a network of equal or lower cost."""
    measures, costs = range(len(result.measures)), range(len(result.costs))
    figure = Figure(figsize=(2.75 * len(costs) + 0.4, 2.75 * len(measures) + 0.25))
    panels = figure.subplots(len(measures), len(costs), squeeze=False, sharey="row", sharex="col")
    styles = line_styles(result.models)
    accuracy, low, high = (100 * values for values in (result.accuracy, result.low, result.high))
    for (a, k), axes in np.ndenumerate(panels):
        label, factor, unit = _COST_LABELS[result.costs[k]]
        cost = factor * result.cost[k]
        for i, model in enumerate(result.models):
            colour, marker = styles[model.name]["color"], styles[model.name]["marker"]
            axes.plot([cost[i]] * 2, [low[a, i], high[a, i]], color=colour, linewidth=1)
            face = "white" if result.dominated[a, k, i] else colour
            axes.plot(
                cost[i],
                accuracy[a, i],
                color=colour,
                marker=marker,
                markersize=6,
                markerfacecolor=face,
                linestyle="",
            )
        _cost_axis(axes, cost, unit)
        on = np.flatnonzero(result.frontier[a, k])
        on = on[np.argsort(cost[on])]
        # The frontier ends at the right edge: a network of higher cost has to exceed the highest
        # accuracy as well.
        x, y = (
            np.append(cost[on], axes.get_xlim()[1]),
            np.append(accuracy[a, on], accuracy[a, on].max(initial=0)),
        )
        axes.step(x, y, where="post", color=GREY, linewidth=1, zorder=0)
        if k == 0:
            axes.set(
                ylabel="test accuracy (%)",
                title=result.measures[a][:1].upper() + result.measures[a][1:],
            )
        if a == measures[-1]:
            axes.set_xlabel(label)
    keys = [
        Line2D([], [], **{**styles[m.name], "linestyle": ""}, label=model_label(m))
        for m in result.models
    ]
    key_below(figure, [*keys, Line2D([], [], color=GREY, linewidth=1, label="frontier")])
    return figure


def _cost_axis(axes: Axes, values: np.ndarray, unit: str) -> None:
    """The x axis of costs: logarithmic where they differ by more than a factor of six, otherwise
    linear from zero."""
    known = values[np.isfinite(values)]
    if len(known) and known.max() > _WIDE * known.min():
        axes.set_xscale("log")
        axes.set_xlim(known.min() / 1.4, known.max() * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif len(known):
        axes.set_xlim(0, 1.12 * known.max())
        axes.xaxis.set_major_locator(MaxNLocator(4))
    # MiB take no other prefix.
    axes.xaxis.set_major_formatter("{x:g}" if unit == "MiB" else EngFormatter(unit=unit))


# Guides of power laws: label, exponent, line style.
_GUIDES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("linear", 1, {"linestyle": "-"}),
    ("quadratic", 2, {"linestyle": "--"}),
)


@styled
def cost_growth_curves(results: Sequence[CostGrowth]) -> Figure:
    """Cost against the number of tokens, both divided by those of the smallest image, on
    logarithmic axes.

    Counted multiply-accumulates, measured time (bars: 95 % intervals of the median), and peak
    activations; the grey lines are linear and quadratic growth. Raises MeasureError without any
    result."""
    if not results:
        raise MeasureError("there is no cost scaling to draw")
    figure = Figure(figsize=(10.5, 3.7))
    panels = figure.subplots(1, 3)
    texts = (
        ("Multiply-accumulates (counted)", "MACs relative to the smallest size"),
        ("Time (measured)", "median time relative to the smallest size"),
        ("Peak activations (counted)", "bytes relative to the smallest size"),
    )
    for axes, (title, label) in zip(panels, texts, strict=True):
        axes.set(title=title, ylabel=label, xlabel="tokens relative to the smallest size")
    styles = line_styles([r.model for r in results])
    for result in results:
        style, tokens = styles[result.model.name], np.array(result.tokens) / result.tokens[0]
        for axes, values in zip(
            panels, (result.counted, result.median_seconds, result.peak_bytes), strict=True
        ):
            if len(values):
                axes.plot(tokens[: len(values)], values / values[0], **style)
        for x, seconds in zip(tokens, result.seconds):
            bounds = np.array(median_interval(seconds)) / result.median_seconds[0]
            panels[1].plot([x, x], bounds, color=style["color"], linewidth=1)
    ends = np.array([1.0, max(r.tokens[-1] / r.tokens[0] for r in results)])
    for axes in panels:
        for _label, power, line in _GUIDES:
            axes.plot(ends, ends**power, color=GREY, linewidth=1, zorder=0, **line)
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_locator(LogLocator(base=2))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
    keys = [Line2D([], [], label=model_label(r.model), **styles[r.model.name]) for r in results]
    keys += [
        Line2D([], [], color=GREY, linewidth=1, label=label, **line)
        for label, _power, line in _GUIDES
    ]
    key_below(figure, keys)
    return figure
