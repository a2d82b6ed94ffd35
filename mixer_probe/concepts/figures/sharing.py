"""Figures of what networks share in a dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

import numpy as np
from matplotlib.figure import Figure

from mixer_probe.concepts.sharing import ConceptSharing
from mixer_probe.plotting.style import COLOURS, GREY, model_label, styled

PANELS = {
    "r2": "variance explained\nfrom the other's code",
    "cofiring": "agreement of\nactive atoms",
    "sharing": "sharing of energy",
}
# Label, colour, marker, filled, and the distance from the middle of the row.
LOOKS = {
    "networks": ("networks", COLOURS[0], "o", True, 0.0),
    "two seeds": ("two seeds of one of the two", COLOURS[1], "^", True, 0.2),
    "untrained": ("untrained", COLOURS[2], "s", False, -0.2),
    "shuffled images": ("shuffled images", GREY, "X", True, -0.38),
}


@styled
def sharing_points(results: Sequence[ConceptSharing]) -> Figure:
    """What every pair of networks shares at one depth, with the controls: a panel for each
    quantity, a row for each pair."""
    first = results[0]
    names = [model_label(model) for model in first.models]
    ordered = list(permutations(range(len(names)), 2))
    plain = list(combinations(range(len(names)), 2))
    figure = Figure(figsize=(9.4, 0.62 * len(ordered) + 1.5))
    grid = figure.subplots(1, len(PANELS))
    for axes, (quantity, label) in zip(grid, PANELS.items(), strict=True):
        pairs = ordered if quantity == "r2" else plain
        sign = "→" if quantity == "r2" else "and"
        for row, (a, b) in enumerate(pairs):
            axes.axhline(row, color="#dddddd", linewidth=0.6, zorder=0)
            for condition, value, low, high in rows(results, quantity, a, b):
                text, colour, marker, filled, away = LOOKS[condition]
                axes.errorbar(
                    value,
                    row - away,
                    xerr=[[max(value - low, 0)], [max(high - value, 0)]]
                    if np.isfinite(low)
                    else None,
                    color=colour,
                    marker=marker,
                    markerfacecolor=colour if filled else "white",
                    linewidth=1.0,
                    label=text,
                )
        axes.set_yticks(range(len(pairs)), [f"{names[a]} {sign} {names[b]}" for a, b in pairs])
        axes.set(ylim=(len(pairs) - 0.45, -0.55), xlabel=label)
        axes.set_xlim(min(-0.02, axes.get_xlim()[0]) if quantity == "r2" else -0.03, 1.03)
    found = {
        text: handle
        for axes in grid
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found))
    return figure


def rows(
    results: Sequence[ConceptSharing], quantity: str, a: int, b: int
) -> Iterator[tuple[str, float, float, float]]:
    """Condition, value and interval of a quantity of the networks `a` and `b` of the first result,
    in all results; those of two seeds for each of the two."""
    pair = results[0].models[a].name, results[0].models[b].name
    for r in results:
        if r.condition == "two seeds":
            if r.models[0].name in pair:
                yield (r.condition, *getattr(r, quantity)[1, 0])
        else:
            yield (r.condition, *getattr(r, quantity)[a, b])
