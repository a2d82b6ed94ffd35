"""Class-selective channels by depth, the most selective channel of each network, and best-matching
channels of networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.channels import ChannelPartners, ClassSelectivity
from mixer_probe.channels.partners import strength_p
from mixer_probe.core.finding import (
    NAN,
    Finding,
    Number,
    as_percent,
    families,
    family,
    filter_type,
    is_baseline,
    missing,
    primary_models,
    shown,
    span,
)
from mixer_probe.core.result import Result
from mixer_probe.core.words import name_of, untrained_baseline
from mixer_probe.plotting.depth import DepthCurve
from mixer_probe.stats import auroc_interval, max_null, wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL

QUESTION = "channels"
PANEL = "AUROC of the best-separated class, median channel"


def channel_findings(results: Sequence[Result]) -> tuple[list[Finding], list[DepthCurve]]:
    """Two findings per network with class selectivity, one per pair of architectures with best
    matches, and the depth curves of class selectivity."""
    tested = [r for r in filter_type(results, ClassSelectivity) if r.permutations]
    own = primary_models([r.model for r in tested])
    findings: list[Finding] = []
    for r in (r for r in tested if r.model.name in own):
        findings += [
            selectivity_finding(r, untrained_baseline(r, tested)),
            most_selective_finding(r),
        ]
    if not findings:
        needs = "the results contain no class selectivity with a null"
        findings.append(
            missing(QUESTION, "Class-selective channels", needs, results, "class selectivity")
        )
    curves = []
    for r in (r for r in tested if r.model.name in own or is_baseline(r.model, own)):
        medians = [median_auroc(r, i, "") for i in range(len(r.layers))]
        value, null = (np.array([getattr(n, key) for n in medians]) for key in ("value", "null"))
        depth, nothing = np.array([layer.depth for layer in r.layers]), np.full(len(medians), NAN)
        trained = not r.model.name.endswith("?untrained")
        curves.append(
            DepthCurve(
                PANEL, family(r.model), r.model.name, trained, depth, value, nothing, nothing, null
            )
        )
    pairs = by_pair(results)
    own = primary_models(
        [m for found in pairs.values() for m in (found[0].model_a, found[0].model_b)]
    )
    groups: dict[str, list[frozenset[str]]] = {}
    for key, found in pairs.items():
        if key <= own:
            groups.setdefault(families(found[0].model_a, found[0].model_b), []).append(key)
    findings += [matching_finding(keys, pairs) for keys in groups.values()]
    if not groups:
        needs = "the results contain no matching channels between two networks"
        findings.append(missing(QUESTION, "Matching channels", needs, results, "partners"))
    return findings, curves


def selective_fraction(r: ClassSelectivity, i: int, kind: str) -> Number:
    """The fraction of class-selective channels of a layer, with Wilson's interval over channels."""
    hits, n = int(r.selective[i].sum()), len(r.selective[i])
    return Number(kind, hits / n, *wilson_interval(hits, n), n=n, where=r.layers[i].name)


def median_auroc(r: ClassSelectivity, i: int, kind: str) -> Number:
    """Median over the channels of a layer of the AUROC for their best-separated class, reflected at
    1/2; its null is that of permuted labels."""
    best = 0.5 + np.abs(r.auroc[i] - 0.5)
    known = best[r.preferred[i] >= 0, r.preferred[i][r.preferred[i] >= 0]]
    value = float(np.median(known)) if len(known) else NAN
    return Number(kind, value, null=float(r.null_auroc[i]), n=r.n, where=r.layers[i].name)


def selectivity_finding(r: ClassSelectivity, baseline: ClassSelectivity | None) -> Finding:
    """The fraction of class-selective channels in the first and last layer, against each other and
    the untrained baseline."""
    name, last = name_of(r.model), len(r.layers) - 1
    ends = [selective_fraction(r, i, "selective channels") for i in (0, last)]
    differ = selective_p(r) <= LEVEL and (ends[0].high < ends[1].low or ends[1].high < ends[0].low)
    change = "more with depth" if ends[1].value > ends[0].value else "fewer with depth"
    # With many images nearly every channel is above its null: the median channel shows how far.
    medians = [median_auroc(r, i, "AUROC of the median channel") for i in (0, last)]
    text = (
        f"{name} (n = {r.n} images): {as_percent(ends[0])} of the channels of {ends[0].where} are "
        f"class-selective after max-T correction, {as_percent(ends[1])} of {ends[1].where}; "
        f"{change if differ else 'no significant difference over channels'}. The median channel "
        f"has an AUROC of {medians[0].value:.2f} and {medians[1].value:.2f} for its best-separated "
        f"class (permuted labels: {medians[1].null:.2f})"
    )
    numbers = [*ends, *medians]
    if baseline is not None and len(baseline.layers) == len(r.layers):
        beside = [
            selective_fraction(baseline, i, "the same, untrained baseline") for i in (0, last)
        ]
        auroc = [median_auroc(baseline, i, "the same, untrained baseline") for i in (0, last)]
        text += (
            f". Untrained baseline: {as_percent(beside[0])} and {as_percent(beside[1])}, "
            f"{_against(ends[1], beside[1])} in the last layer; AUROC {auroc[0].value:.2f} and "
            f"{auroc[1].value:.2f}"
        )
        numbers += [*beside, *auroc]
    return Finding(QUESTION, name, f"{text}.", "found" if differ else "none", tuple(numbers))


def _against(a: Number, b: Number) -> str:
    """How the fraction `b` of untrained networks differs from `a` of trained ones, by their
    intervals."""
    if a.low > b.high:
        return "fewer than trained"
    return "more than trained" if a.high < b.low else "no significant difference"


def largest(values: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Layer and channel of the largest of some `values` [layer][channel], of equals the first; None
    where all are undefined."""
    best = [np.nanmax(v) if np.isfinite(v).any() else -np.inf for v in values]
    layer = int(np.argmax(best))
    return None if np.isneginf(best[layer]) else (layer, int(np.nanargmax(values[layer])))


def most_selective(r: ClassSelectivity) -> tuple[int, int] | None:
    """Layer and channel of the largest strength of selectivity; None where all are undefined."""
    return largest(r.strength)


def selective_p(r: ClassSelectivity) -> float:
    """p-value of the most selective channel of all, against the largest strength of all classes,
    channels and layers."""
    i, channel = most_selective(r) or (0, 0)
    return r.overall_p(float(r.strength[i][channel]))


def most_selective_finding(r: ClassSelectivity) -> Finding:
    """The most selective channel of a network and its class, tested over all layers."""
    name, place = name_of(r.model), most_selective(r)
    if place is None:
        return Finding(
            QUESTION,
            name,
            f"Most selective channel of {name}: not available, all channels are undefined",
            "missing",
        )
    i, channel = place
    k = int(r.preferred[i][channel])
    value, m = float(r.auroc[i][channel, k]), int(r.counts[k])
    p = selective_p(r)
    where, bounds = f"{r.layers[i].name} channel {channel}", auroc_interval(value, m, r.n - m)
    number = Number("AUROC", value, *bounds, null=0.5, n=r.n, where=where)
    numbers = (number, Number("p, corrected", p, null=LEVEL, n=r.permutations, where=number.where))
    if p > LEVEL:
        text = (
            f"{name}: no channel is significantly selective after correction for all channels and "
            f"layers (p = {p:.2g})."
        )
        return Finding(QUESTION, name, text, "none", numbers)
    if r.permutations < DRAWS:
        text = (
            f"Most selective channel of {name}: not available, {DRAWS} permutations are needed and "
            f"{r.permutations} were computed"
        )
        return Finding(QUESTION, name, text, "missing", numbers)
    text = (
        f"{name}: the most selective channel is {channel} of {r.layers[i].name}, which "
        f"{r.relation(i, value)} '{r.class_names[k]}': AUROC {shown(number, 3)} (p "
        f"{'≤' if p <= 1 / (1 + r.permutations) else '='} {p:.2g}, corrected for classes, channels "
        "and layers)."
    )
    return Finding(QUESTION, name, text, "found", numbers)


def best_channel_finding(
    r: ClassSelectivity, class_name: str = "", layers: Sequence[str] | None = None
) -> Finding | None:
    """The channel most selective for a class, or for any class, with its interval and null, and
    whether it is significant over all classes, channels and layers. Among some `layers` or all;
    None where all their channels are undefined."""
    chosen = [i for i, layer in enumerate(r.layers) if layers is None or layer.name in layers]
    named = r.class_names.index(class_name) if class_name else -1
    away = [np.abs(r.auroc[i][:, named] - 0.5) if class_name else r.strength[i] for i in chosen]
    place = largest(away)
    if place is None:
        return None
    i, channel = chosen[place[0]], place[1]
    k = named if class_name else int(r.preferred[i][channel])
    name, auroc, band, m = (
        r.class_names[k],
        float(r.auroc[i][channel, k]),
        float(r.null_band(i)[channel, k]),
        int(r.counts[k]),
    )
    where, corrected = f"channel {channel} of {r.layers[i].name}", "."
    if r.preferred[i][channel] == k:
        p = float(r.p_value[i][channel])
        sign = "≤" if p <= 1 / (r.permutations + 1) + 1e-12 else "="
        corrected = (
            f"; p {sign} {p:.3f} after max-T correction over the classes and channels of the layer."
        )
    number = Number(
        "AUROC", auroc, *auroc_interval(auroc, m, r.n - m), null=0.5 + band, n=r.n, where=where
    )
    numbers = (
        f"AUROC {shown(number)}, d′ {r.dprime[i][channel, k]:.2f}, n = {r.n} images, {m} of them "
        f"{name}. Null: under label permutations, no channel of {r.layers[i].name} is above "
        f"{0.5 + band:.2f} (or below {0.5 - band:.2f}) in 95 % of permutations{corrected}"
    )
    if r.overall_p(abs(auroc - 0.5) / band * float(r.threshold[i])) > LEVEL:
        text = (
            f"No channel is significantly selective for {name}; the AUROC furthest from 1/2 is "
            f"that of {where}: {numbers}"
        )
        return Finding(QUESTION, name_of(r.model), text, "none", (number,))
    lower, more = "", ""
    if auroc < 0.5:
        lower = ", with lower activations (AUROC below 0.5)"
        higher = largest([r.auroc[j][:, k] for j in chosen])
        if (
            class_name
            and higher is not None
            and (top := float(r.auroc[chosen[higher[0]]][higher[1], k])) > 0.5
        ):
            more = (
                f" Of the channels with higher activation for it, channel {higher[1]} of "
                f"{r.layers[chosen[higher[0]]].name} has the largest AUROC, {top:.2f}."
            )
    text = f"C{where[1:]} is the most selective for {name}{lower}: {numbers}{more}"
    return Finding(QUESTION, name_of(r.model), text, "found", (number,))


# -- best-matching channels ------------------------------------------------------------------------


def partner_fraction(found: Sequence[ChannelPartners], kind: str) -> Number:
    """The fraction of channels of all layers whose best match is above the corrected null, and
    Wilson's interval over them."""
    hits = sum(int((p.p_corrected <= LEVEL).sum()) for p in found)
    n = sum(len(p.strength) for p in found)
    return Number(kind, hits / n, *wilson_interval(hits, n), n=n)


def median_strength(found: Sequence[ChannelPartners]) -> float:
    """Median |r| of the channels of all layers with their best match."""
    return float(np.nanmedian(np.concatenate([p.strength for p in found])))


def pair_p(found: Sequence[ChannelPartners], strength: float) -> float:
    """p-value of a strength that is the largest of all channels and pairs of layers: against the
    largest of all in every permutation, which is the same for all pairs of layers."""
    draws = min(p.permutations for p in found)
    return float(
        strength_p(strength, max_null(np.stack([p.null_max[:draws] for p in found], axis=1), 1))
    )


def strongest(found: Sequence[ChannelPartners]) -> tuple[ChannelPartners, int]:
    """The layer pair and channel of A with the largest |r|."""
    best = max(
        found, key=lambda p: np.nanmax(p.strength) if np.isfinite(p.strength).any() else -1.0
    )
    return best, int(np.nanargmax(best.strength))


def by_pair(results: Sequence[Result]) -> dict[frozenset[str], list[ChannelPartners]]:
    """Best matches by the two networks, both directions together."""
    pairs: dict[frozenset[str], list[ChannelPartners]] = {}
    for p in filter_type(results, ChannelPartners):
        if p.permutations and p.model_a.name != p.model_b.name and np.isfinite(p.strength).any():
            pairs.setdefault(frozenset((p.model_a.name, p.model_b.name)), []).append(p)
    return pairs


def matching_finding(
    keys: Sequence[frozenset[str]], pairs: dict[frozenset[str], list[ChannelPartners]]
) -> Finding:
    """The fraction of channels with a best match in the first of the pairs `keys` of networks, and
    the strongest match, beside the other pairs and the untrained baselines among `pairs`."""
    found = pairs[keys[0]]
    names = f"{name_of(found[0].model_a)} and {name_of(found[0].model_b)}"
    number = partner_fraction(found, "channels with a best match")
    best, channel = strongest(found)
    r = abs(float(best.correlation[channel, 0]))
    where, p = f"{best.layer_a.name} channel {channel}", pair_p(found, r)
    significant = p <= LEVEL
    top = Number("strongest |r|", r, null=float(best.threshold[channel]), n=best.n, where=where)
    if significant:
        text = (
            f"{names}: {as_percent(number)} of {number.n} channels have a significant best match "
            "in the other network after max-T correction over the pairs of their layers"
        )
    else:
        text = (
            f"{names}: no channel has a significant best match in the other network after max-T "
            f"correction (n = {best.n})"
        )
    if significant and best.permutations >= DRAWS:
        text += (
            f"; the strongest are channel {channel} of {best.layer_a.name} "
            f"({name_of(best.model_a)}) and {int(best.partner[channel, 0])} of {best.layer_b.name} "
            f"({name_of(best.model_b)}), |r| = {r:.2f} (p = {p:.2g}, corrected for all channels "
            f"and layers; n = {best.n})"
        )
    middle = Number("median |r|", median_strength(found), n=number.n)
    text += f"; median |r| {middle.value:.2f}"
    numbers = [number, top, middle]
    if len(keys) > 1:
        others = [100 * partner_fraction(pairs[k], "").value for k in keys[1:]]
        text += f". In the other pairs of these architectures: {span(others, 1)} %"
    baselines = pairs.get(frozenset(f"{name}?untrained" for name in keys[0]))
    if baselines:
        untrained = partner_fraction(baselines, "the same, untrained baselines")
        strength = Number("median |r|, untrained baselines", median_strength(baselines))
        numbers += [untrained, strength]
        text += (
            f". Untrained baselines: {as_percent(untrained)}, {_against(number, untrained)}; "
            f"median |r| {strength.value:.2f}"
        )
    return Finding(QUESTION, names, f"{text}.", "found" if significant else "none", tuple(numbers))
