"""Pictures of channel statistics by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mixer_probe.channels import ChannelStatistics
from mixer_probe.plotting.style import GREY, line_styles, model_label, styled

# What results of earlier versions lack.
_SHAPE = ("median_kurtosis", "largest_ratio", "participation")


@styled
def channel_depth(results: Sequence[ChannelStatistics]) -> Figure:
    """Spread, share of values at or below zero, and dead channels of every layer against relative depth.

    Where the results have them also excess kurtosis, the largest activation over the median one, and the participation ratio."""
    tables = [result.summary() for result in results]
    more = all(set(_SHAPE) <= set(table) for table in tables)
    figure = Figure(figsize=(10.5, 6.4 if more else 3.5))
    panels = figure.subplots(2 if more else 1, 3, squeeze=False)
    styles = line_styles([r.model for r in results])
    for result, table in zip(results, tables, strict=True):
        style = styles[result.model.name]
        _spread(panels[0], table, style, model_label(result.model))
        if more:
            _shape(panels[1], table, style)
    _finish_spread(panels[0])
    if more:
        _finish_shape(panels[1], results[0].massive_ratio)
    for axes in panels.flat:
        axes.set(xlabel="relative depth", xlim=(-0.02, 1.03))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _spread(panels: Sequence[Axes], table: pd.DataFrame, style: dict[str, object], label: str) -> None:
    depth = table["depth"]
    panels[0].plot(depth, table["median_std"], label=label, **style)  # type: ignore[arg-type]
    panels[0].fill_between(depth, table["median_std"], table["largest_std"], color=str(style["color"]), alpha=0.12, linewidth=0)
    panels[1].plot(depth, 100 * table["share_nonpositive"], **style)  # type: ignore[arg-type]
    panels[2].plot(depth, 100 * table["dead"] / table["channels"], **style)  # type: ignore[arg-type]


def _finish_spread(panels: Sequence[Axes]) -> None:
    titles = ("Standard deviation", "Values at or below zero", "Dead channels")
    labels = ("std (median; band to maximum)", "values (%)", "channels (%)")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label)
    panels[0].set_yscale("log")
    panels[1].set_ylim(-2, 102)
    highest = max(10.0, panels[2].get_ylim()[1])
    panels[2].set_ylim(-0.02 * highest, highest)


def _shape(panels: Sequence[Axes], table: pd.DataFrame, style: dict[str, object]) -> None:
    panels[0].plot(table["depth"], table["median_kurtosis"], **style)  # type: ignore[arg-type]
    panels[1].plot(table["depth"], table["largest_ratio"], **style)  # type: ignore[arg-type]
    panels[2].plot(table["depth"], 100 * table["participation"] / table["channels"], **style)  # type: ignore[arg-type]


def _finish_shape(panels: Sequence[Axes], massive: float) -> None:
    titles = ("Kurtosis", "Largest activation", "Effective dimensionality")
    labels = ("median excess kurtosis (normal: 0)", "ratio to median |a| of the layer", "participation ratio (% of channels)")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label)
    if np.nanmax([np.nanmax(line.get_ydata(), initial=0) for line in panels[0].lines]) > 20:
        panels[0].set_yscale("symlog", linthresh=1)
    panels[0].axhline(0, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    panels[1].set_yscale("log")
    for axis_of in (panels[1].yaxis.set_major_formatter, panels[1].yaxis.set_minor_formatter):
        axis_of(LogFormatter(minor_thresholds=(2, 0.5)))
    panels[1].axhline(massive, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    panels[1].annotate(
        "massive", (1.0, massive), (0, 2), textcoords="offset points", ha="right", va="bottom", color=GREY, fontsize=8
    )
    panels[2].set_ylim(0, None)
