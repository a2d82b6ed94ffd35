"""Sentences on what networks share in a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mixer_probe.concepts.sharing import ConceptSharing
from mixer_probe.core.finding import Number, as_percent
from mixer_probe.core.words import join, short_name
from mixer_probe.stats.claims import leader
from mixer_probe.stats.differences import difference_p

LEVEL = 0.05


def sharing_sentences(results: Sequence[ConceptSharing]) -> tuple[str, ...]:
    """What the pairs of networks of one depth share, against shuffled images, untrained networks
    and two seeds; which pair shares most; what is of one network alone."""
    first = results[0]
    found = []
    pairs = list(combinations(range(len(first.models)), 2))
    names = [short_name(model.name) for model in first.models]
    for a, b in pairs:
        n = first.number("sharing", a, b)
        against = list(filter(None, (_against(r, n, a, b, first) for r in results[1:])))
        found.append(
            f"{names[a]} and {names[b]} share {as_percent(n)} of the energy of their atoms"
            + (f": {join(against)}." if against else ".")
        )
    numbers = [first.number("sharing", a, b) for a, b in pairs]
    best = leader(numbers)
    if best is not None:
        a, b = pairs[best]
        found.append(f"{names[a]} and {names[b]} share most.")
    elif len(pairs) > 1:
        found.append("No pair shares significantly more than every other.")
    own = [Number("own", float(v), float(low), float(high)) for v, low, high in first.own]
    parts = [f"{as_percent(n)} of that of {name}" for n, name in zip(own, names, strict=True)]
    found.append(
        f"Atoms with at least 90 % of their energy in one network have {join(parts)} "
        f"({first.atoms} atoms, {first.active} active, dictionaries with {len(first.seeds)} seeds, "
        f"measured on {first.n:,} images)."
    )
    return tuple(found)


def _against(r: ConceptSharing, n: Number, a: int, b: int, first: ConceptSharing) -> str:
    """A control in words, and whether `n` is larger or smaller."""
    if r.condition == "two seeds":
        if r.models[0].name not in (first.models[a].name, first.models[b].name):
            return ""
        control = r.number("sharing", 0, 1)
        what = f"two seeds of {short_name(r.models[0].name)}"
    else:
        control = r.number("sharing", a, b)
        what = "untrained networks" if r.condition == "untrained" else "shuffled images"
    return f"{_compared(n, control)} {what} ({as_percent(control)})"


def _compared(n: Number, control: Number) -> str:
    p = float(difference_p(control.value, control.low, control.high, n.value, n.low, n.high))
    if not np.isfinite(p) or p > LEVEL:
        return "not significantly different from"
    return "more than" if n.value > control.value else "less than"
