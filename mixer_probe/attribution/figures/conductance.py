"""Figure of the conductance of token-mixing units, and of the input weights of those with the
highest."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mixer_probe.attribution import Conductance
from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, model_label, plain, styled

_MOST_ROWS = 8


@styled
def conductance_units(result: Conductance) -> Figure:
    """One row per block, at most eight from first to last: on the left the fraction of the block's
    conductance per unit, in decreasing order, with the uniform distribution dashed; beside it the
    input weights of the units with the highest conductance, symmetric colours around zero per unit.

    Above each map: number of the unit, its fraction, and its mean conductance in logits (for the
    class where positive). Raises MeasureError for a result without maps of units."""
    if not result.unit_maps:
        raise MeasureError(
            "this conductance is of channels, which have no spatial map; use that of token-mixing "
            "units (layers=None)"
        )
    rows = np.unique(
        np.linspace(0, len(result.layers) - 1, min(_MOST_ROWS, len(result.layers)))
        .round()
        .astype(int)
    )
    maps = max(len(m) for m in result.unit_maps)
    figure = Figure(figsize=(2.9 + 1.02 * maps, 0.7 + 1.18 * len(rows)))
    panels = figure.subplots(len(rows), 1 + maps, squeeze=False, width_ratios=[2.6] + [1.0] * maps)
    for row, i in zip(panels, rows, strict=True):
        fractions, mean = result.fractions(i), result.values[i].mean(0)
        ranks = np.arange(1, len(fractions) + 1)
        row[0].fill_between(
            ranks,
            100 * np.sort(fractions)[::-1],
            step="mid",
            color=COLOURS[0],
            alpha=0.8,
            linewidth=0,
        )
        row[0].axhline(100 / len(fractions), color=GREY, linestyle="--", linewidth=1)
        row[0].set(xlim=(0.5, len(fractions) + 0.5), ylim=(0, None))
        row[0].set_ylabel(
            f"{plain(result.layers[i].name.removesuffix('.mlp_tokens.act'))}\n% of conductance",
            fontsize=7.5,
        )
        row[0].tick_params(labelsize=7)
        for axes, unit, weights in zip(
            row[1:], result.top_units(i, maps), result.unit_maps[i], strict=False
        ):
            limit = np.abs(weights).max() or 1.0
            axes.imshow(weights, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
            title = f"{unit}: {100 * fractions[unit]:.1f} %, {mean[unit]:+.2f}"
            axes.set_title(title, fontsize=7, fontweight="normal", loc="center", pad=2)
        for axes in row[1:]:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes in panels[1:, 0]:
        axes.sharex(panels[0, 0])
    for axes in panels[:-1, 0]:
        axes.tick_params(labelbottom=False)
    panels[-1, 0].set_xlabel("token-mixing units, by decreasing conductance")
    images = "one image" if len(result.ids) == 1 else f"mean of {len(result.ids)} images"
    title = f"{model_label(result.model)}: conductance of token-mixing units, {images}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure
