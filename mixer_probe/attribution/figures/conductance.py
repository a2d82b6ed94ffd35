"""How much of a class's logit flows through each token-mixing unit, and what the busiest units read."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.attribution import Conductance
from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, model_label, plain, styled

_MOST_ROWS = 8


@styled
def conductance_units(result: Conductance) -> Figure:
    """A row a block, eight of them at most from first to last: on the left the share of the block's conductance that flows
    through every unit, the busiest first, with the even share dashed; beside it what the busiest units read, symmetric colours
    around zero per unit.

    Above each map: number of the unit, its share, and its mean conductance in logits (for the class where positive).
    Raises MeasureError for a result without maps of units."""
    if not result.unit_maps:
        raise MeasureError(
            "this conductance is of channels, which have no spatial map; use that of token-mixing units (layers=None)"
        )
    rows = np.unique(np.linspace(0, len(result.layers) - 1, min(_MOST_ROWS, len(result.layers))).round().astype(int))
    maps = max(len(m) for m in result.unit_maps)
    figure = Figure(figsize=(2.9 + 1.02 * maps, 0.7 + 1.18 * len(rows)))
    panels = figure.subplots(len(rows), 1 + maps, squeeze=False, width_ratios=[2.6] + [1.0] * maps)
    for row, i in zip(panels, rows, strict=True):
        _shares(row[0], result, i)
        _maps(row[1:], result, i)
    for axes in panels[1:, 0]:
        axes.sharex(panels[0, 0])
    for axes in panels[:-1, 0]:
        axes.tick_params(labelbottom=False)
    panels[-1, 0].set_xlabel("token-mixing units, by decreasing conductance")
    images = "one image" if len(result.ids) == 1 else f"mean of {len(result.ids)} images"
    title = f"{model_label(result.model)}: conductance of token-mixing units, {images}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _shares(axes: Axes, result: Conductance, i: int) -> None:
    share = np.sort(result.share(i))[::-1]
    x = np.arange(1, len(share) + 1)
    axes.fill_between(x, 100 * share, step="mid", color=COLOURS[0], alpha=0.8, linewidth=0)
    axes.axhline(100 / len(share), color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(0.5, len(share) + 0.5), ylim=(0, None))
    block = result.layers[i].name.removesuffix(".mlp_tokens.act")
    axes.set_ylabel(f"{plain(block)}\n% of conductance", fontsize=7.5)
    axes.tick_params(labelsize=7)


def _maps(row: np.ndarray, result: Conductance, i: int) -> None:
    share, mean = result.share(i), result.values[i].mean(0)
    for axes, unit, one in zip(row, result.busiest(i, len(row)), result.unit_maps[i], strict=False):
        limit = np.abs(one).max() or 1.0
        axes.imshow(one, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(
            f"{unit}: {100 * share[unit]:.1f} %, {mean[unit]:+.2f}", fontsize=7, fontweight="normal", loc="center", pad=2
        )
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
