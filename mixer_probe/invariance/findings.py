"""Sentences on distortions: accuracy, robustness by architecture, error consistency and
representation shift."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from mixer_probe.core.finding import Number, span
from mixer_probe.core.words import FAMILIES, interval, join, name_of, number, percent, points
from mixer_probe.invariance import (
    ArchitectureComparison,
    DistortionAccuracy,
    ErrorConsistency,
    RepresentationShift,
)
from mixer_probe.stats.claims import LEVEL, extremes_differ
from mixer_probe.stats.differences import difference_p


def accuracy_sentence(result: DistortionAccuracy) -> str:
    """Accuracy on undistorted images, kinds of distortion without a significant drop, the largest
    drop where significant, and the mildest distortions of each kind at which accuracy is not
    significantly above chance."""
    accuracy, drop = result.accuracy, result.drop
    parts = [
        f"{name_of(result.model)} has an accuracy of "
        f"{interval(accuracy.value[0], accuracy.low[0], accuracy.high[0])} on undistorted images "
        f"(n = {result.n}, chance {percent(result.chance)})"
    ]
    if not result.reads_class:
        return f"{parts[0]}, which is not above chance, so no drop can be measured."
    same = [
        kind
        for kind in result.kinds
        if all(drop.low[i] <= 0 <= drop.high[i] for i in result.filter_type(kind))
    ]
    if same:
        i = max((i for kind in same for i in result.filter_type(kind)), key=lambda i: drop.high[i])
        what = "any distortion" if len(same) == len(result.kinds) else join(same)
        most = points(drop.value[i], drop.low[i], drop.high[i])
        parts.append(
            f"The drop under {what} is not significantly different from zero (at most {most})"
        )
    if result.distortions:
        i = int(drop.value.argmax())
        # The largest of so many drops (Bonferroni).
        p = float(difference_p(0.0, 0.0, 0.0, drop.value[i], drop.low[i], drop.high[i])) * len(
            result.distortions
        )
        if drop.low[i] > 0 and not p > LEVEL:
            retained = interval(result.kept.value[i], result.kept.low[i], result.kept.high[i])
            parts.append(
                f"The largest drop is {points(drop.value[i], drop.low[i], drop.high[i])}, under "
                f"{result.distortions[i].label}; {retained} of the accuracy above chance is "
                "retained"
            )
    at_chance = [
        [i for i in result.filter_type(kind) if accuracy.low[i + 1] <= result.chance]
        for kind in result.kinds
    ]
    labels = [result.distortions[rows[0]].label for rows in at_chance if rows]
    if labels:
        parts.append(f"Accuracy is not distinguishable from chance at and beyond {join(labels)}")
    return ". ".join(parts) + "."


def kind_sentence(result: ArchitectureComparison, k: int) -> str:
    """What each family retains under a kind of distortion, and the gap between the highest and the
    lowest where significant."""
    order = sorted(range(len(result.groups)), key=lambda g: -result.kept[g, k])
    names = [FAMILIES.get(group, group) for group in result.groups]
    kept = [
        f"{names[g]} {interval(result.kept[g, k], result.low[g, k], result.high[g, k])}"
        for g in order
    ]
    said = (
        f"{result.kinds[k][0].upper()}{result.kinds[k][1:]} ({result.strengths[k]}), retained "
        f"fraction of the accuracy above chance: {join(kept)} (n = {result.n} images)"
    )
    if len(order) < 2:
        return said + "."
    best, worst = order[0], order[-1]
    bounds = [float(part[best, worst, k]) for part in (result.gap, result.gap_low, result.gap_high)]
    gap, pairs = points(*bounds), math.comb(len(order), 2)
    # The largest gap of so many pairs of families (Bonferroni).
    if not bounds[1] > 0 or float(difference_p(0.0, 0.0, 0.0, *bounds)) * pairs > LEVEL:
        few = f" as the largest of {pairs} gaps" if bounds[1] > 0 else ""
        return (
            f"{said}; the gap between the highest and the lowest, {gap}, is not significant{few}."
        )
    high, low = (result.by_network[result.networks_of(result.groups[g]), k] for g in (best, worst))
    apart, several = high.min() > low.max(), min(len(high), len(low)) > 1
    every = " in every pair of networks" if apart and several else ""
    but = ", although individual networks overlap" if several and not apart else ""
    return f"{said}; {names[worst]} retains less than {names[best]}{every}, by {gap}{but}."


def consistency_sentences(result: ErrorConsistency) -> list[str]:
    """The most and the least consistent pairs of networks where their kappas differ, and pairs
    within and between families."""
    i, j = np.triu_indices(len(result.models), 1)
    values = result.kappa[0, i, j]
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return [
            "Error consistency is undefined for every pair: each network is correct on all images, "
            "or on none."
        ]
    i, j, values = i[known], j[known], values[known]
    intervals = [
        Number("", *bounds)
        for bounds in zip(values, result.low[0, i, j], result.high[0, i, j], strict=True)
    ]
    best, worst = int(values.argmax()), int(values.argmin())
    if len(known) > 1 and not extremes_differ(intervals):
        said = [
            f"On undistorted images, the kappas of {len(known)} pairs are {span(values)}, with no "
            f"significant difference between pairs (n = {result.n})."
        ]
    else:
        verb = " have the most consistent errors" if len(known) > 1 else ""
        said = [f"On undistorted images, {_pair_text(result, i[best], j[best], verb)}."]
        if best != worst:
            said.append(
                "The least consistent errors are those of "
                f"{_pair_text(result, i[worst], j[worst], '')}."
            )
    families = [m.family for m in result.models]
    within = np.array([families[a] == families[b] for a, b in zip(i, j, strict=True)])
    if within.all() or not within.any():
        return said
    verdict = "the family alone does not determine error consistency"
    if values[within].min() > values[~within].max():
        # Of all ways to group the networks into families of these sizes at most one has this order:
        # its p-value is one over their number.
        sizes = list(Counter(families[k] for k in {*i.tolist(), *j.tolist()}).values())
        same = math.prod(math.factorial(count) for count in Counter(sizes).values())
        groups = math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes)) // same
        verdict = (
            "every pair within a family is more consistent than any pair between families (p = "
            f"{1 / groups:.2g})"
            if 1 / groups <= LEVEL
            else (
                f"this order occurs by chance in one of {groups} groupings of the networks, too "
                "few groupings for a claim"
            )
        )
    return [
        *said,
        f"Pairs within a family have kappas of {span(values[within])}, pairs between families "
        f"{span(values[~within])}: {verdict} (undistorted images, n = {result.n}).",
    ]


def _pair_text(result: ErrorConsistency, a: int, b: int, verb: str) -> str:
    """Kappa of two networks on undistorted images, with its largest possible value and that of
    independent errors."""
    value = number(result.kappa[0, a, b], result.low[0, a, b], result.high[0, a, b])
    null = f"{result.null_low[0, a, b]:.2f} to {result.null_high[0, a, b]:.2f}"
    names = f"{name_of(result.models[a])} and {name_of(result.models[b])}"
    return (
        f"{names}{verb}: kappa {value}, maximum {result.most[0, a, b]:.2f} (n = {result.n}; "
        f"independent errors: {null})"
    )


def shift_sentence(result: RepresentationShift) -> str:
    """CKA after the last layer under every distortion, and the layer with the lowest where
    significantly lower."""
    texts = []
    for d, distortion in enumerate(result.distortions):
        known = np.flatnonzero(np.isfinite(result.cka[d]))
        if not len(known):
            texts.append(f"{distortion.label}: CKA is undefined")
            continue
        last, lowest = known[-1], known[result.cka[d, known].argmin()]
        at_last, at_lowest = (
            (float(result.cka[d, i]), float(result.cka_low[d, i]), float(result.cka_high[d, i]))
            for i in (last, lowest)
        )
        text = f"{distortion.label}: CKA {number(*at_last)} after {result.layers[last].name}"
        # The lowest of so many layers, under each of the distortions (Bonferroni).
        tests = (len(known) - 1) * len(result.distortions)
        if lowest != last and float(difference_p(*at_lowest, *at_last)) * tests <= LEVEL:
            text += f", lower after {result.layers[lowest].name} ({number(*at_lowest)})"
        texts.append(text)
    return f"{name_of(result.model)}: {'; '.join(texts)} (n = {result.n})."
