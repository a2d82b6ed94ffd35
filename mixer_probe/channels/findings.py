"""Channels: how many tell a class by depth, the most selective one of each network, and partners between networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.channels import ChannelPartners, ClassSelectivity
from mixer_probe.core.finding import (
    NAN,
    Finding,
    Number,
    families,
    family,
    is_twin,
    missing,
    of_kind,
    own_models,
    share,
    shown,
    span,
    twin_name,
)
from mixer_probe.core.result import Result
from mixer_probe.core.words import name_of
from mixer_probe.plotting.depth import Course
from mixer_probe.stats import auroc_interval, wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL

QUESTION = "channels"
PANEL = "AUROC of the best-separated class, median channel"


def channel_findings(results: Sequence[Result]) -> tuple[list[Finding], list[Course]]:
    """Two findings a network with class selectivity, and one a pair of architectures with partners of channels."""
    found = [r for r in of_kind(results, ClassSelectivity) if r.permutations]
    own = own_models([r.model for r in found])
    chosen = [r for r in found if r.model.name in own]
    twins = {r.model.name: r for r in found}
    findings = [f for r in chosen for f in (_by_depth(r, twins.get(twin_name(r.model))), _most_selective(r))]
    if not chosen:
        needs = "the results contain no class selectivity with a null"
        findings.append(missing(QUESTION, "Class-selective channels", needs, results, "class selectivity"))
    courses = [_course(r) for r in found if r.model.name in own or is_twin(r.model, own)]
    return [*findings, *_partners(results)], courses


def selective_share(r: ClassSelectivity, i: int, kind: str) -> Number:
    """Share of the channels of a layer above the corrected null, with Wilson's interval over channels."""
    hits, n = int(r.selective[i].sum()), len(r.selective[i])
    return Number(kind, hits / n, *wilson_interval(hits, n), n=n, where=r.layers[i].name)


def median_auroc(r: ClassSelectivity, i: int, kind: str) -> Number:
    """Median over the channels of a layer of the AUROC of the class that each tells best (least counts as most); its null is what
    labels dealt out at random give."""
    best = 0.5 + np.abs(r.auroc[i] - 0.5)
    known = best[r.preferred[i] >= 0, r.preferred[i][r.preferred[i] >= 0]]
    value = float(np.median(known)) if len(known) else NAN
    return Number(kind, value, null=float(r.null_auroc[i]), n=r.n, where=r.layers[i].name)


def _by_depth(r: ClassSelectivity, twin: ClassSelectivity | None) -> Finding:
    name, last = name_of(r.model), len(r.layers) - 1
    ends = [selective_share(r, i, "selective channels") for i in (0, last)]
    text = (
        f"{name} (n = {r.n} images): {share(ends[0])} of the channels of {ends[0].where} are class-selective after max-T "
        "correction, "
    )
    text += f"{share(ends[1])} of {ends[1].where}"
    told = selective_p(r) <= LEVEL and (ends[0].high < ends[1].low or ends[1].high < ends[0].low)
    text += "; " + (("more" if ends[1].value > ends[0].value else "fewer") + " with depth" if told else _SAME)
    # With many images nearly every channel is beyond its null: how far is what the median channel says.
    clear = [median_auroc(r, i, "AUROC of the median channel") for i in (0, last)]
    text += f". The median channel has an AUROC of {clear[0].value:.2f} and {clear[1].value:.2f} for its best-separated class"
    text += f" (permuted labels: {clear[1].null:.2f})"
    ends += clear
    if twin is None or len(twin.layers) != len(r.layers):
        return Finding(QUESTION, name, f"{text}.", "found" if told else "none", tuple(ends))
    beside = [selective_share(twin, i, "the same, untrained baseline") for i in (0, last)]
    text += f". Untrained baseline: {share(beside[0])} and {share(beside[1])}, {_against(ends[1], beside[1])} in the last layer"
    beside += [median_auroc(twin, i, "the same, untrained baseline") for i in (0, last)]
    text += f"; AUROC {beside[2].value:.2f} and {beside[3].value:.2f}"
    return Finding(QUESTION, name, f"{text}.", "found" if told else "none", (*ends, *beside))


_SAME = "no significant difference over channels"


def _against(a: Number, b: Number) -> str:
    if a.low > b.high:
        return "fewer than trained"
    return "more than trained" if a.high < b.low else "no significant difference"


def most_selective(r: ClassSelectivity) -> tuple[int, int] | None:
    """Layer and channel that tell a class most clearly (largest |z|); None where all are undefined."""
    best = [np.nanmax(s) if np.isfinite(s).any() else -np.inf for s in r.strength]
    layer = int(np.argmax(best))
    return None if np.isneginf(best[layer]) else (layer, int(np.nanargmax(r.strength[layer])))


def selective_p(r: ClassSelectivity) -> float:
    """p-value of the most selective channel of all, against the largest strength of all classes, channels and layers."""
    i, channel = most_selective(r) or (0, 0)
    return r.overall_p(float(r.strength[i][channel]))


def _most_selective(r: ClassSelectivity) -> Finding:
    name, place = name_of(r.model), most_selective(r)
    if place is None:
        return Finding(QUESTION, name, f"Most selective channel of {name}: not available, all channels are undefined", "missing")
    i, channel = place
    k = int(r.preferred[i][channel])
    value, m = float(r.auroc[i][channel, k]), int(r.counts[k])
    p = selective_p(r)
    where, bounds = f"{r.layers[i].name} channel {channel}", auroc_interval(value, m, r.n - m)
    number = Number("AUROC", value, *bounds, null=0.5, n=r.n, where=where)
    numbers = (number, Number("p, corrected", p, null=LEVEL, n=r.permutations, where=number.where))
    if p > LEVEL:
        text = f"{name}: no channel is significantly selective after correction for all channels and layers (p = {p:.2g})."
        return Finding(QUESTION, name, text, "none", numbers)
    if r.permutations < DRAWS:
        text = (
            f"Most selective channel of {name}: not available, {DRAWS} permutations are needed and {r.permutations} were computed"
        )
        return Finding(QUESTION, name, text, "missing", numbers)
    text = (
        f"{name}: the most selective channel is {channel} of {r.layers[i].name}, which {r.relation(i, value)} "
        f"'{r.class_names[k]}': AUROC {shown(number, 3)} (p {'≤' if p <= 1 / (1 + r.permutations) else '='} {p:.2g}, corrected "
        "for classes, channels and layers)."
    )
    return Finding(QUESTION, name, text, "found", numbers)


def _course(r: ClassSelectivity) -> Course:
    medians = [median_auroc(r, i, "") for i in range(len(r.layers))]
    value, null = (np.array([getattr(n, key) for n in medians]) for key in ("value", "null"))
    depth, nothing = np.array([layer.depth for layer in r.layers]), np.full(len(medians), NAN)
    trained = not r.model.name.endswith("?untrained")
    return Course(PANEL, family(r.model), r.model.name, trained, depth, value, nothing, nothing, null)


# -- partners ----------------------------------------------------------------------------------------------------------


def partner_share(found: Sequence[ChannelPartners], kind: str) -> Number:
    """Share of the channels of all layers whose best partner is above the corrected null, and Wilson's interval over them."""
    hits = sum(int((p.p_corrected <= LEVEL).sum()) for p in found)
    n = sum(len(p.strength) for p in found)
    return Number(kind, hits / n, *wilson_interval(hits, n), n=n)


def median_strength(found: Sequence[ChannelPartners]) -> float:
    """Median |r| of the channels of all layers with their best partner."""
    return float(np.nanmedian(np.concatenate([p.strength for p in found])))


def pair_p(found: Sequence[ChannelPartners], strength: float) -> float:
    """p-value of a strength that is the largest of all channels and pairs of layers: against the largest of all in every
    permutation, which is the same for all pairs of layers."""
    draws = min(p.permutations for p in found)
    peaks = np.stack([np.where(np.isnan(p.null), -np.inf, p.null).max(1)[:draws] for p in found]).max(0)
    return float((1 + (peaks >= strength * (1 - 1e-5)).sum()) / (1 + draws))


def strongest(found: Sequence[ChannelPartners]) -> tuple[ChannelPartners, int]:
    """The layer pair and channel of A with the largest |r|."""
    best = max(found, key=lambda p: np.nanmax(p.strength) if np.isfinite(p.strength).any() else -1.0)
    return best, int(np.nanargmax(best.strength))


def by_pair(results: Sequence[Result]) -> dict[frozenset[str], list[ChannelPartners]]:
    """Partners of channels by the two networks, both directions together."""
    pairs: dict[frozenset[str], list[ChannelPartners]] = {}
    for p in of_kind(results, ChannelPartners):
        if p.permutations and p.model_a.name != p.model_b.name and np.isfinite(p.strength).any():
            pairs.setdefault(frozenset((p.model_a.name, p.model_b.name)), []).append(p)
    return pairs


def _partners(results: Sequence[Result]) -> list[Finding]:
    pairs = by_pair(results)
    own = own_models([m for found in pairs.values() for m in (found[0].model_a, found[0].model_b)])
    groups: dict[str, list[frozenset[str]]] = {}
    for key, found in pairs.items():
        if key <= own:
            groups.setdefault(families(found[0].model_a, found[0].model_b), []).append(key)
    if not groups:
        return [
            missing(
                QUESTION,
                "Matching channels",
                "the results contain no matching channels between two networks",
                results,
                "partners",
            )
        ]
    return [_of_architectures(keys, pairs) for keys in groups.values()]


def _of_architectures(keys: Sequence[frozenset[str]], pairs: dict[frozenset[str], list[ChannelPartners]]) -> Finding:
    found = pairs[keys[0]]
    names = f"{name_of(found[0].model_a)} and {name_of(found[0].model_b)}"
    number = partner_share(found, "channels with a best match")
    best, channel = strongest(found)
    r = float(best.correlation[channel, 0])
    where, p = f"{best.layer_a.name} channel {channel}", pair_p(found, abs(r))
    told = p <= LEVEL
    top = Number("strongest |r|", abs(r), null=float(best.threshold[channel]), n=best.n, where=where)
    text = f"{names}: no channel has a significant best match in the other network after max-T correction (n = {best.n})"
    if told:
        text = (
            f"{names}: {share(number)} of {number.n} channels have a significant best match in the other network after max-T "
            "correction over the pairs of their layers"
        )
    if told and best.permutations >= DRAWS:
        text += (
            f"; the strongest are channel {channel} of {best.layer_a.name} ({name_of(best.model_a)}) and "
            f"{int(best.partner[channel, 0])} of {best.layer_b.name} ({name_of(best.model_b)}), |r| = {abs(r):.2f} (p = {p:.2g}, "
            f"corrected for all channels and layers; n = {best.n})"
        )
    middle = Number("median |r|", median_strength(found), n=number.n)
    text += f"; median |r| {middle.value:.2f}"
    numbers, twins = [number, top, middle], pairs.get(frozenset(f"{name}?untrained" for name in keys[0]))
    if len(keys) > 1:
        others = [100 * partner_share(pairs[k], "").value for k in keys[1:]]
        text += f". In the other pairs of these architectures: {span(others, 1)} %"
    if twins:
        numbers.append(partner_share(twins, "the same, untrained baselines"))
        numbers.append(Number("median |r|, untrained baselines", median_strength(twins)))
        text += (
            f". Untrained baselines: {share(numbers[-2])}, {_against(number, numbers[-2])}; median |r| {numbers[-1].value:.2f}"
        )
    return Finding(QUESTION, names, f"{text}.", "found" if told else "none", tuple(numbers))
