"""Figures of probes by position, attention of attentive probes, and decoding of patch positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mixer_probe.models.layer import Layer, spread
from mixer_probe.plotting.curves import chance_line, curve, cut, depths, key_below, model_keys, with_twins
from mixer_probe.plotting.style import SEQUENTIAL, line_styles, model_label, styled
from mixer_probe.probing import AttentiveResult, PatchPosition, PositionProbe


@dataclass(frozen=True)
class _Map:
    """One panel: a layer, its numbers [h, w], and a few words."""

    layer: Layer
    values: np.ndarray
    note: str


@styled
def position_maps(results: Sequence[PositionProbe], layers: int = 4) -> Figure:
    """Test accuracy of a probe at every position, a row a network, a column a layer: at most `layers`, spread over the depth.

    One scale for all maps; chance is marked on the colour bar. Above a map stands the accuracy of the mean over positions."""
    rows = [
        [_Map(r.layers[i], 100 * r.accuracy[i], f"mean: {_percent(r.pooled[i])}") for i in spread(r.layers, layers)]
        for r in results
    ]
    chance = 100 * results[0].chance
    names = [model_label(r.model) for r in results]
    values = np.concatenate([m.values.ravel() for row in rows for m in row])
    top = max(_most(values), chance + 1)
    # A little below chance, so that its mark is seen.
    scale = Normalize(max(min(chance - 0.06 * (top - chance), _least(values)), 0), top)
    return _draw(names, rows, scale, "test accuracy at the position (%)", (chance, "chance"))


@styled
def attention_maps(results: Sequence[AttentiveResult], layers: int = 4) -> Figure:
    """Mean attention of an attentive probe over the test images, times the number of positions: 1 is uniform.

    A row a network, a column a layer, one scale for all, 1 marked on the colour bar; above a map stands the accuracy."""
    rows = [
        [
            _Map(r.layers[i], r.attention[i] * r.attention[i].size, f"accuracy {_percent(r.accuracy[i])}")
            for i in spread(r.layers, layers)
        ]
        for r in results
    ]
    names = [model_label(r.model) for r in results]
    values = np.concatenate([m.values.ravel() for row in rows for m in row])
    scale = Normalize(0, max(_most(values), 1.5))
    return _draw(names, rows, scale, "attention × positions", (1.0, "uniform"))


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"


def _least(values: np.ndarray) -> float:
    return float(np.nanmin(values)) if np.isfinite(values).any() else 0.0


def _most(values: np.ndarray) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else 1.0


def _draw(names: Sequence[str], rows: Sequence[Sequence[_Map]], scale: Normalize, label: str, mark: tuple[float, str]) -> Figure:
    columns = max(map(len, rows))
    # A lone column still leaves the name of its network room.
    figure = Figure(figsize=(max(1.9 * columns + 1.5, 5.2), 2.35 * len(rows) + 0.3))
    parts = np.ravel(figure.subfigures(len(rows), 1, squeeze=False))
    for part, name, row in zip(parts, names, rows):
        found = part.subplots(1, columns, squeeze=False)[0]
        for axes, shown in zip(found, row):
            _map(axes, shown, scale)
        for axes in found[len(row) :]:
            axes.remove()
        part.suptitle(name, fontsize=9, fontweight="bold", x=0.01, ha="left")
        bar = part.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=list(found[: len(row)]), shrink=0.9, aspect=18, pad=0.02)
        _mark(bar, scale, label, mark)
    return figure


def _map(axes: Axes, shown: _Map, scale: Normalize) -> None:
    height, width = shown.values.shape
    axes.imshow(shown.values, cmap=SEQUENTIAL, norm=scale, aspect="equal" if height > 1 or width == 1 else "auto")
    title = f"{cut(shown.layer.name, 18)}\n{height}×{width}, {shown.note}"
    axes.set_title(title, fontsize=7.5, fontweight="normal")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(bar: Colorbar, scale: Normalize, label: str, mark: tuple[float, str]) -> None:
    """A line at `mark` in the colour bar, and ticks that keep clear of it."""
    low, high = float(scale.vmin or 0), float(scale.vmax or 1)
    ticks = [float(f"{t:.2g}") for t in np.linspace(low, high, 4)]
    kept = [t for t in ticks if low <= t <= high and abs(t - mark[0]) > 0.13 * (high - low)]
    bar.set_ticks([*kept, mark[0]], labels=[*(f"{t:g}" for t in kept), f"{mark[0]:.3g} {mark[1]}"])
    bar.ax.axhline(mark[0], color="white", linewidth=2.2)
    bar.ax.axhline(mark[0], color="#C00000", linewidth=1.2)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label.replace(" at the ", "\nat the "), fontsize=7.5)
    bar.outline.set_visible(False)


@styled
def patch_position_curves(results: Sequence[PatchPosition]) -> Figure:
    """Error of the position decoded from a token (px of the model's input), and R² of row and column.

    Dotted lines are untrained baselines, grey lines chance, bands 95 % intervals for other training and test images. The point
    at depth 0 is the stem: position information in patch content."""
    figure = Figure(figsize=(9.6, 4.0))
    left, right = figure.subplots(1, 2)
    curves = with_twins(results)
    styles = line_styles([one.model for one in curves])
    for one in curves:
        style, x, name = styles[one.model.name], depths(one), model_label(one.model)
        curve(left, x, one.distance_px, (one.low_distance_px, one.high_distance_px), style, name)
        curve(right, x, one.r2, (one.low_r2, one.high_r2), style, name)
    chance_line(left, (float(c) for one in curves for c in one.chance_distance_px))
    chance_line(right, [0.0])
    left.set(title="Distance to the true position", xlabel="relative depth", ylabel="mean error (px)", xlim=(-0.02, 1.02))
    left.set_ylim(bottom=0)
    right.set(title="Row and column", xlabel="relative depth", ylabel="R² on test images", xlim=(-0.02, 1.02))
    right.set_ylim(top=1.03)
    key_below(figure, model_keys([one.model for one in curves], False, "chance"))
    return figure
