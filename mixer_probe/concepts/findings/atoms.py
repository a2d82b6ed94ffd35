"""Sentences on the atoms of a dictionary: which are used, selective for a class, and tied to
places."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mixer_probe.concepts.atoms import ALL, ConceptAtoms
from mixer_probe.core.words import join, name_of, number, points
from mixer_probe.stats import FEWEST, mean_interval
from mixer_probe.stats.claims import LEVEL
from mixer_probe.stats.differences import difference_p


def atom_sentences(result: ConceptAtoms) -> tuple[str, ...]:
    """How many atoms of each owner are used, and how many in each network are selective for a class
    and tied to places; and where networks differ in the same atoms."""
    said = _used_sentences(result) if result.n_causal else []
    has = result.present
    if result.permutations:
        for values, what in (
            (result.class_p, "are more active in one class than under permuted labels"),
            (result.position_p, "depend on position more than maps that lie anywhere"),
        ):
            counts = [
                f"{int((values[i, has[i]] <= LEVEL).sum())} of {int(has[i].sum())} in "
                f"{name_of(model)}"
                for i, model in enumerate(result.models)
            ]
            said.append(
                f"Atoms that {what}: {join(counts)} (corrected for all atoms and networks; "
                f"n = {result.n} images)."
            )
    return (*said, *_differences(result))


def _used_sentences(result: ConceptAtoms) -> list[str]:
    """How many atoms of each network alone, and how many shared ones, are used."""
    names = [name_of(model) for model in result.models]

    def count(network: int, atoms: np.ndarray) -> str:
        return f"{int(result.used[network, atoms].sum())} of {len(atoms)}"

    own = [
        f"{count(i, result.of(i))} of those of {name} alone"
        for i, name in enumerate(names)
        if len(result.of(i))
    ]
    parts, shared = [join(own)] if own else [], result.of(ALL)
    if len(shared):
        where = join(f"{count(i, shared)} in {name}" for i, name in enumerate(names))
        parts.append(f"of those shared by all networks, {where}")
    if not parts:
        return []
    return [
        "Atoms whose removal changes the logit of the right class more than random directions of "
        f"the same size do: {'; '.join(parts)} (Bonferroni over {int(result.present.sum())} "
        f"effects; n = {result.n_causal} images, {result.control.shape[-1]} directions for each "
        "atom)."
    ]


def _differences(result: ConceptAtoms) -> list[str]:
    """Pairs of networks whose position dependence or frequency differs over the atoms that both
    have, where these are enough for an interval."""
    excess = result.position_r2 - result.position_null
    pairs, said = list(combinations(range(len(result.models)), 2)), []
    for a, b in pairs:
        both = result.present[a] & result.present[b]
        for values, unit in ((excess, ""), (result.frequency[..., 0], "cycles")):
            difference = values[a, both] - values[b, both]
            if np.isfinite(difference).sum() < FEWEST:
                continue
            found = [float(v) for v in mean_interval(difference)]
            p = float(difference_p(0.0, 0.0, 0.0, *found)) * len(pairs)
            if not p <= LEVEL:
                continue
            more, less = name_of(result.models[a]), name_of(result.models[b])
            if found[0] < 0:
                more, less, found = less, more, [-found[0], -found[2], -found[1]]
            value, low, high = found
            atoms = f"over the {int(both.sum())} atoms that both have"
            if unit:
                said.append(
                    f"Maps of the same atoms are finer in {more} than in {less}: by "
                    f"{number(value, low, high)} cycles per image {atoms}."
                )
            else:
                said.append(
                    f"The same atoms depend on position more in {more} than in {less}: the "
                    "variance that position explains beyond the null is "
                    f"{points(value, low, high)} larger {atoms}."
                )
    return said
