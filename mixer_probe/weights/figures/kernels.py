"""Figures of effective spatial kernels: mixing weights by position, the average kernel in pixels,
and their change with depth."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import (
    DIVERGING,
    SEQUENTIAL,
    colour_bar,
    heading,
    line_styles,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights import SpatialKernel, SpatialKernels
from mixer_probe.weights.figures.tiles import (
    evenly_spaced,
    first_middle_last,
    largest_offset,
    scaled,
    tile,
)


@styled
@checked(MeasureError)
def kernel_maps(
    result: SpatialKernels,
    blocks: Sequence[int | str] | None = None,
    *,
    shared_scale: bool = False,
    most: int = 256,
) -> Figure:
    """Mixing weights by position: for every position i a map of K[i, j] over the positions j, drawn
    at position i.

    One panel per block, first, middle and last unless `blocks` says which. Signed kernels have
    colours symmetric around zero, attention goes up from zero; every map has its own scale unless
    `shared_scale`. A frame of the grid with more than `most` positions shows every second, third,
    ... of them. Raises LayerError for convolutions, whose positions all share their kernels."""
    chosen = first_middle_last(len(result)) if blocks is None else [result.index(b) for b in blocks]
    columns = min(len(chosen), 3)
    rows = -(-len(chosen) // columns)
    h, w = result.kernel(chosen[0]).grid
    side = 3.5 if columns > 1 else 6.5
    figure = Figure(figsize=(side * columns + 0.9, side * rows * h / w + 0.75))
    panels = figure.subplots(rows, columns, squeeze=False)
    signed = any(result.matrix(i).min() < 0 for i in chosen)
    low, colours = (-1, DIVERGING) if signed else (0, SEQUENTIAL)
    for axes, i in zip(panels.flat, chosen):
        kernel = result.kernel(i)
        h, w = kernel.grid
        step = int(np.ceil(np.sqrt(h * w / most)))
        maps = result.row_maps(i).reshape(h, w, h, w)[step // 2 :: step, step // 2 :: step]
        canvas = tile(scaled(maps.reshape(-1, h, w), shared_scale), maps.shape[1], np.nan)
        axes.imshow(
            canvas, cmap=mpl.colormaps[colours].with_extremes(bad="white"), vmin=low, vmax=1
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(plain(kernel.block), fontsize=9)
        distance = (
            f"distance {kernel.distance_px:.0f} px, translation fraction "
            f"{kernel.translation_fraction:.2f}"
        )
        thinned = (
            f", every {({2: '2nd', 3: '3rd'}).get(step, f'{step}th')} position" if step > 1 else ""
        )
        axes.set_xlabel(distance + thinned, fontsize=8)
    for axes in panels.flat[len(chosen) :]:
        axes.set_visible(False)
    label = "K ÷ largest |K| of the " + ("block" if shared_scale else "map")
    colour_bar(figure, panels, colours, label, low=low, shrink=0.7, aspect=22, pad=0.015)
    heading(figure, f"{model_label(result.model)}: spatial mixing weights by position")
    return figure


@styled
def average_kernels(
    results: Sequence[SpatialKernels],
    *,
    kind: str = "rms",
    panels: int = 4,
    reach_px: float | None = None,
) -> Figure:
    """The average kernel around a position by depth, one row per model, all panels on one scale of
    pixels.

    `kind` is "rms" (the root mean square over pairs of positions, or kernels: signs cannot cancel)
    or "mean". `panels` layers are chosen evenly over depth. The axes reach to `reach_px`, the
    farthest offset of any kernel unless given; kernels that fill less than a sixth of them are
    enlarged in the corner. Colours are scaled to the largest value at common offsets, which a
    quarter of the positions or more have. The lines cross at the position that reads; the circle is
    the mean distance."""
    reach = reach_px or max(max(k.reach_px) for r in results for k in r.kernels)
    figure = Figure(figsize=(1.95 * panels + 1.1, 1.95 * len(results) + 0.9))
    grid = figure.subplots(len(results), panels, squeeze=False, sharex=True, sharey=True)
    for row, result in zip(grid, results, strict=True):
        chosen = evenly_spaced(len(result), panels)
        for axes, i in zip(row, chosen):
            kernel = result.kernels[i]
            _draw_offsets(axes, kernel, kind)
            lines = {"color": "white" if kind == "rms" else "black", "linewidth": 0.3, "alpha": 0.6}
            axes.axhline(0, **lines)
            axes.axvline(0, **lines)
            if np.isfinite(kernel.distance_px):
                turn = np.linspace(0, 2 * np.pi, 100)
                axes.plot(
                    kernel.distance_px * np.cos(turn),
                    kernel.distance_px * np.sin(turn),
                    color="#D55E00",
                    linewidth=1.0,
                )
            axes.set(
                xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal", facecolor="#F2F2F2"
            )
            axes.tick_params(labelsize=7)
            path = plain(
                kernel.block.replace("stages.", "s")
                .replace("layers.", "l")
                .replace(".blocks.", ".b")
            )
            axes.set_title(f"{path}: {kernel.distance_px:.3g} px", fontsize=8, fontweight="normal")
            if max(kernel.reach_px) < reach / 6:
                inset = axes.inset_axes((0.56, 0.03, 0.41, 0.41))
                _draw_offsets(inset, kernel, kind)
                inset.set(xticks=[], yticks=[], aspect="equal")
                inset.set_title(
                    f"±{max(kernel.reach_px):.3g} px",
                    fontsize=6.5,
                    fontweight="normal",
                    loc="center",
                    pad=2,
                )
                inset.spines[:].set(visible=True, linewidth=0.5)
        for axes in row[len(chosen) :]:
            axes.remove()
        row[0].set_ylabel(f"{model_label(result.model)}\npx down", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("px to the right", fontsize=8)
    low, colours = (-1, DIVERGING) if kind == "mean" else (0, SEQUENTIAL)
    label, shrink = f"{kind} kernel ÷ its largest at common offsets", min(0.8, 2 / len(results))
    colour_bar(figure, figure.axes, colours, label, low=low, shrink=shrink, aspect=22, pad=0.015)
    return figure


def _draw_offsets(axes: Axes, kernel: SpatialKernel, kind: str) -> None:
    values = kernel.mean if kind == "mean" else kernel.rms
    largest = largest_offset(values, None if kernel.matrix is None else kernel.grid)
    down, right = kernel.reach_px
    axes.imshow(
        values / largest if largest > 0 else values,
        extent=(-right, right, down, -down),
        cmap=DIVERGING if kind == "mean" else SEQUENTIAL,
        vmin=-1 if kind == "mean" else 0,
        vmax=1,
    )


@styled
def kernel_depth(results: Sequence[SpatialKernels]) -> Figure:
    """Mean mixing distance, translation fraction and weight on the position itself against depth.

    Dashed lines are uniform mixing, or iid entries, for networks whose layers have one grid."""
    figure = Figure(figsize=(10.5, 3.5))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        table, style = result.to_frame(), styles[result.model.name]
        panels[0].plot(
            table["depth"], table["distance_px"], label=model_label(result.model), **style
        )
        panels[1].plot(table["depth"], table["translation_fraction"], **style)
        panels[2].plot(table["depth"], table["self_mass"], **style)
    for result in results:
        kernel = result.kernels[0]
        if kernel.matrix is not None and len({k.grid for k in result.kernels}) == 1:
            colour = styles[result.model.name]["color"]
            line = {"color": colour, "linewidth": 1, "linestyle": "--", "alpha": 0.6, "zorder": 0}
            panels[0].axhline(kernel.uniform_px, **line)
            panels[1].axhline(kernel.translation_iid, **line)
            panels[2].axhline(1 / (kernel.grid[0] * kernel.grid[1]), **line)
    titles = (
        "Mean mixing distance",
        "Translation structure (BTTB)",
        "Weight on the position itself",
    )
    labels = (
        "distance (px; dashed: uniform)",
        "translation fraction (dashed: iid)",
        "fraction of K² (dashed: uniform)",
    )
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(0, 1.03))
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(-0.05, 1.05)
    panels[2].set_yscale("symlog", linthresh=1e-3, linscale=0.3)
    panels[2].set_ylim(0, 1.2)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
