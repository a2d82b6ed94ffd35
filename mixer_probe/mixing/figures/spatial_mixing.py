"""Figures of spatial mixing: from how far away networks read by depth, and from where single
positions do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.mixing.quantities import SpatialMixing
from mixer_probe.models.layer import spread
from mixer_probe.plotting.curves import curve, cut, depths, key_below, model_keys
from mixer_probe.plotting.style import COLOURS, GREY, SEQUENTIAL, line_styles, model_label, styled

VIEW_TITLES = {
    "branch": "Spatial branch",
    "block": "With the skip connection",
    "cumulative": "From the image",
}
QUANTITY_TITLES = {
    "distance_px": "Mean distance (px)",
    "relative_distance": "Mean distance / uniform",
    "self_mass": "Mass on the position itself",
    "near_mass": "Mass nearby",
    "effective_positions": "Effective positions / all",
    "participation": "Participation ratio",
    "translation": "Translation-structured fraction",
    "dynamic": "Dynamic fraction",
    "prefix_mass": "Mass on prefix tokens",
}


@styled
def mixing_distance(results: Sequence[SpatialMixing]) -> Figure:
    """Mean mixing distance relative to uniform mixing against relative depth, one panel per view;
    bands are 95 % intervals.

    Grey lines are uniform mixing. Raises MeasureError for no result."""
    views = _views(results)
    figure = Figure(figsize=(3.1 * len(views) + 0.4, 3.0))
    panels = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    for axes, view in zip(panels, views):
        _curves(axes, results, view, "relative_distance")
        axes.axhline(1, color=GREY, linewidth=1)
        axes.set_title(VIEW_TITLES[view])
        axes.set_xlabel("relative depth")
    panels[0].set_ylabel("mean distance / uniform mixing")
    # Bands of few images may be far wider than all values.
    top = max(
        np.nanmax(r.curve(v, "relative_distance")[0], initial=1) for r in results for v in r.views
    )
    panels[0].set_ylim(0, 1.25 * float(top))
    key_below(figure, model_keys([r.model for r in results], chance="uniform mixing"))
    return figure


@styled
def mixing_quantities(results: Sequence[SpatialMixing], view: str = "branch") -> Figure:
    """Every other quantity of one view against relative depth, as in `mixing_distance`, of the
    results that have it. Raises MeasureError where none has."""
    results = _of_view(results, view)
    known = [
        q
        for q in results[0].quantities
        if q not in ("distance_px", "relative_distance")
        and any(np.isfinite(r.curve(view, q)[0]).any() for r in results)
    ]
    rows = -(-len(known) // 3)
    figure = Figure(figsize=(9.4, 2.5 * rows + 0.3))
    panels = figure.subplots(rows, 3, squeeze=False, sharex=True)
    for axes, quantity in zip(panels.flat, known):
        _curves(axes, results, view, quantity)
        axes.set_title(QUANTITY_TITLES[quantity])
    for axes in list(panels.flat)[len(known) :]:
        axes.remove()
    for axes in list(panels.flat)[max(0, len(known) - 3) : len(known)]:
        axes.set_xlabel("relative depth")
        axes.tick_params(labelbottom=True)
    key_below(figure, model_keys([r.model for r in results]))
    return figure


@styled
def mixing_maps(
    results: Sequence[SpatialMixing], view: str = "branch", cell: tuple[int, int] | None = None
) -> Figure:
    """From where the positions of one cell read, at layers spread over depth: one row per network.

    `cell` is (row, column) on the common grid, by default a central one, framed in the maps. The
    colour is the fraction of the energy of the row relative to uniform mixing, on one log scale.
    Raises MeasureError for a cell outside of the grid."""
    shown = _of_view(results, view)
    most = max(len(spread(r.layers, 5)) for r in shown)
    figure = Figure(figsize=(max(1.45 * most + 1.7, 3.5), 1.6 * len(shown) + 0.5))
    panels = figure.subplots(len(shown), most, squeeze=False)
    scale = LogNorm(0.05, 20)
    image: Any = None
    for row, r in zip(panels, shown):
        height, width = r.cells
        down, right = cell or (height // 2, width // 2)
        if not (0 <= down < height and 0 <= right < width):
            raise MeasureError(
                f"cell ({down}, {right}) is outside the common grid of {height}×{width} cells"
            )
        chosen = spread(r.layers, 5)
        v = r.views.index(view)
        for axes, k in zip(row, chosen):
            P = r.matrix[v, k, down * width + right]
            values = np.clip(P.reshape(2 * height, 2 * width) * P.size, 0.05, 20)
            image = axes.imshow(
                values, cmap=SEQUENTIAL, norm=scale, extent=(0, r.size[1], r.size[0], 0)
            )
            side = r.size[0] / height, r.size[1] / width
            corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
            frame = (corners + np.array([right, down])) * side[::-1]
            axes.plot(*frame.T, color=COLOURS[1], linewidth=1.1)
            if r.zero[v, k]:
                axes.text(0.5, 0.85, "exactly zero", transform=axes.transAxes, ha="center", size=7)
            axes.set_title(cut(r.layers[k].name), fontsize=7, fontweight="normal", loc="center")
        for axes in row:
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes in row[len(chosen) :]:
            axes.remove()
        row[0].set_ylabel(
            model_label(r.model).replace("?", "\n"), rotation=0, ha="right", va="center", fontsize=8
        )
    # Rows of networks with fewer layers are shorter.
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, aspect=25, extend="both")
    bar.set_label("energy relative to uniform mixing", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _of_view(results: Sequence[SpatialMixing], view: str) -> list[SpatialMixing]:
    shown = [r for r in results if view in r.views]
    if not shown:
        raise MeasureError(f"no result has the view '{view}'")
    return shown


def _views(results: Sequence[SpatialMixing]) -> list[str]:
    if not results:
        raise MeasureError("no result of spatial mixing was given")
    return [view for view in VIEW_TITLES if any(view in r.views for r in results)]


def _curves(axes: Any, results: Sequence[SpatialMixing], view: str, quantity: str) -> None:
    styles = line_styles([r.model for r in results])
    for r in results:
        if view in r.views:
            value, low, high = r.curve(view, quantity)
            curve(axes, depths(r), value, (low, high), styles[r.model.name])
    axes.set_xlim(-0.02, 1.02)
