"""Class selectivity of channels by depth, and accuracy against the number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from mixer_probe.channels import ChannelsNeeded, ClassSelectivity
from mixer_probe.plotting.style import GREY, SEQUENTIAL, line_styles, model_label, styled

_COLUMNS = 3
# Curves that can be distinguished in one panel.
_CURVES = 4


def panel_grid(
    count: int, height: float, margin: float, *, single: float, **shared: Any
) -> tuple[Figure, Any]:
    """A figure and its panels [row, column], up to three per row, of `count` results; the rest of
    the last row is removed.

    `height` in inches is that of a row, `margin` that of the legend; `single` is the width of a
    figure of one panel."""
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.5 * columns if columns > 1 else single, margin + height * rows))
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in panels.flat[count:]:
        axes.remove()
    return figure, panels


@styled
def selectivity_depth(results: Sequence[ClassSelectivity]) -> Figure:
    """The fraction of class-selective channels, and the median channel's AUROC and d' for its
    class, against relative depth."""
    figure = Figure(figsize=(10.5, 3.5))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        table, style = result.summary(), styles[result.model.name]
        panels[0].plot(
            table["depth"],
            100 * table["fraction_selective"],
            label=model_label(result.model),
            **style,
        )
        panels[1].plot(table["depth"], table["auroc_median"], **style)
        if result.model.trained:
            quartiles = table["auroc_q25"], table["auroc_q75"]
            panels[1].fill_between(
                table["depth"], *quartiles, color=style["color"], alpha=0.1, linewidth=0
            )
        panels[2].plot(table["depth"], table["dprime_median"], **style)
    levels = np.concatenate([r.null_auroc for r in results])
    if np.isfinite(levels).any():
        level = float(np.nanmean(levels))
        panels[1].axhline(level, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        below: dict[str, Any] = {"xytext": (0, -3), "textcoords": "offset points", "va": "top"}
        panels[1].annotate("permuted labels", (0.02, level), color=GREY, fontsize=8, **below)
        low, high = panels[1].get_ylim()
        panels[1].set_ylim(min(low, level - 0.1 * (high - level)), high)
    titles = ("Class-selective channels", "AUROC", "d′")
    labels = ("selective channels (%)", "AUROC, median channel", "|d′|, median channel")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(-0.02, 1.03))
    panels[0].set_ylim(-2, 102)
    panels[2].set_ylim(0, None)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
def selectivity_distributions(results: Sequence[ClassSelectivity]) -> Figure:
    """Distribution over channels of the AUROC for the best-separated class, layer by layer, one
    panel per network.

    Bands hold 50 % and 90 % of the channels, the line is the median, dots are the extremes; filled
    dots are significant after max-T correction. The dashed line is the median channel under
    permuted labels."""
    figure, panels = panel_grid(len(results), 2.7, 0.4, single=5.2, sharex=True, sharey=True)
    styles = line_styles([r.model for r in results])
    for axes, result in zip(panels.flat, results, strict=False):
        axes.set(title=model_label(result.model), xlim=(-0.03, 1.05))
        frame = result.to_frame()
        frame["away"] = 0.5 + (frame["auroc"] - 0.5).abs()
        known = frame.dropna(subset=["away"])
        if known.empty:
            axes.text(
                0.5, 0.5, "no channel varies", transform=axes.transAxes, ha="center", color=GREY
            )
            continue
        colour = styles[result.model.name]["color"]
        by_layer = known.groupby("layer", sort=False)
        depth = by_layer["depth"].first().to_numpy()
        bands = (
            by_layer["away"].quantile(np.array([0.05, 0.25, 0.5, 0.75, 0.95])).unstack().to_numpy()
        )
        axes.fill_between(depth, bands[:, 0], bands[:, 4], color=colour, alpha=0.15, linewidth=0)
        axes.fill_between(depth, bands[:, 1], bands[:, 3], color=colour, alpha=0.3, linewidth=0)
        axes.plot(depth, bands[:, 2], color=colour, linestyle="-" if result.model.trained else ":")
        best = known.loc[by_layer["away"].idxmax()]
        faces = np.where(best["selective"], colour, "white")
        axes.scatter(best["depth"], best["away"], 16, edgecolors=colour, c=faces, linewidths=1)
        if result.permutations:
            depths = [layer.depth for layer in result.layers]
            axes.plot(depths, result.null_auroc, color=GREY, linewidth=0.8, linestyle="--")
    for axes in panels[:, 0]:
        axes.set_ylabel("AUROC, best-separated class")
    # The lowest panel of each column.
    rows, columns = panels.shape
    for j in range(columns):
        last = panels[rows - 1 if (rows - 1) * columns + j < len(results) else rows - 2, j]
        last.set_xlabel("relative depth")
        last.tick_params(labelbottom=True)
    return figure


@styled
def channels_needed_curves(results: Sequence[ChannelsNeeded]) -> Figure:
    """Accuracy against the number of channels: the most selective ones (solid) and random ones
    (dotted), one panel per network.

    Up to four layers evenly through the depth; bands are the range over draws."""
    figure, panels = panel_grid(len(results), 3.1, 0.7, single=5.2, sharey=True)
    for axes, result in zip(panels.flat, results, strict=False):
        layers = len(result.layers)
        for i in np.unique(np.linspace(0, layers - 1, min(_CURVES, layers)).round().astype(int)):
            layer, counts, random = result.layers[i], result.counts[i], 100 * result.random[i]
            colour = colormaps[SEQUENTIAL](0.9 * layer.depth)
            axes.plot(counts, 100 * result.selective[i], color=colour, label=layer.name)
            axes.plot(counts, random.mean(1), color=colour, linestyle=":")
            axes.fill_between(
                counts, random.min(1), random.max(1), color=colour, alpha=0.12, linewidth=0
            )
        axes.set(title=model_label(result.model), xlabel="channels")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.axhline(100 * result.chance, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5)
    panels[0, 0].set_ylim(0, 102)
    names: dict[Any, str] = {"-": "most selective channels", ":": "random channels"}
    handles = [
        Line2D([], [], color=GREY, linestyle=line, label=name) for line, name in names.items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"accuracy of a {results[0].probe} probe (%)")
    return figure
