"""Figures of the faithfulness of attributions: deletion and insertion curves, and the
model-randomisation sanity check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.attribution import PerturbationCurves, RandomisationCheck
from mixer_probe.attribution.curves import MODES
from mixer_probe.attribution.methods import method_label
from mixer_probe.plotting.style import COLOURS, GREY, MARKERS, model_label, plain, styled
from mixer_probe.stats import mean_interval
from mixer_probe.stats.intervals import Estimate


def _method_style(i: int) -> dict[str, Any]:
    # Grey is the colour of the null.
    colours = [c for c in COLOURS if c != GREY]
    return {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)], "markevery": 2}


def _draw_band(
    axes: Axes, x: np.ndarray, estimate: Estimate, label: str, style: dict[str, Any]
) -> None:
    mean, low, high = estimate
    axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)


def _legend(figure: Figure, extra: dict[str, Line2D]) -> None:
    """One entry per label of all panels, below them."""
    handles = {
        text: h
        for axes in figure.axes
        for h, text in zip(*axes.get_legend_handles_labels(), strict=True)
    } | extra
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)


@styled
def perturbation_figure(results: Sequence[PerturbationCurves]) -> Figure:
    """Deletion and insertion: probability of the class against the fraction of patches, one row per
    network. Mean over images with its 95 % interval, and random orders in grey."""
    methods = list(dict.fromkeys(name for r in results for name in r.methods))
    figure = Figure(figsize=(9.5, 0.9 + 3.1 * len(results)))
    panels = figure.subplots(len(results), 2, squeeze=False, sharex=True)
    for result, row in zip(results, panels, strict=True):
        for axes, mode, better in zip(row, MODES, ("lower", "higher"), strict=True):
            random = getattr(result, f"random_{mode}").mean(0)
            _draw_band(
                axes,
                result.fractions,
                mean_interval(random.T),
                "random order",
                {"color": GREY, "linestyle": "--"},
            )
            for name, curves in zip(result.methods, getattr(result, mode), strict=True):
                style = _method_style(methods.index(name))
                _draw_band(
                    axes, result.fractions, mean_interval(curves.T), method_label(name), style
                )
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
            axes.set_title(f"{model_label(result.model)}\n{mode}: {better} is better")
        row[0].set_ylabel("probability of the target class")
    patches = " or ".join(dict.fromkeys(f"{r.grid[0]}×{r.grid[1]}" for r in results))
    for axes, word in zip(panels[-1], ("replaced by the baseline", "restored"), strict=True):
        axes.set_xlabel(f"fraction of the {patches} patches {word}")
    _legend(figure, {})
    return figure


@styled
def randomisation_figure(results: Sequence[RandomisationCheck]) -> Figure:
    """Rank correlation with the maps of the trained network while its weights are re-initialised
    from the head towards the stem, one panel per network; dotted: maps of different images by the
    trained network."""
    models = list(dict.fromkeys(r.model.name for r in results))
    methods = list(dict.fromkeys(r.method for r in results))
    figure = Figure(figsize=(max(6.5, 3.9 * len(models)), 4.0))
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for result in results:
        axes = panels[models.index(result.model.name)]
        style = {**_method_style(methods.index(result.method)), "markevery": 1}
        rows = zip(
            *(result.mean_similarity(stage) for stage in np.moveaxis(result.spearman, 1, 0)),
            strict=True,
        )
        mean, low, high = (np.array(side) for side in rows)
        # By construction all are 1 at first.
        low[0] = high[0] = mean[0]
        _draw_band(
            axes,
            np.arange(len(result.stages)),
            (mean, low, high),
            method_label(result.method),
            style,
        )
        axes.axhline(
            mean_interval(result.null_spearman)[0],
            color=style["color"],
            linestyle=":",
            linewidth=1.1,
        )
        axes.set_title(model_label(result.model))
        stages = [
            "stem, rest" if stage == "stem and the rest" else plain(stage)
            for stage in result.stages
        ]
        axes.set_xticks(np.arange(len(stages)), stages, rotation=90, fontsize=7)
        axes.set_xlabel("randomised down to")
    panels[0].set_ylabel("rank correlation with the trained\nnetwork's map (patch sums)")
    _legend(
        figure,
        {"other images, same network": Line2D([], [], color=GREY, linestyle=":", linewidth=1.1)},
    )
    return figure
