"""Pictures of which classes channels answer to, by depth, and of how many channels a classifier needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from mixer_probe.channels import ChannelsNeeded, ClassSelectivity
from mixer_probe.plotting.style import GREY, SEQUENTIAL, line_styles, model_label, styled

_COLUMNS = 3
# Curves of one panel that an eye can tell apart.
_CURVES = 4


@styled
def selectivity_depth(results: Sequence[ClassSelectivity]) -> Figure:
    """Share of channels above the corrected null, the median channel's AUROC and d' for its class, against relative depth."""
    figure = Figure(figsize=(10.5, 3.5))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        table, style = result.summary(), styles[result.model.name]
        panels[0].plot(table["depth"], 100 * table["share_selective"], label=model_label(result.model), **style)
        panels[1].plot(table["depth"], table["auroc_median"], **style)
        if result.model.trained:
            quartiles = table["auroc_q25"], table["auroc_q75"]
            panels[1].fill_between(table["depth"], *quartiles, color=style["color"], alpha=0.1, linewidth=0)
        panels[2].plot(table["depth"], table["dprime_median"], **style)
    _null_line(panels[1], results)
    titles = ("Class-selective channels", "AUROC", "d′")
    labels = ("selective channels (%)", "AUROC, median channel", "|d′|, median channel")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(-0.02, 1.03))
    panels[0].set_ylim(-2, 102)
    panels[2].set_ylim(0, None)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _null_line(axes: Axes, results: Sequence[ClassSelectivity]) -> None:
    """What the best class of a channel reads when labels are dealt out at random."""
    levels = np.concatenate([r.null_auroc for r in results])
    if np.isfinite(levels).any():
        level = np.nanmean(levels)
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        place = (0.02, float(level))
        axes.annotate("permuted labels", place, (0, -3), textcoords="offset points", va="top", color=GREY, fontsize=8)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, level - 0.1 * (high - level)), high)


@styled
def selectivity_distributions(results: Sequence[ClassSelectivity]) -> Figure:
    """Distribution over channels of the AUROC for the class that each tells best, layer by layer, one panel a network.

    Bands hold 50 % and 90 % of the channels, the line is the median, dots are the extremes; filled dots are above the corrected
    null. The dashed line is the median channel with labels dealt out at random."""
    columns = min(_COLUMNS, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.5 * columns if columns > 1 else 5.2, 0.4 + 2.7 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    styles = line_styles([r.model for r in results])
    for axes, result in zip(panels.flat, results, strict=False):
        _distribution(axes, result, styles[result.model.name]["color"])
        axes.set(title=model_label(result.model), xlim=(-0.03, 1.05))
    for axes in panels.flat[len(results) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("AUROC, best-separated class")
    # The lowest panel of each column.
    for j in range(columns):
        last = panels[rows - 1 if (rows - 1) * columns + j < len(results) else rows - 2, j]
        last.set_xlabel("relative depth")
        last.tick_params(labelbottom=True)
    return figure


def _distribution(axes: Axes, result: ClassSelectivity, colour: str) -> None:
    frame = result.to_frame()
    frame["away"] = 0.5 + (frame["auroc"] - 0.5).abs()
    known = frame.dropna(subset=["away"])
    if known.empty:
        axes.text(0.5, 0.5, "no channel varies", transform=axes.transAxes, ha="center", color=GREY)
        return
    by_layer = known.groupby("layer", sort=False)
    depth = by_layer["depth"].first().to_numpy()
    bands = by_layer["away"].quantile(np.array([0.05, 0.25, 0.5, 0.75, 0.95])).unstack().to_numpy()
    axes.fill_between(depth, bands[:, 0], bands[:, 4], color=colour, alpha=0.15, linewidth=0)
    axes.fill_between(depth, bands[:, 1], bands[:, 3], color=colour, alpha=0.3, linewidth=0)
    axes.plot(depth, bands[:, 2], color=colour, linestyle="-" if result.model.trained else ":")
    best = known.loc[by_layer["away"].idxmax()]
    axes.scatter(best["depth"], best["away"], 16, edgecolors=colour, c=np.where(best["selective"], colour, "white"), linewidths=1)
    if result.permutations:
        axes.plot([layer.depth for layer in result.layers], result.null_auroc, color=GREY, linewidth=0.8, linestyle="--")


@styled
def channels_needed_curves(results: Sequence[ChannelsNeeded]) -> Figure:
    """Accuracy against the number of channels, one panel a network: the most selective channels (solid) and random ones (dotted).

    Up to four layers evenly through the depth; bands are the range over draws."""
    columns = min(_COLUMNS, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.5 * columns if columns > 1 else 5.2, 0.7 + 3.1 * rows))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, result in zip(panels.flat, results, strict=False):
        _curves(axes, result)
        axes.set(title=model_label(result.model), xlabel="channels")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.axhline(100 * result.chance, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5)
    for axes in panels.flat[len(results) :]:
        axes.remove()
    panels[0, 0].set_ylim(0, 102)
    handles = [
        Line2D([], [], color=GREY, linestyle="-", label="most selective channels"),
        Line2D([], [], color=GREY, linestyle=":", label="random channels"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"accuracy of a {results[0].probe} probe (%)")
    return figure


def _curves(axes: Axes, result: ChannelsNeeded) -> None:
    chosen = np.unique(np.linspace(0, len(result.layers) - 1, min(_CURVES, len(result.layers))).round().astype(int))
    for i in chosen:
        layer = result.layers[i]
        colour = colormaps[SEQUENTIAL](0.9 * layer.depth)
        random = 100 * result.random[i]
        axes.plot(result.counts[i], 100 * result.selective[i], color=colour, label=layer.name)
        axes.plot(result.counts[i], random.mean(1), color=colour, linestyle=":")
        axes.fill_between(result.counts[i], random.min(1), random.max(1), color=colour, alpha=0.12, linewidth=0)
