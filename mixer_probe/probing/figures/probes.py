"""Figures of probes: accuracy against depth with its baselines, the path of the penalty, and
accuracy with few images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from mixer_probe.core.errors import MeasureError
from mixer_probe.models.layer import spread
from mixer_probe.plotting.curves import (
    PIXEL_COLOUR,
    chance_line,
    curve,
    cut,
    depths,
    fraction_text,
    key_below,
    level,
    model_keys,
    networks,
    pixels,
    with_twins,
)
from mixer_probe.plotting.style import COLOURS, GREY, line_styles, model_label, styled
from mixer_probe.probing import FewShotResult, ProbeResult


@styled
def probe_curves(results: Sequence[ProbeResult]) -> Figure:
    """Probe accuracy after every layer against relative depth: bands are 95 % intervals, dotted
    lines untrained baselines.

    A result of raw pixels (`pixel_baseline`) is a dashed line with its interval; the grey line is
    chance. Where every network has one layer there is no depth to draw: each is a point in a row of
    its own."""
    curves, raw = with_twins(results), pixels(results)
    styles, chances = line_styles([one.model for one in curves]), [r.chance for r in results]
    methods = " and ".join(dict.fromkeys(_TITLES.get(r.method, r.method) for r in results))
    chance = f"chance ({fraction_text(max(chances))})"
    if one_layer(results):
        rows = [*curves, *raw]
        figure = Figure(figsize=(8.6, 1.1 + 0.3 * len(rows)))
        axes = figure.add_subplot()
        for y, one in enumerate(rows):
            style = styles.get(
                one.model.name, {"color": PIXEL_COLOUR, "marker": "o", "markersize": 5}
            )
            best = int(np.argmax(np.nan_to_num(one.accuracy, nan=-1)))
            axes.plot(
                [100 * one.low[best], 100 * one.high[best]],
                [y, y],
                color=style["color"],
                linewidth=1.6,
            )
            axes.plot(100 * one.accuracy[best], y, **{**style, "linestyle": ""})
        for value in dict.fromkeys(chances):
            axes.axvline(100 * value, color=GREY, linewidth=1)
        labels = [
            "raw pixels" if one.model.family == "pixels" else model_label(one.model) for one in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.set(
            title=f"{methods} after {layer_names(results)}",
            xlabel="test accuracy (%)",
            ylim=(len(rows) - 0.5, -0.5),
        )
        axes.set_xlim(left=0)
        key_below(figure, [Line2D([], [], color=GREY, linewidth=1, label=chance)])
        return figure
    figure = Figure(figsize=(8.6, 4.4))
    axes = figure.add_subplot()
    for one in raw:
        level(axes, 100 * one.accuracy.max(), (100 * one.low.max(), 100 * one.high.max()))
    for one in curves:
        bounds = (100 * one.low, 100 * one.high)
        curve(
            axes,
            depths(one),
            100 * one.accuracy,
            bounds,
            styles[one.model.name],
            model_label(one.model),
        )
    chance_line(axes, (100 * c for c in chances))
    axes.set(
        title=f"{methods} by depth",
        xlabel="relative depth",
        ylabel="test accuracy (%)",
        xlim=(-0.02, 1.02),
    )
    axes.set_ylim(bottom=0)
    key_below(figure, model_keys([one.model for one in curves], bool(raw), chance))
    return figure


def one_layer(results: Iterable[Any]) -> bool:
    """Whether there are networks, and one layer of each."""
    return {len(one.layers) for one in networks(results)} == {1}


def layer_names(results: Iterable[Any]) -> str:
    """The names of all layers, such as "head_drop or global_pool"."""
    return " or ".join(
        dict.fromkeys(cut(layer.name, 24) for one in networks(results) for layer in one.layers)
    )


def layer_title(results: Iterable[Any], layer: int) -> str:
    """The name of the layer of index `layer`, or its index where networks have several names for
    it."""
    names = {one.layers[layer].name for one in networks(results) or results}
    return (
        cut(names.pop(), 24)
        if len(names) == 1
        else ("the last layer" if layer == -1 else f"layer {layer}")
    )


_TITLES = {
    "ridge": "Ridge probes",
    "logistic": "Logistic probes",
    "knn": "k-NN probes",
    "centroid": "Nearest class mean",
}
_PATHS = {"l2": "penalty l2", "k": "neighbours k"}


@styled
def probe_paths(results: Sequence[ProbeResult], layers: Sequence[str] | None = None) -> Figure:
    """Accuracy along the path of each network: dashed on left-out training images, solid on test
    images, the choice circled.

    `layers` are drawn, by default the first, a middle and the last one of each network. Raises
    MeasureError where no probe has a path, or a network none of `layers`."""
    shown = [r for r in results if r.path_name]
    if not shown:
        raise MeasureError(
            f"a {results[0].method} probe has no hyperparameter path to draw; use ridge, logistic "
            "or knn"
        )
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.3 * columns + 0.4, 5.4), 2.9 * rows + 0.3))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 8,
        "linestyle": "",
        "markerfacecolor": "none",
    }
    top = 0.0
    for axes, result in zip(panels.flat, shown):
        names = [layer.name for layer in result.layers]
        chosen = (
            spread(result.layers, 3)
            if layers is None
            else [i for i, name in enumerate(names) if name in layers]
        )
        if not chosen:
            raise MeasureError(f"{result.model.name} has no probe of {', '.join(layers or ())}")
        for number, i in enumerate(chosen):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                result.path_values, 100 * result.path_test[i], color=colour, label=cut(names[i])
            )
            axes.plot(
                result.path_values,
                100 * result.path_left_out[i],
                color=colour,
                linewidth=1,
                linestyle="--",
            )
            axes.plot(
                [result.chosen[i]],
                [100 * result.accuracy[i]],
                color=colour,
                markeredgewidth=1.6,
                **ring,
            )
        axes.axhline(100 * result.chance, color=GREY, linewidth=1)
        axes.set(xscale="log", xlabel=_PATHS[result.path_name])
        axes.set_title(model_label(result.model), fontsize=8.5)
        axes.legend(fontsize=7, loc="best", frameon=True, edgecolor="none", framealpha=0.8)
        values = np.concatenate(
            [result.path_test.ravel(), result.path_left_out.ravel(), [result.chance]]
        )
        top = max(top, float(np.nanmax(values)))
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    for row in panels:
        row[0].set_ylabel("accuracy (%)")
    panels[0, 0].set_ylim(0, 105 * top)
    keys = [
        Line2D([], [], color=GREY, linestyle="-", label="test images"),
        Line2D([], [], color=GREY, linestyle="--", linewidth=1, label="held-out training images"),
        Line2D([], [], color=GREY, label="selected", **ring),
        Line2D([], [], color=GREY, linewidth=0.8, label="chance"),
    ]
    key_below(figure, keys)
    return figure


@styled
def few_shot_curves(results: Sequence[FewShotResult], layer: int = -1) -> Figure:
    """Left: accuracy against images per class, after one layer of each network (an index; the last
    by default). Right: accuracy by depth for the most images per class.

    Lines are means over draws, bands 95 % intervals over draws and test images, dotted lines
    untrained baselines. Where every network has one layer there is no right panel."""
    alone = one_layer(results)
    figure = Figure(figsize=(8.6 if alone else 9.6, 4.0))
    panels = figure.subplots(1, 1 if alone else 2, sharey=True, squeeze=False)[0]
    curves, raw = with_twins(results), pixels(results)
    styles = line_styles([one.model for one in curves])
    for one in raw:
        _shots(panels[0], one, -1, {"color": PIXEL_COLOUR, "linestyle": "--", "linewidth": 1.2})
    for one in curves:
        _shots(panels[0], one, layer, styles[one.model.name])
    shots = sorted({s for r in results for s in r.shots})
    panels[0].set(xscale="log", xlabel="images per class", ylabel="test accuracy (%)")
    panels[0].set_xlim(0.85 * shots[0], 1.18 * shots[-1])
    panels[0].set_xticks(shots, [str(s) for s in shots])
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].set_title(f"After {layer_title(results, layer)}")
    for axes in panels[1:]:
        for one in raw:
            level(
                axes,
                100 * one.mean[:, -1].max(),
                (100 * one.low[:, -1].max(), 100 * one.high[:, -1].max()),
            )
        for one in curves:
            bounds = (100 * one.low[:, -1], 100 * one.high[:, -1])
            curve(
                axes,
                depths(one),
                100 * one.mean[:, -1],
                bounds,
                styles[one.model.name],
                model_label(one.model),
            )
        most = sorted({r.shots[-1] for r in results})
        title = f"With {' or '.join(map(str, most))} image{'s' if most != [1] else ''} per class"
        axes.set(xlabel="relative depth", title=title, xlim=(-0.02, 1.02))
        axes.tick_params(labelleft=True)
    for axes in panels:
        chance_line(axes, (100 * r.chance for r in results))
    panels[0].set_ylim(bottom=0)
    chance = f"chance ({fraction_text(max(r.chance for r in results))})"
    key_below(figure, model_keys([one.model for one in curves], bool(raw), chance))
    return figure


def _shots(axes: Axes, result: FewShotResult, layer: int, style: dict[str, Any]) -> None:
    bounds = (100 * result.low[layer], 100 * result.high[layer])
    curve(axes, result.shots, 100 * result.mean[layer], bounds, style, model_label(result.model))
