"""Pictures of distortions: what they look like, what they cost, whether networks fail together, how far layers move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
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
from mixer_probe.plotting.curves import chance_line, curve, key_below, model_keys, share_text
from mixer_probe.plotting.style import COLOURS, GREY, MARKERS, SEQUENTIAL, line_styles, model_label, plain, styled

Value = Literal["accuracy", "kept", "agreement"]

_AXES = {"accuracy": "accuracy (%)", "kept": "kept of the margin (%)", "agreement": "same prediction (%)"}
_PANELS_A_ROW = 4
_MOST_PAIRS = 36
_MOST_MAPS = 9
# Cells of a heat map of more networks have no room for a second number.
_ROOM = 8


@styled
@checked(MeasureError)
def distortion_curves(results: Sequence[DistortionAccuracy], value: Value = "accuracy") -> Figure:
    """One panel a kind of distortion, from the plain images on the left to the hardest on the right; bands are 95 % intervals.

    `value` is "accuracy", "kept" (of the accuracy above chance) or "agreement" (with the prediction for the plain image). Grey
    lines are chance. Raises MeasureError for another value, and for results without a distortion."""
    kinds = list(dict.fromkeys(kind for r in results for kind in r.kinds))
    if not kinds:
        raise MeasureError("there is no distortion to draw")
    columns = min(_PANELS_A_ROW, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(max(2.6 * columns + 0.5, 4.2), 2.5 * rows + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    styles = line_styles([r.model for r in results])
    for axes, kind in zip(panels.flat, kinds):
        _kind_panel(axes, [r for r in results if kind in r.kinds], kind, value, styles)
    for axes in panels.flat[len(kinds) :]:
        axes.remove()
    for row in panels:
        row[0].set_ylabel(_AXES[value])
    key_below(figure, model_keys([r.model for r in results], chance=_chance_text(results, value)))
    return figure


def _chance_text(results: Sequence[DistortionAccuracy], value: Value) -> str:
    chance = share_text(max(r.chance for r in results))
    return {"accuracy": f"chance ({chance})", "kept": "chance", "agreement": "independent predictions"}[value]


def _kind_panel(axes: Axes, results: Sequence[DistortionAccuracy], kind: str, value: Value, styles: dict[str, Any]) -> None:
    for result in results:
        rows = result.of_kind(kind)
        middle, low, high = (100 * part for part in _with_plain(result, value, rows))
        curve(axes, np.arange(len(middle)), middle, (low, high), styles[result.model.name])
    first = results[0]
    if value == "agreement":
        by_chance = 100 * np.mean([r.agreement_by_chance[r.of_kind(kind)] for r in results], axis=0)
        steps = 1 + np.arange(len(by_chance))
        axes.hlines(by_chance, steps - 0.3, steps + 0.3, color=GREY, linewidth=1)
    else:
        chance_line(axes, [0.0] if value == "kept" else [100 * r.chance for r in results])
    texts = ["none", *(first.distortions[i].strength_text for i in first.of_kind(kind))]
    crowded = max(map(len, texts)) * len(texts) > 22
    axes.set_xticks(range(len(texts)), texts, rotation=40 if crowded else 0, ha="right" if crowded else "center", fontsize=7.5)
    axes.set_title(plain(kind), fontsize=8.5)
    axes.set_xlabel(first.distortions[first.of_kind(kind)[0]].unit, fontsize=8)


def _with_plain(result: DistortionAccuracy, value: Value, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value and bounds of the plain images and of some distortions."""
    if value == "accuracy":
        estimate, index, start = result.accuracy, [0, *(i + 1 for i in rows)], []
    else:
        estimate, index, start = getattr(result, value), list(rows), [1.0]
    value_, low, high = (np.concatenate([start, part[index]]) for part in (estimate.value, estimate.low, estimate.high))
    return value_, low, high


@styled
def architecture_dots(result: ArchitectureComparison) -> Figure:
    """What each family keeps of its accuracy above chance under each kind of distortion, averaged over strengths.

    Bars are 95 % intervals over images; small open marks are the single networks."""
    count = len(result.kinds)
    figure = Figure(figsize=(7.6, 0.52 * count + 1.0))
    axes = figure.add_subplot()
    offsets = np.linspace(-0.24, 0.24, len(result.groups)) if len(result.groups) > 1 else [0.0]
    for g, (group, offset) in enumerate(zip(result.groups, offsets)):
        y = np.arange(count) + offset
        style: dict[str, Any] = {"color": COLOURS[g], "marker": MARKERS[g], "linestyle": ""}
        bars = np.stack([result.kept[g] - result.low[g], result.high[g] - result.kept[g]])
        axes.errorbar(100 * result.kept[g], y, xerr=100 * np.maximum(bars, 0), label=_group_label(result, group), **style)
        for i in result.networks_of(group):
            axes.plot(100 * result.by_network[i], y, **style, markersize=3, markerfacecolor="white", alpha=0.7)
    for k in range(count - 1):
        axes.axhline(k + 0.5, color=GREY, linewidth=0.4, alpha=0.5)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(100, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(count), [f"{plain(kind)}\n{text}" for kind, text in zip(result.kinds, result.strengths)], fontsize=7.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set(xlabel="retained accuracy above chance (%), mean over strengths", title="Robustness by architecture")
    key_below(figure, axes.get_legend_handles_labels()[0])
    return figure


def _group_label(result: ArchitectureComparison, group: str) -> str:
    count = len(result.networks_of(group))
    return f"{FAMILIES.get(group, group)}, {count} network{'s' if count > 1 else ''}"


# -- error consistency -------------------------------------------------------------------------------------------------


@styled
def error_consistency_pairs(result: ErrorConsistency, row: int = 0) -> Figure:
    """Kappa of every pair, most consistent first, on plain images or under one distortion (`row` 0, or its number from 1).

    Bars are 95 % intervals over images; grey bands hold 95 % of the kappas of independent errors; ticks are the largest kappa
    that the two accuracies allow. Of more than 36 pairs the first are shown."""
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
    axes.errorbar(value, y, xerr=np.maximum(bars, 0), color=COLOURS[0], marker=MARKERS[0], linestyle="")
    axes.plot(result.most[row, i, j], y, color=COLOURS[1], marker="|", markersize=9, markeredgewidth=1.6, linestyle="")
    names = [model_label(model) for model in result.models]
    axes.set_yticks(y, [f"{names[a]} – {names[b]}" for a, b in shown], fontsize=7.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(min(-0.1, float(np.nanmin(result.low[row, i, j])) - 0.05), 1.03)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(
        xlabel="error consistency (kappa)", title=plain("Undistorted images" if row == 0 else _two_lines(result.labels[row]))
    )
    key_below(figure, _pair_keys())
    return figure


def _pair_keys() -> list[Any]:
    return [
        Line2D([], [], color=COLOURS[0], marker=MARKERS[0], label="kappa, 95 % interval"),
        Line2D([], [], color=COLOURS[1], marker="|", markersize=9, markeredgewidth=1.6, linestyle="", label="largest possible"),
        Line2D([], [], color=GREY, alpha=0.3, linewidth=7, label="independent errors (95 %)"),
    ]


def telling_rows(result: ErrorConsistency) -> list[int]:
    """The plain images and, of each kind, the hardest distortion at which every network is above chance: at most nine rows.

    Where all are near chance, kappa is about guesses."""
    rows = [0]
    fine = [bool(row.all()) for row in result.above_chance]
    for kind in dict.fromkeys(d.kind for d in result.distortions):
        able = [k for k, d in enumerate(result.distortions, 1) if d.kind == kind and fine[k]]
        if able:
            rows.append(max(able, key=lambda k: result.distortions[k - 1].harder * result.distortions[k - 1].strength))
    return rows[:_MOST_MAPS]


@styled
def error_consistency_heatmaps(result: ErrorConsistency, rows: Sequence[int] | None = None) -> Figure:
    """Kappa of every two networks, one map for the plain images (row 0) and each of some distortions, on one scale.

    Small numbers are the largest kappa possible. `rows` are by default those of `telling_rows`."""
    chosen = list(telling_rows(result) if rows is None else rows)
    count = len(result.models)
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    side = max(0.44 * count, 1.6)
    # Names stand beside and below the maps.
    names = 0.06 * max(len(model_label(model)) for model in result.models) + 0.2
    figure = Figure(figsize=((side + 0.35) * columns + names + 1.0, (side + 0.55) * lines + names))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    off = ~np.eye(count, dtype=bool)
    shown = result.kappa[chosen][:, off]
    # Whole tenths, so that the scale is one that can be read.
    low, high = (float(end) for end in (np.nanmin(shown, initial=0), np.nanmax(shown, initial=0.1)))
    scale = Normalize(np.floor(10 * low) / 10, np.ceil(10 * high) / 10)
    for axes, row in zip(panels.flat, chosen):
        _kappa_map(axes, result, row, scale)
    for axes in panels.flat[len(chosen) - columns : len(chosen)]:
        # The last of a column is not in the last row where the rows are not full.
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(chosen) :]:
        axes.remove()
    bar = figure.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=list(panels.flat[: len(chosen)]), shrink=0.8, aspect=25)
    bar.set_label("kappa", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _kappa_map(axes: Axes, result: ErrorConsistency, row: int, scale: Normalize) -> None:
    count = len(result.models)
    values = np.where(np.eye(count, dtype=bool), np.nan, result.kappa[row])
    axes.imshow(values, cmap=SEQUENTIAL, norm=scale)
    for i, j in np.argwhere(np.isfinite(values)) if count <= _ROOM else ():
        colour = "white" if scale(values[i, j]) < 0.6 else "black"
        axes.text(j, i - 0.12, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
        axes.text(j, i + 0.27, f"≤{result.most[row, i, j]:.2f}", ha="center", va="center", fontsize=4.8, color=colour)
    names = [model_label(model) for model in result.models]
    axes.set_xticks(range(count), names, rotation=90, fontsize=7)
    axes.set_yticks(range(count), names, fontsize=7)
    axes.set_title(plain(_two_lines("undistorted" if row == 0 else result.labels[row])), fontsize=7.5, fontweight="normal")


def _two_lines(label: str) -> str:
    head, comma, tail = label.rpartition(", ")
    return f"{head}\n{tail}" if comma else label


# -- representations ---------------------------------------------------------------------------------------------------


@styled
@checked(MeasureError)
def representation_shift_curves(results: Sequence[RepresentationShift], measure: Literal["cka", "cosine"] = "cka") -> Figure:
    """Likeness of plain and distorted images by depth, one panel a distortion; bands are 95 % intervals.

    Thin grey lines are what random pairs of images give. Raises MeasureError for another measure."""
    if measure not in ("cka", "cosine"):
        raise MeasureError(f"a shift is measured by cka or cosine, not '{measure}'")
    distortions = list(dict.fromkeys(d for r in results for d in r.distortions))
    columns = min(3, len(distortions))
    rows = -(-len(distortions) // columns)
    figure = Figure(figsize=(max(2.9 * columns + 0.5, 4.2), 2.4 * rows + 0.3))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    styles = line_styles([r.model for r in results])
    for axes, distortion in zip(panels.flat, distortions):
        for result in results:
            if distortion in result.distortions:
                _shift_line(axes, result, result.distortions.index(distortion), measure, styles)
        axes.set_title(plain(_two_lines(distortion.label)), fontsize=8.5)
    for axes in panels.flat[len(distortions) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("CKA, undistorted vs distorted" if measure == "cka" else "cosine, undistorted vs distorted")
    for axes in panels.flat[max(0, len(distortions) - columns) : len(distortions)]:
        axes.set_xlabel("relative depth")
        axes.tick_params(labelbottom=True)
    panels[0, 0].set(xlim=(-0.02, 1.02), ylim=(min(-0.05, panels[0, 0].get_ylim()[0]), 1.03))
    key_below(figure, model_keys([r.model for r in results], chance="random pairs of images"))
    return figure


def _shift_line(axes: Axes, result: RepresentationShift, d: int, measure: str, styles: dict[str, Any]) -> None:
    x = [layer.depth for layer in result.layers]
    value, low, high, null = (getattr(result, measure + end)[d] for end in ("", "_low", "_high", "_null"))
    axes.plot(x, null, color=GREY, linewidth=0.6, alpha=0.7)
    curve(axes, x, value, (low, high), styles[result.model.name])


# -- pictures ----------------------------------------------------------------------------------------------------------


@styled
def distortion_pictures(result: DistortionExamples, image: int = 0) -> Figure:
    """One image under every distortion: a row a kind, from mild to hard, the plain image before each.

    Raises MeasureError for an image that is not there."""
    if not 0 <= image < len(result.ids):
        raise MeasureError(f"there are {len(result.ids)} example images, from 0 to {len(result.ids) - 1}; no image {image}")
    kinds = list(dict.fromkeys(d.kind for d in result.distortions))
    by_kind = {kind: _ordered(result, kind) for kind in kinds}
    columns = 1 + max(map(len, by_kind.values()))
    figure = Figure(figsize=(1.02 * columns + 1.4, 1.22 * len(kinds) + 0.1))
    panels = figure.subplots(len(kinds), columns, squeeze=False)
    for row, kind in zip(panels, kinds):
        shown = [(0, "none"), *((k + 1, result.distortions[k].strength_text) for k in by_kind[kind])]
        for axes, (k, text) in zip(row, shown):
            axes.imshow(result.pixels[k, image])
            axes.set_title(text, fontsize=7, fontweight="normal", loc="center", pad=2)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes in row[len(shown) :]:
            axes.remove()
        row[0].set_ylabel(plain(_wrapped(kind)), rotation=0, ha="right", va="center", fontsize=7.5)
    return figure


def _ordered(result: DistortionExamples, kind: str) -> list[int]:
    found = [k for k, d in enumerate(result.distortions) if d.kind == kind]
    return sorted(found, key=lambda k: result.distortions[k].harder * result.distortions[k].strength)


def _wrapped(text: str, width: int = 16) -> str:
    lines = [""]
    for word in text.split():
        fits = len(lines[-1]) + len(word) < width
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if fits else [*lines, word]
    return "\n".join(lines)
