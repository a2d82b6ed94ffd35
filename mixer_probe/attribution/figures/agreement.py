"""Pictures of agreement: of methods on one network, and of networks by one method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from mixer_probe.attribution import Agreement
from mixer_probe.attribution.figures.overlays import method_label
from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, MARKERS, model_label, styled
from mixer_probe.stats import mean_interval

_CELL = 0.5


def agreement_figure(result: Agreement) -> Figure:
    """`agreement_matrices` of one result."""
    return agreement_matrices([result])


@styled
def agreement_matrices(results: Sequence[Agreement]) -> Figure:
    """Mean rank correlation of patch sums between every two attributions of the same images, a panel a result; grey numbers are
    no higher than 95 % of random pairings of images."""
    # A title has no room above two cells.
    sizes = [max(len(r.methods), 3) for r in results]
    figure = Figure(figsize=(1.3 + sum(1.75 + _CELL * n for n in sizes), 2.6 + _CELL * max(sizes)))
    panels = figure.subplots(1, len(results), squeeze=False, width_ratios=sizes)[0]
    for axes, result in zip(panels, results, strict=True):
        shown = _matrix(axes, result)
    bar = figure.colorbar(shown, ax=list(panels), shrink=0.7, pad=0.01)
    kinds = " or ".join(dict.fromkeys("magnitudes" if r.magnitudes else "values" for r in results))
    patches = " or ".join(dict.fromkeys(f"{r.grid[0]}×{r.grid[1]}" for r in results))
    bar.set_label(f"rank correlation of {kinds}\nover {patches} patches")
    counts = " or ".join(dict.fromkeys(str(len(r.ids)) for r in results))
    figure.supxlabel(f"mean of {counts} images; grey: within the null from other images' maps", fontsize=8)
    return figure


def _matrix(axes: Axes, result: Agreement) -> AxesImage:
    labels, mean = agreement_labels(result), result.mean
    shown = axes.imshow(mean, cmap=DIVERGING, vmin=-1, vmax=1)
    for i, j in np.argwhere(np.isfinite(mean)):
        if i != j:
            _write(axes, int(j), int(i), mean[i, j], bool(mean[i, j] > max(np.nan_to_num(result.null95[i, j]), 0)))
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title(_in_common(result), fontsize=9)
    return shown


def _in_common(result: Agreement) -> str:
    """The network or the method that all attributions of a result are of."""
    if _one_model(result):
        return model_label(result.models[0])
    return method_label(result.methods[0]) if len(set(result.methods)) == 1 else "Agreement"


def _write(axes: Axes, x: int, y: int, value: float, above: bool) -> None:
    dark = abs(value) > 0.6
    within = "#505050" if abs(value) > 0.3 else "#7A7A7A"
    colour = "white" if dark else ("black" if above else within)
    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour, fontweight="bold" if above else "normal")


def _one_model(result: Agreement) -> bool:
    return len({m.fingerprint for m in result.models}) == 1


def agreement_labels(result: Agreement) -> list[str]:
    """What tells the attributions of a result apart: networks, methods, or both."""
    if len(set(result.methods)) == 1 and not _one_model(result):
        return [model_label(m) for m in result.models]
    if _one_model(result):
        return [method_label(name) for name in result.methods]
    return [f"{model_label(m)} · {method_label(name)}" for m, name in zip(result.models, result.methods, strict=True)]


@styled
def network_agreement(results: Sequence[Agreement]) -> Figure:
    """Agreement of every two networks on the same images, a row a method and a mark a pair, with 95 % intervals over images;
    short bars are what 95 % of random pairings of images stay within.

    Raises MeasureError for a result that compares methods."""
    if any(len(set(r.methods)) > 1 for r in results):
        raise MeasureError("network_agreement draws attributions of several networks by one method; give one result per method")
    pairs = list(dict.fromkeys(name for r in results for name in _pairs(r)))
    figure = Figure(figsize=(8.5, 1.25 + 0.2 * len(pairs) + len(results) * (0.32 + 0.16 * len(pairs))))
    axes = figure.subplots()
    step = 0.7 / max(len(pairs), 1)
    for row, result in enumerate(results):
        for name, values in _pairs(result).items():
            k = pairs.index(name)
            _mark(axes, row + (k - (len(pairs) - 1) / 2) * step, values, k, step)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(results)), [method_label(r.methods[0]) for r in results])
    axes.set(ylim=(len(results) - 0.5, -0.5), xlabel=_agreement_axis(results))
    handles = [Line2D([], [], color=COLOURS[k % 6], marker=MARKERS[k % len(MARKERS)], label=name) for k, name in enumerate(pairs)]
    handles.append(
        Line2D(
            [], [], color=GREY, marker="|", markersize=9, markeredgewidth=2, linestyle="", label="95th percentile, other images"
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=1 if any(len(p) > 40 for p in pairs) else 2)
    return figure


def _agreement_axis(results: Sequence[Agreement]) -> str:
    patches = " or ".join(dict.fromkeys(f"{r.grid[0]}×{r.grid[1]}" for r in results))
    counts = " or ".join(dict.fromkeys(str(len(r.ids)) for r in results))
    return f"rank correlation over {patches} patches, mean of {counts} images"


def _pairs(result: Agreement) -> dict[str, tuple[float, float, float, float]]:
    """(mean, low, high, null95) of every two networks, by their names."""
    mean, low, high = mean_interval(result.values)
    names = [model_label(m) for m in result.models]
    return {
        f"{names[i]} and {names[j]}": (mean[i, j], low[i, j], high[i, j], result.null95[i, j])
        for i, j in combinations(range(len(names)), 2)
    }


def _mark(axes: Axes, y: float, values: tuple[float, float, float, float], k: int, step: float) -> None:
    mean, low, high, null = values
    colour = COLOURS[k % 6]
    axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
    axes.plot([mean], [y], color=colour, marker=MARKERS[k % len(MARKERS)], markersize=5)
    axes.plot([null, null], [y - 0.4 * step, y + 0.4 * step], color=GREY, linewidth=2)
