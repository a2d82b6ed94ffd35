"""Pictures of which channels of two networks answer to the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.channels import ChannelPartners
from mixer_probe.core.words import base_name
from mixer_probe.plotting.style import COLOURS, GREY, line_styles, model_label, plain, styled

_COLUMNS = 3


@styled
def partner_strength(results: Sequence[ChannelPartners]) -> Figure:
    """How strongly each channel of A correlates with its best partner in B, and how strongly when images are shuffled.

    One panel a pair of layers; the null is that of the same maximum over the channels of B."""
    columns = min(_COLUMNS, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.5 * columns if columns > 1 else 5.6, 0.6 + 2.7 * rows))
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, result in zip(panels.flat, results, strict=False):
        _histograms(axes, result)
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(results) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("channels (%)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _histograms(axes: Axes, result: ChannelPartners) -> None:
    bins = np.linspace(0, 1, 41).tolist()
    strength, null = result.strength[np.isfinite(result.strength)], result.null[np.isfinite(result.null)]
    axes.hist(
        strength, bins, weights=np.full(len(strength), 100 / max(len(strength), 1)), color=COLOURS[0], label="best match in B"
    )
    if len(null):
        axes.hist(null, bins, weights=np.full(len(null), 100 / len(null)), histtype="step", color=GREY, label="images permuted")
        text = f"{100 * result.share_above:.0f} % above null"
        axes.annotate(text, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=8)
    names = [
        f"{_fitted(model_label(m), 28)} · {_fitted(plain(layer.name), 16)}"
        for m, layer in ((result.model_a, result.layer_a), (result.model_b, result.layer_b))
    ]
    axes.set(xlabel=f"|r| over {result.over}", xlim=(0, 1))
    axes.set_title(f"A: {names[0]}\nB: {names[1]}", fontsize=7.5)


def _fitted(text: str, most: int) -> str:
    """Beginning and end of a name that is too long for a panel."""
    return text if len(text) <= most else text[: most // 2] + "…" + text[-(most // 2) :]


@styled
def partner_depth(results: Sequence[ChannelPartners]) -> Figure:
    """Share of the channels of A whose best partner in B is above the null, and how strong partners are, against the depth of A.

    One row a network A, one line a network B; untrained twins of both, among each other, are dotted. Bands hold the middle half
    of the channels of trained networks, thin lines are what shuffled images reach in 5 % of cases."""
    rows = list(dict.fromkeys(base_name(r.model_a.name) for r in results))
    figure = Figure(figsize=(10.5, 0.6 + 2.5 * len(rows)))
    panels = figure.subplots(len(rows), 2, sharex=True, squeeze=False)
    # A network has the colour that it has in other figures, where the networks A are in their order.
    styles = line_styles([*(r.model_a for r in results), *(r.model_b for r in results)])
    for (name_a, name_b), found in _pairs(results).items():
        row = panels[rows.index(base_name(name_a))]
        _depth_lines(row, found, styles[name_b])
    for row, name in zip(panels, rows, strict=True):
        model = next(r.model_a for r in results if base_name(r.model_a.name) == name)
        _finish_row(row, model_label(model).removesuffix("?untrained"))
    for axes in panels[-1]:
        axes.set_xlabel("relative depth in A")
    handles = {model_label(r.model_a): styles[r.model_a.name] for r in results}
    lines = [Line2D([], [], label=label, **style) for label, style in handles.items()]
    figure.legend(handles=lines, title="B", loc="outside lower center", ncols=min(4, len(lines)))
    return figure


def _pairs(results: Sequence[ChannelPartners]) -> dict[tuple[str, str], list[ChannelPartners]]:
    found: dict[tuple[str, str], list[ChannelPartners]] = {}
    for result in results:
        found.setdefault((result.model_a.name, result.model_b.name), []).append(result)
    return found


def _depth_lines(panels: Sequence[Axes], found: Sequence[ChannelPartners], style: dict[str, Any]) -> None:
    depth = [r.layer_a.depth for r in found]
    strength = np.array([_quartiles(r.strength) for r in found])
    panels[0].plot(depth, [100 * r.share_above for r in found], **style)
    panels[1].plot(depth, strength[:, 1], **style)
    if found[0].model_b.trained:
        panels[1].fill_between(depth, strength[:, 0], strength[:, 2], color=style["color"], alpha=0.1, linewidth=0)
    null = [_quartiles(r.threshold)[1] for r in found]
    panels[1].plot(depth, null, color=style["color"], linewidth=0.8, linestyle="--", zorder=0)


def _quartiles(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    return np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else np.full(3, np.nan)


def _finish_row(row: Sequence[Axes], name: str) -> None:
    titles = (f"A: {name}. Above the null", f"A: {name}. Strength")
    labels = ("channels (%)", "|r| of the best match")
    for axes, title, label in zip(row, titles, labels, strict=True):
        axes.set(title=title, ylabel=label, xlim=(-0.02, 1.03))
        axes.tick_params(labelbottom=True)
    row[0].set_ylim(-2, 104)
    row[0].axhline(5, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    row[1].set_ylim(0, 1)
