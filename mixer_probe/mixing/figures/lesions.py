"""Figures of lesions: accuracy by depth without a branch or block, and the importance of units
against their selectivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.words import primary
from mixer_probe.mixing.lesions import KINDS, SKIPPED, Lesions
from mixer_probe.mixing.unit_importance import UnitImportance
from mixer_probe.plotting.curves import (
    chance_line,
    curve,
    cut,
    fraction_text,
    key_below,
    model_keys,
)
from mixer_probe.plotting.style import COLOURS, GREY, line_styles, model_label, plain, styled

_TITLES = {
    "spatial": "one spatial layer ablated",
    "channel": "one channel layer ablated",
    "block": "one block skipped",
}
_BY_MEAN: dict[str, Any] = {
    "marker": "x",
    "linestyle": "",
    "markersize": 6,
    "zorder": 4,
}


@styled
def lesion_curves(results: Sequence[Lesions]) -> Figure:
    """Accuracy with one layer ablated against its depth, one panel each for spatial layers, channel
    layers and blocks.

    Bands are 95 % Wilson intervals over images, dashed lines intact networks, the grey line is
    chance; crosses mark blocks that cannot be skipped and are replaced by their means. Raises
    MeasureError where no network was ablated."""
    shown = [r for r in results if r.layers]
    if not shown:
        raise MeasureError("there is no lesion to draw: no network has an accuracy to lose")
    kinds = [kind for kind in KINDS if any(r.of_kind(kind) for r in shown)]
    figure = Figure(figsize=(max(2.9 * len(kinds) + 0.5, 4.4), 2.9))
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    styles, crossed = line_styles([r.model for r in shown]), False
    for axes, kind in zip(panels, kinds):
        for result in shown:
            rows, style = result.of_kind(kind), styles[result.model.name]
            depths = np.array([result.layers[i].depth for i in rows])
            values, bounds = 100 * result.accuracy[rows], 100 * result.interval[rows].T
            axes.axhline(
                100 * result.intact, color=style["color"], linewidth=0.9, linestyle="--", alpha=0.7
            )
            # A block that was not skipped is another lesion than the others.
            by_mean = np.array(
                [kind == "block" and result.ablations[i] != SKIPPED for i in rows], dtype=bool
            )
            line = ~by_mean
            curve(axes, depths[line], values[line], (bounds[0][line], bounds[1][line]), style)
            if by_mean.any():
                axes.plot(depths[by_mean], values[by_mean], color=style["color"], **_BY_MEAN)
                crossed = True
        chance_line(axes, [100 * r.chance for r in shown])
        axes.set(xlabel="relative depth", xlim=(-0.03, 1.03), ylim=(-3, 103))
        axes.set_title(_TITLES[kind], fontsize=9)
    labelled = all(r.labelled for r in shown)
    panels[0].set_ylabel("accuracy (%)" if labelled else "accuracy, or agreement (%)")
    highest = fraction_text(max(r.chance for r in shown))
    keys = model_keys([r.model for r in shown], chance=f"chance ({highest})")
    keys.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle="--", label="intact network"))
    if crossed:
        keys.append(Line2D([], [], color=GREY, label="block replaced by its mean", **_BY_MEAN))
    key_below(figure, keys)
    return figure


@styled
def importance_scatter(results: Sequence[UnitImportance]) -> Figure:
    """Loss of logit margin when a unit is replaced by its mean against its class selectivity, one
    panel per network; bars are 95 % intervals over images.

    Raises MeasureError where no selectivity is known."""
    own = [r for r in primary(results) if np.isfinite(r.auroc).any()]
    if not own:
        raise MeasureError("there is no selectivity to draw: the images have no labels")
    columns = min(3, len(own))
    rows = -(-len(own) // columns)
    figure = Figure(figsize=(max(3.0 * columns, 4.2), 3.05 * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, result in zip(panels.flat, own):
        y = result.margin_drop
        bars = np.maximum(np.stack([y - result.margin_drop_low, result.margin_drop_high - y]), 0)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.errorbar(
            result.auroc,
            y,
            yerr=np.nan_to_num(bars),
            color=COLOURS[0],
            marker="o",
            markersize=3.5,
            linestyle="",
            elinewidth=0.8,
            alpha=0.8,
        )
        of = result.by_margin
        title = f"{model_label(result.model)}\n{cut(result.layer.name, 24)}"
        axes.set_title(f"{title}\nrank correlation {of.value:.2f}", fontsize=8)
        axes.set_xlabel(plain("AUROC of the best class"))
    for line in panels:
        line[0].set_ylabel("loss of logit margin")
    for axes in list(panels.flat)[len(own) :]:
        axes.remove()
    return figure
