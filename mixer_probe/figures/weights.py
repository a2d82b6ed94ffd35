"""Pictures of weights: token-mixing units, their change with depth, and stem filters."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mixer_probe.figures.style import DIVERGING, GREY, line_styles, model_label, plain, styled
from mixer_probe.weights import StemFilters, TokenMixing


@styled
def token_mixing_units(
    units: TokenMixing, block: int | str = 0, *, shared_scale: bool = False, limit: int | None = 128, columns: int = 16
) -> Figure:
    """The units of one block as maps over the patch grid, in pairs of opposite phase, low frequency first.

    Colours are symmetric around zero, per unit unless `shared_scale`. At most `limit` units are drawn (None for all)."""
    i = units.index(block)
    order = units.order(i)[:limit]
    maps = units.units(i)[order]
    scale = np.abs(maps).max() if shared_scale else np.abs(maps).max((1, 2), keepdims=True)
    tiles = tile(np.divide(maps, scale, out=np.zeros_like(maps), where=np.asarray(scale > 0)), columns, np.nan)
    figure, axes = _tile_axes(tiles.shape)
    axes.imshow(tiles, cmap=_with_gap(DIVERGING), vmin=-1, vmax=1)
    _colour_bar(figure, axes, DIVERGING, "weight ÷ largest |weight|" + (" of the block" if shared_scale else ""))
    shown = f"{len(order)} of {len(units.units(i))}" if len(order) < len(units.units(i)) else f"all {len(order)}"
    axes.set_title(f"{model_label(units.model)} · {plain(units.blocks[i])} · {shown} token-mixing units")
    axes.set_xlabel(
        f"each tile: one unit over the {units.grid[0]}×{units.grid[1]} patches; pairs side by side, low frequency first"
    )
    return figure


@styled
def token_mixing_depth(results: Sequence[TokenMixing]) -> Figure:
    """How units change with depth: frequency, partner cosine against its null, share of units paired beyond the null."""
    figure = Figure(figsize=(10.5, 3.4))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        _depth_lines(panels, result, styles[result.model.name])
    _depth_labels(panels, results)
    return figure


def _depth_lines(panels: np.ndarray, result: TokenMixing, style: dict[str, str]) -> None:
    table = result.summary()
    label = model_label(result.model)
    panels[0].plot(table["depth"], table["mean_frequency"], label=label, **style)
    panels[1].plot(table["depth"], table["mean_partner_cosine"], label=label, **style)
    panels[2].plot(table["depth"], table["share_paired"], label=label, **style)
    if result.model.trained:
        panels[1].plot(table["depth"], table["null_mean"], color=style["color"], linewidth=1, linestyle="--", alpha=0.7)


def _depth_labels(panels: np.ndarray, results: Sequence[TokenMixing]) -> None:
    titles = ("Mean frequency of units", "Mean cosine with the partner", "Units paired beyond the null")
    labels = ("power centroid (cycles/token)", "cosine (dashed: null)", "share of units (dashed: chance)")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(0, 1.03))
    panels[2].axhline(0.05, color=GREY, linewidth=1, linestyle="--")
    panels[2].set_ylim(0, 1.02)
    figure = panels[0].figure
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


@styled
def stem_pictures(stem: StemFilters, *, limit: int | None = 128, columns: int = 16) -> Figure:
    """Stem filters as colour pictures, low frequency first: grey is zero, each filter scaled by its largest |weight|."""
    order = stem.order[:limit]
    filters = stem.filters[order]
    largest = np.abs(filters).max((1, 2, 3), keepdims=True)
    pictures = 0.5 + 0.5 * np.divide(filters, largest, out=np.zeros_like(filters), where=largest > 0)
    tiles = tile(pictures.transpose(0, 2, 3, 1), columns, 1.0)
    figure, axes = _tile_axes(tiles.shape)
    axes.imshow(np.clip(tiles, 0, 1))
    _colour_bar(figure, axes, "gray", "weight ÷ largest |weight|")
    shown = f"{len(order)} of {len(stem)}" if len(order) < len(stem) else f"all {len(order)}"
    axes.set_title(f"{model_label(stem.model)} · {plain(stem.layer)} · {shown} filters")
    height, width = stem.shape[2:]
    axes.set_xlabel(f"each tile: one filter of {height}×{width} px, stride {stem.stride[0]} px; low frequency first")
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
    height = min(max(width * 0.86 * shape[0] / shape[1], 0.6), 12.0)
    figure = Figure(figsize=(width, height + 0.75))
    axes = figure.add_subplot()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _with_gap(name: str) -> mpl.colors.Colormap:
    return mpl.colormaps[name].with_extremes(bad="white")


def _colour_bar(figure: Figure, axes: Axes, cmap: str, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), cmap), ax=axes, shrink=0.9, aspect=18, pad=0.01, ticks=[-1, 0, 1])
    bar.set_label(label, fontsize=7.5)
    bar.outline.set_visible(False)
