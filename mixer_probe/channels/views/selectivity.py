"""Class selectivity of single channels, and accuracy against number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelsNeeded, ClassSelectivity
from mixer_probe.channels.figures import channels_needed_curves, selectivity_depth, selectivity_distributions
from mixer_probe.core.section import Picture, Section, Table, chunks
from mixer_probe.core.words import base_name, images_text, interval, name_of, percent, studied, untrained_warning
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL

_MOST_PANELS = 6
_NEEDED_SHARE = 0.9


def selectivity_section(results: Sequence[ClassSelectivity]) -> list[Section]:
    """Class-selective channels."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    ordered = [*shown, *(r for r in results if r.model not in own)]
    twins = {base_name(r.model.name): r for r in ordered[len(shown) :]}
    pictures = [_depth_picture(ordered), *(_distribution_picture(part) for part in chunks(ordered, _MOST_PANELS))]
    sentences = tuple(_selectivity_sentence(r, twins.get(r.model.name)) for r in shown)
    warning = untrained_warning(r.model for r in results)
    content: tuple[Picture | Table, ...] = (*pictures, _selectivity_table(ordered))
    return [Section("selectivity", "Class-selective channels", sentences, content, warning)]


def _depth_picture(results: Sequence[ClassSelectivity]) -> Picture:
    first = results[0]
    twins = any(not r.model.trained for r in results)
    return Picture(
        partial(selectivity_depth, results),
        f"Fraction of class-selective channels and strength of their selectivity, over {images_text(first.images)}.",
        "A channel is selective if the AUROC of its mean activation for some class is further from 1/2 than that of any channel "
        f"of the layer for any class in 95 % of {first.permutations} label permutations (max-T correction): by chance, one layer "
        "in twenty has any such channel. With many images weakly selective channels count too, so AUROC and d′ show how well the "
        "median channel separates its best class; the band is the interquartile range over channels of a trained network."
        + (" Dotted lines are untrained baselines." if twins else ""),
        "Fraction of selective channels, AUROC and d prime against relative depth",
        name="selectivity-depth",
    )


def _distribution_picture(results: Sequence[ClassSelectivity]) -> Picture:
    return Picture(
        partial(selectivity_distributions, results),
        f"AUROC of all channels for their best-separated class, by layer; n = {results[0].n}.",
        "An AUROC below 1/2 (lower activations for the class) is replaced by 1 − AUROC. Bands hold 50 % and 90 % of the "
        "channels, the line is the median, dots are the best channel, filled where significant after max-T correction. The "
        "dashed line is the median channel under permuted labels.",
        f"Distribution of AUROC over the channels of {', '.join(name_of(r.model) for r in results)}",
        name=f"selectivity-distributions-{name_of(results[0].model)}",
    )


def _selectivity_table(results: Sequence[ClassSelectivity]) -> Table:
    frame = pd.concat([r.summary() for r in results], ignore_index=True)
    numbers = ("share_selective", "auroc_q25", "auroc_median", "auroc_q75", "auroc_max", "null_auroc", "dprime_median")
    formats = dict.fromkeys(numbers, "{:.3f}") | {"depth": "{:.2f}"}
    caption = "Selectivity by layer. null_auroc: best AUROC of the median channel under permuted labels."
    return Table(caption, frame, formats, folded=True)


def _selectivity_sentence(result: ClassSelectivity, twin: ClassSelectivity | None) -> str:
    name, n = name_of(result.model), f"n = {result.n}"
    if all(np.isnan(s).all() for s in result.strength):
        return f"{name}: no channel varies over the images, so none is selective ({n})."
    if not result.permutations:
        return f"{name}: no permutations were computed, so selectivity is not tested ({n})."
    kept, total = _counts(result)
    null = f"5 % level, max-T correction over the channels and classes of a layer, {result.permutations} label permutations, {n}"
    # One layer in twenty has a selective channel by chance: any layer at all takes the null of the largest of all layers.
    if not kept or result.overall_p(max(float(np.nanmax(s)) for s in result.strength if np.isfinite(s).any())) > LEVEL:
        none = f"{name}: none of {total} channels is significantly selective for a class ({null})."
        return f"{none}{_constant_text(result)}"
    shares = result.summary()["share_selective"]
    ends = f"{percent(shares.iloc[0])} after {result.layers[0].name}, {percent(shares.iloc[-1])} after {result.layers[-1].name}"
    where = f": {ends}" if len(result.layers) > 1 else ""
    counted = f"{kept} of {total} channels ({percent(kept / total)})"
    text = f"{name}: {counted} are significantly selective for a class{where} ({null})"
    return f"{text}{_clearest(result)}.{_constant_text(result)}{_twin_text(twin)}"


def _counts(result: ClassSelectivity) -> tuple[int, int]:
    return sum(int(s.sum()) for s in result.selective), sum(layer.channels for layer in result.layers)


def _constant_text(result: ClassSelectivity) -> str:
    """Channels that tell nothing because they are constant, or not finite, over the images."""
    undefined = sum(int(np.isnan(s).sum()) for s in result.strength)
    return f" {undefined} channels are constant over the images or not finite." if undefined else ""


def _twin_text(twin: ClassSelectivity | None) -> str:
    if twin is None:
        return ""
    kept, total = _counts(twin)
    summary = twin.summary()
    return (
        f" Untrained baseline: {percent(kept / total)} are selective; the AUROC of the median channel is at most "
        f"{summary['auroc_median'].max():.3f}, of any channel at most {summary['auroc_max'].max():.3f}."
    )


def _clearest(result: ClassSelectivity) -> str:
    """The channel of the largest strength of all layers, where it is beyond the largest of all layers under permuted labels."""
    best = result.to_frame().sort_values("strength", ascending=False, kind="stable").iloc[0]
    p = result.overall_p(best["strength"])
    if p > LEVEL or result.permutations < DRAWS:
        return ""
    return (
        f"; the most selective of all layers, channel {best['channel']} of {best['layer']}, "
        f"{result.relation(result.index(best['layer']), best['auroc'])} '{best['class']}' (AUROC {best['auroc']:.3f}, "
        f"d′ {best['dprime']:.2f}, p = {p:.2g})"
    )


def needed_section(results: Sequence[ChannelsNeeded]) -> list[Section]:
    """Accuracy against number of channels."""
    pictures = tuple(_needed_picture(part) for part in chunks(results, _MOST_PANELS))
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    formats = dict.fromkeys(("selective", "random", "random_low", "random_high", "chance"), "{:.3f}") | {"depth": "{:.2f}"}
    table = Table("Accuracy by number of channels; random_low and random_high: range over draws.", frame, formats, folded=True)
    sentences = tuple(_needed_sentence(r) for r in results)
    warning = untrained_warning(r.model for r in results)
    return [Section("channels-needed", "Accuracy against number of channels", sentences, (*pictures, table), warning)]


def _needed_picture(results: Sequence[ChannelsNeeded]) -> Picture:
    first = results[0]
    draws = first.random[0].shape[1]
    return Picture(
        partial(channels_needed_curves, results),
        f"Accuracy of a {first.probe} probe on subsets of the channels of a layer: trained on {first.n_train} images, tested on "
        f"{first.n} others.",
        "Solid lines: the most selective channels on the training images, taken class by class in turn; dotted lines: random "
        f"channels (mean and range of {draws} draws). Similar lines indicate that class information is distributed over all "
        "channels; a solid line far above indicates that few channels carry it. The dashed line is chance.",
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
        return f"{name}: accuracy with all {layer.channels} channels is not above chance ({everything}; {end})."
    k = int(np.flatnonzero(result.counts[i] == needed)[0])
    random = result.random[i][k]
    return (
        f"{name}: the {int(needed)} most selective of {layer.channels} channels reach {percent(_NEEDED_SHARE)} of the gain over "
        f"chance ({_accuracy(result, result.selective[i][k])}; all channels: {everything}); the same number of random channels "
        f"reaches {percent(random.mean())} ({percent(random.min())} to {percent(random.max())} in {len(random)} draws; {end})."
    )


def _accuracy(result: ChannelsNeeded, accuracy: float) -> str:
    return interval(accuracy, *wilson_interval(accuracy * result.n, result.n))
