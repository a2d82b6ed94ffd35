"""Sentences on training runs: what each arm changes, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import Number
from mixer_probe.core.words import FAMILIES, join
from mixer_probe.training.quantities import (
    RunQuantity,
    RunSimilarity,
    difference_of_differences,
)


def quantity_sentences(results: Sequence[RunQuantity]) -> list[str]:
    """Per family the mean of every arm and its difference from the first one, then by how much the
    differences of two families differ."""
    return [
        *map(_arms, results),
        *_between_families(results),
    ]


def _arms(r: RunQuantity) -> str:
    if len(r.arms) == 1 and len(r.steps) + len(r.layers) > 2:
        return _one_arm(r)
    steps = over_steps(r)
    averaged = "points of the curve" if len(r.steps) > 1 else "layers" if len(r.layers) > 1 else ""
    count = len(r.steps) if len(r.steps) > 1 else len(r.layers)
    over = f", averaged over {count} {averaged}" if averaged else ""
    values = [f"{shown(r, r.mean(r.arms[0], steps))} ({r.arms[0]})"]
    values += [
        f"{shown(r, r.mean(arm, steps))} ({arm}), {change(r, r.difference(arm, steps=steps))}"
        for arm in r.arms[1:]
    ]
    name = FAMILIES.get(r.family, r.family)
    return f"{name}: {r.quantity}{over}: {'; '.join(values)} (n = {len(r.seeds)} seeds each)."


def _one_arm(r: RunQuantity) -> str:
    """How a quantity changes over steps, or from the first to the last layer."""
    name, n, arm = FAMILIES.get(r.family, r.family), f"n = {len(r.seeds)} seeds", r.arms[0]
    change = r.change(arm)
    values = r.values[0].mean(0)
    if len(r.steps) > 1:
        over = f", averaged over {len(r.layers)} layers" if len(r.layers) > 1 else ""
        ends = [Number("", float(values[i].mean())) for i in (0, -1)]
        where = [f"at step {r.steps[i]:,}" for i in (0, -1)]
    else:
        over, ends = "", [Number("", float(values[0, i])) for i in (0, -1)]
        where = [f"in {r.layers[i]}" for i in (0, -1)]
    begin = f"{name}: {r.quantity}{over}:"
    if len(r.steps) > 1 and len(r.seeds) > 1 and np.ptp(r.values[0, :, -1].mean(1)) < 1e-9:
        # As of the similarity to the last step itself, whose change says nothing more.
        first = r.mean(arm, slice(0, 1))
        return f"{begin} {shown(r, first)} {where[0]}, {shown(r, ends[1])} {where[1]} ({n})."
    verdict = "a" if significant(change) else "no significant"
    return (
        f"{begin} {shown(r, ends[0])} {where[0]} and {shown(r, ends[1])} {where[1]}, {verdict} "
        f"change {shown(r, change, sign=True)} ({n})."
    )


def over_steps(r: RunQuantity) -> slice:
    """The steps that a summary averages over: of a training curve all, else the last one."""
    return slice(None) if len(r.steps) > 1 and len(r.layers) == 1 else slice(-1, None)


def _between_families(results: Sequence[RunQuantity]) -> list[str]:
    found = []
    for i, a in enumerate(results):
        for b in results[i + 1 :]:
            for arm in a.arms[1:]:
                if arm not in b.arms or a.arms[0] != b.arms[0] or len(a.steps) > 1:
                    continue
                d = difference_of_differences(a, b, arm)
                if significant(d):
                    names = FAMILIES.get(a.family, a.family), FAMILIES.get(b.family, b.family)
                    more = shown(a, d, sign=True).removeprefix("of ").removeprefix("by ")
                    found.append(
                        f"From {a.arms[0]} to {arm}, {a.quantity} changes by {more} more in the "
                        f"{names[1]} than in the {names[0]}."
                    )
    return found


def similarity_sentences(r: RunSimilarity) -> list[str]:
    """Similarity within the first arm, and whether other arms are farther from it than its own
    seeds from each other."""
    own = list(dict.fromkeys(r.arms))
    name = FAMILIES.get(r.family, r.family)
    parts = [f"two seeds ({own[0]}) {_mean(r.within(own[0]))}"]
    for arm in own[1:]:
        excess = r.excess(own[0], arm)
        text = f"{own[0]} and {arm} {_mean(r.between(own[0], arm))}"
        if np.isfinite(excess.low):
            less = "significantly different" if significant(excess) else "not distinguishable"
            text += (
                f", {less} from two seeds of one arm ({excess.value:+.3f} [{excess.low:+.3f}, "
                f"{excess.high:+.3f}] from the mean within both arms)"
            )
        parts.append(text)
    return [f"{name}: {r.measure}, averaged over {len(r.layers)} layers: {join(parts)} ({r.n})."]


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f}"


def significant(n: Number) -> bool:
    """Whether the interval leaves out 0."""
    return bool(n.low > 0 or n.high < 0)


def change(r: RunQuantity, n: Number) -> str:
    """The difference of an arm with its interval, and whether it is significant."""
    word = "a" if significant(n) or not np.isfinite(n.low) else "no significant"
    return f"{word} difference {shown(r, n, sign=True)}"


def shown(r: RunQuantity, n: Number, sign: bool = False) -> str:
    """A number in the unit of the quantity, with its interval where it has one; with `sign` what a
    difference is: "of" so much, or "by a factor of" so much."""
    if r.unit == "log2":
        low, high = 2**n.low, 2**n.high
        text = f"by a factor of {2**n.value:.2f}" if sign else f"{2**n.value:,.0f}"
        bounds = f" [{low:.2f}, {high:.2f}]" if sign else f" [{low:,.0f}, {high:,.0f}]"
        return text + (bounds if np.isfinite(n.low) else "")
    scale, digits, unit = (100, 1, " %") if r.unit == "%" else (1, 3, f" {r.unit}".rstrip())
    mark = "+" if sign else ""
    if sign and r.unit == "%":
        unit = " points"
    text = f"{'of ' if sign else ''}{scale * n.value:{mark}.{digits}f}{unit}"
    if not np.isfinite(n.low):
        return text
    return f"{text} [{scale * n.low:{mark}.{digits}f}, {scale * n.high:{mark}.{digits}f}]"
