"""Where representations part: CKA of layers at equal relative depth, against its null, its interval, and untrained twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixer_probe.core.finding import NAN, Finding, Number, families, family, is_twin, missing, of_kind, own_models, shown, span
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.words import name_of
from mixer_probe.plotting.depth import Course
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.stats.claims import DRAWS, LEVEL, extremes_differ
from mixer_probe.stats.differences import difference_p

QUESTION = "similarity"
PANEL = "CKA (unbiased) at equal depth"
# CKA of equal representations is 1 up to rounding.
_EQUAL = 1 - 1e-6


@dataclass(frozen=True)
class Profile:
    """CKA of every layer of A with the layer of B of the nearest relative depth: arrays [layer of A]; `best95` is what the
    closest cell of the whole matrix stays within in 95 % of random pairings."""

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

    def number(self, i: int, kind: str) -> Number:
        """The value at one depth."""
        bounds = float(self.low[i]), float(self.high[i])
        return Number(kind, float(self.value[i]), *bounds, float(self.null95[i]), self.n, f"depth {self.depth[i]:.2f}")

    def place(self, i: int) -> str:
        """ "depth 0.50 (blocks.2 and blocks.2, CKA 0.81 [0.78, 0.83])"."""
        return f"depth {self.depth[i]:.2f} ({self.names[i]}; CKA {shown(self.number(i, ''))}, null {self.null95[i]:.2f})"


def profile_of(m: SimilarityMatrix) -> Profile | None:
    """The profile of a matrix of two networks by linear, unbiased CKA with null and interval; None for any other."""
    a, b = m.model_a, m.model_b
    plain = m.measure == "cka" and m.estimator == "unbiased" and m.kernel == "linear" and not m.without_top_pc
    if not plain or a is None or b is None or a.name == b.name or m.null is None or m.interval is None or m.calibrated is None:
        return None
    depths_a, depths_b = (np.array([layer.depth for layer in side]) for side in (m.layers_a, m.layers_b))
    rows, columns = np.arange(len(depths_a)), np.abs(depths_b[None] - depths_a[:, None]).argmin(1)
    arrays = (m.values, m.interval.low, m.interval.high, m.calibrated, m.null.quantile95)
    value, low, high, calibrated, null95 = (x[rows, columns] for x in arrays)
    names = tuple(f"{m.layers_a[i].name} and {m.layers_b[j].name}" for i, j in zip(rows, columns))
    return Profile(a, b, names, depths_a, value, low, high, calibrated, null95, m.null.maximum95, m.n, m.null.permutations)


def similarity_findings(results: Sequence[Result]) -> tuple[list[Finding], list[Course]]:
    """One finding of all pairs after the last layer, one per pair of architectures, and one of their untrained baselines."""
    matrices = of_kind(results, SimilarityMatrix)
    own = own_models([m for x in matrices for m in (x.model_a, x.model_b) if m])
    found = [p for m in matrices if (p := profile_of(m)) and np.isfinite(p.calibrated).any()]
    pairs = [p for p in found if p.a.name in own and p.b.name in own]
    twins = {_key(p): p for p in found if is_twin(p.a, own) and is_twin(p.b, own)}
    if not pairs:
        needs = "requires unbiased linear CKA between two networks with null and interval"
        return [missing(QUESTION, "Divergence of representations with depth", needs, results, "similarity (cka)")], []
    groups: dict[str, list[Profile]] = {}
    for p in pairs:
        groups.setdefault(families(p.a, p.b), []).append(p)
    findings = [f for members in groups.values() for f in _group(members, twins)]
    firsts = [members[0] for members in groups.values()]
    alone = [p.label for p in firsts if p.a.trained and p.b.trained and _baseline(p, twins) is None]
    if alone:
        what, needs = f"Untrained baselines of {', '.join(alone)}", "the results contain no CKA between their untrained baselines"
        findings.append(missing(QUESTION, what, needs, results))
    return [*_last(firsts), *findings], [c for p in firsts for c in _courses(p, twins)]


def _key(p: Profile) -> frozenset[str]:
    return frozenset(m.name.removesuffix("?untrained") for m in (p.a, p.b))


def _baseline(p: Profile, twins: dict[frozenset[str], Profile]) -> Profile | None:
    """The untrained baselines of a pair, at the same depths."""
    twin = twins.get(_key(p))
    return twin if twin is not None and np.array_equal(twin.depth, p.depth) else None


def _group(members: Sequence[Profile], twins: dict[frozenset[str], Profile]) -> list[Finding]:
    first, *others = members
    twin = _baseline(first, twins)
    return [_parting(first, others), *([] if twin is None else [_against_twins(first, twin)])]


def ends_of(p: Profile) -> tuple[int, int]:
    """Indices of the depths at which a pair is most and least above its null."""
    return int(np.nanargmax(p.calibrated)), int(np.nanargmin(p.calibrated))


def parted_from(p: Profile) -> int | None:
    """The first depth after the most alike one from which on all intervals are below that of the most alike; None if there is
    none."""
    most, _ = ends_of(p)
    below = p.high < p.low[most]
    later = [i for i in range(most + 1, len(below)) if below[i:].all()]
    return later[0] if later else None


def depths_differ(p: Profile) -> bool:
    """Whether some depth is more alike than the null of the best pair, and than some other depth, beyond the intervals."""
    tested = p.permutations >= DRAWS and bool(p.value[ends_of(p)[0]] > p.best95)
    return tested and extremes_differ([p.number(i, "") for i in range(len(p.depth))])


def _parting(p: Profile, others: Sequence[Profile]) -> Finding:
    most, least = ends_of(p)
    numbers = (p.number(most, "most similar"), p.number(least, "least similar"))
    head = f"{p.label} (n = {p.n}):"
    if not p.value[most] > p.best95:
        text = (
            f"{head} CKA is not above its null at any depth ({shown(numbers[0])} or less; null of the maximum: {p.best95:.2f})."
        )
        return Finding(QUESTION, p.label, text, "none", numbers)
    if np.nanmin(p.low) >= _EQUAL:
        return Finding(QUESTION, p.label, f"{head} representations are equal at every depth (CKA 1.000).", "none", numbers)
    if not depths_differ(p):
        text = f"{head} CKA ranges from {shown(numbers[1])} to {shown(numbers[0])}, with no significant difference between depths"
        return Finding(QUESTION, p.label, f"{text} (corrected for all pairs of {len(p.depth)} depths).", "none", numbers)
    text = f"{head} most similar at {p.place(most)}, least at {p.place(least)}{_floor(p, least)}"
    start = parted_from(p)
    where = (
        f"; below that maximum, with non-overlapping intervals, from depth {p.depth[start]:.2f} on" if start is not None else ""
    )
    return Finding(QUESTION, p.label, f"{text}{where}.{_replicas(others)}", "found", numbers)


def _floor(p: Profile, least: int) -> str:
    return "" if p.value[least] > p.null95[least] else ", where it is not above its null"


def _replicas(others: Sequence[Profile]) -> str:
    """The same of the other pairs of these architectures."""
    if not others:
        return ""
    told = [p for p in others if depths_differ(p)]
    count = "the other pair" if len(others) == 1 else f"the {len(others)} other pairs"
    if not told:
        return f" In {count} of these architectures no depths differ significantly."
    ends = [ends_of(p) for p in told]
    most, least = ([p.depth[e[k]] for p, e in zip(told, ends)] for k in (0, 1))
    last = span([float(p.value[e[1]]) for p, e in zip(told, ends)])
    of = count if len(told) == len(others) else f"{len(told)} of {count}"
    return f" In {of} of these architectures: most similar at depth {span(most)}, least at {span(least)} (CKA {last})."


def _against_twins(p: Profile, twin: Profile) -> Finding:
    # Both are over images, at 5 % over all depths (Bonferroni).
    apart = difference_p(twin.value, twin.low, twin.high, p.value, p.low, p.high) * len(p.depth) <= LEVEL
    more, less = int((apart & (p.value > twin.value)).sum()), int((apart & (p.value < twin.value)).sum())
    most, least = ends_of(p)
    numbers = tuple(
        twin.number(i, kind)
        for i, kind in ((most, "untrained baselines, most similar"), (least, "untrained baselines, least similar"))
    )
    there = f"{shown(numbers[0])} and {shown(numbers[1])} at the same two depths"
    total = f"of {len(p.depth)} depths"
    if not more + less:
        sentence = (
            f"Untrained baselines of {p.label}: CKA {there}; no significant difference from the trained networks at any {total}."
        )
        return Finding(QUESTION, p.label, sentence, "none", numbers)
    # Intervals are over images. Two draws of untrained weights differ by more, and how far is not known from one.
    text = f"these trained networks are significantly less similar than these baselines at {less} and more similar at "
    text += f"{more} {total} (intervals over images), which a single draw of untrained weights cannot attribute to training"
    return Finding(QUESTION, p.label, f"Untrained baselines of {p.label}: CKA {there}; {text}.", "context", numbers)


def _last(firsts: Sequence[Profile]) -> list[Finding]:
    """Which architectures are most and least alike after the last layer."""
    known = [p for p in firsts if np.isfinite(p.value[-1])]
    if len(known) < 2:
        return []
    order = sorted(known, key=lambda p: -p.value[-1])
    numbers = tuple(p.number(len(p.depth) - 1, f"last layers, {families(p.a, p.b)}") for p in order)
    told = extremes_differ(numbers)
    text = ", ".join(f"{_pair_name(p)} {shown(n)}" for p, n in zip(order, numbers))
    end = "" if told else " No significant difference between pairs."
    return [Finding(QUESTION, "all", f"CKA after the last layers: {text}.{end}", "found" if told else "none", numbers)]


def _pair_name(p: Profile) -> str:
    kind = families(p.a, p.b) if p.a.family != p.b.family else f"two {family(p.a)}s"
    return f"{kind} ({p.label})"


def _courses(p: Profile, twins: dict[frozenset[str], Profile]) -> list[Course]:
    found = [p, *([twins[_key(p)]] if _key(p) in twins else [])]
    return [
        Course(
            PANEL,
            families(x.a, x.b),
            f"{p.label}{'' if x is p else '?untrained'}",
            x is p,
            x.depth,
            x.value,
            x.low,
            x.high,
            x.null95 if x is p else np.full(len(x.depth), NAN),
        )
        for x in found
    ]
