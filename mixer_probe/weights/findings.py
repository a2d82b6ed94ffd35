"""Token mixing: low-frequency units and opposite pairs against untrained weights, and mean mixing
distances by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from mixer_probe.core.finding import (
    NAN,
    Finding,
    Number,
    as_percent,
    family,
    filter_type,
    is_baseline,
    missing,
    primary_models,
)
from mixer_probe.core.result import Result
from mixer_probe.core.words import name_of, untrained_baseline
from mixer_probe.plotting.depth import DepthCurve
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL
from mixer_probe.stats.differences import difference_interval
from mixer_probe.weights import SpatialKernels, TokenMixing
from mixer_probe.weights.kernels import CLEAR_DIFFERENCE, shorter_and_longer
from mixer_probe.weights.token_units import LEVEL as LOW
from mixer_probe.weights.token_units import low_frequency_units

QUESTION = "weights"
PANEL = "mean mixing distance, px (weights)"


def weight_findings(results: Sequence[Result]) -> tuple[list[Finding], list[DepthCurve]]:
    """Findings on token-mixing units and on mean mixing distances per network, and the depth curves
    of these distances."""
    mixing, kernels = (
        filter_type(results, TokenMixing),
        [r for r in filter_type(results, SpatialKernels) if len(r)],
    )
    own = primary_models([*(r.model for r in mixing), *(r.model for r in kernels)])
    findings: list[Finding] = []
    for r in (r for r in mixing if r.model.name in own):
        name, baseline = name_of(r.model), untrained_baseline(r, mixing)
        frequency = np.concatenate([r.frequency(i) for i in range(len(r.blocks))])
        if np.isnan(frequency).all():
            text = (
                f"{name}: all {len(frequency)} token-mixing units weight all positions equally, so "
                "they ignore position."
            )
            number = Number("units that ignore position", 1.0, n=len(frequency))
            findings.append(Finding(QUESTION, name, text, "none", (number,)))
            continue
        needs = "there is no untrained baseline to compare with"
        low = missing(QUESTION, f"Low-frequency units of {name}", needs, results)
        findings += [
            low_frequency_finding(r, baseline) if baseline else low,
            pairs_finding(r, baseline),
        ]
    if not mixing:
        findings.append(
            missing(
                QUESTION,
                "Token-mixing units",
                "there is no network with a token-mixing MLP",
                results,
            )
        )
    shown = [k for k in kernels if k.model.name in own]
    findings += [mixing_distance_finding(k, untrained_baseline(k, kernels)) for k in shown]
    if not shown:
        findings.append(
            missing(
                QUESTION,
                "Spatial reach",
                "there are no spatial kernels",
                results,
                "spatial kernels",
            )
        )
    curves = []
    for k in (k for k in kernels if k.model.name in own or is_baseline(k.model, own)):
        depth, distance = np.array([(kernel.depth, kernel.distance_px) for kernel in k.kernels]).T
        nothing, trained = np.full(len(k), NAN), not k.model.name.endswith("?untrained")
        curves.append(
            DepthCurve(
                PANEL,
                family(k.model),
                k.model.name,
                trained,
                depth,
                distance,
                nothing,
                nothing,
                nothing,
            )
        )
    return findings, curves


def low_frequency_finding(r: TokenMixing, baseline: TokenMixing) -> Finding:
    """The fraction of low-frequency units against that of the untrained baseline, and the block
    that has most of them."""
    limit, low = low_frequency_units(r, baseline)
    hits, units = int(sum(block.sum() for block in low)), sum(map(len, low))
    total = Number("low-frequency units", hits / units, *wilson_interval(hits, units), LOW, units)
    # The limit is an order statistic of the baseline's units, and has their sampling error.
    others = sum(len(baseline.frequency(i)) for i in range(len(baseline.blocks)))
    fewer, more = difference_interval(
        LOW, *wilson_interval(LOW * others, others), total.value, total.low, total.high
    )
    verdict = "above" if fewer > 0 else "below" if more < 0 else "not distinguishable from"
    text = (
        f"{name_of(r.model)}: {as_percent(total)} of {units} token-mixing units have low frequency "
        f"(below {limit:.3f} cycles/token, the 5th percentile of the untrained baseline), "
        f"{verdict} that baseline"
    )
    most = int(np.argmax([block.mean() for block in low]))
    hits, units, where = int(low[most].sum()), len(low[most]), r.blocks[most]
    best = Number(
        "low-frequency units, most", hits / units, *wilson_interval(hits, units), LOW, units, where
    )
    # The largest of as many binomial counts at the rate of all blocks (Bonferroni).
    p = len(low) * float(binom.sf(hits - 1, units, total.value))
    text += (
        f"; most in {where}: {as_percent(best)} (p = {p:.2g} of the largest of {len(low)} blocks)."
        if p <= LEVEL
        else "."
    )
    return Finding(
        QUESTION,
        name_of(r.model),
        text,
        "found" if verdict in ("above", "below") else "none",
        (total, best),
    )


def pairs_finding(r: TokenMixing, baseline: TokenMixing | None) -> Finding:
    """The fraction of units with a significant opposite-phase unit, against chance and the
    untrained baseline."""
    name = name_of(r.model)
    if np.isnan(r.chance) or r.surrogates < DRAWS:
        needed = "at least 19" if np.isnan(r.chance) else str(DRAWS)
        return Finding(
            QUESTION,
            name,
            f"Opposite pairs of {name}: skipped, requires {needed} surrogates",
            "missing",
        )
    own = _paired(r, "units with an opposite")
    numbers = [own]
    above, beside = own.low > r.chance, ""
    verdict = "above" if above else "not above"
    if baseline is not None:
        numbers.append(other := _paired(baseline, "the same, untrained baseline"))
        over = bool(
            difference_interval(other.value, other.low, other.high, own.value, own.low, own.high)[0]
            > 0
        )
        joined = " and" if above == over else ", but"
        beside = (
            f"{joined} {'above' if over else 'not above'} its untrained baseline "
            f"({as_percent(other)})"
        )
        above = above and over
    text = (
        f"{name}: {as_percent(own)} of {own.n} units have a significant opposite-phase unit (null "
        f"of random phases), {verdict} chance ({100 * r.chance:.1f} %){beside}."
    )
    return Finding(QUESTION, name, text, "found" if above else "none", tuple(numbers))


def _paired(r: TokenMixing, kind: str) -> Number:
    paired = np.concatenate([r.paired(i) for i in range(len(r.blocks))])
    # Two units that are each other's opposite are one observation.
    value, half = float(paired.mean()), len(paired) / 2
    return Number(kind, value, *wilson_interval(value * half, half), null=r.chance, n=len(paired))


def unit_sentences(r: TokenMixing, block: int, unit: int) -> list[str]:
    """The numbers of one unit of a block beside those of their nulls, and how its other weights
    relate to its read weights."""
    one = r.measures(block)
    rank = int(np.flatnonzero(r.order(block, by="frequency") == unit)[0]) + 1
    shuffled, partner = one.shuffled, int(one.partner[unit])
    back = int(one.partner[partner])
    beyond = "beyond chance" if r.paired(block)[unit] else "not beyond chance"
    mutual = (
        "the relation is mutual"
        if back == unit
        else f"the opposite-phase unit of unit {partner} is unit {back}"
    )
    texts = [
        f"Frequency: rank {rank} of {len(one.maps)} from the lowest; the mean is "
        f"{one.statistics.frequency:.3f} for the block and {np.mean(shuffled.frequency):.3f} "
        "cycles/token for units with shuffled weights. Orientation coherence is "
        f"{one.coherence[unit]:.2f} (1: one orientation; shuffled: "
        f"{np.mean(shuffled.coherence):.2f}).",
        f"Localisation: {one.spread[unit]:.1f} px around row {one.centre[unit, 0]:.1f} px, column "
        f"{one.centre[unit, 1]:.1f} px; shuffled weights: {np.mean(shuffled.spread):.1f} px; "
        f"uniform weights: {r.uniform_spread:.1f} px. Norm: {one.norm[unit]:.3f}.",
        f"Opposite-phase unit: {partner}, with cosine {one.partner_cosine[unit]:.3f}, {beyond} (p "
        f"= {one.partner_p[unit]:.2f} against {r.surrogates} copies of the units with random "
        f"phases; the null has mean {one.null_mean:.3f} and 5th percentile {one.null_q05:.3f}); "
        f"{mutual}.",
    ]
    if "write" in r.sides:
        texts.append(
            "Write weights: their cosine with the read weights is "
            f"{r.cosine_with_read(block, 'write')[unit]:+.3f} (1: the unit adds to the patches "
            "that it reads, -1: it subtracts from them)."
        )
    if "gate" in r.sides:
        texts.append(
            "Gate weights: their cosine with the read weights is "
            f"{r.cosine_with_read(block, 'gate')[unit]:+.3f}."
        )
    return texts


def mixing_distance_finding(r: SpatialKernels, baseline: SpatialKernels | None) -> Finding:
    """The mean mixing distance in the first and last layer, and in how many layers it differs from
    the untrained baseline."""
    name, first = name_of(r.model), r.kernels[0]
    if r.ignores_position:
        text = (
            f"{name}: by its weights, every layer mixes all positions uniformly; its spatial "
            "mixing ignores position."
        )
        return Finding(
            QUESTION,
            name,
            text,
            "none",
            (Number("first layer, px", first.distance_px, null=first.uniform_px),),
        )
    untrained = [NAN] * len(r)
    if baseline is not None and len(baseline) == len(r):
        untrained = [k.distance_px for k in baseline.kernels]
    numbers, texts = [], []
    for i in sorted({0, len(r) - 1}):
        block, distance = r.kernels[i].block, r.kernels[i].distance_px
        numbers.append(Number(f"{block}, px", distance, null=untrained[i], n=len(r), where=block))
        beside = "" if np.isnan(untrained[i]) else f" (untrained {untrained[i]:.1f} px)"
        texts.append(f"{distance:.1f} px in {block}{beside}")
    text = f"{name}: by its weights, the mean mixing distance is {' and '.join(texts)}"
    if baseline is None or np.isnan(untrained).all():
        return Finding(QUESTION, name, f"{text}.", "context", tuple(numbers))
    shorter, longer = shorter_and_longer(r, baseline)
    distances = [k.distance_px for k in r.kernels]
    mean = Number(
        "mean over layers, px",
        float(np.nanmean(distances)),
        null=float(np.nanmean(untrained)),
        n=len(r),
    )
    text += (
        f"; shorter than in the untrained baseline in {shorter} of {len(r)} layers, longer in "
        f"{longer}, by {100 * CLEAR_DIFFERENCE:.0f} % or more and beyond chance (mean "
        f"{mean.value:.1f} px, untrained {mean.null:.1f} px)."
    )
    return Finding(QUESTION, name, text, "found" if shorter + longer else "none", (*numbers, mean))
