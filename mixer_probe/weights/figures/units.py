"""Pictures of weights: token-mixing units and their change with depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, SEQUENTIAL, line_styles, model_label, plain, styled
from mixer_probe.weights import TokenMixing
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
    """The units of one block as maps over the patch grid, in pairs of opposite phase, low frequency first.

    Colours are symmetric around zero, per unit unless `shared_scale`. At most `limit` units are drawn (None for all), in
    `columns` (an even number keeps pairs together; None finds one that prints legibly). With `arrange="place"` every unit stands
    where its output token is, which a small square marks in it: for ResMLP and gMLP, whose units are output tokens, and then all
    are drawn. Raises MeasureError for units of a token MLP, which have no place."""
    i = units.index(block)
    everything = units.units(i, side)
    scale = np.abs(everything).max() if shared_scale else np.abs(everything).max((1, 2), keepdims=True)
    scaled = np.divide(everything, scale, out=np.zeros_like(everything), where=np.asarray(scale > 0))
    if arrange == "place":
        order, tiling = np.arange(len(scaled)), _places(units)
    else:
        order = units.order(i, side)[:limit]
        tiling = Tiling(len(order), units.grid, columns or _columns(len(order)), pairs=True)
    tiles = tiling.draw(scaled[order])
    figure, axes = _tile_axes(tiles.shape)
    axes.imshow(tiles, cmap=_with_gap(DIVERGING), vmin=-1, vmax=1)
    if arrange == "place":
        _mark_places(axes, tiling, units.grid)
    _colour_bar(figure, axes, DIVERGING, "weight ÷ largest |weight|" + (" of the block" if shared_scale else ""))
    shown = f"{len(order)} of {len(everything)}" if len(order) < len(everything) else f"all {len(order)}"
    axes.set_title(f"{model_label(units.model)} · {plain(units.blocks[i])} · {shown} token-mixing units: {_SIDE_TEXTS[side]}")
    places = "each at its output token (square)" if arrange == "place" else "pairs side by side, low frequency first"
    axes.set_xlabel(f"each tile: one unit over the {units.grid[0]}×{units.grid[1]} patches; {places}")
    return figure


def _columns(count: int) -> int:
    # 24 tiles of 14x14 are 7 mm wide each on a page, and 384 units then 16 rows high.
    return 16 if count <= 128 else 24


@dataclass(frozen=True)
class Tiling:
    """Where tiles stand: `count` maps of `size` in `columns`, with a narrow gap inside `pairs` and a wide one elsewhere."""

    count: int
    size: tuple[int, int]
    columns: int
    pairs: bool = False

    @property
    def zoom(self) -> int:
        """How often a cell is repeated: small maps are enlarged, so that gaps stay narrow beside them."""
        return max(1, 8 // min(self.size))

    def corner(self, k: int) -> tuple[int, int]:
        """Row and column of the upper left corner of tile k."""
        row, column = divmod(k, self.columns)
        height, width = (self.zoom * n for n in self.size)
        narrow = (column + 1) // 2 if self.pairs else 0
        return row * (height + 3), column * (width + 3) - 2 * narrow

    def draw(self, maps: np.ndarray) -> np.ndarray:
        """The maps [count, h, w] on one canvas [H, W], NaN in the gaps."""
        maps = maps.repeat(self.zoom, 1).repeat(self.zoom, 2)
        height, width = maps.shape[1:]
        corners = [self.corner(k) for k in range(self.count)]
        canvas = np.full([max(c[axis] for c in corners) + (height, width)[axis] for axis in (0, 1)], np.nan)
        for (top, left), one in zip(corners, maps, strict=True):
            canvas[top : top + height, left : left + width] = one
        return canvas


def _places(units: TokenMixing) -> Tiling:
    if len(units.units(0)) != units.grid[0] * units.grid[1] or units.form not in ("ResMLP", "gMLP"):
        raise MeasureError(
            f"the units of {units.model.name}, a {units.form}, are not output tokens and have no position; use arrange='pairs'"
        )
    return Tiling(units.grid[0] * units.grid[1], units.grid, units.grid[1])


def _mark_places(axes: Axes, tiling: Tiling, grid: tuple[int, int]) -> None:
    corners = np.array([tiling.corner(k) for k in range(tiling.count)])
    y, x = np.divmod(np.arange(tiling.count), grid[1])
    for top, left in corners + tiling.zoom * np.stack([y, x], 1) - 0.5:
        axes.add_patch(Rectangle((left, top), tiling.zoom, tiling.zoom, fill=False, edgecolor="black", linewidth=0.5))


_DEPTH_PANELS = (
    ("Mean frequency", "power centroid (cycles/token)", "mean_frequency", "shuffled_mean_frequency"),
    ("Localisation", "spread around centre of mass (px)", "mean_spread_px", "shuffled_mean_spread_px"),
    ("Orientation", "coherence (1: one orientation)", "mean_coherence", "shuffled_mean_coherence"),
    ("Effective rank", "effective rank ÷ full rank", "effective_rank", "shuffled_effective_rank"),
    ("Cosine with the opposite-phase unit", "mean cosine", "mean_partner_cosine", "null_mean"),
    ("Significant opposite-phase pairs", "fraction of units", "share_paired", "chance"),
)


@styled
@checked(MeasureError)
def token_mixing_depth(results: Sequence[TokenMixing], *, side: Side = "read") -> Figure:
    """How units change with depth: frequency, localisation, orientation, effective rank, partners; each with its null.

    Solid lines are trained networks, dotted ones untrained, and thin dashed lines the null of a network: shuffled positions,
    and for partners random phases. Networks without this side are left out."""
    shown = [r for r in results if side in r.sides]
    if not shown:
        raise MeasureError(f"none of the networks has units of side '{side}'")
    figure = Figure(figsize=(10.5, 6.0))
    panels = figure.subplots(2, 3, sharex=True)
    styles = line_styles([r.model for r in shown])
    for result in shown:
        _depth_lines(panels, result, side, styles[result.model.name])
    for axes, (title, label, *_) in zip(panels.flat, _DEPTH_PANELS, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(0, 1.03))
        axes.tick_params(labelbottom=True)
    panels[1, 2].set_ylim(0, 1.02)
    _depth_legend(figure, panels[0, 0])
    return figure


def _depth_lines(panels: np.ndarray, result: TokenMixing, side: Side, style: dict[str, str]) -> None:
    table = result.summary(side).assign(chance=result.chance)
    full = min(len(result.units(0, side)), result.grid[0] * result.grid[1])
    for axes, (_title, _label, own, null) in zip(panels.flat, _DEPTH_PANELS, strict=True):
        unit = full if own == "effective_rank" else 1
        axes.plot(table["depth"], table[own] / unit, label=model_label(result.model), **style)
        if result.model.trained:
            axes.plot(table["depth"], table[null] / unit, color=style["color"], linewidth=1, linestyle="--", alpha=0.7)


def _depth_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    null = Line2D([], [], color=GREY, linewidth=1, linestyle="--")
    figure.legend([*handles, null], [*labels, "null of each network"], loc="outside lower center", ncols=4)


@styled
@checked(MeasureError)
def token_mixing_scatter(units: TokenMixing, blocks: Sequence[int | str] | None = None, *, side: Side = "read") -> Figure:
    """Units by frequency and localisation, one panel a block, coloured by the cosine with their partner.

    Crosses mark the means of the shuffled null; units at or beyond them have no arrangement in the plane. By default four
    blocks from first to last."""
    last = len(units.blocks) - 1
    chosen = [units.index(b) for b in blocks] if blocks is not None else sorted({0, round(last / 3), round(2 * last / 3), last})
    figure = Figure(figsize=(1.2 + 2.4 * max(len(chosen), 2), 3.5))
    panels = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)[0]
    for axes, i in zip(panels, chosen, strict=True):
        one = units.measures(i, side)
        points = axes.scatter(one.frequency, one.spread, c=-one.partner_cosine, s=9, vmin=0, vmax=1, cmap=SEQUENTIAL)
        null = (np.mean(one.shuffled.frequency), np.mean(one.shuffled.spread))
        cross = axes.scatter(*null, marker="x", s=60, color=COLOURS[1], label="mean of the shuffled null")
        axes.set(title=plain(units.blocks[i]), xlabel="frequency (cycles/token)")
    panels[0].set_ylabel("spread around centre of mass (px)")
    figure.colorbar(points, ax=panels, pad=0.01, aspect=25).set_label("−cosine with opposite-phase unit")
    figure.legend(handles=[cross], loc="outside lower center")
    figure.suptitle(f"{model_label(units.model)}: {_SIDE_TEXTS[side]}", x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def tile(maps: np.ndarray, columns: int, gap: float) -> np.ndarray:
    """Maps [unit, h, w] or [unit, h, w, 3] side by side with gaps of one pixel: [H, W] or [H, W, 3].

    Small maps are enlarged first, so that the gap stays narrow beside them."""
    zoom = max(1, 8 // min(maps.shape[1:3]))
    maps = maps.repeat(zoom, 1).repeat(zoom, 2)
    count, height, width = maps.shape[:3]
    columns = min(columns, count)
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *maps.shape[3:]), gap)
    for k in range(count):
        top, left = (k // columns) * (height + 1), (k % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = maps[k]
    return canvas


def _tile_axes(shape: tuple[int, ...]) -> tuple[Figure, Axes]:
    width = 10.0
    height = min(max(width * 0.89 * shape[0] / shape[1], 0.6), 12.0)
    figure = Figure(figsize=(width, height + 0.85))
    axes = figure.add_subplot()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _with_gap(name: str) -> mpl.colors.Colormap:
    return mpl.colormaps[name].with_extremes(bad="white")


def _colour_bar(figure: Figure, axes: Axes, cmap: str, label: str) -> None:
    aspect = max(10.0, 4 * figure.get_figheight())
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), cmap), ax=axes, shrink=0.9, aspect=aspect, pad=0.01, ticks=[-1, 0, 1])
    bar.set_label(label, fontsize=7.5)
    bar.outline.set_visible(False)
