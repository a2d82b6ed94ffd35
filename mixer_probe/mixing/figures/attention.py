"""Figures of attention: how far every head attends by depth, and where tokens of large norm are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.words import primary, untrained_baseline
from mixer_probe.mixing.attention import AttentionDistance
from mixer_probe.models.layer import spread
from mixer_probe.plotting.curves import curve, cut, key_below
from mixer_probe.plotting.style import COLOURS, GREY, SEQUENTIAL, model_label, plain, styled

_MEAN: dict[str, Any] = {"color": COLOURS[1], "marker": "s"}
_UNTRAINED: dict[str, Any] = {**_MEAN, "linestyle": ":", "markerfacecolor": "white"}
_ROLLOUT: dict[str, Any] = {"color": COLOURS[2], "marker": "^"}
_DOT: dict[str, Any] = {"color": COLOURS[0], "marker": "o", "linestyle": "", "alpha": 0.75}
_UNIFORM: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": "--"}
_MOST_MAPS = 6


@styled
def attention_distances(results: Sequence[AttentionDistance]) -> Figure:
    """Mean attention distance of every head by block, one column per network; below it the
    attention of patches to prefix tokens, where there are any.

    Dots are heads, lines the mean over heads, that of the untrained baseline and rollout, bands 95
    % intervals over images; dashed is uniform attention. Raises MeasureError without a result."""
    own = primary(results)
    if not own:
        raise MeasureError("there is no attention distance to draw")
    with_prefix = any(np.isfinite(r.prefix.value).any() for r in own)
    rows = 1 + with_prefix
    figure = Figure(figsize=(max(3.4 * len(own), 4.6), 2.9 * rows))
    panels = figure.subplots(rows, len(own), squeeze=False, sharex="col", sharey="row")
    found = set()
    for axes, result in zip(panels[0], own):
        baseline, blocks = untrained_baseline(result, results), 1 + np.arange(len(result.blocks))
        uniform = result.uniform
        axes.step([0.5, *(blocks + 0.5)], [uniform[0], *uniform], where="pre", **_UNIFORM)
        axes.plot(
            np.repeat(blocks, result.distance.value.shape[1]), result.distance.value.ravel(), **_DOT
        )
        if np.isfinite(result.rollout.value).any():
            of = result.rollout
            curve(axes, blocks, of.value, (of.low, of.high), _ROLLOUT)
            found.add("rollout")
        for of, style in (
            (result.mean, _MEAN),
            *([(baseline.mean, _UNTRAINED)] if baseline else []),
        ):
            curve(axes, blocks, of.value, (of.low, of.high), style)
        found.update(["untrained"] if baseline else [])
        axes.set_title(plain(model_label(result.model)), fontsize=9)
        axes.set_xlim(0.4, len(blocks) + 0.6)
    panels[0, 0].set(ylabel="mean attention distance (px)", ylim=(0, None))
    for axes, result in zip(panels[1] if with_prefix else (), own):
        blocks, values = 1 + np.arange(len(result.blocks)), 100 * result.prefix.value
        if not np.isfinite(values).any():
            axes.remove()
            continue
        axes.plot(np.repeat(blocks, values.shape[1]), values.ravel(), **_DOT)
        with np.errstate(invalid="ignore"):
            axes.plot(blocks, np.nansum(values, 1) / np.isfinite(values).sum(1), **_MEAN)
    shown = [axes for axes in panels[1:].flat if axes in figure.axes]
    if shown:
        shown[0].set(ylabel="attention to\nprefix tokens (%)", ylim=(0, None))
        shown[0].tick_params(labelleft=True)
    for column in panels.T:
        lowest = [axes for axes in column if axes in figure.axes][-1]
        lowest.set_xlabel("block")
        lowest.tick_params(labelbottom=True)
        lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    keys = [Line2D([], [], label="head", **_DOT), Line2D([], [], label="mean over heads", **_MEAN)]
    if "untrained" in found:
        keys.append(Line2D([], [], label="untrained baseline", **_UNTRAINED))
    if "rollout" in found:
        keys.append(Line2D([], [], label="rollout", **_ROLLOUT))
    key_below(figure, [*keys, Line2D([], [], label="uniform attention", **_UNIFORM)])
    return figure


@styled
def high_norm_maps(result: AttentionDistance) -> Figure:
    """Patch tokens of large norm: their number per image by block, and of up to six blocks how
    often each position is one.

    Bars are 95 % intervals over images."""
    tokens, blocks = result.tokens, 1 + np.arange(len(result.blocks))
    chosen = spread(result.blocks, _MOST_MAPS)
    figure = Figure(figsize=(max(1.5 * len(chosen), 4.6), 4.0))
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1))[:, 0]
    axes = top.subplots()
    bars = np.stack([tokens.count.value - tokens.count.low, tokens.count.high - tokens.count.value])
    axes.errorbar(
        blocks,
        tokens.count.value,
        yerr=np.nan_to_num(np.maximum(bars, 0)),
        color=COLOURS[0],
        marker="o",
    )
    axes.set(
        xlabel="block",
        ylabel="high-norm tokens\nper image",
        title=plain(model_label(result.model)),
        ylim=(min(0.0, axes.get_ylim()[0]), None),
    )
    panels = below.subplots(1, len(chosen), squeeze=False)[0]
    scale = max(float(tokens.places[k].max()) for k in chosen) or 1.0
    image = None
    for panel, k in zip(panels, chosen):
        image = panel.imshow(100 * tokens.places[k], cmap=SEQUENTIAL, vmin=0, vmax=100 * scale)
        panel.set_title(cut(result.blocks[k].name, 14), fontsize=7.5, fontweight="normal")
        panel.axis("off")
    bar = below.colorbar(image, ax=list(panels), shrink=0.8, aspect=12)
    bar.set_label("images (%)", fontsize=7.5)
    bar.outline.set_visible(False)
    return figure
