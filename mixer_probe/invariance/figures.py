"""Figures of distortions: examples, accuracy, robustness by architecture, error consistency and
representation shift."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.core.words import FAMILIES
from mixer_probe.invariance import (
    ArchitectureComparison,
    DistortionAccuracy,
    DistortionExamples,
    ErrorConsistency,
    RepresentationShift,
)
from mixer_probe.invariance.standard import filter_type
from mixer_probe.plotting.curves import chance_line, curve, fraction_text, key_below, model_keys
from mixer_probe.plotting.style import (
    COLOURS,
    GREY,
    MARKERS,
    SEQUENTIAL,
    line_styles,
    model_label,
    plain,
    styled,
)

Value = Literal["accuracy", "kept", "agreement"]

_AXES = {
    "accuracy": "accuracy (%)",
    "kept": "kept of the margin (%)",
    "agreement": "same prediction (%)",
}
_MOST_PAIRS = 36
_MOST_MAPS = 9
# Cells of a heat map of more networks have no room for a second number.
_ROOM = 8


@styled
@checked(MeasureError)
def distortion_curves(results: Sequence[DistortionAccuracy], value: Value = "accuracy") -> Figure:
    """One panel per kind of distortion, from the undistorted images on the left to the most severe;
    bands are 95 % intervals.

    `value` is "accuracy", "kept" (the retained fraction of the accuracy above chance) or
    "agreement" (with the prediction for the undistorted image). Grey lines are chance. Raises
    MeasureError for another value, and for results without a distortion."""
    kinds = list(dict.fromkeys(kind for r in results for kind in r.kinds))
    if not kinds:
        raise MeasureError("there is no distortion to draw")
    figure, panels = _panels(len(kinds), 4, (2.6, 2.5), 0.2)
    styles = line_styles([r.model for r in results])
    for axes, kind in zip(panels.flat, kinds):
        measured = [r for r in results if kind in r.kinds]
        for result in measured:
            rows, estimate = result.filter_type(kind), getattr(result, value)
            # The undistorted images are the first row of accuracy, and the reference of the other
            # values.
            start, index = (
                ([], [0, *(i + 1 for i in rows)]) if value == "accuracy" else ([1.0], rows)
            )
            sides = (estimate.value, estimate.low, estimate.high)
            middle, low, high = (100 * np.concatenate([start, side[index]]) for side in sides)
            curve(axes, np.arange(len(middle)), middle, (low, high), styles[result.model.name])
        if value == "agreement":
            by_chance = 100 * np.mean(
                [r.agreement_by_chance[r.filter_type(kind)] for r in measured], axis=0
            )
            steps = 1 + np.arange(len(by_chance))
            axes.hlines(by_chance, steps - 0.3, steps + 0.3, color=GREY, linewidth=1)
        else:
            chance_line(axes, [0.0] if value == "kept" else [100 * r.chance for r in measured])
        shown = [measured[0].distortions[i] for i in measured[0].filter_type(kind)]
        texts = ["none", *(d.strength_text for d in shown)]
        turn = {"rotation": 40, "ha": "right"} if max(map(len, texts)) * len(texts) > 22 else {}
        axes.set_xticks(range(len(texts)), texts, fontsize=7.5, **turn)
        axes.set_title(plain(kind), fontsize=8.5)
        axes.set_xlabel(shown[0].unit, fontsize=8)
    for row in panels:
        row[0].set_ylabel(_AXES[value])
    highest = fraction_text(max(r.chance for r in results))
    chance = {
        "accuracy": f"chance ({highest})",
        "kept": "chance",
        "agreement": "independent predictions",
    }[value]
    key_below(figure, model_keys([r.model for r in results], chance=chance))
    return figure


def _panels(
    count: int, most: int, size: tuple[float, float], below: float, *, sharex: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure of `count` panels of a size in rows of at most `most` that share the y axis, with
    room below, and their grid."""
    columns = min(most, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(size[0] * columns + 0.5, 4.2), size[1] * rows + below))
    panels: np.ndarray = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=True)
    for axes in panels.flat[count:]:
        axes.remove()
    return figure, panels


@styled
def architecture_dots(result: ArchitectureComparison) -> Figure:
    """The retained accuracy above chance of each family under each kind of distortion, averaged
    over strengths.

    Bars are 95 % intervals over images; small open marks are the single networks."""
    count = len(result.kinds)
    figure = Figure(figsize=(7.6, 0.52 * count + 1.0))
    axes = figure.add_subplot()
    offsets = np.linspace(-0.24, 0.24, len(result.groups)) if len(result.groups) > 1 else [0.0]
    for g, (group, offset) in enumerate(zip(result.groups, offsets)):
        y = np.arange(count) + offset
        style: dict[str, Any] = {"color": COLOURS[g], "marker": MARKERS[g], "linestyle": ""}
        bars = np.stack([result.kept[g] - result.low[g], result.high[g] - result.kept[g]])
        networks = len(result.networks_of(group))
        label = f"{FAMILIES.get(group, group)}, {networks} network{'s' if networks > 1 else ''}"
        axes.errorbar(100 * result.kept[g], y, xerr=100 * np.maximum(bars, 0), label=label, **style)
        for i in result.networks_of(group):
            axes.plot(
                100 * result.by_network[i],
                y,
                **style,
                markersize=3,
                markerfacecolor="white",
                alpha=0.7,
            )
    for k in range(count - 1):
        axes.axhline(k + 0.5, color=GREY, linewidth=0.4, alpha=0.5)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(100, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(
        range(count),
        [f"{plain(kind)}\n{text}" for kind, text in zip(result.kinds, result.strengths)],
        fontsize=7.5,
    )
    axes.set_ylim(count - 0.5, -0.5)
    axes.set(
        xlabel="retained accuracy above chance (%), mean over strengths",
        title="Robustness by architecture",
    )
    key_below(figure, axes.get_legend_handles_labels()[0])
    return figure


# -- error consistency -----------------------------------------------------------------------------


@styled
def error_consistency_pairs(result: ErrorConsistency, row: int = 0) -> Figure:
    """Kappa of every pair, most consistent first, on undistorted images or under one distortion
    (`row` 0, or its number from 1).

    Bars are 95 % intervals over images; grey bands hold 95 % of the kappas of independent errors;
    ticks are the largest kappa that the two accuracies allow. Of more than 36 pairs the first are
    shown."""
    pairs = [(i, j) for i in range(len(result.models)) for j in range(i + 1, len(result.models))]
    defined = [pair for pair in pairs if np.isfinite(result.kappa[row][pair])]
    if not defined:
        raise MeasureError("no kappa is defined, so there is none to draw")
    shown = sorted(defined, key=lambda pair: -result.kappa[row][pair])[:_MOST_PAIRS]
    figure = Figure(figsize=(7.6, 0.21 * len(shown) + 1.2))
    axes = figure.add_subplot()
    i, j = np.array(shown).T
    y, value = np.arange(len(shown)), result.kappa[row, i, j]
    null = [result.null_high[row, i, j] - result.null_low[row, i, j], result.null_low[row, i, j]]
    axes.barh(y, null[0], left=null[1], height=0.8, color=GREY, alpha=0.25)
    bars = np.stack([value - result.low[row, i, j], result.high[row, i, j] - value])
    axes.errorbar(
        value, y, xerr=np.maximum(bars, 0), color=COLOURS[0], marker=MARKERS[0], linestyle=""
    )
    axes.plot(
        result.most[row, i, j],
        y,
        color=COLOURS[1],
        marker="|",
        markersize=9,
        markeredgewidth=1.6,
        linestyle="",
    )
    names = [model_label(model) for model in result.models]
    axes.set_yticks(y, [f"{names[a]} – {names[b]}" for a, b in shown], fontsize=7.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(min(-0.1, float(np.nanmin(result.low[row, i, j])) - 0.05), 1.03)
    axes.axvline(0, color=GREY, linewidth=0.8)
    title = plain("Undistorted images" if row == 0 else _two_lines(result.labels[row]))
    axes.set(xlabel="error consistency (kappa)", title=title)
    tick: dict[str, Any] = {
        "color": COLOURS[1],
        "marker": "|",
        "markersize": 9,
        "markeredgewidth": 1.6,
        "linestyle": "",
    }
    keys = [
        Line2D([], [], color=COLOURS[0], marker=MARKERS[0], label="kappa, 95 % interval"),
        Line2D([], [], **tick, label="largest possible"),
        Line2D([], [], color=GREY, alpha=0.3, linewidth=7, label="independent errors (95 %)"),
    ]
    key_below(figure, keys)
    return figure


def telling_rows(result: ErrorConsistency) -> list[int]:
    """The undistorted images and, of each kind, the most severe distortion at which every network
    is above chance: at most nine rows.

    Where all are near chance, kappa is about guesses."""
    rows, able = [0], [bool(row.all()) for row in result.above_chance]
    for kind in dict.fromkeys(d.kind for d in result.distortions):
        rows += [k + 1 for k in filter_type(result.distortions, kind) if able[k + 1]][-1:]
    return rows[:_MOST_MAPS]


@styled
def error_consistency_heatmaps(
    result: ErrorConsistency, rows: Sequence[int] | None = None
) -> Figure:
    """Kappa of every two networks, one map for the undistorted images (row 0) and each of some
    distortions, on one scale.

    Small numbers are the largest kappa possible. `rows` are by default those of `telling_rows`."""
    chosen = list(telling_rows(result) if rows is None else rows)
    count = len(result.models)
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    side = max(0.44 * count, 1.6)
    # Names stand beside and below the maps.
    labels = [model_label(model) for model in result.models]
    names = 0.06 * max(map(len, labels)) + 0.2
    figure = Figure(figsize=((side + 0.35) * columns + names + 1.0, (side + 0.55) * lines + names))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    off = ~np.eye(count, dtype=bool)
    shown = result.kappa[chosen][:, off]
    # Whole tenths, so that the scale is one that can be read.
    low, high = (float(end) for end in (np.nanmin(shown, initial=0), np.nanmax(shown, initial=0.1)))
    scale = Normalize(np.floor(10 * low) / 10, np.ceil(10 * high) / 10)
    for axes, row in zip(panels.flat, chosen):
        values = np.where(off, result.kappa[row], np.nan)
        axes.imshow(values, cmap=SEQUENTIAL, norm=scale)
        for i, j in np.argwhere(np.isfinite(values)) if count <= _ROOM else ():
            colour = "white" if scale(values[i, j]) < 0.6 else "black"
            axes.text(
                j,
                i - 0.12,
                f"{values[i, j]:.2f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color=colour,
            )
            axes.text(
                j,
                i + 0.27,
                f"≤{result.most[row, i, j]:.2f}",
                ha="center",
                va="center",
                fontsize=4.8,
                color=colour,
            )
        axes.set_xticks(range(count), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(count), labels, fontsize=7)
        title = "undistorted" if row == 0 else result.labels[row]
        axes.set_title(plain(_two_lines(title)), fontsize=7.5, fontweight="normal")
    for axes in panels.flat[len(chosen) - columns : len(chosen)]:
        # The last of a column is not in the last row where the rows are not full.
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(chosen) :]:
        axes.remove()
    bar = figure.colorbar(
        ScalarMappable(scale, SEQUENTIAL),
        ax=list(panels.flat[: len(chosen)]),
        shrink=0.8,
        aspect=25,
    )
    bar.set_label("kappa", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _two_lines(label: str) -> str:
    head, comma, tail = label.rpartition(", ")
    return f"{head}\n{tail}" if comma else label


# -- representations -------------------------------------------------------------------------------


@styled
@checked(MeasureError)
def representation_shift_curves(
    results: Sequence[RepresentationShift], measure: Literal["cka", "cosine"] = "cka"
) -> Figure:
    """Similarity of undistorted and distorted images by depth, one panel per distortion; bands are
    95 % intervals.

    Thin grey lines are random pairs of images. Raises MeasureError for another measure."""
    distortions = list(dict.fromkeys(d for r in results for d in r.distortions))
    figure, panels = _panels(len(distortions), 3, (2.9, 2.4), 0.3, sharex=True)
    styles = line_styles([r.model for r in results])
    for axes, distortion in zip(panels.flat, distortions):
        for result in results:
            if distortion in result.distortions:
                d, depths = (
                    result.distortions.index(distortion),
                    [layer.depth for layer in result.layers],
                )
                value, low, high, null = (
                    getattr(result, measure + end)[d] for end in ("", "_low", "_high", "_null")
                )
                axes.plot(depths, null, color=GREY, linewidth=0.6, alpha=0.7)
                curve(axes, depths, value, (low, high), styles[result.model.name])
        axes.set_title(plain(_two_lines(distortion.label)), fontsize=8.5)
    for axes in panels[:, 0]:
        axes.set_ylabel(
            "CKA, undistorted vs distorted"
            if measure == "cka"
            else "cosine, undistorted vs distorted"
        )
    for axes in panels.flat[max(0, len(distortions) - panels.shape[1]) : len(distortions)]:
        axes.set_xlabel("relative depth")
        axes.tick_params(labelbottom=True)
    panels[0, 0].set(xlim=(-0.02, 1.02), ylim=(min(-0.05, panels[0, 0].get_ylim()[0]), 1.03))
    key_below(figure, model_keys([r.model for r in results], chance="random pairs of images"))
    return figure


# -- examples --------------------------------------------------------------------------------------


@styled
def distortion_pictures(result: DistortionExamples, image: int = 0) -> Figure:
    """One image under every distortion: one row per kind, from mild to severe, the undistorted
    image before each.

    Raises MeasureError for an image that is not among the examples."""
    if not 0 <= image < len(result.ids):
        raise MeasureError(
            f"there are {len(result.ids)} example images, from 0 to {len(result.ids) - 1}; no "
            f"image {image}"
        )
    kinds = list(dict.fromkeys(d.kind for d in result.distortions))
    by_kind = {kind: filter_type(result.distortions, kind) for kind in kinds}
    columns = 1 + max(map(len, by_kind.values()))
    figure = Figure(figsize=(1.02 * columns + 1.4, 1.22 * len(kinds) + 0.1))
    panels = figure.subplots(len(kinds), columns, squeeze=False)
    for row, kind in zip(panels, kinds):
        shown = [
            (0, "none"),
            *((k + 1, result.distortions[k].strength_text) for k in by_kind[kind]),
        ]
        for axes, (k, text) in zip(row, shown):
            axes.imshow(result.pixels[k, image])
            axes.set_title(text, fontsize=7, fontweight="normal", loc="center", pad=2)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes in row[len(shown) :]:
            axes.remove()
        row[0].set_ylabel(
            plain(textwrap.fill(kind, 16, break_long_words=False, break_on_hyphens=False)),
            rotation=0,
            ha="right",
            va="center",
            fontsize=7.5,
        )
    return figure
