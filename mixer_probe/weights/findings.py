"""Token mixing: low-frequency units and opposite pairs against random weights, and how far the layers of each network read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom
from scipy.stats import t as student

from mixer_probe.core.finding import NAN, Finding, Number, family, is_twin, missing, of_kind, own_models, share, twin_name
from mixer_probe.core.result import Result
from mixer_probe.core.words import name_of
from mixer_probe.plotting.depth import Course
from mixer_probe.stats import wilson_interval
from mixer_probe.stats.claims import DRAWS, LEVEL
from mixer_probe.stats.differences import difference_interval
from mixer_probe.weights import SpatialKernels, TokenMixing

QUESTION = "weights"
PANEL = "mean mixing distance, px (weights)"
# Units below this quantile of the frequencies of random weights count as low: so many are by chance.
_LEVEL = 0.05
_UNIFORM = 1e-6
# Weights have no sampling error; distances of two draws of random weights differ by a few per cent.
_CLEAR = 0.05


def weight_findings(results: Sequence[Result]) -> tuple[list[Finding], list[Course]]:
    """Two findings a network with token-mixing weights, and one a network with spatial kernels."""
    mixing, kernels = of_kind(results, TokenMixing), of_kind(results, SpatialKernels)
    own = own_models([*(r.model for r in mixing), *(r.model for r in kernels)])
    twins = {r.model.name: r for r in mixing}
    findings = [f for r in mixing if r.model.name in own for f in _units(r, twins.get(twin_name(r.model)), results)]
    if not mixing:
        findings.append(missing(QUESTION, "Token-mixing units", "there is no network with a token-mixing MLP", results))
    shown = [r for r in kernels if r.model.name in own and len(r)]
    findings += [_reach(r, next((k for k in kernels if k.model.name == twin_name(r.model)), None)) for r in shown]
    if not shown:
        findings.append(missing(QUESTION, "Spatial reach", "there are no spatial kernels", results, "spatial kernels"))
    return findings, [_course(r) for r in kernels if len(r) and (r.model.name in own or is_twin(r.model, own))]


def _units(r: TokenMixing, twin: TokenMixing | None, results: Sequence[Result]) -> list[Finding]:
    name = name_of(r.model)
    frequency = [r.frequency(i) for i in range(len(r.blocks))]
    flat = sum(int(np.isnan(f).sum()) for f in frequency)
    if flat == sum(map(len, frequency)):
        text = f"{name}: all {flat} token-mixing units weight all positions equally, so they ignore position."
        return [Finding(QUESTION, name, text, "none", (Number("units that ignore position", 1.0, n=flat),))]
    if twin is None:
        needs = "there is no untrained baseline to compare with"
        low = missing(QUESTION, f"Low-frequency units of {name}", needs, results)
    else:
        low = _low_frequency(r, twin)
    return [low, _pairs(r, twin)]


def low_frequency(r: TokenMixing, twin: TokenMixing) -> tuple[float, list[np.ndarray]]:
    """The 5 % quantile of the frequencies of all units of the twin, and which units [unit] of each block of `r` are below it."""
    random = np.concatenate([twin.frequency(i) for i in range(len(twin.blocks))])
    limit = float(np.quantile(random[np.isfinite(random)], _LEVEL))
    return limit, [r.frequency(i) < limit for i in range(len(r.blocks))]


def _low_frequency(r: TokenMixing, twin: TokenMixing) -> Finding:
    limit, low = low_frequency(r, twin)
    every = np.concatenate(low)
    total = _share("low-frequency units", int(every.sum()), len(every), _LEVEL)
    most = int(np.argmax([block.mean() for block in low]))
    best = _share("low-frequency units, most", int(low[most].sum()), len(low[most]), _LEVEL, r.blocks[most])
    # The limit is an order statistic of the baseline's units, and has their sampling error.
    units = sum(len(twin.frequency(i)) for i in range(len(twin.blocks)))
    fewer, more = difference_interval(_LEVEL, *wilson_interval(_LEVEL * units, units), total.value, total.low, total.high)
    verdict = "above" if fewer > 0 else "below" if more < 0 else "not distinguishable from"
    text = (
        f"{name_of(r.model)}: {share(total)} of {len(every)} token-mixing units have low frequency (below {limit:.3f} "
        f"cycles/token, the 5th percentile of the untrained baseline), {verdict} that baseline"
    )
    # The largest of as many binomial counts at the rate of all blocks (Bonferroni).
    p = len(low) * float(binom.sf(int(low[most].sum()) - 1, len(low[most]), total.value))
    text += f"; most in {r.blocks[most]}: {share(best)} (p = {p:.2g} of the largest of {len(low)} blocks)." if p <= LEVEL else "."
    return Finding(QUESTION, name_of(r.model), text, "found" if verdict in ("above", "below") else "none", (total, best))


def _pairs(r: TokenMixing, twin: TokenMixing | None) -> Finding:
    name = name_of(r.model)
    if np.isnan(r.chance):
        return Finding(QUESTION, name, f"Opposite pairs of {name}: skipped, requires at least 19 surrogates", "missing")
    if r.surrogates < DRAWS:
        return Finding(QUESTION, name, f"Opposite pairs of {name}: skipped, requires {DRAWS} surrogates", "missing")
    own = _paired(r, "units with an opposite")
    numbers = [own]
    above, beside = own.low > r.chance, ""
    if twin is not None:
        numbers.append(other := _paired(twin, "the same, untrained baseline"))
        over = difference_interval(other.value, other.low, other.high, own.value, own.low, own.high)[0] > 0
        beside = (
            f"{' and' if above == over else ', but'} {'above' if over else 'not above'} its untrained baseline ({share(other)})"
        )
        above = above and bool(over)
    verdict = "above" if own.low > r.chance else "not above"
    text = (
        f"{name}: {share(own)} of {own.n} units have a significant opposite-phase unit (null of random phases), {verdict} "
        f"chance ({100 * r.chance:.1f} %){beside}."
    )
    return Finding(QUESTION, name, text, "found" if above else "none", tuple(numbers))


def _paired(r: TokenMixing, kind: str) -> Number:
    paired = np.concatenate([r.paired(i) for i in range(len(r.blocks))])
    # Two units that are each other's opposite are one observation.
    value, half = float(paired.mean()), len(paired) / 2
    return Number(kind, value, *wilson_interval(value * half, half), null=r.chance, n=len(paired))


def _share(kind: str, hits: int, n: int, null: float, where: str = "") -> Number:
    low, high = wilson_interval(hits, n)
    return Number(kind, hits / n, low, high, null, n, where)


def ignores_position(r: SpatialKernels) -> bool:
    """Whether every position reads all positions with the same weight, in every layer."""
    return all(
        k.matrix is not None
        and abs(k.distance_px / k.uniform_px - 1) < _UNIFORM
        and abs(k.self_mass * k.grid[0] * k.grid[1] - 1) < _UNIFORM
        for k in r.kernels
    )


def _reach(r: SpatialKernels, twin: SpatialKernels | None) -> Finding:
    name, first, last = name_of(r.model), r.kernels[0], r.kernels[-1]
    if ignores_position(r):
        text = f"{name}: by its weights, every layer mixes all positions uniformly; its spatial mixing ignores position."
        return Finding(QUESTION, name, text, "none", (Number("first layer, px", first.distance_px, null=first.uniform_px),))
    nulls = [k.distance_px for k in twin.kernels] if twin is not None and len(twin) == len(r) else [NAN] * len(r)
    sds = np.array([np.nan] * len(r) if np.isnan(nulls).all() or twin is None else [k.distance_sd for k in twin.kernels])
    ends = {0: first, len(r) - 1: last}
    numbers = tuple(Number(f"{k.block}, px", k.distance_px, null=nulls[i], n=len(r), where=k.block) for i, k in ends.items())
    own = np.array([k.distance_px for k in r.kernels])
    text = f"{name}: by its weights, the mean mixing distance is {_ends_text(numbers)}"
    if np.isnan(nulls).all():
        return Finding(QUESTION, name, f"{text}.", "context", numbers)
    # How far chance moves two kernels apart, at 5 % over all layers and both sides; less than 5 % of the distance is not told.
    # Deviations are estimated from as many rows as there are positions (Student's t).
    freedom = np.array([max(k.grid[0] * k.grid[1] - 1, 1) for k in r.kernels])
    apart = student.isf(LEVEL / 2 / len(own), freedom) * np.hypot(sds, [k.distance_sd for k in r.kernels])
    apart = np.maximum(apart, _CLEAR * np.array(nulls))
    nearer, farther = int((own < nulls - apart).sum()), int((own > nulls + apart).sum())
    text += (
        f"; shorter than in the untrained baseline in {nearer} of {len(own)} layers, longer in {farther}, by {100 * _CLEAR:.0f} %"
    )
    mean = Number("mean over layers, px", float(np.nanmean(own)), null=float(np.nanmean(nulls)), n=len(own))
    text += f" or more and beyond chance (mean {mean.value:.1f} px, untrained {mean.null:.1f} px)."
    return Finding(QUESTION, name, text, "found" if nearer + farther else "none", (*numbers, mean))


def _ends_text(numbers: Sequence[Number]) -> str:
    texts = [f"{n.value:.1f} px in {n.where}{'' if np.isnan(n.null) else f' (untrained {n.null:.1f} px)'}" for n in numbers]
    return " and ".join(texts)


def _course(r: SpatialKernels) -> Course:
    own = np.array([k.distance_px for k in r.kernels])
    depth, nothing = np.array([k.depth for k in r.kernels]), np.full(len(own), NAN)
    trained = not r.model.name.endswith("?untrained")
    return Course(PANEL, family(r.model), r.model.name, trained, depth, own, nothing, nothing, nothing)
