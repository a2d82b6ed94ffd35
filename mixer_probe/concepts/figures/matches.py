"""Correlations of matched concepts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixer_probe.concepts.matches import ConceptMatches
from mixer_probe.plotting.style import COLOURS, MARKERS, model_label, styled


def pair_label(r: ConceptMatches) -> str:
    """The two sides of a matching."""
    a, b = model_label(r.model_a), model_label(r.model_b)
    if r.model_a == r.model_b and r.layer_a == r.layer_b:
        return f"{a}: {r.kind_a} and {r.kind_b}"
    return f"{a} and {b} ({r.kind_a})"


@styled
def match_curves(results: Sequence[ConceptMatches]) -> Figure:
    """The correlation of every matched pair of concepts, by rank, with that of shuffled images."""
    figure = Figure(figsize=(7.6, 3.4))
    axes = figure.add_subplot()
    for i, r in enumerate(results):
        ranks = np.arange(1, len(r.correlation) + 1)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(
            ranks, r.correlation, color=colour, marker=marker, markersize=3, label=pair_label(r)
        )
        axes.plot(ranks, r.null.mean(0), color=colour, linestyle=":", linewidth=1)
    axes.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="matched pair of concepts, by rank", ylabel="correlation of activity")
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.03)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure
