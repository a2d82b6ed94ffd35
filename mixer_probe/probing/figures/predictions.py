"""Figures of the predictions of a probe: confusion, accuracy per class, and reliability
diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.curves import cut, key_below, model_keys
from mixer_probe.plotting.style import COLOURS, GREY, SEQUENTIAL, line_styles, model_label, styled
from mixer_probe.probing import Calibration, ConfusionMatrix
from mixer_probe.probing.figures.probes import layer_title

# More classes than this have no numbers in cells.
_MOST_NUMBERS = 12
_COLUMNS = 2


@styled
@checked(MeasureError)
def confusion_heatmaps(
    results: Sequence[ConfusionMatrix], layer: int = -1, most: int = 30
) -> Figure:
    """Confusion matrices after one layer of each network (an index; the last by default): rows are
    the true classes.

    Cells are percentages of the images of a true class. Of more than `most` classes those with the
    most errors are drawn."""
    columns = min(_COLUMNS, len(results))
    rows = -(-len(results) // columns)
    side = min(max(2.4, 0.24 * min(most, max(len(r.class_names) for r in results)) + 0.9), 6.0)
    figure = Figure(figsize=((side + 1.0) * columns + 0.9, (side + 0.9) * rows + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, result in zip(panels.flat, results):
        classes, chosen = len(result.class_names), result.most_confused(layer, most)
        picture = 100 * result.fractions[layer][np.ix_(chosen, chosen)]
        names = [cut(result.class_names[k], 14) for k in chosen]
        axes.imshow(picture, cmap=SEQUENTIAL, vmin=0, vmax=100)
        size = 7.5 if len(names) <= 15 else 5.5
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
        some = (
            ""
            if len(chosen) == classes
            else f"\n{len(chosen)} of {classes} classes with most errors"
        )
        axes.set_title(
            f"{model_label(result.model)}\n{cut(result.layers[layer].name, 30)}{some}", fontsize=8.5
        )
        axes.set(xlabel="predicted class", ylabel="true class")
        for (row, column), value in np.ndenumerate(picture) if len(names) <= _MOST_NUMBERS else ():
            text, colour = (
                "–" if np.isnan(value) else f"{value:.0f}",
                "white" if value <= 55 else "black",
            )
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=6.5)
    for axes in panels.flat[len(results) :]:
        axes.remove()
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100), SEQUENTIAL),
        ax=figure.axes,
        shrink=0.6,
        aspect=25,
        pad=0.02,
    )
    bar.set_label("images of the true class (%)")
    bar.outline.set_visible(False)
    return figure


@styled
@checked(MeasureError)
def class_accuracy(results: Sequence[ConfusionMatrix], layer: int = -1, most: int = 40) -> Figure:
    """Accuracy of every class after one layer of each network, with Wilson's 95 % interval; the
    easiest class is on top.

    Of more than `most` classes the half as many easiest and hardest are drawn. Raises MeasureError
    for other classes."""
    classes = results[0].class_names
    if any(r.class_names != classes for r in results):
        raise MeasureError(
            "the results of one figure must have the same classes; draw results with other classes "
            "separately"
        )
    frames = [r.per_class()[["accuracy", "low", "high"]] for r in results]
    starts = [range(len(r.layers))[layer] * len(classes) for r in results]
    tables = [
        100 * f.to_numpy(float)[start : start + len(classes)].T for f, start in zip(frames, starts)
    ]
    order = np.argsort(
        -np.nan_to_num(np.mean([t[0] for t in tables], axis=0), nan=-1.0), kind="stable"
    )
    ends = (
        order if len(order) <= most else np.concatenate([order[: most // 2], order[-(most // 2) :]])
    )
    figure = Figure(figsize=(7.6, max(0.14 * len(ends) * (0.6 + 0.5 * len(results)), 1.6) + 0.9))
    axes = figure.add_subplot()
    styles = line_styles([r.model for r in results])
    for i, (result, table) in enumerate(zip(results, tables)):
        shift = 0.0 if len(results) == 1 else 0.3 - 0.6 * i / (len(results) - 1)
        middle, low, high = table[:, ends]
        axes.errorbar(
            middle,
            shift - np.arange(len(ends)),
            # Rounding may put the accuracy a hair outside of its interval.
            xerr=np.clip([middle - low, high - middle], 0, None),
            **{**styles[result.model.name], "linestyle": ""},
            markersize=5,
            elinewidth=1.1,
            clip_on=False,
        )
    axes.set_yticks(
        -np.arange(len(ends)),
        [cut(classes[k], 24) for k in ends],
        fontsize=8 if len(ends) <= 20 else 6.5,
    )
    axes.set(xlim=(-2, 102), ylim=(-len(ends) + 0.4, 0.6), xlabel="test accuracy (%)")
    axes.tick_params(axis="y", length=0)
    some = (
        "" if len(ends) == len(classes) else f" ({len(ends)} of {len(classes)}: highest and lowest)"
    )
    axes.set_title(f"Accuracy per class after {layer_title(results, layer)}{some}")
    key_below(figure, model_keys([r.model for r in results]))
    return figure


@styled
def reliability_diagrams(results: Sequence[Calibration], layer: int = -1) -> Figure:
    """Accuracy against confidence of the predictions after one layer of each network, in bins.

    Calibrated predictions lie on the diagonal. Bars are Wilson's 95 % intervals, the shaded columns
    are the percentages of the images in each bin."""
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(max(3.0 * columns + 0.3, 4.4), 3.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, result in zip(panels.flat, results):
        middle, low, high = (
            100 * part[layer] for part in (result.accuracy, result.low, result.high)
        )
        counts, edges = result.counts[layer], 100 * result.edges
        columns_of = {"align": "edge", "color": COLOURS[5], "alpha": 0.35}
        axes.bar(edges[:-1], 100 * counts / max(counts.sum(), 1), np.diff(edges), **columns_of)
        axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1)
        error = np.clip([middle - low, high - middle], 0, None)
        style = {"color": COLOURS[0], "marker": "o", "linestyle": "", "elinewidth": 1.1}
        axes.errorbar(100 * result.confidence[layer], middle, yerr=error, **style)
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
        text = (
            f"ECE {100 * result.ece[layer]:.1f} points ({100 * result.ece_null[layer]:.1f} if "
            "calibrated)"
        )
        axes.set_title(
            f"{model_label(result.model)}\n{cut(result.layers[layer].name, 28)}\n{text}", fontsize=8
        )
    for axes in panels.flat[len(results) :]:
        axes.remove()
    key_below(
        figure,
        [
            Line2D([], [], color=COLOURS[0], marker="o", linestyle="", label="accuracy per bin"),
            Line2D([], [], color=GREY, linestyle="--", label="perfect calibration"),
            Line2D([], [], color=COLOURS[5], linewidth=5, alpha=0.5, label="images per bin"),
        ],
    )
    return figure
