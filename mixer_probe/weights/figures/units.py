"""Figures of token-mixing units: their maps, their change with depth, and frequency against
localisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import (
    COLOURS,
    DIVERGING,
    GREY,
    SEQUENTIAL,
    colour_bar,
    heading,
    line_styles,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights import TokenMixing
from mixer_probe.weights.figures.tiles import Tiling, canvas_axes, evenly_spaced, scaled
from mixer_probe.weights.token_units import Side

_SIDE_TEXTS: dict[Side, str] = {
    "read": "read weights",
    "gate": "gate weights",
    "write": "write weights",
}


@styled
@checked(MeasureError)
def token_mixing_units(
    units: TokenMixing,
    block: int | str = 0,
    *,
    side: Side = "read",
    arrange: Literal["pairs", "place"] = "pairs",
    shared_scale: bool = False,
    limit: int | None = 128,
    columns: int | None = None,
) -> Figure:
    """The units of one block as maps over the patch grid, in pairs of opposite phase, low frequency
    first.

    Colours are symmetric around zero, per unit unless `shared_scale`. At most `limit` units are
    drawn (None for all), in `columns` (an even number keeps pairs together; None finds one that
    prints legibly). With `arrange="place"` every unit stands where its output token is, which a
    small square marks in it: for ResMLP and gMLP, whose units are output tokens, and then all are
    drawn. Raises MeasureError for units of a token MLP, which have no place."""
    i = units.index(block)
    maps = units.units(i, side)
    if arrange == "place":
        if len(maps) != units.grid[0] * units.grid[1] or units.form not in ("ResMLP", "gMLP"):
            raise MeasureError(
                f"the units of {units.model.name}, a {units.form}, are not output tokens and have "
                "no position; use arrange='pairs'"
            )
        order, tiling = np.arange(len(maps)), Tiling(len(maps), units.grid, units.grid[1])
        places = "each at its output token (square)"
    else:
        order = units.order(i, side)[:limit]
        # 24 tiles of 14x14 are 7 mm wide each on a page, and 384 units then 16 rows high.
        tiling = Tiling(
            len(order), units.grid, columns or (16 if len(order) <= 128 else 24), pairs=True
        )
        places = "pairs side by side, low frequency first"
    canvas = tiling.draw(scaled(maps, shared_scale)[order])
    figure, axes = canvas_axes(canvas.shape)
    axes.imshow(canvas, cmap=mpl.colormaps[DIVERGING].with_extremes(bad="white"), vmin=-1, vmax=1)
    for token in range(len(order) if arrange == "place" else 0):
        top, left = (
            np.array(tiling.corner(token))
            + tiling.zoom * np.array(divmod(token, units.grid[1]))
            - 0.5
        )
        axes.add_patch(
            Rectangle(
                (left, top), tiling.zoom, tiling.zoom, fill=False, edgecolor="black", linewidth=0.5
            )
        )
    label = "weight ÷ largest |weight|" + (" of the block" if shared_scale else "")
    colour_bar(
        figure,
        axes,
        DIVERGING,
        label,
        shrink=0.9,
        aspect=max(10.0, 4 * figure.get_figheight()),
        pad=0.01,
    )
    shown = f"{len(order)} of {len(maps)}" if len(order) < len(maps) else f"all {len(order)}"
    axes.set_title(
        f"{model_label(units.model)} · {plain(units.blocks[i])} · {shown} token-mixing units: "
        f"{_SIDE_TEXTS[side]}"
    )
    axes.set_xlabel(
        f"each tile: one unit over the {units.grid[0]}×{units.grid[1]} patches; {places}"
    )
    return figure


_DEPTH_PANELS = (
    (
        "Mean frequency",
        "power centroid (cycles/token)",
        "mean_frequency",
        "shuffled_mean_frequency",
    ),
    (
        "Localisation",
        "spread around centre of mass (px)",
        "mean_spread_px",
        "shuffled_mean_spread_px",
    ),
    ("Orientation", "coherence (1: one orientation)", "mean_coherence", "shuffled_mean_coherence"),
    ("Effective rank", "effective rank ÷ full rank", "effective_rank", "shuffled_effective_rank"),
    ("Cosine with the opposite-phase unit", "mean cosine", "mean_partner_cosine", "null_mean"),
    ("Significant opposite-phase pairs", "fraction of units", "fraction_paired", "chance"),
)


@styled
@checked(MeasureError)
def token_mixing_depth(results: Sequence[TokenMixing], *, side: Side = "read") -> Figure:
    """Units by depth: frequency, localisation, orientation, effective rank, opposite-phase pairs;
    each with its null.

    Solid lines are trained networks, dotted ones untrained, and thin dashed lines the null of a
    network: shuffled positions, and random phases for pairs. Networks without this side are left
    out."""
    shown = [r for r in results if side in r.sides]
    if not shown:
        raise MeasureError(f"none of the networks has units of side '{side}'")
    figure = Figure(figsize=(10.5, 6.0))
    panels = figure.subplots(2, 3, sharex=True)
    styles = line_styles([r.model for r in shown])
    for result in shown:
        table = result.summary(side).assign(chance=result.chance)
        full = min(len(result.units(0, side)), result.grid[0] * result.grid[1])
        style = styles[result.model.name]
        for axes, (_title, _label, own, null) in zip(panels.flat, _DEPTH_PANELS, strict=True):
            unit = full if own == "effective_rank" else 1
            axes.plot(table["depth"], table[own] / unit, label=model_label(result.model), **style)
            if result.model.trained:
                axes.plot(
                    table["depth"],
                    table[null] / unit,
                    color=style["color"],
                    linewidth=1,
                    linestyle="--",
                    alpha=0.7,
                )
    for axes, (title, label, *_) in zip(panels.flat, _DEPTH_PANELS, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(0, 1.03))
        axes.tick_params(labelbottom=True)
    panels[1, 2].set_ylim(0, 1.02)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    null_line = Line2D([], [], color=GREY, linewidth=1, linestyle="--")
    figure.legend(
        [*handles, null_line],
        [*labels, "null of each network"],
        loc="outside lower center",
        ncols=4,
    )
    return figure


@styled
@checked(MeasureError)
def token_mixing_scatter(
    units: TokenMixing, blocks: Sequence[int | str] | None = None, *, side: Side = "read"
) -> Figure:
    """Units by frequency and localisation, one panel per block, coloured by the cosine with their
    opposite-phase unit.

    Crosses mark the means of the shuffled null; units at or beyond them have no spatial structure.
    By default four blocks from first to last."""
    chosen = (
        evenly_spaced(len(units.blocks), 4) if blocks is None else [units.index(b) for b in blocks]
    )
    figure = Figure(figsize=(1.2 + 2.4 * max(len(chosen), 2), 3.5))
    panels = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)[0]
    for axes, i in zip(panels, chosen, strict=True):
        one = units.measures(i, side)
        points = axes.scatter(
            one.frequency, one.spread, c=-one.partner_cosine, s=9, vmin=0, vmax=1, cmap=SEQUENTIAL
        )
        null = (np.mean(one.shuffled.frequency), np.mean(one.shuffled.spread))
        cross = axes.scatter(
            *null, marker="x", s=60, color=COLOURS[1], label="mean of the shuffled null"
        )
        axes.set(title=plain(units.blocks[i]), xlabel="frequency (cycles/token)")
    panels[0].set_ylabel("spread around centre of mass (px)")
    figure.colorbar(points, ax=panels, pad=0.01, aspect=25).set_label(
        "−cosine with opposite-phase unit"
    )
    figure.legend(handles=[cross], loc="outside lower center")
    heading(figure, f"{model_label(units.model)}: {_SIDE_TEXTS[side]}")
    return figure
