"""Figures of the atoms of a dictionary: a gallery with the same atom side by side in all networks,
and how shared atoms are against what their removal does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.concepts.atoms import ConceptAtoms
from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.board import FILL, Board
from mixer_probe.plotting.style import (
    COLOURS,
    GREY,
    MARKERS,
    SEQUENTIAL,
    model_label,
    plain,
    styled,
)

# Inches of a crop and of the panels of bars; widths of texts and gaps in crops.
_SIZE, _BARS, _TEXT, _GAP, _HEAD = 0.66, 1.75, 3.0, 0.35, 0.55


@styled
def atom_gallery(result: ConceptAtoms, atoms: Sequence[int]) -> Figure:
    """One row per atom: its mean activity by cell in each network, the crops in which it is most
    active, the cell in a box, its energy in each network, and the magnitude of the change of the
    logit of the right class without it, beside that along random directions (open diamonds).

    `atoms` are places in the result. Raises MeasureError without atoms."""
    if not len(atoms):
        raise MeasureError("there is no atom to draw")
    # The map comes before the crops.
    networks, k = result.top_image.shape[0], result.top_image.shape[2] + 1
    ratio = result.crops.shape[3] / result.crops.shape[4]
    step = max(ratio + 0.1, 1.1)
    wide, high = _TEXT + networks * (k + _GAP), _HEAD + step * len(atoms)
    panels = 1 + int(result.n_causal > 0)
    size = wide * _SIZE + panels * (_BARS + 0.25) + 0.2, high * _SIZE + 0.75
    figure = Figure(figsize=size)
    figure.set_layout_engine("none")
    bottom, top = 0.7 / size[1], high * _SIZE / size[1]
    board = Board(
        figure.add_axes((0.05 / size[0], bottom, wide * _SIZE / size[0], top)),
        (0, wide),
        (0, high),
        ratio,
    )
    for i, model in enumerate(result.models):
        x = _TEXT + i * (k + _GAP)
        board.text(model_label(model), x, 0.1, fontsize=9, fontweight="bold", color=COLOURS[i])
    for row, atom in enumerate(atoms):
        y = _HEAD + row * step
        _describe(board, result, atom, y)
        for i in range(networks):
            _crops(board, result, i, atom, _TEXT + i * (k + _GAP), y)
    for panel in range(panels):
        left = (wide * _SIZE + 0.25 + panel * (_BARS + 0.25)) / size[0]
        axes = figure.add_axes((left, bottom, _BARS / size[0], top))
        axes.set(ylim=(high, 0), yticks=[])
        axes.spines["left"].set_visible(False)
        for row in range(len(atoms)):
            axes.axhline(_HEAD + (row + 1) * step - 0.05, color="#dddddd", linewidth=0.6)
        places = _HEAD + step * (np.arange(len(atoms)) + 0.5) - 0.05
        (_effects if panel else _energies)(axes, result, atoms, places)
    keys = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], linestyle="", label=model_label(m))
        for i, m in enumerate(result.models)
    ]
    if result.n_causal:
        keys.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker="d",
                markerfacecolor="white",
                linestyle="",
                label="random direction",
            )
        )
    figure.legend(handles=keys, loc="lower left", ncols=len(keys), fontsize=8)
    return figure


def _describe(board: Board, result: ConceptAtoms, atom: int, y: float) -> None:
    """The number of an atom, and what it is in the network with most of its energy."""
    i = int(result.energies[:, atom].argmax())
    board.text(f"atom {result.index[atom]}", 0, y, fontsize=8.5, fontweight="bold")
    best = int(result.best_class[i, atom])
    lines = []
    if best >= 0:
        name, p = result.class_names[best], result.class_p[i, atom]
        star = "*" if p <= 0.05 else ""
        lines.append(f"{name[:14]}: AUROC {result.auroc[i, atom]:.2f}{star}")
    star = "*" if result.position_p[i, atom] <= 0.05 else ""
    lines.append(f"position explains {100 * result.position_r2[i, atom]:.1f} %{star}")
    lines.append(f"{result.frequency[i, atom, 0]:.1f} cycles per image")
    for j, line in enumerate(lines):
        board.text(plain(line), 0, y + 0.27 + 0.21 * j, fontsize=7.5)


def _crops(board: Board, result: ConceptAtoms, i: int, atom: int, x: float, y: float) -> None:
    shown = np.flatnonzero(result.top_value[i, atom] > 0)
    if not result.present[i, atom]:
        text = "less than 1 % of its energy" if len(shown) else "never active"
        board.text(text, x, y + FILL / 2, fontsize=7.5, color=GREY, va="center")
        return
    mean = result.mean_map[i, atom]
    board.crop((255 * colormaps[SEQUENTIAL](mean / mean.max())[..., :3]).astype(np.uint8), x, y)
    for rank in shown:
        place = x + 1 + float(rank)
        board.picture(result.crops[i, atom, rank], place, y, result.boxes[i, atom, rank])


def _offsets(networks: int) -> np.ndarray:
    """Distances of the networks' bars from the middle of a row."""
    return 0.26 * (np.arange(networks) - (networks - 1) / 2)


def _energies(axes: Axes, result: ConceptAtoms, atoms: Sequence[int], places: np.ndarray) -> None:
    for i, away in enumerate(_offsets(len(result.models))):
        values = 100 * result.energies[i, atoms]
        axes.barh(places + away, values, height=0.2, color=COLOURS[i])
    axes.set_xlim(left=0)
    axes.set_xlabel("energy (% of variance)", fontsize=8)
    axes.tick_params(labelsize=7.5)


def _effects(axes: Axes, result: ConceptAtoms, atoms: Sequence[int], places: np.ndarray) -> None:
    significant = result.used
    for i, away in enumerate(_offsets(len(result.models))):
        value, low, high = result.effect[i, atoms].T
        control = result.control[i, atoms].mean(-1)
        axes.plot(
            control,
            places + away,
            color=COLOURS[i],
            marker="d",
            markersize=4,
            linestyle="",
            markerfacecolor="white",
            zorder=3,
        )
        known = np.isfinite(low)
        axes.hlines((places + away)[known], low[known], high[known], color=COLOURS[i], linewidth=1)
        for full in (True, False):
            chosen = significant[i, atoms] == full
            axes.plot(
                value[chosen],
                (places + away)[chosen],
                color=COLOURS[i],
                marker=MARKERS[i],
                linestyle="",
                markersize=4.5,
                markerfacecolor=COLOURS[i] if full else "white",
                zorder=4,
            )
    axes.set_xlim(left=0)
    axes.set_xlabel("magnitude of logit change", fontsize=8)
    axes.tick_params(labelsize=7.5)


@styled
def atom_scatter(result: ConceptAtoms) -> Figure:
    """How much more the logit of the right class changes without an atom than along a random
    direction, against how equally its energy is divided among networks; full markers where the
    difference is significant. Raises MeasureError without effects, and for a single network."""
    if not result.n_causal or len(result.models) < 2:
        raise MeasureError("there is no effect of removal to draw, or no second network")
    figure = Figure(figsize=(5.6, 3.6))
    axes, significant = figure.subplots(), result.used
    axes.axhline(0, color=GREY, linewidth=0.8)
    for i, model in enumerate(result.models):
        value, low, high = result.excess[i].T
        x = result.sharedness + 0.006 * (i - (len(result.models) - 1) / 2)
        known = np.isfinite(low)
        axes.vlines(x[known], low[known], high[known], color=COLOURS[i], linewidth=0.8, alpha=0.6)
        for full in (True, False):
            chosen = known & (significant[i] == full)
            axes.plot(
                x[chosen],
                value[chosen],
                color=COLOURS[i],
                marker=MARKERS[i],
                linestyle="",
                markersize=5,
                markerfacecolor=COLOURS[i] if full else "white",
            )
        axes.plot(
            [], [], color=COLOURS[i], marker=MARKERS[i], linestyle="", label=model_label(model)
        )
    axes.set(
        xlabel="sharedness of the atom (0: one network, 1: equal energy in all)",
        ylabel="magnitude of the logit change\nminus that along random directions",
        xlim=(-0.04, 1.04),
    )
    figure.legend(loc="outside lower center", ncols=len(result.models))
    return figure
