"""Network dissection: detectors by depth, detectors by concept, and one channel against its
concept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.channels.dissected import DissectedChannel
from mixer_probe.channels.dissection import Dissection
from mixer_probe.channels.figures.page import cut
from mixer_probe.plotting.style import (
    COLOURS,
    GREY,
    SEQUENTIAL,
    line_styles,
    model_label,
    plain,
    styled,
)

_MOST_CONCEPTS = 24
_MOST_PICTURES = 8
_KINDS = {
    "block": "blocks",
    "spatial": "spatial mixing",
    "channel": "channel mixing",
    "stem": "stem",
    "norm": "norm",
    "head": "head",
}
# Title and y label of each column of the figure by depth, the column of the table, its scale, and
# the least upper end.
_COLUMNS = (
    ("Detectors", "channels above the null (%)", "fraction_detectors", 100, 10.0),
    ("Concepts with a detector", "number of concepts", "unique_concepts", 1, 1.0),
    ("Best channel", "IoU relative to best by chance", "strength_max", 1, 1.5),
)
# Inactive regions are darkened to this fraction of their brightness.
_DIM = 0.35
_ACTIVE, _CONCEPT = "#F0E442", COLOURS[1]


@styled
def dissection_depth(results: Sequence[Dissection]) -> Figure:
    """The fraction of detectors, the number of their concepts, and the best channel's strength
    against relative depth.

    One row per kind of layer."""
    tables = [result.summary() for result in results]
    kinds = [kind for kind in _KINDS if any((table["kind"] == kind).any() for table in tables)]
    kinds += sorted({kind for table in tables for kind in table["kind"]} - set(kinds))
    figure = Figure(figsize=(10.5, 0.5 + 3.0 * len(kinds)))
    panels = figure.subplots(len(kinds), 3, squeeze=False, sharex=True, sharey="col")
    styles = line_styles([r.model for r in results])
    for row, kind in zip(panels, kinds, strict=True):
        for axes, (title, label, column, scale, _) in zip(row, _COLUMNS, strict=True):
            for result, table in zip(results, tables, strict=True):
                part = table[table["kind"] == kind]
                if len(part):
                    name = model_label(result.model) if axes is row[0] else None
                    axes.plot(
                        part["depth"], scale * part[column], label=name, **styles[result.model.name]
                    )
            axes.set(
                title=f"{title}: {_KINDS.get(kind, kind)}" if len(kinds) > 1 else title,
                ylabel=label,
            )
        row[2].axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    # Rows share the limits of their columns.
    for axes, (*_, least) in zip(panels[-1], _COLUMNS, strict=True):
        highest = max(least, axes.get_ylim()[1])
        axes.set(ylim=(-0.02 * highest, highest), xlabel="relative depth", xlim=(-0.02, 1.03))
    found = {
        label: handle
        for axes in panels[:, 0]
        for handle, label in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=4)
    return figure


@styled
def dissection_concepts(results: Sequence[Dissection]) -> Figure:
    """Per concept the number of detectors over all layers, and the IoU of the best channel against
    its null.

    Concepts with the most detectors come first, up to 24. A tick is the 95th percentile of the best
    channel's IoU in that layer under permuted masks; filled dots are above it, corrected for the
    channels of the layer."""
    frames = [result.concept_frame() for result in results]
    together = (
        pd.concat(frames).groupby("concept", sort=False).agg({"detectors": "sum", "iou": "max"})
    )
    order = list(together.sort_values(["detectors", "iou"], ascending=False).index[:_MOST_CONCEPTS])
    figure = Figure(figsize=(10.5, 1.3 + max(0.3, 0.17 * len(results)) * len(order)))
    bars, dots = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.2])
    styles = line_styles([r.model for r in results])
    height = 0.8 / len(results)
    for j, (result, frame) in enumerate(zip(results, frames, strict=True)):
        places = np.arange(len(order)) + (j - (len(results) - 1) / 2) * height
        style = styles[result.model.name]
        colour = style["color"]
        count = frame.groupby("concept")["detectors"].sum().reindex(order).fillna(0)
        fill = (
            {"color": colour}
            if result.model.trained
            else {"facecolor": "white", "edgecolor": colour}
        )
        bars.barh(places, count, height=0.85 * height, label=model_label(result.model), **fill)
        known = frame.dropna(subset=["iou"])
        best = (
            known.loc[known.groupby("concept")["iou"].idxmax()].set_index("concept").reindex(order)
        )
        dots.scatter(
            best["null95"], places, 130 * height, marker="|", color=GREY, linewidths=1.4, zorder=2
        )
        dots.hlines(
            places,
            best["null95"],
            best["iou"],
            color=colour,
            linewidth=0.9,
            linestyle=style["linestyle"],
            zorder=1,
        )
        face = np.where(best["p_value"] <= 0.05, colour, "white")
        dots.scatter(
            best["iou"],
            places,
            22,
            marker=style["marker"],
            edgecolors=colour,
            c=face,
            linewidths=1,
            zorder=3,
        )
    bars.set(
        title="Detectors, all layers",
        xlabel="channels above the null",
        ylim=(len(order) - 0.5, -0.5),
    )
    bars.set_yticks(np.arange(len(order)), [plain(cut(name, 26)) for name in order])
    dots.set(title="Best channel", xlabel="IoU")
    dots.set_xlim(0, 1.08 * dots.get_xlim()[1])
    for axes in (bars, dots):
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
    mark = {"marker": "|", "linestyle": "", "markersize": 9, "markeredgewidth": 1.6}
    tick = Line2D([], [], color=GREY, label="95th percentile of the null", **mark)  # type: ignore[arg-type]
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(
        [*handles, tick], [*labels, str(tick.get_label())], loc="outside lower center", ncols=4
    )
    return figure


@styled
def dissected_channel_pictures(result: DissectedChannel) -> Figure:
    """The images that activate a channel most: its active region (the rest is darkened), the
    outline of the concept, and the map.

    Numbers above are the peak and the IoU in that image alone. The white line on the maps is the
    threshold after upsampling, as for the IoU."""
    k = min(len(result.ids), _MOST_PICTURES)
    figure = Figure(figsize=(max(1.42 * k + 0.9, 6.0), 3.75))
    panels = figure.subplots(2, k, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    low, high = float(result.maps.min()), float(result.maps.max())
    height, width = result.pictures.shape[1:3]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for j, (picture, map_) in enumerate(panels.T):
        lit = result.lit[j]
        picture.imshow((result.pictures[j] * np.where(lit, 1.0, _DIM)[..., None]).astype(np.uint8))
        _outline(picture, lit, _ACTIVE, 1.0)
        _outline(picture, result.masks[j], _CONCEPT, 1.6)
        overlap = "no pixel" if np.isnan(result.overlap[j]) else f"IoU {result.overlap[j]:.2f}"
        title = f"{result.values[j]:.3g} · {overlap}"
        picture.set_title(title, fontsize=8, fontweight="normal", loc="center", pad=3)
        scale = {"vmin": low, "vmax": high if high > low else low + 1}
        map_.imshow(result.maps[j], cmap=SEQUENTIAL, extent=extent, aspect="auto", **scale)
        _outline(map_, lit, "white", 1.0)
        for axes in (picture, map_):
            axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:], aspect="equal")
            axes.spines[:].set_visible(False)
    for axes, label in zip(panels[:, 0], ("active region\nand concept", "activation"), strict=True):
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    chance = "" if np.isnan(result.null95) else f" (95 % null: {result.null95:.3f})"
    name = f"{model_label(result.model)} · {plain(result.layer.name)} · channel {result.channel}"
    text = f"{name}\n{plain(result.concept)}: IoU {result.iou:.3f}{chance} over {result.n:,} images"
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=11)
    names = {_CONCEPT: plain(result.concept), _ACTIVE: "active: above the threshold"}
    handles = [
        Line2D([], [], color=colour, linewidth=1.8, label=label) for colour, label in names.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _outline(axes: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    if mask.any():
        # Padded, so that a region at the border is closed there.
        padded = np.pad(mask.astype(float), 1)
        rows, columns = np.arange(padded.shape[0]) - 1.0, np.arange(padded.shape[1]) - 1.0
        axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width)
