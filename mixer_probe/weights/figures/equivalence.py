"""Figure of a Mixer as a CNN: one kernel of the size of the image, shared by all channels."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure, SubFigure

from mixer_probe.plotting.style import (
    COLOURS,
    DIVERGING,
    GREY,
    colour_bar,
    heading,
    model_label,
    plain,
    styled,
)
from mixer_probe.weights.equivalence import ConvolutionEquivalence

_SHARED = COLOURS[1]


@styled
def mixer_as_cnn(result: ConvolutionEquivalence) -> Figure:
    """Top: a full-image kernel applied to three channels of one image, beside the output of the
    linear layer for them.

    Bottom: the largest difference of outputs of both networks against rounding, and parameters with
    kernels tied and untied."""
    rows = len(result.example.channels)
    figure = Figure(figsize=(9.6, 1.45 * rows + 3.5))
    top, bottom = np.ravel(
        figure.subfigures(2, 1, squeeze=False, height_ratios=(1.45 * rows + 0.75, 2.75))
    )
    _kernel_panels(top, result)
    left, right = bottom.subplots(1, 2)
    checks = result.checks
    places = np.arange(len(checks))
    floor = np.finfo(np.float64).eps / 8
    values = [max(check.difference, floor) for check in checks]
    left.barh(places, values, left=0, height=0.6, color=COLOURS[0], label="largest difference")
    for place, check in zip(places, checks, strict=True):
        if check.rounding > 0:
            left.plot(
                [check.rounding] * 2, [place - 0.38, place + 0.38], color=_SHARED, linewidth=2
            )
        left.annotate(f" {check.difference:.1e}", (values[place], place), va="center", fontsize=8)
    left.plot([], [], color=_SHARED, linewidth=2, label="rounding error of the network")
    largest, label = result.largest_output, f"largest magnitude of the {result.output}"
    left.axvline(largest, color=GREY, linewidth=1, linestyle="--", label=label)
    left.set_yticks(places, [f"{check.form}, {check.dtype}" for check in checks])
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlim(floor / 2, 10 * max(largest, 1e-3))
    left.set(
        title=f"Difference between {result.output}, {checks[0].n} images", xlabel="absolute value"
    )
    left.legend(loc="upper center", bbox_to_anchor=(0.45, -0.3), ncols=1, fontsize=7.5)
    bars = (
        ("the Mixer", result.model.parameters),
        ("as a CNN, kernels tied", result.parameters),
        ("with kernels untied", result.untied_parameters),
    )
    places = np.arange(len(bars))
    right.barh(
        places, [value for _, value in bars], height=0.6, color=[COLOURS[0], COLOURS[0], GREY]
    )
    for place, (_, value) in zip(places, bars, strict=True):
        right.annotate(f" {value:,}", (value, place), va="center", fontsize=8)
    right.set_yticks(places, [label for label, _ in bars])
    right.invert_yaxis()
    right.set_xscale("log")
    right.set_xlim(min(value for _, value in bars) / 8, max(value for _, value in bars) * 60)
    right.set(title="Parameters", xlabel="parameters")
    return figure


def _kernel_panels(figure: SubFigure, result: ConvolutionEquivalence) -> None:
    """A row per channel: its map, the kernel, their product, and the sums that convolution and
    linear layer return."""
    example = result.example
    grid = figure.subplots(len(example.channels), 4, squeeze=False, width_ratios=(1, 1, 1, 1.9))
    products = example.maps * example.kernel
    scales = [
        float(np.abs(values).max()) or 1.0 for values in (example.maps, example.kernel, products)
    ]
    for row, (axes, channel) in enumerate(zip(grid, example.channels, strict=True)):
        for panel, values, scale in zip(
            axes, (example.maps[row], example.kernel, products[row]), scales
        ):
            panel.imshow(values / scale, cmap=mpl.colormaps[DIVERGING], vmin=-1, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(visible=True, linewidth=0.5, edgecolor=GREY)
        axes[0].set_ylabel(f"channel {channel}", fontsize=8.5)
        axes[1].spines[:].set(edgecolor=_SHARED, linewidth=2.2)
        lines = (
            f"sum of the product {products[row].sum():+.4f}, bias {example.bias:+.4f}",
            f"convolution gives  {example.convolved[row]:+.12f}",
            f"linear layer gives {example.linear[row]:+.12f}",
        )
        axes[3].set_axis_off()
        axes[3].text(
            0.02,
            0.5,
            "\n".join(lines),
            va="center",
            fontsize=8,
            family="monospace",
            linespacing=1.7,
        )
    for axes, title in zip(grid[0], ("channel of one image", "× shared kernel", "= product")):
        axes.set_title(title, loc="center", fontsize=9)
    name, (height, width) = model_label(result.model), result.grid
    heading(
        figure, f"{name} as a CNN: one full-image kernel shared by all {result.channels} channels\n"
    )
    where = (
        f"{plain(example.block)}.{plain(example.layer)}, row {example.unit} of its weight as a "
        f"{height}×{width} kernel"
    )
    figure.supxlabel(where, fontsize=8)
    colour_bar(figure, grid[:, :3], DIVERGING, "÷ largest in the column", pad=0.012, aspect=26)
