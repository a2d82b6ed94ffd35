"""How networks of each architecture change with depth, one panel per quantity: the picture of a
study of several networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import storable
from mixer_probe.plotting.style import COLOURS, GREY, MARKERS, styled


@storable
@dataclass(frozen=True)
class DepthCurve:
    """A quantity against depth: `value` [place] with 95 % bounds `low` and `high` and its `null`
    (NaN where there are none).

    `panel` says what the quantity is, `group` of which architecture it is ("Mixer", or "Mixer ×
    ViT" for pairs), `name` of which network."""

    panel: str
    group: str
    name: str
    trained: bool
    depth: Annotated[np.ndarray, "place"]
    value: Annotated[np.ndarray, "place"]
    low: Annotated[np.ndarray, "place"]
    high: Annotated[np.ndarray, "place"]
    null: Annotated[np.ndarray, "place"]


@styled
def depth_curves(curves: Sequence[DepthCurve]) -> Figure:
    """One panel per quantity, one colour per architecture; networks of one architecture have one
    colour and markers of their own.

    Solid lines are trained, dotted lines with open markers untrained; grey is the null. Raises
    MeasureError without a curve."""
    if not curves:
        raise MeasureError("no depth curve was given")
    names = list(dict.fromkeys(c.panel for c in curves))
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.9 * columns, 3.5 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(panels, names):
        _panel(axes, name, [c for c in curves if c.panel == name])
    for axes in list(panels):
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, title: str, curves: Sequence[DepthCurve]) -> None:
    groups = list(dict.fromkeys(c.group for c in curves))
    for curve in curves:
        same_group = list(
            dict.fromkeys(
                c.name.removesuffix("?untrained") for c in curves if c.group == curve.group
            )
        )
        marker = MARKERS[same_group.index(curve.name.removesuffix("?untrained")) % len(MARKERS)]
        style = {"color": COLOURS[groups.index(curve.group) % len(COLOURS)], "marker": marker}
        style |= {"linestyle": "-"} if curve.trained else {"linestyle": ":", "mfc": "white"}
        axes.plot(curve.depth, curve.value, **style)  # type: ignore[arg-type]
        axes.fill_between(
            curve.depth,
            curve.low,
            curve.high,
            color=style["color"],
            alpha=0.15 if curve.trained else 0.07,
            linewidth=0,
        )
        axes.plot(curve.depth, curve.null, color=GREY, linestyle="--", linewidth=0.8, zorder=1)
    axes.set(title=title, xlabel="relative depth", xlim=(-0.02, 1.02))
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], label=group)
        for i, group in enumerate(groups)
    ]
    if not all(c.trained for c in curves):
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                linestyle=":",
                marker="o",
                markerfacecolor="white",
                label="untrained baseline",
            )
        )
    if any(np.isfinite(c.null).any() for c in curves):
        handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label="null"))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
