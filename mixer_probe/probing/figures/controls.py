"""Figures of the controls of a probe: random groupings of classes, description lengths, random
labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixer_probe.plotting.curves import (
    chance_line,
    curve,
    depths,
    fraction_text,
    key_below,
    level,
    model_keys,
    networks,
    pixels,
    with_twins,
)
from mixer_probe.plotting.style import GREY, line_styles, model_label, styled
from mixer_probe.probing import ControlCode, ControlTask, OnlineCode, RandomLabels


@styled
def control_curves(results: Sequence[ControlTask]) -> Figure:
    """Left: accuracy on the semantic groups (solid) and on random groupings of the same classes
    (dashed, band from the lowest to the highest). Middle: selectivity, their difference. Right: the
    same as a percentage of the errors on random groupings.

    Bands in the middle and at the right are 95 % intervals; untrained baselines are dotted."""
    figure = Figure(figsize=(10.8, 3.8))
    left, middle, right = figure.subplots(1, 3)
    curves, raw = with_twins(results), pixels(results)
    styles = line_styles([one.model for one in curves])
    for one in networks(results):
        style, x, groups = styles[one.model.name], depths(one), 100 * one.control_accuracy
        curve(
            left,
            x,
            100 * one.accuracy,
            (100 * one.low, 100 * one.high),
            style,
            model_label(one.model),
        )
        dashed = {"color": style["color"], "linestyle": "--", "linewidth": 1}
        curve(left, x, groups.mean(axis=1), (groups.min(axis=1), groups.max(axis=1)), dashed)
    for axes, name in ((middle, "selectivity"), (right, "relative")):
        for one in raw:
            level(axes, *_numbers(one, name, -1))
        for one in curves:
            curve(
                axes,
                depths(one),
                *_numbers(one, name),
                styles[one.model.name],
                model_label(one.model),
            )
        axes.axhline(0, color=GREY, linewidth=1)
    chances = [100 * r.chance[0] for r in results]
    chance_line(left, chances)
    left.set(title="Semantic and random groups", ylabel="test accuracy (%)")
    middle.set(title="Selectivity", ylabel="semantic − random groups (points)")
    right.set(title="Relative selectivity", ylabel="% of errors on random groups")
    # With hardly any error on random groups the percentage can be anything.
    right.set_ylim(max(right.get_ylim()[0], -30), min(right.get_ylim()[1], 105))
    for axes in (left, middle, right):
        axes.set(xlabel="relative depth", xlim=(-0.02, 1.02))
    extra = Line2D(
        [], [], color=GREY, linestyle="--", linewidth=1, label="random groups of classes"
    )
    keys = model_keys(
        [one.model for one in curves],
        bool(raw),
        f"largest group ({fraction_text(max(chances) / 100)}); zero",
    )
    key_below(figure, [*keys, extra])
    return figure


def _numbers(result: ControlTask, name: str, i: Any = slice(None)) -> tuple[Any, tuple[Any, Any]]:
    """Selectivity in points, or the relative one in percent, with bounds: of all layers, or of
    layer i."""
    values = result.selectivity if name == "selectivity" else result.relative_selectivity
    low, high = (100 * getattr(result, f"{name}_{end}")[i] for end in ("low", "high"))
    return 100 * values[i], (low, high)


@styled
def code_curves(results: Sequence[OnlineCode]) -> Figure:
    """Compression of the labels by the online code against depth: length of the uniform code over
    its length.

    Bands are 95 % intervals over orders of the images, dotted lines untrained networks; 1 is no
    compression."""
    figure = Figure(figsize=(8.6, 4.0))
    axes = figure.add_subplot()
    own, raw = networks(results), pixels(results)
    styles = line_styles([r.model for r in own])
    for one in raw:
        level(axes, one.compression.max(), (one.low.max(), one.high.max()))
    for one in own:
        curve(
            axes,
            depths(one),
            one.compression,
            (one.low, one.high),
            styles[one.model.name],
            model_label(one.model),
        )
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set(
        title="Compression of the labels",
        xlabel="relative depth",
        ylabel="uniform code ÷ online code",
        xlim=(-0.02, 1.02),
    )
    axes.set_ylim(bottom=0)
    key_below(figure, model_keys([r.model for r in own], bool(raw), "no compression"))
    return figure


@styled
def control_code_curves(results: Sequence[ControlCode]) -> Figure:
    """Left: compression of the semantic groups (solid) and of random groupings of the same classes
    (dashed). Right: additional bits per image of a random grouping."""
    figure = Figure(figsize=(9.6, 4.0))
    left, right = figure.subplots(1, 2)
    own = networks(results)
    styles = line_styles([r.model for r in own])
    for one in own:
        style = styles[one.model.name]
        left.plot(depths(one), one.compression, label=model_label(one.model), **style)
        controls = one.uniform / one.control_bits.mean(axis=(1, 2))
        left.plot(depths(one), controls, color=style["color"], linestyle="--", linewidth=1)
        right.plot(depths(one), one.gap, label=model_label(one.model), **style)
    for axes, zero in ((left, 1), (right, 0)):
        axes.axhline(zero, color=GREY, linewidth=1)
    left.set(
        title="Compression of groups",
        xlabel="relative depth",
        ylabel="uniform code ÷ online code",
        xlim=(-0.02, 1.02),
    )
    right.set(
        title="Cost of random groupings",
        xlabel="relative depth",
        ylabel="additional bits per image",
        xlim=(-0.02, 1.02),
    )
    extra: list[Artist] = [
        Line2D([], [], color=GREY, linestyle="--", linewidth=1, label="random groups of classes")
    ]
    key_below(
        figure,
        [*model_keys([r.model for r in own], False, "no compression; no difference"), *extra],
    )
    return figure


@styled
def random_label_curves(results: Sequence[RandomLabels]) -> Figure:
    """Accuracy on permuted labels by depth with its 95 % interval, and its expected value
    (dashed)."""
    figure = Figure(figsize=(8.6, 3.6))
    axes = figure.add_subplot()
    styles = line_styles([r.model for r in results])
    for one in results:
        style, x = styles[one.model.name], depths(one)
        bounds = (100 * one.low, 100 * one.high)
        curve(axes, x, 100 * one.accuracy.mean(axis=1), bounds, style, model_label(one.model))
        axes.plot(x, 100 * one.expected, color=style["color"], linestyle="--", linewidth=1)
    axes.set(
        title="Accuracy on random labels",
        xlabel="relative depth",
        ylabel="test accuracy (%)",
        xlim=(-0.02, 1.02),
    )
    axes.set_ylim(bottom=0)
    extra: list[Artist] = [
        Line2D([], [], color=GREY, linestyle="--", linewidth=1, label="expected")
    ]
    key_below(figure, [*model_keys([r.model for r in results]), *extra])
    return figure
