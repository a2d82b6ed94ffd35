"""Figures of principal components of positions: colours over the images, and explained variance by
depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.mixing.components import TokenComponents
from mixer_probe.plotting.board import Board
from mixer_probe.plotting.curves import curve, cut, depths, fraction_text, key_below, model_keys
from mixer_probe.plotting.style import GREY, heading, line_styles, model_label, styled


@styled
@checked(MeasureError)
def component_maps(result: TokenComponents, images: int | None = None) -> Figure:
    """Components 1, 2 and 3 of every position as red, green and blue: a row per image (at most
    `images`), the input and then the layers in columns.

    Every position is one square of its colour (nearest neighbour)."""
    shown = len(result.shown) if images is None else min(images, len(result.shown))
    height, width = result.pictures.shape[1:3]
    columns, high = 1 + len(result.layers), height / width
    figure = Figure(figsize=(max(1.15 * columns + 0.3, 3.3), 1.15 * high * shown + 0.9))
    heading(figure, model_label(result.model))
    board = Board(figure.add_subplot(), (0, columns), (-0.35, shown * high), high)
    board.text("input", 0, -0.04, va="bottom", fontsize=7)
    for i in range(shown):
        board.picture(result.pictures[i], 0, i * high)
    for k, layer in enumerate(result.layers, 1):
        fraction = result.together[k - 1]
        of = "constant" if np.isnan(fraction) else f"{fraction_text(fraction)} of variance"
        board.text(f"{cut(layer.name, 18)}\n{of}", k, -0.04, va="bottom", fontsize=7)
        colours = result.colours(layer.name)
        for i in range(shown):
            board.picture(colours[i], k, i * high)
    return figure


@styled
def component_curves(results: Sequence[TokenComponents]) -> Figure:
    """Fraction of the variance of the positions in the first component and in the first three, by
    depth.

    Bands are 95 % intervals over images, of all three together; thin grey lines are independent
    channels with the same variances."""
    figure = Figure(figsize=(7.4, 3.1))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    styles = line_styles([r.model for r in results])
    for r in results:
        style = styles[r.model.name]
        panels[0].plot(depths(r), r.explained[:, 0], **style)
        curve(panels[1], depths(r), r.together, (r.together_low, r.together_high), style)
        for axes, expected in zip(panels, (r.expected[:, 0], r.expected.sum(1)), strict=True):
            axes.plot(depths(r), expected, color=GREY, linewidth=0.7)
    for axes, title in zip(panels, ("First component", "First three components"), strict=True):
        axes.set(title=title, xlabel="relative depth", xlim=(-0.02, 1.02), ylim=(0, 1.03))
    panels[0].set_ylabel("fraction of the variance")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    key_below(figure, model_keys([r.model for r in results], chance="independent channels"))
    return figure
