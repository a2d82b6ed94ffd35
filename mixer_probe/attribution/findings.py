"""Agreement of attributions between networks, and their faithfulness against random orders of patches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mixer_probe.attribution import Agreement, PerturbationCurves
from mixer_probe.attribution.curves import GAMES
from mixer_probe.attribution.figures.overlays import method_label
from mixer_probe.core.finding import Finding, Number, missing, of_kind, shown
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.words import join, name_of
from mixer_probe.stats import FEWEST, mean_interval

QUESTION = "attributions"
_LEVEL = 0.05
Pair = tuple[str, str]


def attribution_findings(results: Sequence[Result]) -> list[Finding]:
    """Which networks' maps agree most, and of every network how its best maps do in deletion and insertion."""
    across = [r for r in of_kind(results, Agreement) if len(set(r.methods)) == 1 and len({m.fingerprint for m in r.models}) > 1]
    curves = of_kind(results, PerturbationCurves)
    findings = (
        _agreement(across) if across else [_missing("Agreement of attributions", "no attributions of two networks", results)]
    )
    findings += [_faithful(r) for r in curves]
    return findings if curves else [*findings, _missing("Deletion and insertion", "no deletion or insertion curves", results)]


def _missing(what: str, needs: str, results: Sequence[Result]) -> Finding:
    return missing(QUESTION, what, needs, results, "attributions")


def excesses(across: Sequence[Agreement]) -> dict[tuple[ModelRecord, ModelRecord], tuple[np.ndarray, int]]:
    """By pair of networks: agreement of each image above what 95 % of pairings with other images stay within, mean over the
    methods that all pairs have [image], or where there are none over those that both have; and how many methods those are.

    Cheap methods have more images than others: the mean is over the images that all methods of a pair have."""
    rows: dict[tuple[ModelRecord, ModelRecord], dict[str, dict[str, float]]] = {}
    for r in across:
        for i, j in combinations(range(len(r.models)), 2):
            excess = dict(zip(r.ids, (r.values[i, j] - r.null95[i, j]).tolist(), strict=True))
            rows.setdefault((r.models[i], r.models[j]), {})[r.methods[0]] = excess
    # A method that only some networks have, such as attention rollout, may agree more or less than the others do.
    shared = set.intersection(*map(set, rows.values())) if rows else set()
    kept = {pair: [x for name, x in found.items() if name in shared or not shared] for pair, found in rows.items()}
    common = {pair: [i for i in found[0] if all(i in x for x in found)] for pair, found in kept.items()}
    return {pair: (np.array([np.mean([x[i] for x in kept[pair]]) for i in ids]), len(kept[pair])) for pair, ids in common.items()}


def _agreement(across: Sequence[Agreement]) -> list[Finding]:
    found = {pair: x for pair, x in excesses(across).items() if np.isfinite(x[0]).sum() > 1}
    if not found:
        return [
            Finding(
                QUESTION, "", "Agreement of attributions: not available, no pair of networks has maps of two images", "missing"
            )
        ]
    numbers = {pair: _excess(pair, *x) for pair, x in found.items()}
    order = sorted(numbers, key=lambda pair: -numbers[pair].value)
    # Of several pairs some would be above by chance: their intervals are those of a family. Few images bear no claim.
    level = 1 - 2 * _LEVEL / len(order)
    above = [pair for pair in order if numbers[pair].n >= FEWEST and mean_interval(found[pair][0], level=level)[1] > 0]
    head = (
        f"{len(above)} of {len(order)} pairs of networks agree more than expected from other images' maps (95th percentile of "
        "pairings)"
    )
    best = numbers[order[0]]
    close = [p for p in order[1:] if not _lead(found[order[0]][0], found[p][0]) > 0]
    most = "most " if len(order) > 1 and not close else ""
    text = f"{head}; {most}{best.where}: excess rank correlation {shown(best)} (n = {best.n} images)"
    if not above:
        text = (
            "No pair of networks agrees more than expected from other images' maps (largest excess rank correlation: "
            f"{shown(best)}, {best.where}; n = {best.n} images)"
        )
    if above and len(order) > 1:
        pairs = [f"{name_of(a)} with {name_of(b)}" for a, b in close]
        text += f"; not distinguishable from that pair: {join(pairs)}" if close else "; ahead of all other pairs"
    return [Finding(QUESTION, "all", f"{text}.", "found" if above else "none", tuple(numbers[p] for p in order))]


def _excess(pair: tuple[ModelRecord, ModelRecord], values: np.ndarray, methods: int) -> Number:
    mean, low, high = (float(x) for x in mean_interval(values))
    where = f"{name_of(pair[0])} and {name_of(pair[1])}"
    kind = f"agreement above the null, {methods} method{'s' if methods > 1 else ''}"
    return Number(kind, mean, low, high, 0.0, int(np.isfinite(values).sum()), where)


def _lead(best: np.ndarray, other: np.ndarray) -> float:
    """Lower bound of the difference over the same images."""
    return float(mean_interval(best - other)[1])


def gains(r: PerturbationCurves, game: str, level: float = 0.95) -> list[Number]:
    """By method: how much better than random orders of the same images, positive is better in both games, with the interval."""
    values = (r.random_area(game) - r.area(game)) * (1 if game == "deletion" else -1)
    return [_gain(f"{game} gain", v, level, method) for method, v in zip(r.methods, values, strict=True)]


def _gain(kind: str, values: np.ndarray, level: float, method: str) -> Number:
    mean, low, high = (float(x) for x in mean_interval(values, level=level))
    return Number(kind, mean, low, high, 0.0, len(values), method)


def _faithful(r: PerturbationCurves) -> Finding:
    name, texts, numbers, any_good = name_of(r.model), [], list[Number](), False
    for game in GAMES:
        found = [n for n in gains(r, game) if np.isfinite(n.value)]
        # One-sided, over all methods and both games.
        beyond = {n.where for n in gains(r, game, 1 - _LEVEL / max(len(found), 1)) if n.low > 0 and n.n >= FEWEST}
        good = [n for n in found if n.where in beyond]
        any_good = any_good or bool(good)
        best = max(found, key=lambda n: n.value, default=None)
        if best is None:
            continue
        verdict = "" if good else ", not distinguishable from random"
        label = method_label(best.where)
        texts.append(f"in {game} for {len(good)} of {len(found)} methods (largest gain {label}, {shown(best)}{verdict})")
        numbers.append(best)
    if not numbers:
        return Finding(QUESTION, name, f"Deletion and insertion of {name}: not available, no curve is defined", "missing")
    text = (
        f"{name} (n = {len(r.ids)}): attributions outperform random orders of patches (intervals over images) "
        f"{' and '.join(texts)}."
    )
    return Finding(QUESTION, name, text, "found" if any_good else "none", tuple(numbers))
