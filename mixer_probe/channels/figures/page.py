"""A page about one channel, like the label in a museum."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from mixer_probe.channels import ChannelPage, Exhibit
from mixer_probe.core.words import short_name
from mixer_probe.plotting.board import FILL, Board
from mixer_probe.plotting.style import COLOURS, GREY, model_label, plain, styled

# A crop shows at least this share of the image: a cell of a fine grid alone cannot be recognised.
_CROP = 0.3
_MOST_CLASSES = 10
_MOST_PARTNERS = 6
# Inches: of the figure, and of a picture at most. Units of a picture: of the labels beside them.
_WIDTH, _LARGEST, _MARGIN = 10.5, 1.5, 0.85
# Left edge and first line of a list, shares of its part of the figure.
_LEFT, _FIRST = 0.03, 0.88


@styled
def channel_page(page: ChannelPage) -> Figure:
    """The images that drive a channel most, the patch and the map of its peak in each, those that drive it least, and its
    numbers.

    The box is the cell of the grid where the peak is, none where several cells share it; crops are centred on it and hold at
    least 30 % of the image's side. Maps
    are the channel's activations over the image in grey, all on one colour scale."""
    k, (height, width) = len(page.top.ids), page.top.pictures.shape[1:3]
    rows = 4 * (height / width + 0.06) + 2 * _titles(page)
    size = min(_LARGEST, _WIDTH / (k + _MARGIN))
    figure = Figure(figsize=(_WIDTH, 0.5 + size * rows + 3.0))
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[0.5 + size * rows, 3.0])
    _images(parts[0, 0].subplots(), page, rows, _WIDTH / size)
    statistics, classes, others = parts[1, 0].subfigures(1, 3, width_ratios=[1.05, 1.15, 1.25])
    _statistics(statistics, page)
    _classes(classes, page)
    _others(others, page)
    name = f"{model_label(page.model)} · {plain(cut(page.layer.name, 30))} · channel {page.channel}"
    figure.suptitle(
        f"{name} over {page.n:,} images of {plain(page.images.name)}", x=0.01, ha="left", fontweight="bold", fontsize=12
    )
    return figure


def _titles(page: ChannelPage) -> float:
    """Room for the lines over a picture: its value, and its class where there is one."""
    return 0.32 if page.top.classes else 0.2


def _images(axes: Axes, page: ChannelPage, rows: float, columns: float) -> None:
    height, width = page.top.pictures.shape[1:3]
    board = Board(axes, (-_MARGIN, columns - _MARGIN), (0, rows), height / width)
    step, room, scale = height / width + 0.06, _titles(page), map_scale(page)
    places = (room, room + step, room + 2 * step, 2 * room + 3 * step)
    for y, label in zip(places, (f"highest\n{page.by}", "patch", "activation", f"lowest\n{page.by}"), strict=True):
        board.text(label, -0.08, y + board.height / 2, ha="right", va="center", fontsize=9)
    for j, picture in enumerate(page.top.pictures):
        _titled(board, page.top, j, j, places[0])
        board.crop(_crop(page.top, j), j, places[1])
        board.map(page.top.maps[j], picture, j, places[2], scale)
        _titled(board, page.lowest, j, j, places[3])


def _titled(board: Board, exhibit: Exhibit, j: int, x: float, y: float) -> None:
    board.picture(exhibit.pictures[j], x, y, exhibit.boxes[j])
    lines = [plain(cut(exhibit.classes[j], 15))] if exhibit.classes else []
    lines.append(f"{exhibit.values[j]:.3g}")
    board.text("\n".join(lines), x + FILL / 2, y - 0.03, ha="center", va="bottom", fontsize=7.5, linespacing=1.05)


def map_scale(page: ChannelPage) -> tuple[float, float]:
    """The ends of the colour scale of all maps of a page."""
    low, high = np.nanmin(page.top.maps), np.nanmax(page.top.maps)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _crop(exhibit: Exhibit, j: int) -> np.ndarray:
    height, width = exhibit.pictures.shape[1:3]
    top, left, bottom, right = exhibit.boxes[j]
    return np.asarray(exhibit.pictures[j][_span(top, bottom, height), _span(left, right, width)])


def _span(start: float, stop: float, size: int) -> slice:
    """The pixels of a crop around start to stop, shares of a side, moved into the image."""
    length = max(stop - start, _CROP)
    first = min(max((start + stop - length) / 2, 0.0), 1 - length)
    return slice(math.floor(first * size + 1e-9), max(math.ceil((first + length) * size - 1e-9), 1))


def _statistics(part: SubFigure, page: ChannelPage) -> None:
    """The numbers as a list."""
    _heading(part, "Statistics")
    lines = _lines(page) or [("no statistics", "")]
    for i, (name, value) in enumerate(lines):
        part.text(_LEFT, _FIRST - 0.074 * i, name, fontsize=8.5, va="top")
        part.text(0.95, _FIRST - 0.074 * i, value, fontsize=8.5, va="top", ha="right")


def _heading(part: SubFigure, text: str) -> None:
    part.text(_LEFT, 0.985, text, fontsize=10, fontweight="bold", va="top")


def _lines(page: ChannelPage) -> list[tuple[str, str]]:
    s = page.statistics
    if not s:
        return []
    found = [("mean ± std", f"{s['mean']:.3g} ± {s['std']:.3g}"), ("range", f"{s['minimum']:.3g} to {s['maximum']:.3g}")]
    if "q0.5" in s:
        found.append(("central 99 %", f"{s['q0.5']:.3g} to {s['q99.5']:.3g}"))
    if "skew" in s:
        found.append(("skew, excess kurtosis", f"{s['skew']:.2f}, {s['kurtosis']:.2f}"))
    found.append(("at or below zero", f"{100 * s['share_nonpositive']:.1f} %"))
    if "largest_ratio" in s:
        found.append(("largest |a| / median", f"{s['largest_ratio']:.3g}"))
    kind = "constant" if s["dead"] else "always above zero" if s.get("always_on") else ""
    if kind:
        found.append(("", kind))
    if s.get("nearest", -1) >= 0:
        found.append(("nearest in the layer", f"{s['nearest']:.0f} (r = {s['nearest_correlation']:.2f})"))
        found.append(("channels in its cluster", f"{s['cluster_size']:.0f}"))
    return [*found, ("over images", f"{s['n_images']:,.0f}")]


def _classes(part: SubFigure, page: ChannelPage) -> None:
    """AUROC of the classes furthest from chance."""
    known = np.flatnonzero(np.isfinite(page.auroc))
    if not len(known):
        _heading(part, "Selectivity")
        part.text(_LEFT, _FIRST, "not available", fontsize=8.5, va="top", color=GREY)
        return
    axes = part.subplots()
    axes.set_title("Selectivity")
    chosen = known[np.argsort(-np.abs(page.auroc[known] - 0.5), kind="stable")[:_MOST_CLASSES]]
    chosen = chosen[np.argsort(page.auroc[chosen], kind="stable")]
    colours = [COLOURS[1] if a > 0.5 else COLOURS[0] for a in page.auroc[chosen]]
    axes.barh(np.arange(len(chosen)), page.auroc[chosen] - 0.5, left=0.5, color=colours, height=0.7)
    axes.axvline(0.5, color=GREY, linewidth=0.8)
    axes.set_yticks(np.arange(len(chosen)), [plain(cut(page.class_names[i])) for i in chosen], fontsize=8)
    axes.set(xlim=(0, 1), xlabel=_verdict(page), ylim=(-0.6, len(chosen) - 0.4))


def _verdict(page: ChannelPage) -> str:
    p = page.selectivity_p
    return "AUROC of the mean" + ("" if math.isnan(p) else f" (corrected p {'< 0.01' if p < 0.01 else f'= {p:.2f}'})")


def cut(text: str, most: int = 18) -> str:
    """The text, or as much of it as fits."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _others(part: SubFigure, page: ChannelPage) -> None:
    """The channels of other networks that resemble it most."""
    _heading(part, "Best matches in other networks")
    if not page.partners:
        part.text(_LEFT, _FIRST, "not computed", fontsize=8.5, va="top", color=GREY)
    for i, (model, layer, channel, r, p) in enumerate(page.partners[:_MOST_PARTNERS]):
        y = _FIRST - 0.14 * i
        part.text(_LEFT, y, plain(f"{cut(short_name(model), 26)} · {cut(layer, 20)}"), fontsize=8.5, va="top")
        text = f"channel {channel}, r = {r:.2f}{by_chance(p)}"
        part.text(_LEFT + 0.03, y - 0.063, text, fontsize=8, va="top", color=GREY if by_chance(p) else "black")


def by_chance(p: float) -> str:
    """What is said of a partner that is not above the null."""
    return " (not significant)" if p > 0.05 else ""
