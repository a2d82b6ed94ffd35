"""Pictures of network dissection: detectors by depth, concepts, and one channel against its concept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.channels.dissected import DissectedChannel
from mixer_probe.channels.dissection import Dissection
from mixer_probe.plotting.style import COLOURS, GREY, SEQUENTIAL, line_styles, model_label, plain, styled

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
# What is not lit is this much darker.
_DIM = 0.35
_LIT, _CONCEPT = "#F0E442", COLOURS[1]


@styled
def dissection_depth(results: Sequence[Dissection]) -> Figure:
    """Share of channels above the corrected null, how many concepts they stand for, and how far the best channel is above chance,
    against relative depth; a row for each kind of layer."""
    tables = [result.summary() for result in results]
    kinds = [kind for kind in _KINDS if any((table["kind"] == kind).any() for table in tables)]
    kinds += sorted({kind for table in tables for kind in table["kind"]} - set(kinds))
    figure = Figure(figsize=(10.5, 0.5 + 3.0 * len(kinds)))
    panels = figure.subplots(len(kinds), 3, squeeze=False, sharex=True, sharey="col")
    styles = line_styles([r.model for r in results])
    for result, table in zip(results, tables, strict=True):
        for row, kind in zip(panels, kinds, strict=True):
            _depth(row, table[table["kind"] == kind], styles[result.model.name], model_label(result.model))
    for row, kind in zip(panels, kinds, strict=True):
        _titles(row, _KINDS.get(kind, kind) if len(kinds) > 1 else "")
    for axes in panels[-1]:
        axes.set(xlabel="relative depth", xlim=(-0.02, 1.03))
    found = {label: handle for axes in panels[:, 0] for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=4)
    return figure


def _depth(panels: Sequence[Axes], table: pd.DataFrame, style: dict[str, object], label: str) -> None:
    if len(table):
        panels[0].plot(table["depth"], 100 * table["share_detectors"], label=label, **style)  # type: ignore[arg-type]
        panels[1].plot(table["depth"], table["unique_concepts"], **style)  # type: ignore[arg-type]
        panels[2].plot(table["depth"], table["strength_max"], **style)  # type: ignore[arg-type]


def _titles(panels: Sequence[Axes], kind: str) -> None:
    titles = ("Detectors", "Concepts with a detector", "Best channel")
    labels = ("channels above the null (%)", "number of concepts", "IoU relative to best by chance")
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set(title=f"{title}: {kind}" if kind else title, ylabel=label)
    panels[2].axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    for axes, fewest in zip(panels, (10.0, 1.0, 1.5), strict=True):
        highest = max(fewest, axes.get_ylim()[1])
        axes.set_ylim(-0.02 * highest, highest)


@styled
def dissection_concepts(results: Sequence[Dissection]) -> Figure:
    """For every concept the detectors that stand out for it, over all layers, and the IoU of the best channel against chance.

    Concepts with the most detectors come first, up to 24. A tick is what the best channel of that layer stays within in 95 % of
    random deals of the masks; full dots are above it, corrected for the channels of the layer."""
    frames = [result.concept_frame() for result in results]
    order = _order(frames)
    figure = Figure(figsize=(10.5, 1.3 + max(0.3, 0.17 * len(results)) * len(order)))
    bars, dots = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.2])
    styles = line_styles([r.model for r in results])
    height = 0.8 / len(results)
    for j, (result, frame) in enumerate(zip(results, frames, strict=True)):
        places = np.arange(len(order)) + (j - (len(results) - 1) / 2) * height
        style = styles[result.model.name]
        count = frame.groupby("concept")["detectors"].sum().reindex(order).fillna(0)
        fill = {"color": style["color"]} if result.model.trained else {"facecolor": "white", "edgecolor": style["color"]}
        bars.barh(places, count, height=0.85 * height, label=model_label(result.model), **fill)
        _best(dots, frame, order, places, style, height)
    bars.set(title="Detectors, all layers", xlabel="channels above the null", ylim=(len(order) - 0.5, -0.5))
    bars.set_yticks(np.arange(len(order)), [plain(_cut(name)) for name in order])
    dots.set(title="Best channel", xlabel="IoU")
    dots.set_xlim(0, 1.08 * dots.get_xlim()[1])
    for axes in (bars, dots):
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
    tick = Line2D(
        [], [], color=GREY, marker="|", linestyle="", markersize=9, markeredgewidth=1.6, label="95th percentile of the null"
    )
    handles, labels = bars.get_legend_handles_labels()
    figure.legend([*handles, tick], [*labels, str(tick.get_label())], loc="outside lower center", ncols=4)
    return figure


def _order(frames: Sequence[pd.DataFrame]) -> list[str]:
    """Concepts by their detectors in all networks, then by their best IoU."""
    together = pd.concat(frames).groupby("concept", sort=False).agg({"detectors": "sum", "iou": "max"})
    return [str(name) for name in together.sort_values(["detectors", "iou"], ascending=False).index[:_MOST_CONCEPTS]]


def _best(axes: Axes, frame: pd.DataFrame, order: list[str], places: np.ndarray, style: dict[str, object], height: float) -> None:
    """The channel of the highest IoU of each concept among the layers."""
    known = frame.dropna(subset=["iou"])
    best = known.loc[known.groupby("concept")["iou"].idxmax()].set_index("concept").reindex(order)
    above = (best["p_value"] <= 0.05).to_numpy()
    colour = str(style["color"])
    axes.scatter(best["null95"], places, 130 * height, marker="|", color=GREY, linewidths=1.4, zorder=2)
    axes.hlines(places, best["null95"], best["iou"], color=colour, linewidth=0.9, linestyle=str(style["linestyle"]), zorder=1)
    face = np.where(above, colour, "white")
    axes.scatter(best["iou"], places, 22, marker=str(style["marker"]), edgecolors=colour, c=face, linewidths=1, zorder=3)


def _cut(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@styled
def dissected_channel_pictures(result: DissectedChannel) -> Figure:
    """The images that drive a channel most: what it lights there (the rest is dark), the outline of the concept, and the map.

    Numbers above are the peak and the IoU in that image alone. The white line on the maps is the threshold, laid over the pixels
    as the IoU sees it."""
    k = min(len(result.ids), _MOST_PICTURES)
    figure = Figure(figsize=(max(1.42 * k + 0.9, 6.0), 3.75))
    panels = figure.subplots(2, k, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    low, high = float(result.maps.min()), float(result.maps.max())
    for j in range(k):
        _lit_picture(panels[0, j], result, j)
        _map(panels[1, j], result, j, (low, high if high > low else low + 1))
    for axes, label in zip(panels[:, 0], ("active region\nand concept", "activation"), strict=True):
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    chance = "" if np.isnan(result.null95) else f" (95 % null: {result.null95:.3f})"
    name = f"{model_label(result.model)} · {plain(result.layer.name)} · channel {result.channel}"
    figure.suptitle(
        f"{name}\n{plain(result.concept)}: IoU {result.iou:.3f}{chance} over {result.n:,} images",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=11,
    )
    handles = [
        Line2D([], [], color=_CONCEPT, linewidth=1.8, label=plain(result.concept)),
        Line2D([], [], color=_LIT, linewidth=1.8, label="active: above the threshold"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _lit_picture(axes: Axes, result: DissectedChannel, j: int) -> None:
    lit, mask = result.lit[j], result.masks[j]
    shade = np.where(lit, 1.0, _DIM)[..., None]
    axes.imshow((result.pictures[j] * shade).astype(np.uint8))
    _outline(axes, lit, _LIT, 1.0)
    _outline(axes, mask, _CONCEPT, 1.6)
    overlap = "no pixel" if np.isnan(result.overlap[j]) else f"IoU {result.overlap[j]:.2f}"
    axes.set_title(f"{result.values[j]:.3g} · {overlap}", fontsize=8, fontweight="normal", loc="center", pad=3)
    _bare(axes)


def _outline(axes: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    if mask.any():
        # Padded, so that what touches the border is closed there.
        padded = np.pad(mask.astype(float), 1)
        rows, columns = np.arange(padded.shape[0]) - 1.0, np.arange(padded.shape[1]) - 1.0
        axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width)


def _map(axes: Axes, result: DissectedChannel, j: int, scale: tuple[float, float]) -> None:
    height, width = result.pictures.shape[1:3]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(result.maps[j], cmap=SEQUENTIAL, vmin=scale[0], vmax=scale[1], extent=extent, aspect="auto")
    _outline(axes, result.lit[j], "white", 1.0)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    _bare(axes)


def _bare(axes: Axes) -> None:
    left, right, bottom, top = axes.images[0].get_extent()
    axes.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))
    for spine in axes.spines.values():
        spine.set_visible(False)
