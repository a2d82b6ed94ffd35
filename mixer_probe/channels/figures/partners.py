"""Best-matching channels of two networks: histograms of correlations, and their change with
depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.channels import ChannelPartners
from mixer_probe.channels.figures.selectivity import panel_grid
from mixer_probe.channels.partners import BINS, by_networks
from mixer_probe.core.words import base_name
from mixer_probe.plotting.style import COLOURS, GREY, line_styles, model_label, plain, styled


@styled
def partner_strength(results: Sequence[ChannelPartners]) -> Figure:
    """Histogram of |r| of each channel of A with its best match in B, and of the same maximum under
    image permutations.

    One panel per pair of layers."""
    figure, panels = panel_grid(len(results), 2.7, 0.6, single=5.6, sharex=True)
    bins = BINS.tolist()
    for axes, result in zip(panels.flat, results, strict=False):
        strength = result.strength[np.isfinite(result.strength)]
        weights = np.full(len(strength), 100 / max(len(strength), 1))
        axes.hist(strength, bins, weights=weights, color=COLOURS[0], label="best match in B")
        if total := result.null_counts.sum():
            weights = 100 * result.null_counts / total
            axes.hist(
                BINS[:-1],
                bins,
                weights=weights,
                histtype="step",
                color=GREY,
                label="images permuted",
            )
            text = f"{100 * result.fraction_above:.0f} % above null"
            axes.annotate(
                text, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=8
            )
        sides = ((result.model_a, result.layer_a), (result.model_b, result.layer_b))
        a, b = (
            f"{_fitted(model_label(m), 28)} · {_fitted(plain(layer.name), 16)}"
            for m, layer in sides
        )
        axes.set(xlabel=f"|r| over {result.over}", xlim=(0, 1))
        axes.set_title(f"A: {a}\nB: {b}", fontsize=7.5)
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("channels (%)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _fitted(text: str, most: int) -> str:
    """Beginning and end of a name that is too long for a panel."""
    return text if len(text) <= most else text[: most // 2] + "…" + text[-(most // 2) :]


@styled
def partner_depth(results: Sequence[ChannelPartners]) -> Figure:
    """The fraction of channels of A whose best match in B is above the null, and the strength of
    matches, against the depth of A.

    One row per network A, one line per network B; matches between the untrained baselines of both
    are dotted. Bands hold the middle half of the channels of trained networks, thin lines are the
    95th percentile of the permutation null."""
    rows = list(dict.fromkeys(base_name(r.model_a.name) for r in results))
    figure = Figure(figsize=(10.5, 0.6 + 2.5 * len(rows)))
    panels = figure.subplots(len(rows), 2, sharex=True, squeeze=False)
    # A network has the colour that it has in other figures, where the networks A are in their
    # order.
    styles = line_styles([*(r.model_a for r in results), *(r.model_b for r in results)])
    for (name_a, name_b), found in by_networks(results).items():
        row, style = panels[rows.index(base_name(name_a))], styles[name_b]
        depth = [r.layer_a.depth for r in found]
        strength = np.array([_quartiles(r.strength) for r in found])
        row[0].plot(depth, [100 * r.fraction_above for r in found], **style)
        row[1].plot(depth, strength[:, 1], **style)
        if found[0].model_b.trained:
            row[1].fill_between(
                depth, strength[:, 0], strength[:, 2], color=style["color"], alpha=0.1, linewidth=0
            )
        null = [_quartiles(r.threshold)[1] for r in found]
        row[1].plot(depth, null, color=style["color"], linewidth=0.8, linestyle="--", zorder=0)
    for row, name in zip(panels, rows, strict=True):
        model = next(r.model_a for r in results if base_name(r.model_a.name) == name)
        label = f"A: {model_label(model).removesuffix('?untrained')}"
        row[0].set(title=f"{label}. Above the null", ylabel="channels (%)", ylim=(-2, 104))
        row[1].set(title=f"{label}. Strength", ylabel="|r| of the best match", ylim=(0, 1))
        row[0].axhline(5, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        for axes in row:
            axes.set_xlim(-0.02, 1.03)
            axes.tick_params(labelbottom=True)
    for axes in panels[-1]:
        axes.set_xlabel("relative depth in A")
    handles = {model_label(r.model_a): styles[r.model_a.name] for r in results}
    lines = [Line2D([], [], label=label, **style) for label, style in handles.items()]
    figure.legend(handles=lines, title="B", loc="outside lower center", ncols=min(4, len(lines)))
    return figure


def _quartiles(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    return np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else np.full(3, np.nan)
