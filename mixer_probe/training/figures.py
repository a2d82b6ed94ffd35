"""Figures of training runs: curves over steps, quantities by depth, both at once, and similarities
within and between arms."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from PIL import Image, ImageDraw

from mixer_probe.core.words import FAMILIES
from mixer_probe.plotting.curves import key_below
from mixer_probe.plotting.style import COLOURS, DIVERGING, MARKERS, SEQUENTIAL, heading, styled
from mixer_probe.training.quantities import RunQuantity, RunSimilarity, UnitHistory


@styled
def run_curves(results: Sequence[RunQuantity]) -> Figure:
    """A quantity over training steps (logarithmic), a panel per family: thin lines are seeds, thick
    ones their mean, a colour per arm."""
    return _panels(results, _curves, "training step")


@styled
def run_depths(results: Sequence[RunQuantity]) -> Figure:
    """A quantity of the trained networks by relative depth, a panel per family, lines as in
    `run_curves`; of networks without layers, a point per seed and arm."""
    if all(len(r.layers) == 1 for r in results):
        return _panels(results, _points, "")
    return _panels(results, _depths, "relative depth")


@styled
def run_maps(results: Sequence[RunQuantity]) -> Figure:
    """A quantity by training step and layer, averaged over seeds, with one colour scale: a row per
    family and a column per arm, of one arm a column per family."""
    maps = [(r, arm, r.values[i].mean(0)) for r in results for i, arm in enumerate(r.arms)]
    columns = max(len(r.arms) for r in results)
    columns = len(results) if columns == 1 else columns
    figure = Figure(figsize=(1.2 + 3.2 * columns, 0.6 + 2.1 * -(-len(maps) // columns)))
    grid = figure.subplots(-(-len(maps) // columns), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    scale = 100 if results[0].unit == "%" else 1
    finite = scale * np.concatenate([values[np.isfinite(values)] for _, _, values in maps])
    bounds = {"vmin": float(finite.min()), "vmax": float(finite.max())}
    for axes, (r, arm, values) in zip(grid.flat, maps, strict=False):
        axes.set_visible(True)
        image = axes.imshow(
            scale * values.T, aspect="auto", cmap=SEQUENTIAL, origin="lower", **bounds
        )
        ticks = np.unique(np.linspace(0, len(r.steps) - 1, 5).round().astype(int))
        axes.set_xticks(ticks, [f"{r.steps[i]:,}" for i in ticks])
        axes.set_yticks(range(len(r.layers)), r.layers)
        name = FAMILIES.get(r.family, r.family)
        axes.set(title=name if len(r.arms) == 1 else f"{name}, {arm}", xlabel="training step")
    figure.colorbar(
        image, ax=grid, shrink=0.8, label=_label(results[0]) + (" in %" if scale == 100 else "")
    )
    return figure


@styled
def similarity_curves(results: Sequence[RunSimilarity]) -> Figure:
    """Similarity by relative depth, a panel per family: between seeds of the reference arm,
    and between it and every other arm; thin lines are single pairs."""
    figure = Figure(figsize=(1 + 3.0 * len(results), 3.2))
    grid = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    arms = list(dict.fromkeys(arm for r in results for arm in r.arms))
    for axes, r in zip(grid, results, strict=True):
        own = list(dict.fromkeys(r.arms))
        for i, arm in enumerate(own):
            mean = r.within(arm) if i == 0 else r.between(own[0], arm)
            axes.plot(r.depths, mean, **_style(arms, arm), linewidth=2)
            for pair in _pairs(r, own[0], arm):
                axes.plot(r.depths, pair, color=COLOURS[arms.index(arm)], alpha=0.3, linewidth=0.7)
        axes.set(title=FAMILIES.get(r.family, r.family), xlabel="relative depth", xlim=(0, 1.02))
    grid[0].set_ylabel(results[0].measure)
    keys = [Line2D([], [], **_style(arms, arm), label=_pair_label(arms[0], arm)) for arm in arms]
    key_below(figure, keys)
    return figure


def _pair_label(reference: str, arm: str) -> str:
    return f"two seeds, {reference}" if arm == reference else f"{reference} and {arm}"


def _pairs(r: RunSimilarity, reference: str, arm: str) -> list[np.ndarray]:
    rows = [i for i, name in enumerate(r.arms) if name == reference]
    columns = [i for i, name in enumerate(r.arms) if name == arm]
    pairs = [(i, j) for i in rows for j in columns if r.seeds[i] != r.seeds[j]]
    return [r.values[i, j] for i, j in pairs if i < j or arm != reference]


def _panels(
    results: Sequence[RunQuantity], draw: Callable[[Axes, RunQuantity, list[str]], None], x: str
) -> Figure:
    """A panel per family, with one legend of all arms."""
    figure = Figure(figsize=(1 + 3.0 * len(results), 3.2))
    grid = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    arms = list(dict.fromkeys(arm for r in results for arm in r.arms))
    for axes, r in zip(grid, results, strict=True):
        draw(axes, r, arms)
        axes.set(title=FAMILIES.get(r.family, r.family), xlabel=x)
        if r.unit == "%":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    grid[0].set_ylabel(_label(results[0]))
    key_below(figure, [Line2D([], [], **_style(arms, arm), label=arm) for arm in arms])
    return figure


def _curves(axes: Axes, r: RunQuantity, arms: list[str]) -> None:
    # Step 0, before the training, has no place on a logarithmic axis.
    later = [i for i, step in enumerate(r.steps) if step > 0]
    steps = np.array(r.steps)[later]
    for arm, values in zip(r.arms, r.values.mean(3)[:, :, later], strict=True):
        _seeds(axes, steps, values, _style(arms, arm))
    axes.set_xscale("log")


def _depths(axes: Axes, r: RunQuantity, arms: list[str]) -> None:
    for arm, values in zip(r.arms, r.values[:, :, -1], strict=True):
        _seeds(axes, r.depths, values, _style(arms, arm))
    axes.set_xlim(0, 1.02)


def _points(axes: Axes, r: RunQuantity, arms: list[str]) -> None:
    for arm, values in zip(r.arms, r.values[:, :, -1, 0], strict=True):
        style = _style(arms, arm) | {"linestyle": "none"}
        axes.plot(np.full(len(values), arms.index(arm)), values, alpha=0.6, **style)
        axes.plot([arms.index(arm) - 0.3, arms.index(arm) + 0.3], [values.mean()] * 2, "-k", lw=1)
    axes.set_xticks([])


def _seeds(axes: Axes, x: np.ndarray, values: np.ndarray, style: dict[str, Any]) -> None:
    for seed in values:
        axes.plot(x, seed, color=style["color"], alpha=0.35, linewidth=0.8)
    axes.plot(x, values.mean(0), **style)


def _style(arms: Sequence[str], arm: str) -> dict[str, Any]:
    i = list(arms).index(arm)
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _label(r: RunQuantity) -> str:
    return fill(r.quantity if r.unit in ("", "%") else f"{r.quantity} ({r.unit})", 36)


@styled
def unit_history(result: UnitHistory, units: int = 8) -> Figure:
    """Units (rows) by training step (columns), each divided by its largest absolute weight."""
    maps = result.maps[:, :units].astype(np.float64)
    figure = Figure(figsize=(0.5 + 0.55 * maps.shape[0], 0.7 + 0.55 * maps.shape[1]))
    grid = figure.subplots(maps.shape[1], maps.shape[0], squeeze=False)
    for step, column in enumerate(grid.T):
        column[0].set_title(
            f"{result.steps[step]:,}", fontsize=7, loc="center", fontweight="normal"
        )
        for axes, map_ in zip(column, maps[step], strict=True):
            most = np.abs(map_).max() or 1.0
            axes.imshow(map_ / most, cmap=DIVERGING, vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    heading(figure, "training step")
    return figure


def animated_units(result: UnitHistory, seconds: float = 0.5, size: int = 12) -> bytes:
    """The units at every step, as an animated WebP picture: a grid of maps, each divided by its
    largest absolute weight; `seconds` per step, `size` pixels per weight."""
    count = result.maps.shape[1]
    columns = int(np.ceil(np.sqrt(count * 1.5)))
    frames = []
    for step, maps in zip(result.steps, result.maps.astype(np.float64), strict=True):
        most = np.abs(maps).max((1, 2), keepdims=True)
        scaled = np.divide(maps, most, out=np.zeros_like(maps), where=most > 0)
        padded = np.pad(scaled, ((0, -count % columns), (0, 1), (0, 1)), constant_values=np.nan)
        rows = padded.reshape(-1, columns, *padded.shape[1:]).transpose(0, 2, 1, 3)
        board = rows.reshape(rows.shape[0] * rows.shape[1], -1)
        colours = colormaps[DIVERGING]((board + 1) / 2, bytes=True)[..., :3].copy()
        colours[np.isnan(board)] = 255
        frame = Image.fromarray(colours.repeat(size, 0).repeat(size, 1))
        titled = Image.new("RGB", (frame.width, frame.height + 24), "white")
        titled.paste(frame, (0, 24))
        ImageDraw.Draw(titled).text((4, 4), f"training step {step:,}", fill="black")
        frames.append(titled)
    stream = io.BytesIO()
    frames[0].save(
        stream,
        "webp",
        save_all=True,
        append_images=frames[1:],
        duration=int(1000 * seconds),
        loop=0,
        lossless=True,
    )
    return stream.getvalue()
