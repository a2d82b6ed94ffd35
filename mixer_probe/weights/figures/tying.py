"""Pictures of kernel tying: how many kernels the channels share by depth, curves of energy, and the shared kernels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, line_styles, model_label, plain, styled
from mixer_probe.weights import KernelTying, LayerTying
from mixer_probe.weights.figures.kernels import largest_offset


@styled
@checked(MeasureError)
def kernel_tying_depth(results: Sequence[KernelTying], *, share: float = 0.9, normalise: bool = False) -> Figure:
    """How many shared kernels carry `share` of the energy at every depth, and whether that is fewer than the null needs.

    Left the count, in the middle the same as a share of what untied channels could have (the lesser of channels and entries of a
    kernel), right the count in offset space
    divided by that of phase-randomised kernels (band: 5 to 95 % of the draws): below 1 channels share shapes. `normalise`
    counts every channel alike. Kernels tied by construction have no null and are left out of the right panel."""
    figure = Figure(figsize=(10.5, 3.6))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        style = styles[result.model.name]
        depth = [entry.depth for entry in result.layers]
        counts = result.counts(share, normalise=normalise)
        panels[0].plot(depth, counts, label=model_label(result.model), **style)
        panels[1].plot(depth, 100 * counts / [min(e.channels, _entries(e)) for e in result.layers], **style)
        _against_null(panels[2], result, depth, share, normalise, style)
    kernels = "kernels of norm 1" if normalise else "kernels as they are"
    percent = f"{100 * share:.0f} %"
    _tying_labels(panels, percent, kernels)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _entries(entry: LayerTying) -> int:
    return entry.shape[0] * entry.shape[1]


def _tying_labels(panels: np.ndarray, percent: str, kernels: str) -> None:
    labels = (f"shared kernels for {percent}", "% of the untied maximum", "count ÷ null count (offset space)")
    titles = (f"Kernels explaining {percent}", "Relative to the untied maximum", "Relative to the null")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlabel="relative depth", xlim=(0, 1.03))
    panels[0].set_yscale("log")
    panels[0].set_ylim(0.8, max(5, 1.3 * panels[0].get_ylim()[1]))
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("")
    panels[1].set_ylim(0, min(102, max(10, 1.2 * panels[1].get_ylim()[1])))
    panels[2].axhline(1, color=GREY, linewidth=1, linestyle="--")
    panels[2].set_ylim(0, max(1.15, panels[2].get_ylim()[1]))
    panels[0].set_xlabel(f"relative depth\n({kernels})")


def _against_null(
    axes: Axes, result: KernelTying, depth: list[float], share: float, normalise: bool, style: dict[str, Any]
) -> None:
    spectra = [entry.spectrum(normalise) for entry in result.layers]
    nulls = np.array([spectrum.null_count(share) for spectrum in spectra])
    if np.isnan(nulls).all():
        return
    counts = np.array([spectrum.offset_count(share) for spectrum in spectra])
    axes.plot(depth, counts / nulls[:, 0], **style)
    low, high = nulls[:, 1] / nulls[:, 0], nulls[:, 2] / nulls[:, 0]
    axes.fill_between(depth, low, high, color=style["color"], alpha=0.15, linewidth=0)


@styled
def kernel_energy(result: KernelTying, layers: Sequence[int | str] | None = None, *, normalise: bool = False) -> Figure:
    """Energy that the best 1, 2, ... shared kernels explain, for chosen layers (first, middle and last unless given).

    Solid: the kernels; dashed: the same in offset space, where it differs; band: 5 to 95 % of phase-randomised kernels."""
    chosen = sorted({0, len(result.layers) // 2, len(result.layers) - 1}) if layers is None else [result.index(k) for k in layers]
    alone = len(chosen) == 1
    figure = Figure(figsize=(3.4 * len(chosen) + 0.4, 4.1 if alone else 3.5))
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for i, (axes, k) in enumerate(zip(panels, chosen, strict=True)):
        _energy_curves(axes, result.layers[k], normalise, COLOURS[0], first=i == 0)
    panels[0].set_ylabel("energy explained (%)")
    kind, colon = " · kernels of norm 1" if normalise else "", "\n" if alone else ": "
    figure.suptitle(
        f"{model_label(result.model)}{colon}energy of shared kernels{kind}", x=0.01, ha="left", fontweight="bold", fontsize=10
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 if alone else 3)
    return figure


def _energy_curves(axes: Axes, entry: LayerTying, normalise: bool, colour: str, first: bool) -> None:
    spectrum = entry.spectrum(normalise)
    _curve(axes, spectrum.cumulative, color=colour, label="shared kernels", marker="o", markersize=2.5)
    if entry.source != "weights":
        _curve(axes, spectrum.offset_cumulative, color=colour, linestyle="--", label="in offset space")
    if len(spectrum.null):
        low, high = np.quantile(spectrum.null_cumulative, [0.05, 0.95], axis=0)
        x = np.arange(1, len(low) + 1)
        label = "null: same spectra, random phases"
        axes.fill_between(x, 100 * low, 100 * high, color=GREY, alpha=0.45, linewidth=1, label=label)
    for share in (50, 90, 99):
        axes.axhline(share, color=GREY, linewidth=0.6, linestyle=":")
    right = max(spectrum.count(0.999), spectrum.null_count(0.99)[0] if len(spectrum.null) else 1, 4)
    axes.set(xlim=(0.8, right * 1.05), ylim=(0, 102), xlabel="number of shared kernels")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_title(f"{plain(entry.layer)}\n{entry.channels} channels, at most {entry.possible} kernels", fontsize=8.5)


def _curve(axes: Axes, cumulative: np.ndarray, **style: Any) -> None:
    axes.plot(np.arange(1, len(cumulative) + 1), 100 * cumulative, **style)


@styled
@checked(MeasureError)
def kernel_dictionary(
    result: KernelTying, layers: Sequence[int | str] | None = None, *, limit: int = 8, normalise: bool = False
) -> Figure:
    """The leading shared kernels as pictures, one row a layer, with the share of energy that each explains.

    Effective S x S kernels are drawn in offset space, as the average over the available pairs of positions; zero is white.
    Colours are scaled to the largest value at common offsets, which a quarter of the positions or more have."""
    chosen = _rows(len(result.layers)) if layers is None else [result.index(k) for k in layers]
    kept = [result.layers[k].spectrum(normalise).dictionary[:limit] for k in chosen]
    columns = max(1, *(len(d) for d in kept))
    figure = Figure(figsize=(max(1.12 * columns + 1.7, 4.4), 1.3 * len(chosen) + 0.9))
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for row, k in zip(grid, chosen, strict=True):
        _dictionary_row(row, result.layers[k], normalise)
    mappable = ScalarMappable(Normalize(-1, 1), DIVERGING)
    bar = figure.colorbar(mappable, ax=figure.axes, shrink=min(0.9, 2 / len(chosen)), aspect=18, pad=0.015, ticks=[-1, 0, 1])
    bar.set_label("÷ largest |entry| at common offsets", fontsize=7.5)
    bar.outline.set_visible(False)
    title = f"{model_label(result.model)}\nshared kernels and energy explained"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    return figure


def _rows(n: int) -> list[int]:
    return sorted({round(float(i)) for i in np.linspace(0, n - 1, min(4, n))})


def _dictionary_row(row: np.ndarray, entry: LayerTying, normalise: bool) -> None:
    spectrum = entry.spectrum(normalise)
    height, width = spectrum.dictionary.shape[1:]
    # Effective kernels reach over twice the grid less one.
    grid = None if entry.source == "weights" else ((height + 1) // 2, (width + 1) // 2)
    for k, axes in enumerate(row):
        if k >= len(spectrum.dictionary):
            axes.remove()
            continue
        picture = spectrum.dictionary[k]
        axes.imshow(picture / largest_offset(picture, grid), cmap=mpl.colormaps[DIVERGING], vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, linewidth=0.4, color=GREY)
        axes.set_title(f"{100 * spectrum.shares[k]:.3g} %", fontsize=7.5, fontweight="normal", loc="center", pad=3)
    name = plain(entry.block)
    row[0].set_ylabel(name, fontsize=7.5, rotation=0, ha="right", va="center", labelpad=4)
