"""How all figures look: fonts, colours that colour-blind people can tell apart, and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, FigureBase

from mixer_probe.core.result import ModelRecord
from mixer_probe.core.words import base_name, short_name

P = ParamSpec("P")

# Okabe and Ito (2008); the order keeps neighbours far apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B", "#8B6F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#6B6B6B"
DIVERGING = "RdBu_r"
SEQUENTIAL = "viridis"

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "image.interpolation": "nearest",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: draw in the project's style and leave the caller's matplotlib settings alone."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def heading(figure: FigureBase, text: str) -> None:
    """A bold title at the upper left corner of a figure."""
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=10)


def colour_bar(
    figure: FigureBase, axes: Any, colours: str, label: str, *, low: float = -1, **place: Any
) -> None:
    """A colour bar from `low` to 1 beside `axes`; `place` are options of `Figure.colorbar` such as
    shrink, aspect and pad."""
    mappable = ScalarMappable(Normalize(low, 1), colours)
    bar = figure.colorbar(mappable, ax=axes, ticks=sorted({low, 0, 1}), **place)
    bar.set_label(label, fontsize=7.5)
    bar.outline.set_visible(False)


def colour_of(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, in order of first appearance; an untrained baseline has the colour of
    its network."""
    bases = dict.fromkeys(base_name(name) for name in names)
    return {base: COLOURS[i % len(COLOURS)] for i, base in enumerate(bases)}


def marker_of(names: Iterable[str]) -> dict[str, str]:
    """One marker per name, as `colour_of`."""
    bases = dict.fromkeys(base_name(name) for name in names)
    return {base: MARKERS[i % len(MARKERS)] for i, base in enumerate(bases)}


def line_style(model: ModelRecord, colour: str, marker: str) -> dict[str, Any]:
    """Solid lines and full markers for trained networks, dotted lines and open markers for
    untrained ones."""
    style = {"color": colour, "marker": marker, "linestyle": "-" if model.trained else ":"}
    return style if model.trained else {**style, "markerfacecolor": "white"}


def line_styles(models: Sequence[ModelRecord]) -> dict[str, dict[str, Any]]:
    """The line style of each model by name; a baseline has the colour and marker of its network."""
    names = [model.name for model in models]
    colours, markers = colour_of(names), marker_of(names)
    return {
        m.name: line_style(m, colours[base_name(m.name)], markers[base_name(m.name)])
        for m in models
    }


def model_label(model: ModelRecord | None) -> str:
    """How figures call a model: its short name, that it is untrained where the name does not say
    so, and no formula."""
    if model is None:
        return "?"
    known = model.trained or "untrained" in model.name or model.family == "pixels"
    mark = "" if known else " (untrained)"
    return plain(short_name(model.name) + mark)


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign begins no formula."""
    return text.replace("$", r"\$")
