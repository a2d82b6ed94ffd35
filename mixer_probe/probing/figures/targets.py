"""Figures of probes of other targets than the class: one panel per target, its score against
depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixer_probe.core.errors import MeasureError
from mixer_probe.plotting.curves import (
    chance_line,
    curve,
    depths,
    key_below,
    level,
    model_keys,
    pixels,
    with_twins,
)
from mixer_probe.plotting.style import line_styles, model_label, plain, styled
from mixer_probe.probing import TargetProbe

# Values far below 0 are equally uninformative; the rest of the panel should not shrink for them.
_LEAST = -0.25
_COLUMNS = 3


@styled
def target_curves(results: Sequence[TargetProbe], targets: Sequence[str] | None = None) -> Figure:
    """Score of a probe of each target against depth: R² for numbers and angles, accuracy for
    classes, with 95 % intervals.

    One panel per target, all of them unless `targets` names some; grey lines are chance, dotted
    ones untrained baselines, the dashed one raw pixels. Values below -0.25 are cut off. Raises
    MeasureError for a target that no result has."""
    names = list(dict.fromkeys(name for r in results for name in r.targets))
    missing = [name for name in targets or () if name not in names]
    if missing:
        raise MeasureError(f"there is no target '{missing[0]}'; there are {', '.join(names)}")
    names = list(targets or names)
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(3.2 * columns, 5.0), 2.7 * rows + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, name in zip(panels.flat, names):
        chosen = [r for r in results if name in r.targets]
        curves = with_twins(chosen)
        styles = line_styles([one.model for one in curves])
        for one in pixels(chosen):
            score, low, high = (part.max() for part in _numbers(one, name))
            level(axes, score, (low, high))
        for one in curves:
            score, low, high = _numbers(one, name)
            curve(
                axes,
                depths(one),
                score,
                (low, high),
                styles[one.model.name],
                model_label(one.model),
            )
        first, t = chosen[0], chosen[0].targets.index(name)
        chance_line(axes, [float(first.chance[t])])
        label = "test accuracy" if first.metrics[t] == "accuracy" else "R² on test images"
        axes.set(ylabel=label, xlabel="relative depth", xlim=(-0.02, 1.02))
        axes.tick_params(labelbottom=True)
        axes.set_title(plain(name if len(name) <= 30 else name[:29] + "…"))
        axes.set_ylim(max(axes.get_ylim()[0], _LEAST), 1.03)
    for axes in panels.flat[len(names) :]:
        axes.remove()
    key_below(
        figure,
        model_keys([one.model for one in with_twins(results)], bool(pixels(results)), "chance"),
    )
    return figure


def _numbers(result: TargetProbe, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score and bounds [L] of one target."""
    t = result.targets.index(name)
    return result.score[:, t], result.low[:, t], result.high[:, t]
