"""Where representations diverge: CKA of layers at equal relative depth, with its null, interval and
untrained baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixer_probe.core.finding import (
    NAN,
    Finding,
    Number,
    families,
    family,
    filter_type,
    is_baseline,
    missing,
    primary_models,
    shown,
    span,
)
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.words import join, name_of
from mixer_probe.plotting.depth import DepthCurve
from mixer_probe.similarity.grounding import GroundedTests
from mixer_probe.similarity.matches import LayerMatches, at_columns, best_matches
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.stats.claims import DRAWS, LEVEL, extremes_differ
from mixer_probe.stats.differences import difference_p

QUESTION = "similarity"
PANEL = "CKA (unbiased) at equal depth"
# CKA of equal representations is 1 up to rounding.
_EQUAL = 1 - 1e-6


@dataclass(frozen=True)
class Profile:
    """CKA of every layer of A with the layer of B of the nearest relative depth: arrays [layer of
    A]; `best95` is what the closest cell of the whole matrix stays within in 95 % of random
    pairings."""

    a: ModelRecord
    b: ModelRecord
    names: tuple[str, ...]
    depth: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    calibrated: np.ndarray
    null95: np.ndarray
    best95: float
    n: int
    permutations: int

    @property
    def label(self) -> str:
        """ "mixer-s0 and vit-s0"."""
        return f"{name_of(self.a)} and {name_of(self.b)}"

    @property
    def networks(self) -> frozenset[str]:
        """Names of the two networks, the same for their untrained baselines."""
        return frozenset(m.name.removesuffix("?untrained") for m in (self.a, self.b))

    def number(self, i: int, kind: str) -> Number:
        """The value at one depth."""
        bounds = float(self.low[i]), float(self.high[i])
        return Number(
            kind,
            float(self.value[i]),
            *bounds,
            float(self.null95[i]),
            self.n,
            f"depth {self.depth[i]:.2f}",
        )

    def place(self, i: int) -> str:
        """ "depth 0.50 (blocks.2 and blocks.2, CKA 0.81 [0.78, 0.83])"."""
        return (
            f"depth {self.depth[i]:.2f} ({self.names[i]}; CKA {shown(self.number(i, ''))}, null "
            f"{self.null95[i]:.2f})"
        )


def profile_of(m: SimilarityMatrix) -> Profile | None:
    """The profile of a matrix of two networks by linear, unbiased CKA with null and interval; None
    for any other."""
    a, b = m.model_a, m.model_b
    plain = (
        m.measure == "cka"
        and m.estimator == "unbiased"
        and m.kernel == "linear"
        and not m.without_top_pc
    )
    if (
        not plain
        or a is None
        or b is None
        or a.name == b.name
        or m.null is None
        or m.interval is None
        or m.calibrated is None
    ):
        return None
    depths_a, depths_b = (
        np.array([layer.depth for layer in side]) for side in (m.layers_a, m.layers_b)
    )
    rows, columns = np.arange(len(depths_a)), np.abs(depths_b[None] - depths_a[:, None]).argmin(1)
    arrays = (m.values, m.interval.low, m.interval.high, m.calibrated, m.null.quantile95)
    value, low, high, calibrated, null95 = (x[rows, columns] for x in arrays)
    names = tuple(f"{m.layers_a[i].name} and {m.layers_b[j].name}" for i, j in zip(rows, columns))
    return Profile(
        a,
        b,
        names,
        depths_a,
        value,
        low,
        high,
        calibrated,
        null95,
        m.null.maximum95,
        m.n,
        m.null.permutations,
    )


def similarity_findings(results: Sequence[Result]) -> tuple[list[Finding], list[DepthCurve]]:
    """One finding of all pairs after the last layer, one per pair of architectures, and one of
    their untrained baselines."""
    matrices = filter_type(results, SimilarityMatrix)
    own = primary_models([m for x in matrices for m in (x.model_a, x.model_b) if m])
    found = [p for m in matrices if (p := profile_of(m)) and np.isfinite(p.calibrated).any()]
    pairs = [p for p in found if p.a.name in own and p.b.name in own]
    untrained = {p.networks: p for p in found if is_baseline(p.a, own) and is_baseline(p.b, own)}
    if not pairs:
        needs = "requires unbiased linear CKA between two networks with null and interval"
        return [
            missing(
                QUESTION,
                "Divergence of representations with depth",
                needs,
                results,
                "similarity (cka)",
            )
        ], []
    groups: dict[str, list[Profile]] = {}
    for p in pairs:
        groups.setdefault(families(p.a, p.b), []).append(p)
    findings = last_layer_findings([members[0] for members in groups.values()])
    curves: list[DepthCurve] = []
    alone: list[str] = []
    for group, (first, *others) in groups.items():
        findings.append(depth_finding(first, others))
        baseline = untrained.get(first.networks)
        curves.append(
            DepthCurve(
                PANEL,
                group,
                first.label,
                True,
                first.depth,
                first.value,
                first.low,
                first.high,
                first.null95,
            )
        )
        if baseline is not None:
            name, low, high = f"{first.label}?untrained", baseline.low, baseline.high
            nothing = np.full(len(baseline.depth), NAN)
            curves.append(
                DepthCurve(
                    PANEL, group, name, False, baseline.depth, baseline.value, low, high, nothing
                )
            )
        if baseline is not None and np.array_equal(baseline.depth, first.depth):
            findings.append(baseline_finding(first, baseline))
        elif first.a.trained and first.b.trained:
            alone.append(first.label)
    if alone:
        what, needs = (
            f"Untrained baselines of {', '.join(alone)}",
            "the results contain no CKA between their untrained baselines",
        )
        findings.append(missing(QUESTION, what, needs, results))
    return findings, curves


def pair_sentences(found: SimilarityMatrix) -> list[str]:
    """Where two networks differ most, which of their layers correspond, and the findings at equal
    depth; none for a network with itself."""
    if found.of_one_network:
        return []
    matches = best_matches(found)
    equal = [
        f"At equal relative depth: {f.sentence}"
        for f in similarity_findings([found])[0]
        if f.verdict in ("found", "none")
    ]
    return [
        text
        for text in (difference_sentence(found, matches), correspondence_sentence(matches), *equal)
        if text
    ]


def difference_sentence(found: SimilarityMatrix, matches: LayerMatches) -> str:
    """The depth where two networks differ most: the layer whose best match is the least alike,
    where depths differ significantly. "" where the measure is not defined."""
    i, interval = matches.least_similar, found.interval
    if i is None:
        return ""
    a, b = name_of(matches.model_a), name_of(matches.model_b)
    ends = (None, None) if interval is None else (interval.low, interval.high)
    lows, highs = (at_columns(side, matches.best_match) for side in ends)
    numbers = [Number("", *row) for row in np.stack([matches.value, lows, highs], 1).tolist()]
    if not extremes_differ(numbers):
        low, high = np.nanmin(matches.value), np.nanmax(matches.value)
        return (
            f"{a} and {b}: best matches of the layers of {a} have {matches.matrix_label} {low:.2f} "
            f"to {high:.2f} (n = {matches.n}), with no significant difference between depths."
        )
    layer, partner = matches.layers_a[i], matches.layers_b[matches.best_match[i]]
    null95 = (
        ""
        if np.isnan(matches.null95[i])
        else f", 95 % null of a best match {matches.null95[i]:.2f}"
    )
    verdict = "" if matches.above[i] or not null95 else ": not distinguishable from chance"
    return (
        f"{a} and {b} differ most at depth {layer.depth:.2f} of {a} ({layer.name}): even its best "
        f"match in {b}, {partner.name} at depth {partner.depth:.2f}, has {matches.matrix_label} "
        f"{shown(numbers[i])} (n = {matches.n}{null95}){verdict}."
    )


def correspondence_sentence(matches: LayerMatches) -> str:
    """Which layers correspond, first to last; "" where the measure is not defined."""
    known = [i for i, partner in enumerate(matches.best_match) if partner >= 0]
    if not known:
        return ""
    chosen = [known[k] for k in np.unique(np.linspace(0, len(known) - 1, 4).round().astype(int))]
    pairs = ", ".join(
        f"{matches.layers_a[i].name} with {matches.layers_b[matches.best_match[i]].name}"
        for i in chosen
    )
    null = (
        ""
        if np.isnan(matches.null95).all()
        else f"; {int(matches.above.sum())} of {len(known)} are above chance"
    )
    tau = (
        ""
        if np.isnan(matches.tau)
        else f" Kendall's tau between the two orders is {matches.tau:.2f}."
    )
    names = f"{name_of(matches.model_b)} for {name_of(matches.model_a)}"
    return f"Best-matching layers of {names}, from first to last: {pairs}{null}.{tau}"


def value_text(found: SimilarityMatrix, i: int = 0, j: int = 0) -> str:
    """ "0.31 [0.26, 0.35], null 0.06 on average and 0.07 at 95 %, n = 200"."""
    value, interval, null = float(found.values[i, j]), found.interval, found.null
    if np.isnan(value):
        return f"not defined (n = {found.n})"
    low, high = (
        (NAN, NAN) if interval is None else (float(interval.low[i, j]), float(interval.high[i, j]))
    )
    chance = ""
    if null is not None:
        mean, q95 = f"{null.mean[i, j]:.2f}", f"{null.quantile95[i, j]:.2f}"
        chance = f", null {mean} on average and {q95} at 95 %".replace("-0.00", "0.00")
    return f"{shown(Number('', value, low, high))}{chance}, n = {found.n}"


def ends_of(p: Profile) -> tuple[int, int]:
    """Indices of the depths at which a pair is most and least above its null."""
    return int(np.nanargmax(p.calibrated)), int(np.nanargmin(p.calibrated))


def divergence_start(p: Profile) -> int | None:
    """The first depth after the most similar one from which on all intervals are below that of the
    most similar one; None if there is none."""
    most, _ = ends_of(p)
    below = p.high < p.low[most]
    later = [i for i in range(most + 1, len(below)) if below[i:].all()]
    return later[0] if later else None


def depths_differ(p: Profile) -> bool:
    """Whether some depth is more similar than the null of the best pair, and than some other depth,
    beyond the intervals."""
    tested = p.permutations >= DRAWS and bool(p.value[ends_of(p)[0]] > p.best95)
    return tested and extremes_differ([p.number(i, "") for i in range(len(p.depth))])


def depth_finding(p: Profile, others: Sequence[Profile]) -> Finding:
    """The depths at which a pair is most and least similar, and those of the `others` of the same
    architectures."""
    most, least = ends_of(p)
    numbers = (p.number(most, "most similar"), p.number(least, "least similar"))
    head = f"{p.label} (n = {p.n}):"
    if not p.value[most] > p.best95:
        text = (
            f"{head} CKA is not above its null at any depth ({shown(numbers[0])} or less; null of "
            f"the maximum: {p.best95:.2f})."
        )
        return Finding(QUESTION, p.label, text, "none", numbers)
    if np.nanmin(p.low) >= _EQUAL:
        return Finding(
            QUESTION,
            p.label,
            f"{head} representations are equal at every depth (CKA 1.000).",
            "none",
            numbers,
        )
    if not depths_differ(p):
        text = f"{head} CKA ranges from {shown(numbers[1])} to {shown(numbers[0])}"
        if p.permutations < DRAWS:
            return Finding(
                QUESTION,
                p.label,
                f"{text}; differences between depths require {DRAWS} permutations.",
                "context",
                numbers,
            )
        text += (
            ", with no significant difference between depths (corrected for all pairs of "
            f"{len(p.depth)} depths)."
        )
        return Finding(QUESTION, p.label, text, "none", numbers)
    text = f"{head} most similar at {p.place(most)}, least at {p.place(least)}"
    text += "" if p.value[least] > p.null95[least] else ", where it is not above its null"
    start = divergence_start(p)
    if start is not None:
        text += (
            "; below that maximum, with non-overlapping intervals, from depth "
            f"{p.depth[start]:.2f} on"
        )
    text += "."
    others = [q for q in others if q.permutations >= DRAWS]
    differing = [q for q in others if depths_differ(q)]
    count = "the other pair" if len(others) == 1 else f"the {len(others)} other pairs"
    if differing:
        ends = [ends_of(q) for q in differing]
        highest, lowest = ([q.depth[e[k]] for q, e in zip(differing, ends)] for k in (0, 1))
        last = span([float(q.value[e[1]]) for q, e in zip(differing, ends)])
        of = count if len(differing) == len(others) else f"{len(differing)} of {count}"
        text += (
            f" In {of} of these architectures: most similar at depth {span(highest)}, least at "
            f"{span(lowest)} (CKA {last})."
        )
    elif others:
        text += f" In {count} of these architectures no depths differ significantly."
    return Finding(QUESTION, p.label, text, "found", numbers)


def baseline_finding(p: Profile, baseline: Profile) -> Finding:
    """At how many depths a trained pair is more or less similar than its untrained baselines."""
    # Both are over images, at 5 % over all depths (Bonferroni).
    p_values = difference_p(baseline.value, baseline.low, baseline.high, p.value, p.low, p.high)
    apart = p_values * len(p.depth) <= LEVEL
    more, less = (
        int((apart & (p.value > baseline.value)).sum()),
        int((apart & (p.value < baseline.value)).sum()),
    )
    ends = zip(ends_of(p), ("most", "least"))
    numbers = tuple(baseline.number(i, f"untrained baselines, {end} similar") for i, end in ends)
    head = (
        f"Untrained baselines of {p.label}: CKA {shown(numbers[0])} and {shown(numbers[1])} at the "
        "same two depths;"
    )
    total = f"of {len(p.depth)} depths"
    if not more + less:
        text = f"{head} no significant difference from the trained networks at any {total}."
        return Finding(QUESTION, p.label, text, "none", numbers)
    # Intervals are over images. Two draws of untrained weights differ by more, and how far is not
    # known from one.
    text = (
        f"{head} these trained networks are significantly less similar than these baselines at "
        f"{less} and more similar at "
    )
    text += (
        f"{more} {total} (intervals over images), which a single draw of untrained weights cannot "
        "attribute to training."
    )
    return Finding(QUESTION, p.label, text, "context", numbers)


def last_layer_findings(pairs: Sequence[Profile]) -> list[Finding]:
    """Which pairs of networks are most and least similar after the last layer; no finding for fewer
    than two pairs."""
    known = [p for p in pairs if np.isfinite(p.value[-1])]
    if len(known) < 2:
        return []
    order = sorted(known, key=lambda p: -p.value[-1])
    numbers = tuple(p.number(len(p.depth) - 1, f"last layers, {families(p.a, p.b)}") for p in order)
    kinds = [
        families(p.a, p.b) if p.a.family != p.b.family else f"two {family(p.a)}s" for p in order
    ]
    text = ", ".join(f"{kind} ({p.label}) {shown(n)}" for kind, p, n in zip(kinds, order, numbers))
    differ = extremes_differ(numbers)
    end = "" if differ else " No significant difference between pairs."
    return [
        Finding(
            QUESTION,
            "all",
            f"CKA after the last layers: {text}.{end}",
            "found" if differ else "none",
            numbers,
        )
    ]


def grounded_sentences(r: GroundedTests) -> list[str]:
    """Per test and statistic, how many measures pass, and which do not, or which do where these are
    fewer."""
    return [_grounded_sentence(r, t) for t in range(len(r.tests))]


def _grounded_sentence(r: GroundedTests, t: int) -> str:
    head = f"{r.tests[t].capitalize()}, {r.statistics[t]} ({r.chances[t]:.2f} by chance)"
    if r.smallest_p[t] > LEVEL:
        return (
            f"{head}: {r.n[t]} networks allow no p-value below {r.smallest_p[t]:.3f}, so that no "
            "measure can pass."
        )
    passed = r.passed[:, t]
    few = bool(passed.sum() <= len(passed) / 2)
    named = [
        f"{r.labels[i]} ({'undefined' if np.isnan(value := r.values[i, t]) else f'{value:.2f}'})"
        for i in np.flatnonzero(passed == few)
    ]
    what = "" if not named else f": {join(named)}" if few else f", all but {join(named)}"
    return (
        f"{head}: {passed.sum()} of {len(passed)} measures pass at p <= {LEVEL} after max-T "
        f"correction over measures (n = {r.n[t]} networks){what}."
    )
