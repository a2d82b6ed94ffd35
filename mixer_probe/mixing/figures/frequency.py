"""Figures of spatial frequencies in the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.words import primary, untrained_baseline
from mixer_probe.mixing.estimates import Estimates
from mixer_probe.mixing.frequency import FrequencyProfile
from mixer_probe.plotting.curves import key_below
from mixer_probe.plotting.style import COLOURS, GREY, SEQUENTIAL, model_label, plain, styled

_LABELS = {
    "input": "input of a stage",
    "spatial": "after spatial mixing",
    "channel": "after channel mixing",
    "block": "after a block",
}
_KINDS: dict[str, dict[str, Any]] = {
    "input": {"color": GREY, "marker": "D"},
    "spatial": {"color": COLOURS[0], "marker": "o"},
    "channel": {"color": COLOURS[1], "marker": "s"},
    "block": {"color": COLOURS[2], "marker": "^"},
}
_MOST_COLUMNS = 3


@styled
def frequency_depth(results: Sequence[FrequencyProfile]) -> Figure:
    """Relative log amplitude of the highest frequency, and spatial variance, by relative depth; one
    column per network, markers by sublayer.

    Bars are 95 % intervals over images, the dotted line with open markers is the untrained
    baseline. Raises MeasureError without a result."""
    own = primary(results)
    if not own:
        raise MeasureError("there is no frequency profile to draw")
    figure = Figure(figsize=(max(3.3 * len(own), 4.6), 5.4))
    panels = figure.subplots(2, len(own), squeeze=False, sharex="col", sharey="row")
    for (upper, lower), result in zip(panels.T, own):
        baseline = untrained_baseline(result, results)
        for axes, name in ((upper, "amplitude"), (lower, "variance")):
            if baseline:
                axes.plot(
                    baseline.depth,
                    getattr(baseline, name).value,
                    color=GREY,
                    linestyle=":",
                    marker="o",
                    markerfacecolor="white",
                )
            _places(axes, result, getattr(result, name))
        upper.set_title(plain(model_label(result.model)), fontsize=9)
        lower.set(xlabel="relative depth", yscale="log")
    panels[0, 0].set_ylabel("relative log amplitude\nat the highest frequency")
    panels[1, 0].set_ylabel("variance over positions")
    kinds = [kind for kind in _LABELS if any(kind in r.kinds for r in own)]
    keys = [Line2D([], [], linestyle="", label=_LABELS[kind], **_KINDS[kind]) for kind in kinds]
    if any(untrained_baseline(r, results) for r in own):
        mark: dict[str, Any] = {"linestyle": ":", "marker": "o", "markerfacecolor": "white"}
        keys.append(Line2D([], [], color=GREY, label="untrained baseline", **mark))
    key_below(figure, keys)
    return figure


def _places(axes: Axes, result: FrequencyProfile, of: Estimates) -> None:
    """A line through all places, with markers and bars by kind."""
    axes.plot(result.depth, of.value, color=GREY, linewidth=0.8, zorder=1)
    kinds = np.array(result.kinds)
    for kind, style in _KINDS.items():
        rows = kinds == kind
        if not rows.any():
            continue
        bars = np.stack([of.value - of.low, of.high - of.value])[:, rows]
        bars = np.nan_to_num(np.maximum(bars, 0))
        axes.errorbar(
            result.depth[rows], of.value[rows], yerr=bars, linestyle="", elinewidth=0.9, **style
        )


@styled
def frequency_profiles(results: Sequence[FrequencyProfile]) -> Figure:
    """Relative log amplitude against frequency at every place, one panel per network, coloured by
    relative depth.

    Dashed lines are places after spatial mixing. Raises MeasureError without a result."""
    if not results:
        raise MeasureError("there is no frequency profile to draw")
    columns = min(len(results), _MOST_COLUMNS)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(max(3.1 * columns, 4.6), 2.8 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours = mpl.colormaps[SEQUENTIAL]
    for axes, result in zip(panels.flat, results):
        lines = zip(result.kinds, result.depth, result.frequencies, result.profiles, strict=True)
        for kind, depth, frequencies, profile in lines:
            line = "--" if kind == "spatial" else "-"
            axes.plot(frequencies, profile, color=colours(depth), linestyle=line, linewidth=1)
        axes.set_title(plain(model_label(result.model)), fontsize=9)
    for axes in panels.flat[len(results) :]:
        axes.remove()
    for row in panels:
        row[0].set_ylabel("relative log amplitude")
    for axes in panels.flat[max(0, len(results) - columns) : len(results)]:
        axes.set_xlabel("frequency (π per position)")
        axes.tick_params(labelbottom=True)
    shown = list(panels.flat[: len(results)])
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), SEQUENTIAL), ax=shown, aspect=25)
    bar.set_label("relative depth", fontsize=8)
    bar.outline.set_visible(False)
    return figure
