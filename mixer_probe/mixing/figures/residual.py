"""Figures of the residual stream: skip connections beside branches, and contributions to the
logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.words import primary, untrained_baseline
from mixer_probe.mixing.residual import ResidualStream
from mixer_probe.models.layer import spread
from mixer_probe.plotting.curves import curve, cut, key_below
from mixer_probe.plotting.style import COLOURS, GREY, SEQUENTIAL, model_label, plain, styled

_STYLES: dict[str, dict[str, Any]] = {
    "spatial": {"color": COLOURS[0], "marker": "o"},
    "channel": {"color": COLOURS[1], "marker": "s"},
    "block": {"color": COLOURS[2], "marker": "^"},
}
_OPEN: dict[str, Any] = {"linestyle": ":", "markerfacecolor": "white"}
_PREFIX: dict[str, Any] = {"linestyle": "--", "linewidth": 1, "marker": ""}
_MOST_MAPS = 6


def branch_kinds(result: ResidualStream) -> list[str]:
    """What the branches of a network are called: "spatial" and "channel", or "block" where there is
    one that mixes both."""
    return ["spatial", "channel"] if result.present[:, 1].any() else ["block"]


@styled
def norm_ratios(results: Sequence[ResidualStream]) -> Figure:
    """Ratio of the norms of skip connection and branch by block, one column per network; bands are
    95 % intervals over images.

    Dashed lines are prefix tokens, dotted ones with open markers the untrained baseline. Raises
    MeasureError without a result."""
    own = primary(results)
    if not own:
        raise MeasureError("there is no residual stream to draw")
    figure = Figure(figsize=(max(3.3 * len(own), 4.6), 3.2))
    panels = figure.subplots(1, len(own), squeeze=False, sharey=True)[0]
    for axes, result in zip(panels, own):
        baseline, blocks = untrained_baseline(result, results), 1 + np.arange(len(result.blocks))
        for b, kind in enumerate(branch_kinds(result)):
            style = _STYLES[kind]
            if baseline:
                axes.plot(blocks, baseline.ratio.value[:, b], **style, **_OPEN)
            axes.plot(blocks, result.prefix_ratio.value[:, b], **{**style, **_PREFIX})
            low, high = (getattr(result.ratio, side)[:, b] for side in ("low", "high"))
            curve(axes, blocks, result.ratio.value[:, b], (low, high), style)
        axes.set_title(plain(model_label(result.model)), fontsize=9)
        axes.set(xlabel="block", yscale="log", xlim=(0.5, len(blocks) + 0.5))
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("norm ratio, skip to branch")
    kinds = dict.fromkeys(kind for r in own for kind in branch_kinds(r))
    keys: list[Any] = [
        Line2D([], [], label="both in one branch" if k == "block" else f"{k} branch", **_STYLES[k])
        for k in kinds
    ]
    if any(np.isfinite(r.prefix_ratio.value).any() for r in own):
        keys.append(Line2D([], [], color=GREY, label="prefix tokens", **_PREFIX))
    if any(untrained_baseline(r, results) for r in own):
        keys.append(Line2D([], [], color=GREY, marker="o", label="untrained baseline", **_OPEN))
    key_below(figure, keys)
    return figure


@styled
def logit_contributions(results: Sequence[ResidualStream]) -> Figure:
    """What stem, branches and biases add to the logit of the class minus the mean logit, one panel
    per network; bars are 95 % intervals over images.

    Open bars are the untrained baseline. Raises MeasureError where no logit is a sum."""
    own = [r for r in primary(results) if not r.reason]
    if not own:
        raise MeasureError("in none of the networks is the logit a sum over branches")
    figure = Figure(figsize=(7.6, 2.3 * len(own) + 0.2))
    panels = figure.subplots(len(own), 1, squeeze=False)[:, 0]
    for axes, result in zip(panels, own):
        baseline = untrained_baseline(result, results)
        if baseline and not baseline.reason:
            _bars(axes, baseline, {"facecolor": "none", "edgecolor": GREY, "linewidth": 0.8})
        _bars(axes, result, None)
        blocks = len(result.blocks)
        axes.set_xticks(
            range(blocks + 2), ["stem", *map(str, range(1, blocks + 1)), "biases"], fontsize=7.5
        )
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_title(plain(model_label(result.model)), fontsize=9)
        of = "class" if result.target == "label" else "prediction"
        axes.set_ylabel(f"logit of the {of}\nminus mean")
    panels[-1].set_xlabel("block")
    kinds = dict.fromkeys(kind for r in own for kind in branch_kinds(r))
    keys: list[Any] = [Patch(color=GREY, label="stem and biases")]
    keys += [
        Patch(
            color=_STYLES[k]["color"],
            label="both in one branch" if k == "block" else f"{k} branch",
        )
        for k in kinds
    ]
    if any(untrained_baseline(r, results) for r in own):
        keys.append(Patch(facecolor="none", edgecolor=GREY, label="untrained baseline"))
    key_below(figure, keys)
    return figure


def _bars(axes: Axes, result: ResidualStream, look: dict[str, Any] | None) -> None:
    """Bars of stem, branches and biases, with intervals unless they have a `look` of their own."""
    kinds, blocks = branch_kinds(result), len(result.blocks)
    width = 0.8 / len(kinds)
    rows: list[tuple[float, float, Any, Any, Any]] = [
        (0, 0.8, result.part, 0, GREY),
        (blocks + 1, 0.8, result.part, 3, GREY),
    ]
    for b, kind in enumerate(kinds):
        offset = (b - (len(kinds) - 1) / 2) * width
        rows += [
            (k + 1 + offset, width, result.contribution, (k, b), _STYLES[kind]["color"])
            for k in range(blocks)
        ]
    for x, wide, of, at, colour in rows:
        value, low, high = (float(getattr(of, side)[at]) for side in ("value", "low", "high"))
        if not np.isfinite(value):
            continue
        if look is not None:
            axes.bar(x, value, wide, **look)
            continue
        axes.bar(x, value, wide, color=colour, alpha=0.85)
        if np.isfinite(low):
            axes.plot([x, x], [low, high], color="black", linewidth=0.9)


@styled
def ratio_maps(result: ResidualStream) -> Figure:
    """The norm ratio of skip connection and branch at every position, of up to six blocks, one row
    per branch."""
    kinds = branch_kinds(result)
    known = [k for k in range(len(result.blocks)) if np.isfinite(result.maps[k]).any()]
    if not known:
        raise MeasureError("there is no branch with a norm to draw")
    chosen = [known[i] for i in spread([result.blocks[k] for k in known], _MOST_MAPS)]
    values = np.concatenate([result.maps[k][np.isfinite(result.maps[k])] for k in chosen])
    scale = LogNorm(float(values.min()), max(float(values.max()), 1.01 * float(values.min())))
    figure = Figure(figsize=(max(1.35 * len(chosen), 4.6), 1.5 * len(kinds) + 0.35))
    panels = figure.subplots(len(kinds), len(chosen), squeeze=False)
    for b, kind in enumerate(kinds):
        for axes, k in zip(panels[b], chosen):
            axes.imshow(result.maps[k][b], cmap=SEQUENTIAL, norm=scale)
            axes.set_xticks([])
            axes.set_yticks([])
            if b == 0:
                axes.set_title(cut(result.blocks[k].name, 14), fontsize=7.5, fontweight="normal")
        panels[b, 0].set_ylabel(kind, fontsize=8)
    bar = figure.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=list(panels.flat), aspect=18)
    bar.set_label("skip to branch", fontsize=7.5)
    bar.outline.set_visible(False)
    return figure
