"""Figures of kernel tying: the number of shared kernels by depth, cumulative energy, and the shared
kernels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.plotting.style import (
    COLOURS,
    DIVERGING,
    GREY,
    colour_bar,
    heading,
    line_styles,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights import KernelTying
from mixer_probe.weights.figures.tiles import evenly_spaced, first_middle_last, largest_offset


@styled
@checked(MeasureError)
def kernel_tying_depth(
    results: Sequence[KernelTying], *, fraction: float = 0.9, normalise: bool = False
) -> Figure:
    """How many shared kernels explain the fraction `fraction` of the energy by depth, and relative
    to the null.

    Left the count, in the middle the count as a percentage of the untied maximum (the lesser of
    channels and entries of a kernel), right the count in offset space divided by that of
    phase-randomised kernels (band: 5 to 95 % of the draws): below 1 channels share shapes.
    `normalise` counts every channel equally. Kernels tied by construction have no null and are left
    out of the right panel."""
    figure = Figure(figsize=(10.5, 3.6))
    panels = figure.subplots(1, 3)
    styles = line_styles([r.model for r in results])
    for result in results:
        style = styles[result.model.name]
        depth = [entry.depth for entry in result.layers]
        counts = result.counts(fraction, normalise=normalise)
        untied = [min(entry.channels, entry.shape[0] * entry.shape[1]) for entry in result.layers]
        panels[0].plot(depth, counts, label=model_label(result.model), **style)
        panels[1].plot(depth, 100 * counts / untied, **style)
        spectra = [entry.spectrum(normalise) for entry in result.layers]
        nulls = np.array([spectrum.null_count(fraction) for spectrum in spectra])
        if not np.isnan(nulls).all():
            bounds = (nulls[:, 1] / nulls[:, 0], nulls[:, 2] / nulls[:, 0])
            panels[2].plot(depth, result.over_null(fraction, normalise=normalise), **style)
            panels[2].fill_between(depth, *bounds, color=style["color"], alpha=0.15, linewidth=0)
    percent = f"{100 * fraction:.0f} %"
    titles = (
        f"Kernels explaining {percent}",
        "Relative to the untied maximum",
        "Relative to the null",
    )
    labels = (
        f"shared kernels for {percent}",
        "% of the untied maximum",
        "count ÷ null count (offset space)",
    )
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
    panels[0].set_xlabel(
        f"relative depth\n({'kernels of norm 1' if normalise else 'kernels as they are'})"
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
def kernel_energy(
    result: KernelTying, layers: Sequence[int | str] | None = None, *, normalise: bool = False
) -> Figure:
    """Energy that the leading 1, 2, ... shared kernels explain, for chosen layers (first, middle
    and last unless given).

    Solid: the kernels; dashed: the same in offset space, where it differs; band: 5 to 95 % of
    phase-randomised kernels."""
    chosen = (
        first_middle_last(len(result.layers))
        if layers is None
        else [result.index(k) for k in layers]
    )
    alone = len(chosen) == 1
    figure = Figure(figsize=(3.4 * len(chosen) + 0.4, 4.1 if alone else 3.5))
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, k in zip(panels, chosen, strict=True):
        entry = result.layers[k]
        spectrum = entry.spectrum(normalise)
        rank = np.arange(1, len(spectrum.energies) + 1)
        axes.plot(
            rank,
            100 * spectrum.cumulative,
            color=COLOURS[0],
            label="shared kernels",
            marker="o",
            markersize=2.5,
        )
        rank = np.arange(1, len(spectrum.offset_energies) + 1)
        if entry.source != "weights":
            axes.plot(
                rank,
                100 * spectrum.offset_cumulative,
                color=COLOURS[0],
                linestyle="--",
                label="in offset space",
            )
        if len(spectrum.null):
            low, high = 100 * np.quantile(spectrum.null_cumulative, [0.05, 0.95], axis=0)
            axes.fill_between(
                rank,
                low,
                high,
                color=GREY,
                alpha=0.45,
                linewidth=1,
                label="null: same spectra, random phases",
            )
        for percent in (50, 90, 99):
            axes.axhline(percent, color=GREY, linewidth=0.6, linestyle=":")
        right = max(
            spectrum.count(0.999), spectrum.null_count(0.99)[0] if len(spectrum.null) else 1, 4
        )
        axes.set(xlim=(0.8, right * 1.05), ylim=(0, 102), xlabel="number of shared kernels")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(
            f"{plain(entry.layer)}\n{entry.channels} channels, at most {entry.possible} kernels",
            fontsize=8.5,
        )
    panels[0].set_ylabel("energy explained (%)")
    kind, colon = " · kernels of norm 1" if normalise else "", "\n" if alone else ": "
    heading(figure, f"{model_label(result.model)}{colon}energy of shared kernels{kind}")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 if alone else 3
    )
    return figure


@styled
@checked(MeasureError)
def kernel_dictionary(
    result: KernelTying,
    layers: Sequence[int | str] | None = None,
    *,
    limit: int = 8,
    normalise: bool = False,
) -> Figure:
    """The leading shared kernels as images, one row per layer, with the fraction of energy that
    each explains.

    Effective S x S kernels are drawn in offset space, as the average over the available pairs of
    positions; zero is white. Colours are scaled to the largest value at common offsets, which a
    quarter of the positions or more have."""
    chosen = (
        evenly_spaced(len(result.layers), 4)
        if layers is None
        else [result.index(k) for k in layers]
    )
    spectra = [result.layers[k].spectrum(normalise) for k in chosen]
    columns = max(1, *(len(spectrum.dictionary[:limit]) for spectrum in spectra))
    figure = Figure(figsize=(max(1.12 * columns + 1.7, 4.4), 1.3 * len(chosen) + 0.9))
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for row, k, spectrum in zip(grid, chosen, spectra, strict=True):
        entry, pictures = result.layers[k], spectrum.dictionary[:columns]
        height, width = pictures.shape[1:]
        # Effective kernels reach over twice the grid less one.
        positions = None if entry.source == "weights" else ((height + 1) // 2, (width + 1) // 2)
        for axes, picture, fraction in zip(row, pictures, spectrum.fractions):
            axes.imshow(
                picture / largest_offset(picture, positions),
                cmap=mpl.colormaps[DIVERGING],
                vmin=-1,
                vmax=1,
            )
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, linewidth=0.4, color=GREY)
            axes.set_title(
                f"{100 * fraction:.3g} %", fontsize=7.5, fontweight="normal", loc="center", pad=3
            )
        for axes in row[len(pictures) :]:
            axes.remove()
        row[0].set_ylabel(
            plain(entry.block), fontsize=7.5, rotation=0, ha="right", va="center", labelpad=4
        )
    label, shrink = "÷ largest |entry| at common offsets", min(0.9, 2 / len(chosen))
    colour_bar(figure, figure.axes, DIVERGING, label, shrink=shrink, aspect=18, pad=0.015)
    heading(figure, f"{model_label(result.model)}\nshared kernels and energy explained")
    return figure
