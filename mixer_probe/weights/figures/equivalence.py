"""A picture of what makes a Mixer a CNN: one kernel of the size of the image, shared by all channels."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from mixer_probe.plotting.style import COLOURS, DIVERGING, GREY, model_label, plain, styled
from mixer_probe.weights.equivalence import ConvolutionEquivalence

_SHARED = COLOURS[1]


@styled
def mixer_as_cnn(result: ConvolutionEquivalence) -> Figure:
    """Top: a full-image kernel at work on three channels of one image, beside what the linear layer gives for them.

    Bottom: the largest difference of outputs of both networks against rounding, and parameters with kernels tied and untied."""
    rows = len(result.example.channels)
    figure = Figure(figsize=(9.6, 1.45 * rows + 3.5))
    top, bottom = np.ravel(figure.subfigures(2, 1, squeeze=False, height_ratios=(1.45 * rows + 0.75, 2.75)))
    _work_panels(top, result)
    left, right = bottom.subplots(1, 2)
    _difference_bars(left, result)
    _parameter_bars(right, result)
    return figure


def _work_panels(figure: SubFigure, result: ConvolutionEquivalence) -> None:
    example = result.example
    grid = figure.subplots(len(example.channels), 4, squeeze=False, width_ratios=(1, 1, 1, 1.9))
    products = example.maps * example.kernel
    scales = [float(np.abs(values).max()) or 1.0 for values in (example.maps, example.kernel, products)]
    titles = ("channel of one image", "× shared kernel", "= product")
    for row, (axes, channel) in enumerate(zip(grid, example.channels, strict=True)):
        for place, values, scale in zip(axes, (example.maps[row], example.kernel, products[row]), scales):
            _map(place, values, scale)
        axes[0].set_ylabel(f"channel {channel}", fontsize=8.5)
        for spine in axes[1].spines.values():
            spine.set(edgecolor=_SHARED, linewidth=2.2)
        _sum_text(axes[3], products[row], example.bias, example.convolved[row], example.linear[row])
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, loc="center", fontsize=9)
    name, (height, width) = model_label(result.model), result.grid
    where = f"{plain(example.block)}.{plain(example.layer)}, row {example.unit} of its weight as a {height}×{width} kernel"
    figure.suptitle(
        f"{name} as a CNN: one full-image kernel shared by all {result.channels} channels\n",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    figure.supxlabel(where, fontsize=8)
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), DIVERGING), ax=grid[:, :3], pad=0.012, aspect=26, ticks=[-1, 0, 1])
    bar.set_label("÷ largest in the column", fontsize=7.5)
    bar.outline.set_visible(False)


def _map(axes: Axes, values: np.ndarray, scale: float) -> None:
    axes.imshow(values / scale, cmap=mpl.colormaps[DIVERGING], vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.5, edgecolor=GREY)


def _sum_text(axes: Axes, product: np.ndarray, bias: float, convolved: float, linear: float) -> None:
    axes.set_axis_off()
    lines = (
        f"sum of the product {product.sum():+.4f}, bias {bias:+.4f}",
        f"convolution gives  {convolved:+.12f}",
        f"linear layer gives {linear:+.12f}",
    )
    axes.text(0.02, 0.5, "\n".join(lines), va="center", fontsize=8, family="monospace", linespacing=1.7)


def _difference_bars(axes: Axes, result: ConvolutionEquivalence) -> None:
    checks = result.checks
    rows = np.arange(len(checks))
    floor = np.finfo(np.float64).eps / 8
    values = [max(check.difference, floor) for check in checks]
    axes.barh(rows, values, left=0, height=0.6, color=COLOURS[0], label="largest difference")
    for row, check in zip(rows, checks, strict=True):
        if check.rounding > 0:
            axes.plot([check.rounding] * 2, [row - 0.38, row + 0.38], color=_SHARED, linewidth=2)
        axes.annotate(f" {check.difference:.1e}", (max(check.difference, floor), row), va="center", fontsize=8)
    axes.plot([], [], color=_SHARED, linewidth=2, label="rounding error of the network")
    axes.axvline(
        result.largest_output, color=GREY, linewidth=1, linestyle="--", label=f"largest magnitude of the {result.output}"
    )
    axes.set_yticks(rows, [f"{check.form}, {check.dtype}" for check in checks])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(floor / 2, 10 * max(result.largest_output, 1e-3))
    axes.set(title=f"Difference between {result.output}, {checks[0].n} images", xlabel="absolute value")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.3), ncols=1, fontsize=7.5)


def _parameter_bars(axes: Axes, result: ConvolutionEquivalence) -> None:
    bars = (
        ("the Mixer", result.model.parameters),
        ("as a CNN, kernels tied", result.parameters),
        ("with kernels untied", result.untied_parameters),
    )
    rows = np.arange(len(bars))
    axes.barh(rows, [value for _, value in bars], height=0.6, color=[COLOURS[0], COLOURS[0], GREY])
    for row, (_, value) in zip(rows, bars, strict=True):
        axes.annotate(f" {value:,}", (value, row), va="center", fontsize=8)
    axes.set_yticks(rows, [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(value for _, value in bars) / 8, max(value for _, value in bars) * 60)
    axes.set(title="Parameters", xlabel="parameters")
