"""Depth at which a probe reaches half of the final accuracy gain over chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import Finding, Number, family, missing, of_kind, own_models, points, share
from mixer_probe.core.result import Result
from mixer_probe.core.words import join, name_of
from mixer_probe.plotting.curves import networks, pixels
from mixer_probe.plotting.depth import Course
from mixer_probe.probing import ProbeResult, paired_interval
from mixer_probe.probing.depths import halfway, halfway_depths, last_layer
from mixer_probe.stats.claims import LEVEL, extremes_differ
from mixer_probe.stats.differences import difference_p

QUESTION = "probes"
PANEL = "accuracy of a linear probe"


def probe_findings(results: Sequence[Result]) -> tuple[list[Finding], list[Course]]:
    """One finding a network, and one of all."""
    probes = of_kind(results, ProbeResult)
    method = next((r.method for r in probes if r.method == "ridge"), probes[0].method if probes else "")
    probes = [r for r in probes if r.method == method]
    own = own_models([r.model for r in probes])
    chosen = [r for r in networks(probes) if r.model.name in own and np.isfinite(r.accuracy).any()]
    if not chosen:
        return [
            missing(QUESTION, "Probe accuracy by depth", "the results contain no probe of a network", results, "linear probe")
        ], []
    raw = next(iter(pixels(probes)), None)
    findings = [_readable(r, raw) for r in chosen]
    courses = [c for r in chosen for c in _courses(r)]
    return [*findings, *_order(chosen)], courses


def above_chance(r: ProbeResult) -> bool:
    """Whether the interval of the last layer is above chance."""
    return bool(r.low[last_layer(r)] > r.chance)


def arrived(r: ProbeResult) -> int | None:
    """The first layer whose accuracy is within the interval of the last layer, or above it."""
    return _first(r.accuracy >= r.low[last_layer(r)])


def _first(hits: np.ndarray) -> int | None:
    return int(np.flatnonzero(hits)[0]) if hits.any() else None


def accuracy_number(r: ProbeResult, i: int, kind: str) -> Number:
    """Accuracy of a layer with interval and chance."""
    return Number(kind, float(r.accuracy[i]), float(r.low[i]), float(r.high[i]), r.chance, r.n_test, r.layers[i].name)


def gain(r: ProbeResult, other: ProbeResult, kind: str) -> Number:
    """Difference in accuracy between the last layer of `r` and the best layer of `other`, on the same test images."""
    best = int(np.nanargmax(other.accuracy))
    return Number(kind, *paired_interval(r.right[last_layer(r)], other.right[best]), n=r.n_test, where=other.layers[best].name)


def _readable(r: ProbeResult, raw: ProbeResult | None) -> Finding:
    last, name = accuracy_number(r, last_layer(r), "after the last layer"), name_of(r.model)
    head = f"{name}: accuracy of a {r.method} probe after the last layer {share(last)}"
    head += f" (chance {100 * r.chance:.1f} %, n = {r.n_test})"
    if not above_chance(r):
        return Finding(QUESTION, name, f"{head}, not significantly above chance.", "none", (last,))
    half, there = halfway(r), arrived(r)
    texts, numbers = [head], [last]
    if half is not None:
        number = Number("depth halfway", r.layers[half].depth, *halfway_depths(r), n=r.n_test, where=r.layers[half].name)
        texts.append(f"; half of the gain over chance is reached at depth {_depth(number)}")
        numbers.append(number)
    if there is not None:
        texts.append(
            f"; the interval of the last layer is first reached at depth {r.layers[there].depth:.2f} ({r.layers[there].name})"
        )
        numbers.append(accuracy_number(r, there, "first within the interval of the last"))
    gains = [(n, _gain_text(n, layers)) for n, layers in _gains(r, raw)]
    numbers += [n for n, _ in gains]
    return Finding(QUESTION, name, f"{''.join(texts)}.{''.join(text for _, text in gains)}", "found", tuple(numbers))


def _depth(n: Number) -> str:
    return f"{n.value:.2f} [{n.low:.2f}, {n.high:.2f}] ({n.where})"


def _gains(r: ProbeResult, raw: ProbeResult | None) -> list[tuple[Number, int]]:
    """Gains over the untrained baseline and over raw pixels, each with the number of layers that its best one was picked from."""
    others = [(r.untrained, "over the best layer of the untrained baseline"), (raw, "over raw pixels")]
    same = [(o, kind) for o, kind in others if o is not None and np.array_equal(o.labels, r.labels)]
    return [(gain(r, o, kind), len(o.layers)) for o, kind in same if np.isfinite(o.accuracy).any()]


def _gain_text(n: Number, layers: int) -> str:
    verdict = "" if n.low > 0 else ": no significant difference"
    if n.high < 0:
        # The other's best layer was picked on these images (Bonferroni).
        less = float(difference_p(0.0, 0.0, 0.0, n.value, n.low, n.high)) * layers <= LEVEL
        verdict = (
            ": significantly lower" if less else f": no significant difference after correction for the best of {layers} layers"
        )
    return f" Gain {n.kind}: {points(n)}{verdict}."


def _order(chosen: Sequence[ProbeResult]) -> list[Finding]:
    """Networks ordered by the depth at which half of the gain is reached."""
    found = [(r, h) for r in chosen if above_chance(r) and (h := halfway(r)) is not None]
    if len(found) < 2:
        return []
    numbers = [
        Number(f"depth halfway, {name_of(r.model)}", r.layers[h].depth, *halfway_depths(r), n=r.n_test, where=r.layers[h].name)
        for r, h in found
    ]
    by_depth: dict[str, list[str]] = {}
    for (r, _), n in sorted(zip(found, numbers), key=lambda x: x[1].value):
        by_depth.setdefault(f"{n.value:.2f}", []).append(name_of(r.model))
    told = extremes_differ(numbers)
    text = "; ".join(f"depth {depth}: {join(names)}" for depth, names in by_depth.items())
    end = "the earliest and the latest differ significantly" if told else "no significant difference in depth"
    sentence = f"Depth of half of the final gain over chance: {text}; {end}."
    return [Finding(QUESTION, "all", sentence, "found" if told else "none", tuple(numbers))]


def _courses(r: ProbeResult) -> list[Course]:
    found = [r, *([r.untrained] if r.untrained else [])]
    return [
        Course(
            PANEL,
            family(x.model),
            x.model.name,
            x is r,
            np.array([layer.depth for layer in x.layers]),
            x.accuracy,
            x.low,
            x.high,
            np.full(len(x.layers), x.chance),
        )
        for x in found
    ]
