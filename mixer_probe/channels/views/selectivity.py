"""Which classes single channels tell, and how many channels a probe needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelsNeeded, ClassSelectivity
from mixer_probe.channels.figures import channels_needed_curves, selectivity_depth, selectivity_distributions
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import base_name, images_text, name_of, percent, studied, untrained_warning
from mixer_probe.probing.views.probes import chunks, interval
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL

_MOST_PANELS = 6
_NEEDED_SHARE = 0.9


def selectivity_section(results: Sequence[ClassSelectivity]) -> list[Section]:
    """Which classes single channels tell."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    ordered = [*shown, *(r for r in results if r.model not in own)]
    twins = {base_name(r.model.name): r for r in ordered[len(shown) :]}
    pictures = [_depth_picture(ordered), *(_distribution_picture(part) for part in chunks(ordered, _MOST_PANELS))]
    sentences = tuple(_selectivity_sentence(r, twins.get(r.model.name)) for r in shown)
    warning = untrained_warning(r.model for r in results)
    content: tuple[Picture | Table, ...] = (*pictures, _selectivity_table(ordered))
    return [Section("selectivity", "Which classes single channels tell", sentences, content, warning)]


def _depth_picture(results: Sequence[ClassSelectivity]) -> Picture:
    first = results[0]
    twins = any(not r.model.trained for r in results)
    return Picture(
        selectivity_depth(results),
        f"How many channels tell a class from all others, and how well, over {images_text(first.images)}.",
        "A channel counts if the AUROC of its mean activation for some class is further from 1/2 than that of any channel of the "
        f"layer for any class in 95 % of {first.permutations} random deals of the labels: by chance one layer in twenty has any "
        "such channel. With many images weak ones count too, so AUROC and d′ say how well the median channel tells its best "
        "class; the band is the middle half of the channels of a trained network."
        + (" Dotted lines are the same networks with random weights: what colours and edges alone tell." if twins else ""),
        "Share of selective channels, AUROC and d prime against relative depth",
        name="selectivity-depth",
    )


def _distribution_picture(results: Sequence[ClassSelectivity]) -> Picture:
    return Picture(
        selectivity_distributions(results),
        f"AUROC of every channel for the class that it tells best, layer by layer; n = {results[0].n}.",
        "An AUROC below 1/2, of a channel that is lower for its class, counts as 1 minus it. Bands hold 50 % and 90 % of the "
        "channels, the line is the median, dots are the best channel, filled where it is above the corrected null. The dashed "
        "line is the median channel with labels dealt out at random.",
        f"Distribution of AUROC over the channels of {', '.join(name_of(r.model) for r in results)}",
        name=f"selectivity-distributions-{name_of(results[0].model)}",
    )


def _selectivity_table(results: Sequence[ClassSelectivity]) -> Table:
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    numbers = ("share_selective", "auroc_q25", "auroc_median", "auroc_q75", "auroc_max", "null_auroc", "dprime_median")
    formats = dict.fromkeys(numbers, "{:.3f}") | {"depth": "{:.2f}"}
    caption = "Selectivity by layer. null_auroc is the median channel's best AUROC with labels dealt out at random."
    return Table(caption, frame, formats, folded=True)


def _selectivity_sentence(result: ClassSelectivity, twin: ClassSelectivity | None) -> str:
    name, n = name_of(result.model), f"n = {result.n}"
    if all(np.isnan(s).all() for s in result.strength):
        return f"{name}: no channel varies over the images, so none tells a class ({n})."
    if not result.permutations:
        return f"{name}: the null was not asked for, so no channel can be called selective ({n})."
    kept, total = _counts(result)
    null = (
        f"5 % level, corrected for the channels and classes of a layer by {result.permutations} permutations of the labels, {n}"
    )
    # One layer in twenty has a selective channel by chance: any layer at all takes the null of the largest of all layers.
    if not kept or result.overall_p(max(float(np.nanmax(s)) for s in result.strength if np.isfinite(s).any())) > LEVEL:
        none = f"{name}: none of {total} channels tells a class better than permuted labels do ({null})."
        return f"{none}{_constant_text(result)}"
    shares = result.summary()["share_selective"]
    ends = f"{percent(shares.iloc[0])} after {result.layers[0].name}, {percent(shares.iloc[-1])} after {result.layers[-1].name}"
    where = f": {ends}" if len(result.layers) > 1 else ""
    counted = f"{kept} of {total} channels ({percent(kept / total)})"
    text = f"{name}: {counted} tell a class better than permuted labels do{where} ({null})"
    return f"{text}{_clearest(result)}.{_constant_text(result)}{_twin_text(twin)}"


def _counts(result: ClassSelectivity) -> tuple[int, int]:
    return sum(int(s.sum()) for s in result.selective), sum(layer.channels for layer in result.layers)


def _constant_text(result: ClassSelectivity) -> str:
    """Channels that tell nothing because they are constant, or not finite, over the images."""
    undefined = sum(int(np.isnan(s).sum()) for s in result.strength)
    return f" {undefined} channels are constant over the images, or not finite." if undefined else ""


def _twin_text(twin: ClassSelectivity | None) -> str:
    if twin is None:
        return ""
    kept, total = _counts(twin)
    summary = twin.summary()
    return (
        f" Untrained, {percent(kept / total)} do, and the median channel's AUROC is at most {summary['auroc_median'].max():.3f}, "
        f"the best {summary['auroc_max'].max():.3f}."
    )


def _clearest(result: ClassSelectivity) -> str:
    """The channel of the largest strength of all layers, where it is beyond the largest of all layers under permuted labels."""
    best = result.to_frame().sort_values("strength", ascending=False, kind="stable").iloc[0]
    p = result.overall_p(best["strength"])
    if p > LEVEL or result.permutations < DRAWS:
        return ""
    return (
        f"; the clearest of all layers, channel {best['channel']} of {best['layer']}, "
        f"{result.relation(result.index(best['layer']), best['auroc'])} '{best['class']}' (AUROC {best['auroc']:.3f}, "
        f"d′ {best['dprime']:.2f}, p = {p:.2g})"
    )


def needed_section(results: Sequence[ChannelsNeeded]) -> list[Section]:
    """How many channels a probe needs."""
    pictures = tuple(_needed_picture(part) for part in chunks(results, _MOST_PANELS))
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("selective", "random", "random_low", "random_high", "chance"), "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("Accuracy by number of channels; random_low and random_high are over draws.", frame, formats, folded=True)
    sentences = tuple(_needed_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("channels-needed", "How many channels a class needs", sentences, (*pictures, table), warning)]


def _needed_picture(results: Sequence[ChannelsNeeded]) -> Picture:
    first = results[0]
    draws = first.random[0].shape[1]
    return Picture(
        channels_needed_curves(results),
        f"Accuracy of a {first.probe} probe that sees few channels of a layer: fitted on {first.n_train} images, tested on "
        f"{first.n} others.",
        "Solid lines take the channels that tell the classes best on the fitting images, one of every class in turn; dotted "
        f"lines take channels at random (mean, and range, of {draws} draws). Where both are alike the class is spread over all "
        "channels; where the solid line is far above, single channels hold it. The dashed line is chance.",
        "Accuracy against the number of channels, selective and random ones",
        name=f"channels-needed-{name_of(first.model)}",
    )


def _needed_sentence(result: ChannelsNeeded) -> str:
    i = len(result.layers) - 1
    layer, needed = result.layers[i], result.needed(_NEEDED_SHARE)[i]
    name = f"{name_of(result.model)}, after {layer.name}"
    end = f"chance {percent(result.chance)}, {result.probe} probe, n = {result.n}"
    everything = _accuracy(result, result.selective[i][-1])
    if np.isnan(needed):
        return f"{name}: all {layer.channels} channels do no better than chance ({everything}; {end})."
    k = int(np.flatnonzero(result.counts[i] == needed)[0])
    random = result.random[i][k]
    return (
        f"{name}: {percent(_NEEDED_SHARE)} of what all {layer.channels} channels gain over chance comes from the "
        f"{int(needed)} most selective ({_accuracy(result, result.selective[i][k])} of {everything}); as many random ones "
        f"give {percent(random.mean())} ({percent(random.min())} to {percent(random.max())} in {len(random)} draws; {end})."
    )


def _accuracy(result: ChannelsNeeded, accuracy: float) -> str:
    return interval(accuracy, *wilson_interval(accuracy * result.n, result.n))
