"""Pictures of cost: where multiply-accumulates go, accuracy against cost, and growth with resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

# Parts of the multiply-accumulates with their colours and hatches, so that grey prints tell them apart.
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
    """Multiply-accumulates of one image of each network, by the part of the network that they are spent in."""
    figure = Figure(figsize=(8.6, 0.34 * len(costs) + 1.15))
    axes = figure.add_subplot()
    left, rows = np.zeros(len(costs)), np.arange(len(costs))
    for part, (label, colour, hatch) in _PARTS.items():
        values = np.array([getattr(c.macs, part) for c in costs], dtype=float)
        if values.any():
            axes.barh(rows, values, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=label)
        left += values
    axes.set_yticks(rows, [model_label(c.model) for c in costs])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.margins(x=0.03)
    axes.set(xlim=(0, None), xlabel="multiply-accumulates per image", title="Multiply-accumulates by part of the network")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


_COST_LABELS: dict[str, tuple[str, float, str]] = {
    "parameters": ("parameters", 1.0, ""),
    "MACs an image": ("multiply-accumulates per image", 1.0, ""),
    "peak activation bytes an image": ("peak activations per image (MiB)", 2.0**-20, "MiB"),
    "seconds an image": ("time per image", 1.0, "s"),
}


@styled
def accuracy_cost_frontier(result: AccuracyCost) -> Figure:
    """Accuracy against each cost, one row a measure. Bars are 95 % intervals over test images (and draws, of few shots).

    The grey line is the frontier: no network to its left is as accurate. Hollow points are beaten beyond both intervals by a
    network that costs no more."""
    measures, costs = range(len(result.measures)), range(len(result.costs))
    figure = Figure(figsize=(2.75 * len(costs) + 0.4, 2.75 * len(measures) + 0.25))
    panels = figure.subplots(len(measures), len(costs), squeeze=False, sharey="row", sharex="col")
    for a in measures:
        for k in costs:
            _frontier_panel(panels[a, k], result, a, k)
        panels[a, 0].set_ylabel("test accuracy (%)")
        panels[a, 0].set_title((result.measures[a][:1].upper() + result.measures[a][1:]).replace(" a class", " per class"))
    for k, name in enumerate(result.costs):
        panels[-1, k].set_xlabel(_COST_LABELS[name][0])
    styles = line_styles(result.models)
    keys = [Line2D([], [], **{**styles[m.name], "linestyle": ""}, label=model_label(m)) for m in result.models]
    key_below(figure, [*keys, Line2D([], [], color=GREY, linewidth=1, label="frontier")])
    return figure


def _frontier_panel(axes: Axes, result: AccuracyCost, a: int, k: int) -> None:
    _label, unit, symbol = _COST_LABELS[result.costs[k]]
    cost, accuracy = unit * result.cost[k], 100 * result.accuracy[a]
    styles = line_styles(result.models)
    for i, model in enumerate(result.models):
        colour, marker = styles[model.name]["color"], styles[model.name]["marker"]
        axes.plot([cost[i]] * 2, [100 * result.low[a, i], 100 * result.high[a, i]], color=colour, linewidth=1)
        face = "white" if result.beaten[a, k, i] else colour
        axes.plot(cost[i], accuracy[i], color=colour, marker=marker, markersize=6, markerfacecolor=face, linestyle="")
    on = result.frontier[a, k]
    order = np.argsort(cost[on])
    _cost_axis(axes, cost, symbol)
    # Whatever costs more than the last is to beat as well.
    x, y = np.append(cost[on][order], axes.get_xlim()[1]), np.append(accuracy[on][order], accuracy[on].max(initial=0))
    axes.step(x, y, where="post", color=GREY, linewidth=1, zorder=0)


def _cost_axis(axes: Axes, values: np.ndarray, symbol: str) -> None:
    known = values[np.isfinite(values)]
    if len(known) and known.max() > _WIDE * known.min():
        axes.set_xscale("log")
        axes.set_xlim(known.min() / 1.4, known.max() * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif len(known):
        axes.set_xlim(0, 1.12 * known.max())
        axes.xaxis.set_major_locator(MaxNLocator(4))
    # Bytes come in MiB, which take no other prefix.
    axes.xaxis.set_major_formatter("{x:g}" if symbol == "MiB" else EngFormatter(unit=symbol))


@styled
def cost_growth_curves(results: Sequence[CostGrowth]) -> Figure:
    """Cost against the number of tokens, both divided by those of the smallest image, on logarithmic axes.

    Counted multiply-accumulates, measured time (bars: 95 % intervals of the median), and peak activations; the grey lines are
    linear and quadratic growth. Raises MeasureError without any result."""
    if not results:
        raise MeasureError("there is no cost scaling to draw")
    figure = Figure(figsize=(10.5, 3.7))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    quantities: list[tuple[str, str, Callable[[CostGrowth], np.ndarray]]] = [
        ("Multiply-accumulates (counted)", "MACs relative to the smallest size", lambda r: r.counted),
        ("Time (measured)", "median time relative to the smallest size", _medians),
        ("Peak activations (counted)", "bytes relative to the smallest size", lambda r: r.peak_bytes),
    ]
    for axes, (title, label, values) in zip(panels, quantities, strict=True):
        for result in results:
            _growth_line(axes, result, values(result), styles[result.model.name])
        axes.set(title=title, ylabel=label, xlabel="tokens relative to the smallest size")
    for result in results:
        _time_bars(panels[1], result, styles[result.model.name])
    most = max(r.tokens[-1] / r.tokens[0] for r in results)
    _guides(panels, most)
    keys = [Line2D([], [], label=model_label(r.model), **styles[r.model.name]) for r in results]
    keys += [Line2D([], [], color=GREY, linewidth=1, label=name, **_dashes(style)) for name, _power, style in _GUIDES]
    key_below(figure, keys)
    return figure


def _medians(result: CostGrowth) -> np.ndarray:
    return np.median(result.seconds, axis=1) if len(result.seconds) else np.empty(0)


def _growth_line(axes: Axes, result: CostGrowth, values: np.ndarray, style: dict[str, Any]) -> None:
    if len(values):
        tokens = np.array(result.tokens[: len(values)]) / result.tokens[0]
        axes.plot(tokens, values / values[0], **style)


def _time_bars(axes: Axes, result: CostGrowth, style: dict[str, Any]) -> None:
    first = np.median(result.seconds[0]) if len(result.seconds) else 1.0
    for tokens, seconds in zip(result.tokens, result.seconds):
        bounds = np.array(median_interval(seconds)) / first
        axes.plot([tokens / result.tokens[0]] * 2, bounds, color=style["color"], linewidth=1)


def _dashes(style: str) -> dict[str, Any]:
    return {"linestyle": style}


_GUIDES = (("linear", 1, "-"), ("quadratic", 2, "--"))


def _guides(panels: Sequence[Axes], most: float) -> None:
    ends = np.array([1.0, most])
    for axes in panels:
        for _name, power, style in _GUIDES:
            axes.plot(ends, ends**power, color=GREY, linewidth=1, linestyle=style, zorder=0)
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_locator(LogLocator(base=2))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
