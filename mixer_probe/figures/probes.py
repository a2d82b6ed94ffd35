"""Pictures of probes: accuracy against depth, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.figures.style import GREY, line_styles, model_label, styled
from mixer_probe.probing import ProbeResult


@styled
def probe_curves(results: Sequence[ProbeResult]) -> Figure:
    """Probe accuracy after every layer against relative depth: bands are 95 % intervals, dotted lines untrained twins."""
    figure = Figure(figsize=(8.6, 4.4))
    axes = figure.add_subplot()
    curves = [one for result in results for one in (result, result.untrained) if one is not None]
    styles = line_styles([one.model for one in curves])
    for one in curves:
        _curve(axes, one, styles[one.model.name])
    chance = results[0].chance
    axes.axhline(100 * chance, color=GREY, linewidth=1)
    axes.annotate(f"chance {100 * chance:.0f} %", (0.0, 100 * chance), xytext=(2, 3), textcoords="offset points", color=GREY)
    axes.set(title="Linear probes by depth", xlabel="relative depth", ylabel="test accuracy (%)", xlim=(-0.02, 1.02))
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper")
    return figure


def _curve(axes: Axes, result: ProbeResult, style: dict[str, Any]) -> None:
    depth = [layer.depth for layer in result.layers]
    axes.plot(depth, 100 * result.accuracy, label=model_label(result.model), **style)
    axes.fill_between(depth, 100 * result.low, 100 * result.high, color=style["color"], alpha=0.15, linewidth=0)
