"""Parts of figures of curves against depth, with their baselines and legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.result import ModelRecord
from mixer_probe.core.words import base_name
from mixer_probe.plotting.style import GREY, line_styles, model_label, plain

PIXEL_COLOUR = "#222222"


class Measured(Protocol):
    """A result of one network."""

    @property
    def model(self) -> ModelRecord:
        """Which network."""


M = TypeVar("M", bound=Measured)


def networks(results: Iterable[M]) -> list[M]:
    """The results that are not the raw pixels' own."""
    return [r for r in results if r.model.family != "pixels"]


def pixels(results: Iterable[M]) -> list[M]:
    """The results of the raw pixels."""
    return [r for r in results if r.model.family == "pixels"]


def with_twins(results: Iterable[Any]) -> list[Any]:
    """Every network's result, and that of its untrained baseline after it."""
    return [
        one for result in networks(results) for one in (result, result.untrained) if one is not None
    ]


def depths(result: Any) -> list[float]:
    """Relative depths of the layers of a result."""
    return [layer.depth for layer in result.layers]


def curve(
    axes: Axes, x: Any, values: Any, bounds: tuple[Any, Any], style: dict[str, Any], label: str = ""
) -> None:
    """A line with a band between `bounds`."""
    axes.plot(x, values, label=label or None, **style)
    axes.fill_between(x, *bounds, color=style["color"], alpha=0.14, linewidth=0)


def level(axes: Axes, values: Any, bounds: tuple[Any, Any]) -> None:
    """A horizontal line with a band: what has no depth, such as raw pixels, at the one value it
    has."""
    axes.axhspan(float(bounds[0]), float(bounds[1]), color=PIXEL_COLOUR, alpha=0.09, linewidth=0)
    axes.axhline(float(values), color=PIXEL_COLOUR, linewidth=1.2, linestyle="--")


def chance_line(axes: Axes, values: Iterable[float]) -> None:
    """Thin lines at what chance gives."""
    for value in dict.fromkeys(round(v, 6) for v in values):
        axes.axhline(value, color=GREY, linewidth=1)


def model_keys(
    models: Sequence[ModelRecord], with_pixels: bool = False, chance: str = ""
) -> list[Artist]:
    """What a legend shows: each network, then once for all the untrained baselines, the raw pixels
    and chance."""
    styles, names = line_styles(models), {m.name for m in models}
    baselines = [m for m in models if m.name != base_name(m.name) and base_name(m.name) in names]
    alone = {m.name: m for m in models if m not in baselines}
    keys: list[Artist] = [
        Line2D([], [], label=model_label(m), **styles[name]) for name, m in alone.items()
    ]
    if baselines:
        mark: dict[str, Any] = {"linestyle": ":", "marker": "o", "markerfacecolor": "white"}
        keys.append(Line2D([], [], color=GREY, label="untrained baseline", **mark))
    if with_pixels:
        keys.append(
            Line2D([], [], color=PIXEL_COLOUR, linewidth=1.2, linestyle="--", label="raw pixels")
        )
    if chance:
        keys.append(Line2D([], [], color=GREY, linewidth=1, label=chance))
    return keys


def key_below(figure: Figure, keys: Sequence[Any]) -> None:
    """A legend below the panels, in as many columns as its longest entry allows; the figure grows
    by its rows."""
    longest = max(len(str(key.get_label())) for key in keys)
    columns = max(1, min(len(keys), int(figure.get_figwidth() / (0.066 * longest + 0.62))))
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(keys) // columns))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns)


def cut(name: str, most: int = 20) -> str:
    """A layer's name that fits above a small panel."""
    return plain(name if len(name) <= most else "…" + name[-(most - 1) :])


def fraction_text(value: float) -> str:
    """A fraction in percent, without decimals where there are none."""
    return f"{100 * value:.3g} %"
