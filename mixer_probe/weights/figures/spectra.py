"""Figures of weight spectra: ranks and norms by depth, and singular values beside those of iid
weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixer_probe.plotting.style import (
    COLOURS,
    GREY,
    heading,
    line_styles,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights.figures.tiles import first_middle_last
from mixer_probe.weights.spectra import KINDS, WeightSpectra

_KIND_TITLES = {
    "spatial": "spatial mixing",
    "channel": "channel mixing",
    "both": "both (k×k convolutions)",
}
_ROWS = (
    ("stable_rank_fraction", "null_stable_rank_fraction", "stable rank\n÷ full rank"),
    ("effective_rank_fraction", "null_effective_rank_fraction", "effective rank\n÷ full rank"),
    ("norm_over_null", None, "spectral norm\n÷ that of iid weights"),
    ("rms", None, "root mean square\nsingular value"),
)


@styled
def spectra_depth(results: Sequence[WeightSpectra]) -> Figure:
    """Ranks and norms of the mixing matrices by depth: one column per kind, one row per measure,
    one line per model.

    Points are means over the main matrices of a block. Thin dashes are iid weights of the same
    shapes and norms."""
    kinds = [kind for kind in KINDS if any(kind in r.kinds for r in results)]
    figure = Figure(figsize=(3.1 * len(kinds) + 0.9, 7.4))
    panels = figure.subplots(len(_ROWS), len(kinds), squeeze=False, sharex=True, sharey="row")
    styles = line_styles([r.model for r in results])
    for result in results:
        table, style = result.by_depth(), styles[result.model.name]
        for column, kind in zip(panels.T, kinds):
            own = table[table["kind"] == kind]
            for axes, (name, null, _label) in zip(column, _ROWS):
                axes.plot(own["depth"], own[name], **style)
                if null and result.model.trained:
                    axes.plot(
                        own["depth"],
                        own[null],
                        color=style["color"],
                        linewidth=1,
                        linestyle="--",
                        alpha=0.7,
                    )
    for axes, kind in zip(panels[0], kinds):
        axes.set_title(_KIND_TITLES[kind])
    for row, (_name, null, label) in zip(panels, _ROWS):
        row[0].set_ylabel(label, fontsize=8)
        if null:
            heights = [
                np.asarray(line.get_ydata(), dtype=float) for axes in row for line in axes.lines
            ]
            row[0].set_ylim(0, 1.08 * float(np.nanmax(np.concatenate([*heights, [1e-3]]))))
            continue
        row[0].set_yscale("log")
        for axes in row:
            # Powers of ten are rare in so narrow a range, so ticks between them are labelled too.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in panels[2]:
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    for axes in panels[-1]:
        axes.set(xlabel="relative depth", xlim=(0, 1.03))
    handles = [Line2D([], [], label=model_label(r.model), **styles[r.model.name]) for r in results]
    handles.append(
        Line2D(
            [], [], color=GREY, linestyle="--", linewidth=1, label="iid weights of the same norm"
        )
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), int(figure.get_figwidth() / 2.6)),
    )
    return figure


@styled
def singular_values(result: WeightSpectra, blocks: Sequence[str] | None = None) -> Figure:
    """Singular values of the main matrices of some blocks (first, middle, last unless named)
    against their rank.

    Values are divided by their root mean square, so that the dashed iid weights of the same shape
    are comparable.

    Raises LayerError for a block that the model does not have."""
    chosen = (
        [result.blocks[i] for i in first_middle_last(len(result.blocks))]
        if blocks is None
        else list(blocks)
    )
    entries = [result.select(block=block, main=True) for block in chosen]
    kinds = [kind for kind in KINDS if any(e.kind == kind for found in entries for e in found)]
    figure = Figure(figsize=(max(3.1 * len(chosen) + 0.6, 7.0), 2.5 * len(kinds) + 0.7))
    panels = figure.subplots(len(kinds), len(chosen), squeeze=False, sharex=True, sharey=True)
    for row, kind in zip(panels, kinds):
        by_block = [[e for e in found if e.kind == kind] for found in entries]
        colours = dict(
            zip(dict.fromkeys(e.role for found in by_block for e in found), cycle(COLOURS))
        )
        for axes, found in zip(row, by_block):
            axes.plot([], [])
            axes.set(yscale="log", ylim=(0.03, None))
            drawn = [e for e in found if e.rms > 0]
            if not drawn:
                axes.text(
                    0.5,
                    0.5,
                    "no such matrix",
                    transform=axes.transAxes,
                    ha="center",
                    color=GREY,
                    fontsize=8,
                )
            for e in drawn:
                axes.plot(*_thinned(e.values / e.rms), color=colours[e.role])
                null = _thinned(result.null_values(e) / e.rms)
                axes.plot(*null, color=colours[e.role], linestyle="--", linewidth=1, alpha=0.7)
        handles = [
            Line2D([], [], color=colour, label=plain(role)) for role, colour in colours.items()
        ]
        row[-1].legend(handles=handles, loc="upper right", fontsize=7)
        row[0].set_ylabel(f"{_KIND_TITLES[kind]}\nvalue ÷ rms", fontsize=8)
    for axes, block in zip(panels[0], chosen):
        axes.set_title(plain(block))
    for axes in panels[-1]:
        axes.set(xlabel="rank ÷ full rank", xlim=(0, 1))
    heading(figure, f"{model_label(result.model)} · singular values (dashed: iid weights)")
    return figure


_MOST_POINTS = 400


def _thinned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative rank and value, of at most a few hundred points that are dense among the largest."""
    count = len(values)
    index = np.arange(count)
    if count > _MOST_POINTS:
        index = np.unique(np.r_[np.arange(50), np.linspace(0, count - 1, _MOST_POINTS).astype(int)])
    return (index + 0.5) / count, values[index]
