"""Pictures of probes: accuracy against depth, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.figures.style import GREY, base_name, colour_of, line_style, marker_of, model_label, styled
from mixer_probe.probing import ProbeResult


@styled
def probe_curves(results: Sequence[ProbeResult]) -> Figure:
    """Probe accuracy after every layer against relative depth: bands are 95 % intervals, dotted lines untrained twins."""
    figure = Figure(figsize=(8.6, 4.4))
    axes = figure.add_subplot()
    colours, markers = colour_of(r.model.name for r in results), marker_of(r.model.name for r in results)
    for result in results:
        name = base_name(result.model.name)
        for one in (result, result.untrained):
            if one is not None:
                _curve(axes, one, colours[name], markers[name])
    chance = results[0].chance
    axes.axhline(100 * chance, color=GREY, linewidth=1)
    axes.annotate(f"chance {100 * chance:.0f} %", (0.0, 100 * chance), xytext=(2, 3), textcoords="offset points", color=GREY)
    axes.set(title="Linear probes by depth", xlabel="relative depth", ylabel="test accuracy (%)", xlim=(-0.02, 1.02))
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper")
    return figure


def _curve(axes: Axes, result: ProbeResult, colour: str, marker: str) -> None:
    depth = [layer.depth for layer in result.layers]
    axes.plot(depth, 100 * result.accuracy, label=model_label(result.model), **line_style(result.model, colour, marker))
    axes.fill_between(depth, 100 * result.low, 100 * result.high, color=colour, alpha=0.15, linewidth=0)
