"""Figures of agreement: of methods on one network, and of networks by one method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.attribution import Agreement
from mixer_probe.attribution.methods import method_label
from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, MARKERS, model_label, styled
from mixer_probe.stats import mean_interval

_CELL = 0.5


def agreement_figure(result: Agreement) -> Figure:
    """`agreement_matrices` of one result."""
    return agreement_matrices([result])


@styled
def agreement_matrices(results: Sequence[Agreement]) -> Figure:
    """Mean rank correlation of patch sums between every two attributions of the same images, one
    panel per result; grey numbers do not exceed the 95th percentile of random pairings of
    images."""
    # A title needs the width of three cells.
    sizes = [max(len(r.methods), 3) for r in results]
    figure = Figure(figsize=(1.3 + sum(1.75 + _CELL * n for n in sizes), 2.6 + _CELL * max(sizes)))
    panels = figure.subplots(1, len(results), squeeze=False, width_ratios=sizes)[0]
    for axes, result in zip(panels, results, strict=True):
        mean, models, methods = (
            result.mean,
            list(map(model_label, result.models)),
            list(map(method_label, result.methods)),
        )
        # The title is what all attributions have in common, the labels what they differ in.
        title, labels = {
            "methods": (models[0], methods),
            "networks": (methods[0], models),
            "both": (
                "Agreement",
                [f"{model} · {method}" for model, method in zip(models, methods, strict=True)],
            ),
        }[result.compared]
        shown = axes.imshow(mean, cmap=DIVERGING, vmin=-1, vmax=1)
        for i, j in np.argwhere(np.isfinite(mean)):
            if i != j:
                value, above = mean[i, j], mean[i, j] > max(np.nan_to_num(result.null95[i, j]), 0)
                within = "#505050" if abs(value) > 0.3 else "#7A7A7A"
                colour = "white" if abs(value) > 0.6 else ("black" if above else within)
                weight = "bold" if above else "normal"
                axes.text(
                    j,
                    i,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                    fontweight=weight,
                )
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_title(title, fontsize=9)
    bar = figure.colorbar(shown, ax=list(panels), shrink=0.7, pad=0.01)
    kinds = _distinct("magnitudes" if r.magnitudes else "values" for r in results)
    bar.set_label(f"rank correlation of {kinds}\nover {_patches(results)} patches")
    images = _distinct(str(len(r.ids)) for r in results)
    figure.supxlabel(
        f"mean of {images} images; grey: within the null from other images' maps", fontsize=8
    )
    return figure


@styled
def network_agreement(results: Sequence[Agreement]) -> Figure:
    """Agreement of every two networks on the same images, one row per method and one mark per pair,
    with 95 % intervals over images; short bars are the 95th percentile of random pairings of
    images.

    Raises MeasureError for a result that compares methods."""
    if any(len(set(r.methods)) > 1 for r in results):
        raise MeasureError(
            "network_agreement draws attributions of several networks by one method; give one "
            "result per method"
        )
    rows = []
    for r in results:
        estimate, names = (*mean_interval(r.values), r.null95), [model_label(m) for m in r.models]
        rows.append(
            {
                f"{names[i]} and {names[j]}": [side[i, j] for side in estimate]
                for i, j in combinations(range(len(names)), 2)
            }
        )
    pairs = list(dict.fromkeys(name for row in rows for name in row))
    styles: list[dict[str, Any]] = [
        {"color": COLOURS[k % 6], "marker": MARKERS[k % len(MARKERS)]} for k in range(len(pairs))
    ]
    figure = Figure(
        figsize=(8.5, 1.25 + 0.2 * len(pairs) + len(results) * (0.32 + 0.16 * len(pairs)))
    )
    axes = figure.subplots()
    step = 0.7 / max(len(pairs), 1)
    for number, row in enumerate(rows):
        for name, (mean, low, high, null95) in row.items():
            k = pairs.index(name)
            y = number + (k - (len(pairs) - 1) / 2) * step
            axes.plot([low, high], [y, y], color=styles[k]["color"], linewidth=1.6)
            axes.plot([mean], [y], **styles[k], markersize=5)
            axes.plot([null95, null95], [y - 0.4 * step, y + 0.4 * step], color=GREY, linewidth=2)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(results)), [method_label(r.methods[0]) for r in results])
    images = _distinct(str(len(r.ids)) for r in results)
    axes.set(
        ylim=(len(results) - 0.5, -0.5),
        xlabel=f"rank correlation over {_patches(results)} patches, mean of {images} images",
    )
    handles = [
        Line2D([], [], **style, label=name) for style, name in zip(styles, pairs, strict=True)
    ]
    bar: dict[str, Any] = {
        "color": GREY,
        "marker": "|",
        "markersize": 9,
        "markeredgewidth": 2,
        "linestyle": "",
    }
    handles.append(Line2D([], [], **bar, label="95th percentile, other images"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=1 if any(len(p) > 40 for p in pairs) else 2,
    )
    return figure


def _patches(results: Sequence[Agreement]) -> str:
    return _distinct(f"{r.grid[0]}×{r.grid[1]}" for r in results)


def _distinct(texts: Iterable[str]) -> str:
    """ "8×8", or "8×8 or 14×14"."""
    return " or ".join(dict.fromkeys(texts))
