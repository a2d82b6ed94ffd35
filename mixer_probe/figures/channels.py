"""Pictures of channel statistics by depth."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from mixer_probe.channels import ChannelStatistics
from mixer_probe.figures.style import line_styles, model_label, styled


@styled
def channel_depth(results: Sequence[ChannelStatistics]) -> Figure:
    """Spread, share of values at or below zero, and dead channels of every layer against relative depth."""
    figure = Figure(figsize=(10.5, 3.5))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        table = result.summary()
        style = styles[result.model.name]
        panels[0].plot(table["depth"], table["median_std"], label=model_label(result.model), **style)
        panels[0].fill_between(
            table["depth"], table["median_std"], table["largest_std"], color=style["color"], alpha=0.12, linewidth=0
        )
        panels[1].plot(table["depth"], 100 * table["share_nonpositive"], **style)
        panels[2].plot(table["depth"], 100 * table["dead"] / table["channels"], **style)
    titles = ("Spread of channels", "Values at or below zero", "Dead channels")
    labels = ("std: median, band to the largest", "share of values (%)", "share of channels (%)")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(-0.02, 1.03))
    panels[0].set_yscale("log")
    panels[1].set_ylim(-2, 102)
    highest = max(10.0, panels[2].get_ylim()[1])
    panels[2].set_ylim(-0.02 * highest, highest)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
