"""Figures of early reading: accuracy and agreement of every reader by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.core.words import primary, untrained_baseline
from mixer_probe.mixing.lens import READERS, ClassLens
from mixer_probe.plotting.curves import chance_line, curve, key_below
from mixer_probe.plotting.style import COLOURS, GREY, MARKERS, line_style, model_label, styled

Value = Literal["accuracy", "agreement"]

_MOST_COLUMNS = 3
_NUMBERS = {
    "accuracy": ("accuracy", "low", "high"),
    "agreement": ("agreement", "agreement_low", "agreement_high"),
}
_LABELS = {
    "accuracy": "images read right (%)",
    "agreement": "read as the network answers (%)",
}


@styled
@checked(MeasureError)
def lens_curves(results: Sequence[ClassLens], value: Value = "accuracy") -> Figure:
    """One panel per network: accuracy of every reader against depth, or with "agreement" its
    agreement with the network's final answer; bands are 95 % intervals.

    Untrained baselines are dotted with open markers, in the panel of their network and without
    bands. The grey line of accuracy is chance. Raises MeasureError without a result, and for
    another value."""
    shown = primary(results)
    if not shown:
        raise MeasureError("there is no early reading to draw; give results of class_lens")
    columns = min(_MOST_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.1 * columns + 0.5, 5.4), 2.9 * rows + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    for axes, result in zip(panels.flat, shown):
        for one in (untrained_baseline(result, results), result):
            if one is None:
                continue
            parts = [100 * getattr(one, name) for name in _NUMBERS[value]]
            x = [layer.depth for layer in one.layers]
            for k in range(len(one.readers)):
                middle, low, high = (part[k] for part in parts)
                style = line_style(one.model, COLOURS[k], MARKERS[k])
                if one is result:
                    curve(axes, x, middle, (low, high), style)
                else:
                    axes.plot(x, middle, **{**style, "linewidth": 1, "markersize": 3})
        if value == "accuracy":
            chance_line(axes, [100 * result.chance])
        axes.set(title=model_label(result.model), xlabel="relative depth", xlim=(-0.03, 1.03))
    for row in panels:
        row[0].set(ylabel=_LABELS[value], ylim=(0, 102))
    key_below(figure, _keys(results, shown, value))
    return figure


def _keys(results: Sequence[ClassLens], shown: Sequence[ClassLens], value: str) -> list[Line2D]:
    """What the legend shows: the readers, the untrained baselines, and chance."""
    keys = [
        Line2D([], [], color=COLOURS[k], marker=MARKERS[k], label=reader)
        for k, reader in enumerate(READERS)
    ]
    mark: dict[str, Any] = {"linestyle": ":", "marker": "o", "markerfacecolor": "white"}
    if any(untrained_baseline(r, results) for r in shown):
        keys.append(Line2D([], [], color=GREY, label="untrained baseline", **mark))
    if value == "accuracy":
        keys.append(Line2D([], [], color=GREY, linewidth=1, label="chance"))
    return keys
