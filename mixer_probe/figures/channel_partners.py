"""Pictures of which channels of two networks answer to the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.channels import ChannelPartners
from mixer_probe.figures.style import COLOURS, GREY, model_label, plain, styled

_COLUMNS = 3


@styled
def partner_strength(results: Sequence[ChannelPartners]) -> Figure:
    """How strongly each channel of A correlates with its best partner in B, and how strongly when images are shuffled.

    One panel a pair of layers; the null is that of the same maximum over the channels of B."""
    columns = min(_COLUMNS, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.5 * columns if columns > 1 else 5.6, 0.6 + 2.7 * rows))
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, result in zip(panels.flat, results, strict=False):
        _histograms(axes, result)
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(results) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("share of channels (%)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _histograms(axes: Axes, result: ChannelPartners) -> None:
    bins = np.linspace(0, 1, 41).tolist()
    strength, null = result.strength[np.isfinite(result.strength)], result.null[np.isfinite(result.null)]
    axes.hist(
        strength, bins, weights=np.full(len(strength), 100 / max(len(strength), 1)), color=COLOURS[0], label="best partner in B"
    )
    if len(null):
        axes.hist(null, bins, weights=np.full(len(null), 100 / len(null)), histtype="step", color=GREY, label="images shuffled")
        text = f"{100 * result.share_above:.0f} % above null"
        axes.annotate(text, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=8)
    names = [
        f"{model_label(m)} · {plain(layer.name)}"
        for m, layer in ((result.model_a, result.layer_a), (result.model_b, result.layer_b))
    ]
    axes.set(xlabel=f"|r| over {result.over}", xlim=(0, 1))
    axes.set_title(f"A: {names[0]}\nB: {names[1]}", fontsize=8.5)
