"""Sentences on spatial mixing: from how far away a network reads, what training changed, and how
architectures compare."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mixer_probe.core.finding import Number, shown
from mixer_probe.core.words import first_and_more, join, name_of, number, primary
from mixer_probe.mixing.quantities import SpatialMixing
from mixer_probe.stats.claims import LEVEL
from mixer_probe.stats.differences import difference_interval, difference_p

_WORDS = {
    "relative_distance": "mean distance relative to uniform mixing",
    "self_mass": "mass on the position itself",
    "effective_positions": "fraction of effective positions",
    "participation": "participation ratio",
    "translation": "translation-structured fraction",
    "dynamic": "dynamic fraction",
    "prefix_mass": "mass on prefix tokens",
}
_OF_VIEW = {
    "branch": "the branches that mix positions read",
    "block": "with the skip connection blocks read",
}


def overall(r: SpatialMixing, view: str, quantity: str) -> Number:
    """The mean over blocks of a quantity, with its interval."""
    at = r.views.index(view), r.index(quantity)
    value, low, high = (float(a[at]) for a in (r.overall, r.overall_low, r.overall_high))
    return Number(quantity, value, low, high, n=r.n)


def distance_sentence(r: SpatialMixing) -> str:
    """The mean distance of each view, relative to uniform mixing, and blocks that mix nothing."""
    name, parts = name_of(r.model), []
    for view in (v for v in _OF_VIEW if v in r.views):
        n = overall(r, view, "relative_distance")
        if np.isfinite(n.value):
            px = r.overall[r.views.index(view), r.index("distance_px")]
            parts.append(f"{_OF_VIEW[view]} from {shown(n)} of that distance ({px:.3g} px)")
    averaged = f"and averaged over {len(r.layers)} blocks, " if parts else ""
    if "cumulative" in r.views:
        value, low, high = r.curve("cumulative", "relative_distance")[:, -1].tolist()
        if np.isfinite(value):
            last = shown(Number("relative_distance", value, low, high))
            it = "it" if parts else "that distance"
            parts.append(f"the output of {r.layers[-1].name} reads the image from {last} of {it}")
    zero = [
        layer.name
        for layer, none in zip(r.layers, r.zero[0] if r.views else (), strict=True)
        if none
    ]
    nothing = (
        f" The spatial branch of {first_and_more(zero, 3)} of {name} is exactly zero and has no "
        "distance."
        if zero and r.views[0] == "branch"
        else ""
    )
    if not parts:
        return nothing.strip()
    of = f"(n = {r.n} images in {r.groups} independent groups)"
    return f"{name}: relative to uniform mixing, {averaged}{'; '.join(parts)} {of}.{nothing}"


def training_sentence(r: SpatialMixing, baseline: SpatialMixing, view: str = "branch") -> str:
    """Which quantities of a view, averaged over blocks, differ from those of the untrained
    baseline."""
    if view not in r.views or view not in baseline.views:
        return ""
    pairs = [
        (q, own, other)
        for q in _WORDS
        if q in r.quantities
        for own, other in [(overall(r, view, q), overall(baseline, view, q))]
        if np.isfinite([own.low, own.high, other.low, other.high]).all()
    ]
    if not pairs:
        return ""
    changed, same = [], []
    for q, own, other in pairs:
        numbers = (other.value, other.low, other.high, own.value, own.low, own.high)
        if float(difference_p(*numbers)) * len(pairs) <= LEVEL:
            low, high = difference_interval(*numbers).tolist()
            change = number(own.value - other.value, low, high, 3)
            changed.append(f"{_WORDS[q]} from {other.value:.3f} to {own.value:.3f} (by {change})")
        else:
            same.append(_WORDS[q])
    name = name_of(r.model)
    of = f"Bonferroni over {len(pairs)} quantities, means over blocks of the spatial branch"
    if not changed:
        return (
            f"{name}: no quantity differs significantly from that of the untrained baseline ({of})."
        )
    rest = f"; no significant change of the {join(same)}" if same else ""
    return f"{name}: training changed the {join(changed)}{rest} ({of})."


def architecture_sentence(results: Sequence[SpatialMixing], view: str = "branch") -> str:
    """Pairs of networks whose relative distances differ, averaged over blocks; two architectures at
    once where all their pairs differ in one direction."""
    own = [r for r in primary(results) if view in r.views]
    known = [(r, overall(r, view, "relative_distance")) for r in own]
    known = [(r, n) for r, n in known if np.isfinite([n.value, n.low, n.high]).all()]
    pairs = list(combinations(known, 2))
    if not pairs:
        return ""
    # By architectures, of which the first reads from farther away: names, change and bounds.
    found: dict[tuple[str, str], list[tuple[str, str, float, float, float]]] = {}
    for (a, m), (b, n) in pairs:
        (a, m), (b, n) = ((b, n), (a, m)) if m.value > n.value else ((a, m), (b, n))
        numbers = (m.value, m.low, m.high, n.value, n.low, n.high)
        if float(difference_p(*numbers)) * len(pairs) <= LEVEL:
            low, high = difference_interval(*numbers).tolist()
            of = found.setdefault((b.model.family, a.model.family), [])
            of.append((name_of(b.model), name_of(a.model), n.value - m.value, low, high))
    if not found:
        return (
            "The mean distances of the spatial branches, relative to uniform mixing, do not differ "
            f"significantly between the {len(known)} networks."
        )
    parts = []
    for (b_family, a_family), of in found.items():
        farther, nearer = (
            [name_of(r.model) for r, _ in known if r.model.family == f]
            for f in (b_family, a_family)
        )
        if b_family != a_family and len(of) == len(farther) * len(nearer) > 1:
            each = sorted({f"{change:.2f}" for _, _, change, _, _ in of})
            by = each[0] if len(each) == 1 else f"{each[0]} to {each[-1]}"
            least, most = min(low for *_, low, _ in of), max(high for *_, high in of)
            parts.append(
                f"{join(farther)} farther than {join(nearer)} "
                f"(by {by}; intervals within [{least:.2f}, {most:.2f}])"
            )
        else:
            parts += [
                f"{b} farther than {a} (by {number(change, low, high)})"
                for b, a, change, low, high in of
            ]
    rest = len(pairs) - sum(map(len, found.values()))
    others = f"; no significant difference in {rest} of {len(pairs)} pairs" if rest else ""
    return (
        "Mean distance of the spatial branches, relative to uniform mixing and averaged over "
        f"blocks: {'; '.join(parts)}{others} (Bonferroni over {len(pairs)} pairs)."
    )
