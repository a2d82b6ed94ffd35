"""A page about one channel, like the label in a museum."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from mixer_probe.channels import ChannelPage, Exhibit
from mixer_probe.figures.style import COLOURS, GREY, SEQUENTIAL, model_label, plain, short_name, styled

# A crop shows at least this share of the image: a cell of a fine grid alone cannot be recognised.
_CROP = 0.3
_MOST_CLASSES = 10
_MOST_PARTNERS = 6
_BOX = "#D55E00"


@styled
def channel_page(page: ChannelPage) -> Figure:
    """The images that drive a channel most, the patch and the map of its peak in each, those that drive it least, and its
    numbers.

    The box is the cell of the grid where the peak is; crops are centred on it and hold at least 30 % of the image's side. Maps
    are the channel's activations over the image in grey, all on one colour scale."""
    figure = Figure(figsize=(10.5, 8.2))
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.75, 1.0])
    upper, lower = parts[0, 0], parts[1, 0]
    _images(upper, page)
    statistics, classes, others = lower.subplots(1, 3, width_ratios=[1.0, 1.15, 1.25])
    _statistics(statistics, page)
    _classes(classes, page)
    _others(others, page)
    name = f"{model_label(page.model)} · {plain(page.layer.name)} · channel {page.channel}"
    figure.suptitle(
        f"{name} over {page.n:,} images of {plain(page.images.name)}", x=0.01, ha="left", fontweight="bold", fontsize=12
    )
    return figure


def _images(figure: SubFigure, page: ChannelPage) -> None:
    k = len(page.top.ids)
    panels = figure.subplots(4, k, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    scale = _scale(page)
    for j in range(k):
        _picture(panels[0, j], page.top, j)
        panels[0, j].set_title(f"{page.top.values[j]:.3g}", fontsize=8, fontweight="normal", loc="center", pad=2)
        _crop(panels[1, j], page.top, j)
        _map(panels[2, j], page.top, j, scale)
        _picture(panels[3, j], page.lowest, j)
        panels[3, j].set_title(f"{page.lowest.values[j]:.3g}", fontsize=8, fontweight="normal", loc="center", pad=2)
    for axes, label in zip(panels[:, 0], (f"highest\n{page.by}", "its patch", "its map", f"lowest\n{page.by}"), strict=True):
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)


def _scale(page: ChannelPage) -> tuple[float, float]:
    low, high = np.nanmin(page.top.maps), np.nanmax(page.top.maps)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _picture(axes: Axes, exhibit: Exhibit, j: int) -> None:
    height, width = exhibit.pictures.shape[1:3]
    axes.imshow(exhibit.pictures[j])
    top, left, bottom, right = exhibit.boxes[j] * [height, width, height, width]
    if (bottom - top, right - left) != (height, width):
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=_BOX, linewidth=1.4))
    _bare(axes)


def _crop(axes: Axes, exhibit: Exhibit, j: int) -> None:
    height, width = exhibit.pictures.shape[1:3]
    top, left, bottom, right = exhibit.boxes[j]
    rows, columns = _span(top, bottom, height), _span(left, right, width)
    axes.imshow(exhibit.pictures[j][rows, columns])
    _bare(axes)


def _span(start: float, stop: float, size: int) -> slice:
    """The pixels of a crop around start to stop, shares of a side, moved into the image."""
    length = max(stop - start, _CROP)
    first = min(max((start + stop - length) / 2, 0.0), 1 - length)
    return slice(math.floor(first * size + 1e-9), max(math.ceil((first + length) * size - 1e-9), 1))


def _map(axes: Axes, exhibit: Exhibit, j: int, scale: tuple[float, float]) -> None:
    height, width = exhibit.pictures.shape[1:3]
    axes.imshow(exhibit.pictures[j].mean(-1), cmap="gray", vmin=-60, vmax=300)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(exhibit.maps[j], cmap=SEQUENTIAL, vmin=scale[0], vmax=scale[1], alpha=0.6, extent=extent, aspect="auto")
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    _bare(axes)


def _statistics(axes: Axes, page: ChannelPage) -> None:
    """The numbers as a list."""
    axes.set_title("Statistics")
    axes.axis("off")
    lines = _lines(page) or [("no statistics were given", "")]
    for i, (name, value) in enumerate(lines):
        y = 0.95 - 0.088 * i
        axes.text(0.0, y, name, transform=axes.transAxes, fontsize=8.5, va="top")
        axes.text(0.98, y, value, transform=axes.transAxes, fontsize=8.5, va="top", ha="right")


def _lines(page: ChannelPage) -> list[tuple[str, str]]:
    s = page.statistics
    if not s:
        return []
    found = [("mean ± std", f"{s['mean']:.3g} ± {s['std']:.3g}"), ("range", f"{s['minimum']:.3g} to {s['maximum']:.3g}")]
    if "q0.5" in s:
        found.append(("middle 99 %", f"{s['q0.5']:.3g} to {s['q99.5']:.3g}"))
    if "skew" in s:
        found.append(("skew, excess kurtosis", f"{s['skew']:.2f}, {s['kurtosis']:.2f}"))
    found.append(("at or below zero", f"{100 * s['share_nonpositive']:.1f} %"))
    if "largest_ratio" in s:
        found.append(("largest |a| / median", f"{s['largest_ratio']:.3g}"))
    kind = "never changes" if s["dead"] else "always above zero" if s.get("always_on") else ""
    if kind:
        found.append(("", kind))
    if s.get("nearest", -1) >= 0:
        found.append(("nearest in the layer", f"{s['nearest']:.0f} (r = {s['nearest_correlation']:.2f})"))
        found.append(("channels in its cluster", f"{s['cluster_size']:.0f}"))
    return [*found, ("over images", f"{s['n_images']:,.0f}")]


def _classes(axes: Axes, page: ChannelPage) -> None:
    """AUROC of the classes furthest from chance."""
    axes.set_title("Selectivity")
    known = np.flatnonzero(np.isfinite(page.auroc))
    if not len(known):
        axes.axis("off")
        axes.text(0, 0.95, "not known", transform=axes.transAxes, fontsize=8.5, va="top", color=GREY)
        return
    chosen = known[np.argsort(-np.abs(page.auroc[known] - 0.5), kind="stable")[:_MOST_CLASSES]]
    chosen = chosen[np.argsort(page.auroc[chosen], kind="stable")]
    colours = [COLOURS[1] if a > 0.5 else COLOURS[0] for a in page.auroc[chosen]]
    axes.barh(np.arange(len(chosen)), page.auroc[chosen] - 0.5, left=0.5, color=colours, height=0.7)
    axes.axvline(0.5, color=GREY, linewidth=0.8)
    axes.set_yticks(np.arange(len(chosen)), [plain(_cut(page.class_names[i])) for i in chosen], fontsize=8)
    axes.set(xlim=(0, 1), xlabel=_verdict(page), ylim=(-0.6, len(chosen) - 0.4))


def _verdict(page: ChannelPage) -> str:
    p = page.selectivity_p
    return "AUROC of the mean" + ("" if math.isnan(p) else f" (corrected p {'< 0.01' if p < 0.01 else f'= {p:.2f}'})")


def _cut(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _others(axes: Axes, page: ChannelPage) -> None:
    """The channels of other networks that resemble it most."""
    axes.set_title("Partners in other networks")
    axes.axis("off")
    if not page.partners:
        axes.text(0, 0.95, "not looked for", transform=axes.transAxes, fontsize=8.5, va="top", color=GREY)
    for i, (model, layer, channel, r, p) in enumerate(page.partners[:_MOST_PARTNERS]):
        y = 0.95 - 0.16 * i
        axes.text(0, y, plain(f"{short_name(model)} · {_cut(layer, 24)}"), transform=axes.transAxes, fontsize=8.5, va="top")
        chance = "" if math.isnan(p) else " by chance too" if p > 0.05 else ""
        text = f"channel {channel}, r = {r:.2f}{chance}"
        axes.text(0.03, y - 0.072, text, transform=axes.transAxes, fontsize=8, va="top", color=GREY if chance else "black")
