"""Channel statistics by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mixer_probe.channels import ChannelStatistics
from mixer_probe.plotting.style import GREY, line_styles, model_label, styled

# Columns of the second row, which results of earlier versions lack.
_SHAPE = ("median_kurtosis", "largest_ratio", "participation")
# Title and y label of each panel.
_PANELS = (
    ("Standard deviation", "std (median; band to maximum)"),
    ("Values at or below zero", "values (%)"),
    ("Dead channels", "channels (%)"),
    ("Kurtosis", "median excess kurtosis (normal: 0)"),
    ("Largest activation", "ratio to median |a| of the layer"),
    ("Effective dimensionality", "participation ratio (% of channels)"),
)


@styled
def channel_depth(results: Sequence[ChannelStatistics]) -> Figure:
    """Spread, the fraction of values at or below zero, and dead channels of every layer against
    relative depth.

    Where the results have them also excess kurtosis, the largest activation over the median one,
    and the participation ratio."""
    tables = [result.summary() for result in results]
    more = all(set(_SHAPE) <= set(table) for table in tables)
    figure = Figure(figsize=(10.5, 6.4 if more else 3.5))
    panels = figure.subplots(2 if more else 1, 3, squeeze=False).ravel()
    styles = line_styles([r.model for r in results])
    for result, table in zip(results, tables, strict=True):
        style, depth = styles[result.model.name], table["depth"]
        curves = [
            table["median_std"],
            100 * table["fraction_nonpositive"],
            100 * table["dead"] / table["channels"],
        ]
        if more:
            curves += [
                table["median_kurtosis"],
                table["largest_ratio"],
                100 * table["participation"] / table["channels"],
            ]
        for k, (axes, curve) in enumerate(zip(panels, curves, strict=True)):
            axes.plot(depth, curve, label=None if k else model_label(result.model), **style)
        panels[0].fill_between(
            depth,
            table["median_std"],
            table["largest_std"],
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )
    for axes, (title, label) in zip(panels, _PANELS, strict=False):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(-0.02, 1.03))
    panels[0].set_yscale("log")
    panels[1].set_ylim(-2, 102)
    highest = max(10.0, panels[2].get_ylim()[1])
    panels[2].set_ylim(-0.02 * highest, highest)
    if more:
        kurtosis, largest, dimensionality = panels[3:]
        if np.nanmax([np.nanmax(line.get_ydata(), initial=0) for line in kurtosis.lines]) > 20:
            kurtosis.set_yscale("symlog", linthresh=1)
        massive = results[0].massive_ratio
        for axes, level in ((kurtosis, 0), (largest, massive)):
            axes.axhline(level, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        largest.set_yscale("log")
        for set_formatter in (largest.yaxis.set_major_formatter, largest.yaxis.set_minor_formatter):
            set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        largest.annotate("massive", (1.0, massive), color=GREY, fontsize=8, **above)
        dimensionality.set_ylim(0, None)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
