"""Figures of probes by position, attention of attentive probes, and decoding of patch positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mixer_probe.models.layer import Layer, spread
from mixer_probe.plotting.curves import (
    chance_line,
    curve,
    cut,
    depths,
    key_below,
    model_keys,
    with_twins,
)
from mixer_probe.plotting.style import SEQUENTIAL, line_styles, model_label, styled
from mixer_probe.probing import AttentiveResult, PatchPosition, PositionProbe


@dataclass(frozen=True)
class _Map:
    """One panel: a layer, its numbers [h, w], and a note in the title."""

    layer: Layer
    values: np.ndarray
    note: str


@styled
def position_maps(results: Sequence[PositionProbe], layers: int = 4) -> Figure:
    """Test accuracy of a probe at every position, one row per network.

    The columns are at most `layers` layers, spread over the depth. One scale for all maps; chance
    is marked on the colour bar. The title of a map gives the accuracy of the mean over
    positions."""
    chance = 100 * results[0].chance
    rows = [
        [
            _Map(r.layers[i], 100 * r.accuracy[i], f"mean: {_percent(r.pooled[i])}")
            for i in spread(r.layers, layers)
        ]
        for r in results
    ]
    low, high = _range(rows)
    top = max(high, chance + 1)
    # A little below chance, so that its mark is visible.
    scale = Normalize(max(min(chance - 0.06 * (top - chance), low), 0), top)
    return _draw_maps(
        results, rows, scale, "test accuracy\nat the position (%)", (chance, "chance")
    )


@styled
def attention_maps(results: Sequence[AttentiveResult], layers: int = 4) -> Figure:
    """Mean attention of an attentive probe over the test images, times the number of positions: 1
    is uniform.

    One row per network, one column per layer, one scale for all, 1 marked on the colour bar; the
    title gives the accuracy."""
    rows = [
        [
            _Map(
                r.layers[i],
                r.attention[i] * r.attention[i].size,
                f"accuracy {_percent(r.accuracy[i])}",
            )
            for i in spread(r.layers, layers)
        ]
        for r in results
    ]
    scale = Normalize(0, max(_range(rows)[1], 1.5))
    return _draw_maps(results, rows, scale, "attention × positions", (1.0, "uniform"))


def _percent(fraction: float) -> str:
    return "–" if np.isnan(fraction) else f"{100 * fraction:.0f} %"


def _range(rows: Sequence[Sequence[_Map]]) -> tuple[float, float]:
    """The smallest and the largest value of all maps; 0 to 1 if none is defined."""
    values = np.concatenate([m.values.ravel() for row in rows for m in row])
    return (
        (float(np.nanmin(values)), float(np.nanmax(values)))
        if np.isfinite(values).any()
        else (0.0, 1.0)
    )


def _draw_maps(
    results: Sequence[PositionProbe | AttentiveResult],
    rows: Sequence[Sequence[_Map]],
    scale: Normalize,
    label: str,
    mark: tuple[float, str],
) -> Figure:
    """One row of maps per network, each with a colour bar in which the value `mark` is named."""
    columns = max(map(len, rows))
    # A lone column still leaves room for the name of its network.
    figure = Figure(figsize=(max(1.9 * columns + 1.5, 5.2), 2.35 * len(rows) + 0.3))
    low, high = float(scale.vmin or 0), float(scale.vmax or 1)
    ticks = [float(f"{t:.2g}") for t in np.linspace(low, high, 4)]
    ticks = [t for t in ticks if low <= t <= high and abs(t - mark[0]) > 0.13 * (high - low)]
    for part, result, row in zip(
        np.ravel(figure.subfigures(len(rows), 1, squeeze=False)), results, rows
    ):
        panels = part.subplots(1, columns, squeeze=False)[0]
        for axes, shown in zip(panels, row):
            height, width = shown.values.shape
            axes.imshow(
                shown.values,
                cmap=SEQUENTIAL,
                norm=scale,
                aspect="equal" if height > 1 or width == 1 else "auto",
            )
            title = f"{cut(shown.layer.name, 18)}\n{height}×{width}, {shown.note}"
            axes.set_title(title, fontsize=7.5, fontweight="normal")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes in panels[len(row) :]:
            axes.remove()
        part.suptitle(model_label(result.model), fontsize=9, fontweight="bold", x=0.01, ha="left")
        bar = part.colorbar(
            ScalarMappable(scale, SEQUENTIAL),
            ax=list(panels[: len(row)]),
            shrink=0.9,
            aspect=18,
            pad=0.02,
        )
        bar.set_ticks(
            [*ticks, mark[0]], labels=[*(f"{t:g}" for t in ticks), f"{mark[0]:.3g} {mark[1]}"]
        )
        bar.ax.axhline(mark[0], color="white", linewidth=2.2)
        bar.ax.axhline(mark[0], color="#C00000", linewidth=1.2)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(label, fontsize=7.5)
        bar.outline.set_visible(False)
    return figure


@styled
def patch_position_curves(results: Sequence[PatchPosition]) -> Figure:
    """Error of the position decoded from a token (px of the model's input), and R² of row and
    column.

    Dotted lines are untrained baselines, grey lines chance, bands 95 % intervals for other training
    and test images. The point at depth 0 is the stem: position information in patch content."""
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
    left.set(
        title="Distance to the true position",
        xlabel="relative depth",
        ylabel="mean error (px)",
        xlim=(-0.02, 1.02),
    )
    left.set_ylim(bottom=0)
    right.set(
        title="Row and column",
        xlabel="relative depth",
        ylabel="R² on test images",
        xlim=(-0.02, 1.02),
    )
    right.set_ylim(top=1.03)
    key_below(figure, model_keys([one.model for one in curves], False, "chance"))
    return figure
