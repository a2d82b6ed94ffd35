"""Sentences on lesions and on the importance of units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.words import interval, name_of, number, percent, points, untrained_baseline
from mixer_probe.mixing.lesions import SKIPPED, Lesions
from mixer_probe.mixing.unit_importance import UnitImportance
from mixer_probe.stats import mean_interval
from mixer_probe.stats.claims import LEVEL, leader
from mixer_probe.stats.differences import difference_p

_NOUNS = {"spatial": "spatial layers", "channel": "channel layers", "block": "blocks"}


def lesion_sentences(result: Lesions, results: Sequence[Lesions]) -> list[str]:
    """Accuracy of the intact network, mean drops by kind of layer, how many drops are significant,
    the largest where it differs from the others, and what the untrained baseline has."""
    name = name_of(result.model)
    if not result.able:
        return [f"{name} {_unable(result)}"]
    what = "Accuracy" if result.labelled else "Agreement with the intact network's own predictions"
    intact = interval(result.intact, *result.intact_interval)
    said = [f"{name}, {what.lower()} (n = {result.n}, chance {percent(result.chance)})"]
    if result.labelled:
        said[0] += f": intact {intact}"
    said[0] += "; " + "; ".join(
        f"{_mean_drop(result, kind)}" for kind in _NOUNS if result.of_kind(kind)
    )
    said[0] += "."
    if result.of_kind("spatial") and result.of_kind("channel"):
        by_image = result.lost_by_image("spatial") - result.lost_by_image("channel")
        value, low, high = map(float, mean_interval(by_image, limits=(-2, 2)))
        said.append(
            "Mean drop of spatial minus mean drop of channel layers: "
            f"{points(value, low, high)} (paired by image)."
        )
    drops = [
        Number("drop", float(d), float(low), float(high), where=layer.name)
        for d, (low, high), layer in zip(
            result.drop, result.drop_interval, result.layers, strict=True
        )
    ]
    best = leader(drops)
    if best is not None:
        top = drops[best]
        said.append(
            f"The largest drop is that of {top.where}: {points(top.value, top.low, top.high)}."
        )
    baseline = untrained_baseline(result, results)
    if baseline is not None:
        said.append(f"Its untrained baseline {_unable(baseline) or 'is ablated beside it.'}")
    return said


def _mean_drop(result: Lesions, kind: str) -> str:
    """ "spatial layers: mean drop 8.1 points [5.2, 11.4], 4 of 8 significant"."""
    rows = result.of_kind(kind)
    value, low, high = map(float, mean_interval(result.lost_by_image(kind), limits=(-1, 1)))
    significant = int((result.p_value[rows] * len(result.layers) <= LEVEL).sum())
    noun = _NOUNS[kind]
    if kind == "block":
        skipped = sum(result.ablations[i] == SKIPPED for i in rows)
        noun = "blocks skipped" if skipped == len(rows) else "blocks skipped or set to their mean"
    return (
        f"{noun}: mean drop {points(value, low, high)}, {significant} of {len(rows)} drops "
        "significant (McNemar, Bonferroni)"
    )


def _unable(result: Lesions) -> str:
    """Why there is nothing to lose, empty where there is something."""
    if result.constant:
        return f"predicts one class for all {result.n} images, so no lesion is measured."
    if not result.able:
        return (
            f"has an accuracy of {interval(result.intact, *result.intact_interval)} (n = "
            f"{result.n}), which is not above chance ({percent(result.chance)}), so no lesion is "
            "measured."
        )
    return ""


def importance_sentences(result: UnitImportance) -> list[str]:
    """Rank correlation of importance and selectivity, and how many units cost a significant loss of
    margin."""
    units = len(result.units)
    plural = f"{result.of}s"
    p = units * difference_p(
        0.0, 0.0, 0.0, result.margin_drop, result.margin_drop_low, result.margin_drop_high
    )
    significant = int((p <= LEVEL).sum())
    said = [
        f"{name_of(result.model)}, {result.layer.name}: {significant} of {units} {plural} change "
        f"the mean logit margin significantly when replaced by their means (Bonferroni, n = "
        f"{result.n} images)."
    ]
    of = result.by_margin
    if np.isfinite(of.value):
        verdict = "" if of.p_value <= LEVEL else ", not significant"
        said.append(
            f"Rank correlation of the loss of margin with class selectivity over {units} {plural}: "
            f"{number(of.value, of.low, of.high)} (p = {of.p_value:.2g}{verdict}; permutation "
            f"null: magnitudes below {of.null:.2f} in 95 %)."
        )
    elif not result.labelled:
        said.append("Selectivity needs labels, which the images do not have.")
    return said
