"""Many channels of one network on one picture, a row each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixer_probe.channels import ChannelPage
from mixer_probe.channels.figures.page import by_chance, cut, map_scale
from mixer_probe.core.words import short_name
from mixer_probe.plotting.board import Board
from mixer_probe.plotting.style import GREY, model_label, plain, styled

# Images of the highest end, maps of those, and images of the lowest end.
_HIGHEST, _MAPS, _LOWEST = 4, 2, 4
# Inches of a picture; widths in pictures of the texts and of the gaps.
_SIZE, _TEXT, _GAP = 0.72, 3.7, 0.3
_MOST_PARTNERS = 2


@styled
def channel_catalogue(pages: Sequence[ChannelPage]) -> Figure:
    """A row a channel: what it is, the images that drive it most with the cell of the peak, its map in the first of them, and
    those that drive it least."""
    ratio = max(page.top.pictures.shape[1] / page.top.pictures.shape[2] for page in pages)
    step, columns = max(ratio, 1.0) + 0.08, _TEXT + _HIGHEST + _MAPS + _LOWEST + 2 * _GAP
    rows = 0.4 + step * len(pages)
    figure = Figure(figsize=(_SIZE * columns + 0.2, _SIZE * rows + 0.45))
    board = Board(figure.subplots(), (0, columns), (0, rows), ratio)
    _header(board, pages[0].by)
    for i, page in enumerate(pages):
        _row(board, page, 0.4 + step * i)
    figure.suptitle(
        f"{model_label(pages[0].model)} over {pages[0].n:,} images of {plain(pages[0].images.name)}",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=12,
    )
    return figure


def _places() -> tuple[float, float, float]:
    """Where the highest images, their maps and the lowest images begin."""
    maps = _TEXT + _HIGHEST + _GAP
    return _TEXT, maps, maps + _MAPS + _GAP


def _header(board: Board, by: str) -> None:
    for x, text in zip(_places(), (f"highest {by}", "activation maps", f"lowest {by}"), strict=True):
        board.text(text, x, 0.05, fontsize=8.5, fontweight="bold")


def _row(board: Board, page: ChannelPage, y: float) -> None:
    top, maps, lowest = _places()
    scale = map_scale(page)
    for j, picture in enumerate(page.top.pictures[:_HIGHEST]):
        board.picture(picture, top + j, y, page.top.boxes[j])
    for j, picture in enumerate(page.top.pictures[:_MAPS]):
        board.map(page.top.maps[j], picture, maps + j, y, scale)
    for j, picture in enumerate(page.lowest.pictures[:_LOWEST]):
        board.picture(picture, lowest + j, y, page.lowest.boxes[j])
    board.text(plain(cut(f"{page.layer.name} · channel {page.channel}", 40)), 0, y, fontsize=8.5, fontweight="bold")
    for i, (text, colour) in enumerate(_lines(page)):
        board.text(plain(cut(text, 50)), 0, y + 0.25 + 0.2 * i, fontsize=7.5, color=colour)


def _lines(page: ChannelPage) -> list[tuple[str, str]]:
    """What is known of a channel in a few short lines, with their colours."""
    lines = [(_class_line(page), "black")] if np.isfinite(page.auroc).any() else []
    if "kurtosis" in page.statistics and not lines:
        lines.append((f"excess kurtosis {page.statistics['kurtosis']:.3g}", "black"))
    for model, layer, channel, r, p in page.partners[:_MOST_PARTNERS]:
        name = f"{cut(short_name(model), 20)} {cut(layer, 14)} · {channel}"
        lines.append((f"{name}: r = {r:.2f}{by_chance(p)}", GREY if by_chance(p) else "black"))
    return lines


def _class_line(page: ChannelPage) -> str:
    best = int(np.nanargmax(np.abs(page.auroc - 0.5)))
    p = page.selectivity_p
    chance = "" if np.isnan(p) else ", p < 0.01" if p < 0.01 else f", p = {p:.2f}"
    what = "" if page.auroc[best] > 0.5 else "not "
    return f"{what}{cut(page.class_names[best], 20)}: AUROC {page.auroc[best]:.2f}{chance}"
