"""A page about one channel, and a catalogue of many channels with one row each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure, SubFigure

from mixer_probe.channels import ChannelPage, Exhibit
from mixer_probe.core.words import short_name
from mixer_probe.plotting.board import FILL, Board
from mixer_probe.plotting.style import COLOURS, GREY, model_label, plain, styled

# A crop shows at least this fraction of a side of the image: a single cell of a fine grid cannot be
# recognised.
_CROP = 0.3
_MOST_CLASSES = 10
_MOST_MATCHES = 6
# Inches: of the figure, and of a picture at most. Units of a picture: of the labels beside them.
_WIDTH, _LARGEST, _MARGIN = 10.5, 1.5, 0.85
# Left edge and first line of a list, as fractions of its part of the figure.
_LEFT, _FIRST = 0.03, 0.88
# Label, number without which the line is left out, and text of each statistic of a page.
_STATISTICS = (
    ("mean ± std", "mean", "{mean:.3g} ± {std:.3g}"),
    ("range", "mean", "{minimum:.3g} to {maximum:.3g}"),
    ("central 99 %", "q0_5", "{q0_5:.3g} to {q99_5:.3g}"),
    ("skew, excess kurtosis", "skew", "{skew:.2f}, {kurtosis:.2f}"),
    ("at or below zero", "fraction_nonpositive", "{nonpositive:.1f} %"),
    ("largest |a| / median", "largest_ratio", "{largest_ratio:.3g}"),
    ("", "dead", "constant"),
    ("", "always_on", "always above zero"),
    ("nearest in the layer", "nearest", "{nearest:.0f} (r = {nearest_correlation:.2f})"),
    ("channels in its cluster", "nearest", "{cluster_size:.0f}"),
    ("over images", "n_images", "{n_images:,.0f}"),
)
# Of a row of the catalogue: top images, maps of the first ones, bottom images, and best matches.
_HIGHEST, _MAPS, _LOWEST, _ROW_MATCHES = 4, 2, 4, 2
# Inches of a picture of the catalogue; widths of its texts and gaps in pictures.
_SIZE, _TEXT, _GAP = 0.72, 3.7, 0.3


@styled
def channel_page(page: ChannelPage) -> Figure:
    """The top images of a channel with the patch and the activation map of its peak in each, its
    bottom images, and its numbers.

    The box is the grid cell of the peak, none where several cells have it; crops are centred on it
    and span at least 30 % of the image's side. Maps are the channel's activations over the image in
    grey, all on one colour scale."""
    k, (height, width) = len(page.top.ids), page.top.pictures.shape[1:3]
    # Room for the lines above a picture: its value, and its class where there is one.
    room, step = 0.32 if page.top.classes else 0.2, height / width + 0.06
    rows = 4 * step + 2 * room
    size = min(_LARGEST, _WIDTH / (k + _MARGIN))
    figure = Figure(figsize=(_WIDTH, 0.5 + size * rows + 3.0))
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[0.5 + size * rows, 3.0])
    board = Board(
        parts[0, 0].subplots(), (-_MARGIN, _WIDTH / size - _MARGIN), (0, rows), height / width
    )
    places = (room, room + step, room + 2 * step, 2 * room + 3 * step)
    for y, label in zip(
        places, (f"highest\n{page.by}", "patch", "activation", f"lowest\n{page.by}"), strict=True
    ):
        board.text(label, -0.08, y + board.height / 2, ha="right", va="center", fontsize=9)
    for j, picture in enumerate(page.top.pictures):
        top, left, bottom, right = page.top.boxes[j]
        _titled(board, page.top, j, places[0])
        board.crop(picture[_span(top, bottom, height), _span(left, right, width)], j, places[1])
        board.map(page.top.maps[j], picture, j, places[2], _map_scale(page))
        _titled(board, page.lowest, j, places[3])
    statistics, classes, matches = parts[1, 0].subfigures(1, 3, width_ratios=[1.05, 1.15, 1.25])
    _heading(statistics, "Statistics", "" if page.statistics else "no statistics")
    # A flag of 0 and no nearest channel (-1) have no line.
    absent = {"dead": 0, "always_on": 0, "nearest": -1}
    numbers = {k.replace(".", "_"): v for k, v in page.statistics.items() if absent.get(k) != v}
    numbers["nonpositive"] = 100 * numbers.get("fraction_nonpositive", 0)
    shown = [
        (label, text.format_map(numbers)) for label, key, text in _STATISTICS if key in numbers
    ]
    for i, (label, text) in enumerate(shown):
        statistics.text(_LEFT, _FIRST - 0.074 * i, label, fontsize=8.5, va="top")
        statistics.text(0.95, _FIRST - 0.074 * i, text, fontsize=8.5, va="top", ha="right")
    known = np.flatnonzero(np.isfinite(page.auroc))
    if len(known):
        # The classes furthest from chance, by AUROC.
        chosen = known[np.argsort(-np.abs(page.auroc[known] - 0.5), kind="stable")[:_MOST_CLASSES]]
        chosen = chosen[np.argsort(page.auroc[chosen], kind="stable")]
        axes, p, rows = classes.subplots(), page.selectivity_p, np.arange(len(chosen))
        colours = [COLOURS[1] if a > 0.5 else COLOURS[0] for a in page.auroc[chosen]]
        axes.barh(rows, page.auroc[chosen] - 0.5, left=0.5, color=colours, height=0.7)
        axes.axvline(0.5, color=GREY, linewidth=0.8)
        axes.set_yticks(rows, [plain(cut(page.class_names[i])) for i in chosen], fontsize=8)
        corrected = (
            "" if math.isnan(p) else f" (corrected p {'< 0.01' if p < 0.01 else f'= {p:.2f}'})"
        )
        axes.set(
            title="Selectivity",
            xlim=(0, 1),
            xlabel=f"AUROC of the mean{corrected}",
            ylim=(-0.6, len(chosen) - 0.4),
        )
    else:
        _heading(classes, "Selectivity", "not available")
    _heading(matches, "Best matches in other networks", "" if page.partners else "not computed")
    for i, (model, layer, channel, r, p) in enumerate(page.partners[:_MOST_MATCHES]):
        y, (strength, colour) = _FIRST - 0.14 * i, _match(r, p)
        matches.text(
            _LEFT,
            y,
            plain(f"{cut(short_name(model), 26)} · {cut(layer, 20)}"),
            fontsize=8.5,
            va="top",
        )
        matches.text(
            _LEFT + 0.03,
            y - 0.063,
            f"channel {channel}, {strength}",
            fontsize=8,
            va="top",
            color=colour,
        )
    _suptitle(
        figure,
        page,
        f"{model_label(page.model)} · {plain(cut(page.layer.name, 30))} · channel {page.channel}",
    )
    return figure


@styled
def channel_catalogue(pages: Sequence[ChannelPage]) -> Figure:
    """One row per channel: its class and best matches, its top images with the cell of the peak,
    its map over the first of them, and its bottom images."""
    ratio = max(page.top.pictures.shape[1] / page.top.pictures.shape[2] for page in pages)
    step, columns = max(ratio, 1.0) + 0.08, _TEXT + _HIGHEST + _MAPS + _LOWEST + 2 * _GAP
    rows = 0.4 + step * len(pages)
    figure = Figure(figsize=(_SIZE * columns + 0.2, _SIZE * rows + 0.45))
    board = Board(figure.subplots(), (0, columns), (0, rows), ratio)
    maps = _TEXT + _HIGHEST + _GAP
    lowest = maps + _MAPS + _GAP
    for x, text in (
        (_TEXT, f"highest {pages[0].by}"),
        (maps, "activation maps"),
        (lowest, f"lowest {pages[0].by}"),
    ):
        board.text(text, x, 0.05, fontsize=8.5, fontweight="bold")
    for i, page in enumerate(pages):
        y = 0.4 + step * i
        for j, picture in enumerate(page.top.pictures[:_HIGHEST]):
            board.picture(picture, _TEXT + j, y, page.top.boxes[j])
        for j, picture in enumerate(page.top.pictures[:_MAPS]):
            board.map(page.top.maps[j], picture, maps + j, y, _map_scale(page))
        for j, picture in enumerate(page.lowest.pictures[:_LOWEST]):
            board.picture(picture, lowest + j, y, page.lowest.boxes[j])
        board.text(
            plain(cut(f"{page.layer.name} · channel {page.channel}", 40)),
            0,
            y,
            fontsize=8.5,
            fontweight="bold",
        )
        lines = []
        if (best := page.best_class) is not None:
            p = page.selectivity_p
            chance = "" if math.isnan(p) else ", p < 0.01" if p < 0.01 else f", p = {p:.2f}"
            sign = "" if page.auroc[best] > 0.5 else "not "
            lines.append(
                (
                    f"{sign}{cut(page.class_names[best], 20)}: AUROC "
                    f"{page.auroc[best]:.2f}{chance}",
                    "black",
                )
            )
        elif "kurtosis" in page.statistics:
            lines.append((f"excess kurtosis {page.statistics['kurtosis']:.3g}", "black"))
        for model, layer, channel, r, p in page.partners[:_ROW_MATCHES]:
            strength, colour = _match(r, p)
            lines.append(
                (f"{cut(short_name(model), 20)} {cut(layer, 14)} · {channel}: {strength}", colour)
            )
        for k, (text, colour) in enumerate(lines):
            board.text(plain(cut(text, 50)), 0, y + 0.25 + 0.2 * k, fontsize=7.5, color=colour)
    _suptitle(figure, pages[0], model_label(pages[0].model))
    return figure


def cut(text: str, most: int = 18) -> str:
    """The beginning of a text, with an ellipsis where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _suptitle(figure: Figure, page: ChannelPage, name: str) -> None:
    text = f"{name} over {page.n:,} images of {plain(page.images.name)}"
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=12)


def _match(r: float, p: float) -> tuple[str, str]:
    """The correlation with a best match, and its colour: grey where it is not significant."""
    return (f"r = {r:.2f} (not significant)", GREY) if p > 0.05 else (f"r = {r:.2f}", "black")


def _titled(board: Board, exhibit: Exhibit, j: int, y: float) -> None:
    """The picture of rank `j` under its class and value."""
    board.picture(exhibit.pictures[j], j, y, exhibit.boxes[j])
    lines = [plain(cut(exhibit.classes[j], 15))] if exhibit.classes else []
    lines.append(f"{exhibit.values[j]:.3g}")
    board.text(
        "\n".join(lines),
        j + FILL / 2,
        y - 0.03,
        ha="center",
        va="bottom",
        fontsize=7.5,
        linespacing=1.05,
    )


def _map_scale(page: ChannelPage) -> tuple[float, float]:
    """The ends of the colour scale of all maps of a page."""
    low, high = np.nanmin(page.top.maps), np.nanmax(page.top.maps)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _span(start: float, stop: float, size: int) -> slice:
    """The pixels of a crop around start to stop, fractions of a side, moved into the image."""
    length = max(stop - start, _CROP)
    first = min(max((start + stop - length) / 2, 0.0), 1 - length)
    return slice(math.floor(first * size + 1e-9), max(math.ceil((first + length) * size - 1e-9), 1))


def _heading(part: SubFigure, text: str, empty: str = "") -> None:
    """The title of a list, and what stands below it where it is `empty`."""
    part.text(_LEFT, 0.985, text, fontsize=10, fontweight="bold", va="top")
    if empty:
        part.text(_LEFT, _FIRST, empty, fontsize=8.5, va="top", color=GREY)
