"""Class selectivity of single channels, and accuracy against number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.channels import ChannelsNeeded, ClassSelectivity
from mixer_probe.channels.figures import (
    channels_needed_curves,
    selectivity_depth,
    selectivity_distributions,
)
from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import (
    images_text,
    interval,
    name_of,
    percent,
    studied,
    untrained_baseline,
    untrained_warning,
)
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL

_MOST_PANELS = 6
_NEEDED_FRACTION = 0.9


def selectivity_section(results: Sequence[ClassSelectivity]) -> list[Section]:
    """Class-selective channels."""
    own = studied(r.model for r in results)
    ordered = sorted(results, key=lambda r: r.model not in own)
    first = ordered[0]
    baselines = (
        "" if all(r.model.trained for r in ordered) else " Dotted lines are untrained baselines."
    )
    depth = Picture(
        partial(selectivity_depth, ordered),
        "Fraction of class-selective channels and strength of their selectivity, over "
        f"{images_text(first.images)}.",
        "A channel is selective if the AUROC of its mean activation for some class is further from "
        f"1/2 than that of any channel of the layer for any class in 95 % of {first.permutations} "
        "label permutations (max-T correction): by chance, one layer in twenty has any such "
        "channel. With many images weakly selective channels count too, so AUROC and d′ show how "
        "well the median channel separates its best class; the band is the interquartile range "
        f"over channels of a trained network.{baselines}",
        "Fraction of selective channels, AUROC and d prime against relative depth",
        name="selectivity-depth",
    )
    distributions = [
        Picture(
            partial(selectivity_distributions, part),
            f"AUROC of all channels for their best-separated class, by layer; n = {part[0].n}.",
            "An AUROC below 1/2 (lower activations for the class) is replaced by 1 − AUROC. Bands "
            "hold 50 % and 90 % of the channels, the line is the median, dots are the best "
            "channel, filled where significant after max-T correction. The dashed line is the "
            "median channel under permuted labels.",
            "Distribution of AUROC over the channels of "
            f"{', '.join(name_of(r.model) for r in part)}",
            name=f"selectivity-distributions-{name_of(part[0].model)}",
        )
        for part in chunks(ordered, _MOST_PANELS)
    ]
    numbers = (
        "fraction_selective",
        "auroc_q25",
        "auroc_median",
        "auroc_q75",
        "auroc_max",
        "null_auroc",
        "dprime_median",
    )
    table = Table(
        "Selectivity by layer. null_auroc: best AUROC of the median channel under permuted labels.",
        pd.concat([r.summary() for r in ordered], ignore_index=True),
        dict.fromkeys(numbers, "{:.3f}") | {"depth": "{:.2f}"},
        folded=True,
    )
    sentences = tuple(
        selectivity_sentence(r, untrained_baseline(r, results)) for r in ordered if r.model in own
    )
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "selectivity",
            "Class-selective channels",
            sentences,
            (depth, *distributions, table),
            warning,
        )
    ]


def selectivity_sentence(result: ClassSelectivity, baseline: ClassSelectivity | None) -> str:
    """The fraction of selective channels of a network and its most selective channel, beside the
    untrained baseline."""
    name, n = name_of(result.model), f"n = {result.n}"
    if all(np.isnan(s).all() for s in result.strength):
        return f"{name}: no channel varies over the images, so none is selective ({n})."
    if not result.permutations:
        return f"{name}: no permutations were computed, so selectivity is not tested ({n})."
    selective, total = _counts(result)
    undefined = sum(int(np.isnan(s).sum()) for s in result.strength)
    constant = (
        f" {undefined} channels are constant over the images or not finite." if undefined else ""
    )
    null = (
        "5 % level, max-T correction over the channels and classes of a layer, "
        f"{result.permutations} label permutations, {n}"
    )
    best = result.to_frame().sort_values("strength", ascending=False, kind="stable").iloc[0]
    # One layer in twenty has a selective channel by chance: any layer at all is tested against the
    # largest of all layers.
    p = result.overall_p(best["strength"])
    if not selective or p > LEVEL:
        return (
            f"{name}: none of {total} channels is significantly selective for a class "
            f"({null}).{constant}"
        )
    layers, fractions = result.layers, result.summary()["fraction_selective"]
    ends = (
        f"{percent(fractions.iloc[0])} after {layers[0].name}, {percent(fractions.iloc[-1])} after "
        f"{layers[-1].name}"
    )
    where = f": {ends}" if len(layers) > 1 else ""
    fraction = percent(selective / total)
    text = (
        f"{name}: {selective} of {total} channels ({fraction}) are significantly selective for a "
        f"class{where} ({null})"
    )
    if result.permutations >= DRAWS:
        text += (
            f"; the most selective of all layers, channel {best['channel']} of {best['layer']}, "
            f"{result.relation(result.index(best['layer']), best['auroc'])} '{best['class']}' "
            f"(AUROC {best['auroc']:.3f}, d′ {best['dprime']:.2f}, p = {p:.2g})"
        )
    text += f".{constant}"
    if baseline is not None:
        selective, total = _counts(baseline)
        summary = baseline.summary()
        text += (
            f" Untrained baseline: {percent(selective / total)} are selective; the AUROC of the "
            f"median channel is at most {summary['auroc_median'].max():.3f}, of any channel at "
            f"most {summary['auroc_max'].max():.3f}."
        )
    return text


def _counts(result: ClassSelectivity) -> tuple[int, int]:
    """Selective channels of all layers, and all channels."""
    return sum(int(s.sum()) for s in result.selective), sum(
        layer.channels for layer in result.layers
    )


def needed_section(results: Sequence[ChannelsNeeded]) -> list[Section]:
    """Accuracy against number of channels."""
    pictures = [
        Picture(
            partial(channels_needed_curves, part),
            f"Accuracy of a {part[0].probe} probe on subsets of the channels of a layer: trained "
            f"on {part[0].n_train} images, tested on {part[0].n} others.",
            "Solid lines: the most selective channels on the training images, taken class by class "
            "in turn; dotted lines: random channels (mean and range of "
            f"{part[0].random[0].shape[1]} draws). Similar lines indicate that class information "
            "is distributed over all channels; a solid line far above indicates that few channels "
            "carry it. The dashed line is chance.",
            "Accuracy against the number of channels, selective and random ones",
            name=f"channels-needed-{name_of(part[0].model)}",
        )
        for part in chunks(results, _MOST_PANELS)
    ]
    formats = dict.fromkeys(
        ("selective", "random", "random_low", "random_high", "chance"), "{:.3f}"
    ) | {"depth": "{:.2f}"}
    caption = "Accuracy by number of channels; random_low and random_high: range over draws."
    sentences = []
    for r in results:
        layer, needed, selective = r.layers[-1], r.needed(_NEEDED_FRACTION)[-1], r.selective[-1]
        name, end = (
            f"{name_of(r.model)}, after {layer.name}",
            f"chance {percent(r.chance)}, {r.probe} probe, n = {r.n}",
        )
        k = int(np.flatnonzero(r.counts[-1] == needed)[0]) if np.isfinite(needed) else -1
        subset, everything = (
            interval(a, *wilson_interval(a * r.n, r.n)) for a in selective[[k, -1]]
        )
        if np.isnan(needed):
            text = (
                f"{name}: accuracy with all {layer.channels} channels is not above chance "
                f"({everything}; {end})."
            )
        else:
            random = r.random[-1][k]
            text = (
                f"{name}: the {int(needed)} most selective of {layer.channels} channels reach "
                f"{percent(_NEEDED_FRACTION)} of the gain over chance ({subset}; all channels: "
                f"{everything}); the same number of random channels reaches "
                f"{percent(random.mean())} ({percent(random.min())} to {percent(random.max())} in "
                f"{len(random)} draws; {end})."
            )
        sentences.append(text)
    content: tuple[Picture | Table, ...] = (
        *pictures,
        Table(caption, table_of(results), formats, folded=True),
    )
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "channels-needed",
            "Accuracy against number of channels",
            tuple(sentences),
            content,
            warning,
        )
    ]
