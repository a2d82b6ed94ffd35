"""Figures of effective receptive fields: maps over the image, and areas by depth."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.core.words import studied
from mixer_probe.mixing.receptive_field import EffectiveReceptiveField
from mixer_probe.models.layer import spread
from mixer_probe.plotting.curves import curve, cut, depths, fraction_text, key_below, model_keys
from mixer_probe.plotting.style import GREY, SEQUENTIAL, line_styles, model_label, styled

# Energies below this fraction of the largest are drawn as it.
_LEAST = 1e-4


@styled
@checked(MeasureError)
def receptive_field_maps(results: Sequence[EffectiveReceptiveField], columns: int = 5) -> Figure:
    """Energy by input pixel, as a fraction of its maximum on a log scale: a row per network, at
    most `columns` layers spread over its depth.

    White frames are theoretical fields that end within the image; crosses are positions."""
    most = max(min(columns, len(r.layers)) for r in results)
    figure = Figure(figsize=(1.45 * most + 1.6, 1.78 * len(results) + 0.2))
    panels = figure.subplots(len(results), most, squeeze=False)
    scale = LogNorm(_LEAST, 1)
    for row, result in zip(panels, results, strict=True):
        height, width = result.size
        chosen = spread(result.layers, most)
        for axes, k in zip(row, chosen):
            layer, energy = result.layers[k], result.maps[k]
            top = energy.max()
            shown = np.maximum(energy / top if top > 0 else energy, _LEAST)
            axes.imshow(shown, cmap=SEQUENTIAL, norm=scale, extent=(0, width, height, 0))
            assert layer.grid is not None
            y, x = (result.position[k] + 0.5) * np.array(result.size) / np.array(layer.grid)
            axes.plot(x, y, "+", color="white", markersize=5, markeredgewidth=0.7)
            side = result.theoretical[k]
            if side < min(height, width):
                corner = (x - side / 2, y - side / 2)
                axes.add_patch(
                    Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.8)
                )
            area = f"50 % in {fraction_text(result.area[k, 0])}" if top > 0 else "exactly zero"
            axes.set_title(f"{cut(layer.name, 15)}\n{area}", fontsize=7, fontweight="normal")
            axes.set(xlim=(0, width), ylim=(height, 0))
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes in row[len(chosen) :]:
            axes.remove()
        name = "\n".join(wrap(model_label(result.model).replace("?", " ?"), 14))
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    bar = figure.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=figure.axes, shrink=0.8, aspect=25)
    bar.set_label("gradient energy /\nits maximum (log scale)", fontsize=8)
    bar.outline.set_visible(False)
    return figure


@styled
def receptive_field_curves(results: Sequence[EffectiveReceptiveField]) -> Figure:
    """Area that holds 50 and 95 % of the energy by depth, with the area of the theoretical field
    where it ends within the image; and how well a Gaussian fits the amplitude.

    Bands are 95 % intervals over images."""
    figure = Figure(figsize=(9.6, 3.1))
    panels = figure.subplots(1, 3, sharex=True)
    styles = line_styles([r.model for r in results])
    theoretical, own = False, studied(r.model for r in results)
    for level, axes in enumerate(panels[:2]):
        for r in results:
            style, bounds = styles[r.model.name], (r.area_low[:, level], r.area_high[:, level])
            curve(axes, depths(r), r.area[:, level], bounds, style)
            whole = np.minimum(r.theoretical**2 / np.prod(r.size), 1.0)
            if r.model.family == "cnn" and r.model in own and np.isfinite(whole).any():
                axes.plot(depths(r), whole, color=style["color"], linestyle="--", linewidth=0.9)
                theoretical = True
        axes.set(
            title=f"{results[0].levels[level]:.0%} of the energy".replace("%", " %"),
            ylabel="area (fraction of the image)",
            yscale="log",
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    for r in results:
        bounds = r.gaussian_low, r.gaussian_high
        curve(panels[2], depths(r), r.gaussian, bounds, styles[r.model.name])
    panels[2].set(title="Gaussian shape", ylabel="correlation with fitted Gaussian")
    panels[2].set_ylim(min(0.0, panels[2].get_ylim()[0]), 1.03)
    for axes in panels:
        axes.set(xlabel="relative depth", xlim=(-0.02, 1.02))
    keys = model_keys([r.model for r in results])
    if theoretical:
        keys.append(
            Line2D([], [], color=GREY, linestyle="--", linewidth=0.9, label="theoretical field")
        )
    key_below(figure, keys)
    return figure
