"""The control: what untrained baselines already show, so that it was not learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.channels import ClassSelectivity
from mixer_probe.channels.findings import (
    by_pair,
    pair_p,
    partner_fraction,
    selective_fraction,
    selective_p,
    strongest,
)
from mixer_probe.core.finding import (
    Finding,
    Number,
    as_percent,
    families,
    filter_type,
    is_baseline,
    missing,
    points,
    primary_models,
    shown,
)
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.words import name_of
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.probing import ProbeResult, paired_interval
from mixer_probe.probing.findings import accuracy_number
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.similarity.findings import Profile, ends_of, profile_of
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import LEVEL

QUESTION = "control"


def control_findings(results: Sequence[Result]) -> list[Finding]:
    """What untrained baselines show of similarity, probes and channels; one finding per network or
    pair of architectures."""
    probes = filter_type(results, ProbeResult)
    raw = next(iter(pixels(probes)), None)
    baselines = [
        r.untrained
        for r in networks(probes)
        if r.untrained and np.isfinite(r.untrained.accuracy).any()
    ]
    found = [
        *_similarity(results),
        *(_baseline_probe(baseline, raw) for baseline in baselines),
        *_channels(results),
        *_partners(results),
    ]
    return found or [
        missing(
            QUESTION, "Untrained baselines", "the results contain no untrained baseline", results
        )
    ]


def _similarity(results: Sequence[Result]) -> list[Finding]:
    matrices = filter_type(results, SimilarityMatrix)
    own = primary_models([m for x in matrices for m in (x.model_a, x.model_b) if m])
    firsts: dict[str, Profile] = {}
    for m in matrices:
        p = profile_of(m)
        if (
            p
            and is_baseline(p.a, own)
            and is_baseline(p.b, own)
            and np.isfinite(p.calibrated).any()
        ):
            firsts.setdefault(families(p.a, p.b), p)
    findings = []
    for p in firsts.values():
        above = int((p.value > p.best95).sum())
        number = p.number(ends_of(p)[0], "untrained, highest CKA")
        text = (
            f"{p.label}: CKA exceeds the 95th percentile of the null of the best pair "
            f"({p.best95:.2f}) at {above} of {len(p.depth)} depths"
        )
        text += f", maximum {shown(number)} at {number.where} (n = {p.n})"
        findings.append(_told(p.label, text, above > 0, number))
    return findings


def _told(networks: str, text: str, there: bool, *numbers: Number) -> Finding:
    end = "present without training" if there else "not above the null without training"
    return Finding(QUESTION, networks, f"{text}: {end}.", "found" if there else "none", numbers)


def _baseline_probe(baseline: ProbeResult, raw: ProbeResult | None) -> Finding:
    best = int(np.nanargmax(baseline.accuracy))
    number = accuracy_number(baseline, best, "untrained, best layer")
    text = (
        f"{name_of(baseline.model)}: the best layer, {number.where}, has a linear probe accuracy "
        f"of {as_percent(number)}"
    )
    text += f" (chance {100 * baseline.chance:.1f} %, n = {baseline.n_test})"
    numbers = [number]
    # The best of the layers was picked on these images: intervals of the family (Bonferroni).
    tested = int(np.isfinite(baseline.accuracy).sum())
    level = 1 - LEVEL / tested
    if (
        not wilson_interval(int(baseline.right[best].sum()), baseline.n_test, level)[0]
        > baseline.chance
    ):
        few = f" for the best of {tested} layers" if number.low > baseline.chance else ""
        return Finding(
            QUESTION,
            name_of(baseline.model),
            f"{text}, which is not above chance{few}.",
            "none",
            (number,),
        )
    if raw is not None and np.array_equal(raw.labels, baseline.labels):
        more = Number(
            "over raw pixels",
            *paired_interval(baseline.right[best], raw.right[0]),
            n=baseline.n_test,
        )
        above = paired_interval(baseline.right[best], raw.right[0], confidence=level)[1] > 0
        verdict = (
            "more than"
            if above
            else "less than"
            if more.high < 0
            else "no significant difference from"
        )
        text += f", {verdict} raw pixels ({points(more)})"
        numbers.append(more)
    return _told(name_of(baseline.model), text, True, *numbers)


def _channels(results: Sequence[Result]) -> list[Finding]:
    found = [r for r in filter_type(results, ClassSelectivity) if r.permutations]
    own = primary_models([r.model for r in found])
    findings = []
    for r in (r for r in found if is_baseline(r.model, own)):
        fractions = [
            selective_fraction(r, i, "untrained, selective channels") for i in range(len(r.layers))
        ]
        best = max(fractions, key=lambda n: n.value)
        text = (
            f"{name_of(r.model)}: at most {as_percent(best)} of the channels of a layer are "
            "selective for a class after max-T correction"
        )
        text += f" ({best.where}; n = {r.n} images; p = {selective_p(r):.2g} over all layers)"
        findings.append(_told(name_of(r.model), text, selective_p(r) <= LEVEL, best))
    return findings


def _partners(results: Sequence[Result]) -> list[Finding]:
    pairs = by_pair(results)
    own = primary_models([m for x in pairs.values() for m in (x[0].model_a, x[0].model_b)])
    firsts: dict[str, tuple[ModelRecord, ModelRecord]] = {}
    for found in pairs.values():
        a, b = found[0].model_a, found[0].model_b
        if is_baseline(a, own) and is_baseline(b, own):
            firsts.setdefault(families(a, b), (a, b))
    findings = []
    for a, b in firsts.values():
        names = f"{name_of(a)} and {name_of(b)}"
        matched = pairs[frozenset((a.name, b.name))]
        number = partner_fraction(matched, "untrained, matched channels")
        best, channel = strongest(matched)
        p = pair_p(matched, float(best.strength[channel]))
        text = (
            f"{names}: {as_percent(number)} of {number.n} channels have a best match above the "
            "null of the best pair"
        )
        findings.append(_told(names, f"{text} (p = {p:.2g} over all layers)", p <= LEVEL, number))
    return findings
