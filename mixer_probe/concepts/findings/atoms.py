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

# A network has an atom of which it has this fraction of the energy.
HAS = 0.1


def atom_sentences(result: ConceptAtoms) -> tuple[str, ...]:
    """How many atoms of each owner are used, and how many in each network are selective for a class
    and tied to places; and where networks differ in the same atoms."""
    said = list(_used_sentences(result)) if result.n_causal else []
    has = has_atoms(result)
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
    return (*said, *_differences(result, has))


def has_atoms(result: ConceptAtoms) -> np.ndarray:
    """Which networks have at least a tenth of the energy of which atoms [network, atom]."""
    found: np.ndarray = result.energies >= HAS * result.energies.sum(0)
    return found


def _used_sentences(result: ConceptAtoms) -> list[str]:
    significant, said = result.used, []
    names = [name_of(model) for model in result.models]
    for i, name in enumerate(names):
        own = result.of(i)
        if len(own):
            said.append(
                f"Of {len(own)} atoms of {name} alone, {int(significant[i, own].sum())} change its "
                "logit of the right class more, when removed, than random directions of the same "
                "size."
            )
    shared = result.of(ALL)
    if len(shared) and len(names) > 1:
        counts = [f"{int(significant[i, shared].sum())} in {name}" for i, name in enumerate(names)]
        said.append(f"Of {len(shared)} atoms shared by all networks, {join(counts)} do so.")
    if said:
        said[-1] = (
            f"{said[-1].removesuffix('.')} (Bonferroni over {significant.size} effects; "
            f"n = {result.n_causal} images, {result.control.shape[-1]} directions for each atom)."
        )
    return said


def _differences(result: ConceptAtoms, has: np.ndarray) -> list[str]:
    """Pairs of networks whose position dependence or frequency differs over the atoms that both
    have, where these are enough for an interval."""
    excess = result.position_r2 - result.position_null
    pairs, said = list(combinations(range(len(result.models)), 2)), []
    for a, b in pairs:
        both = has[a] & has[b]
        names = name_of(result.models[a]), name_of(result.models[b])
        for values, unit in ((excess, ""), (result.frequency[..., 0], "cycles")):
            difference = values[a, both] - values[b, both]
            if np.isfinite(difference).sum() < FEWEST:
                continue
            found = [float(v) for v in mean_interval(difference)]
            p = float(difference_p(0.0, 0.0, 0.0, *found)) * len(pairs)
            if not p <= LEVEL:
                continue
            if found[0] < 0:
                names, found = names[::-1], [-found[0], -found[2], -found[1]]
            atoms = f"over the {int(both.sum())} atoms that both have"
            if unit:
                said.append(
                    f"Maps of the same atoms are finer in {names[0]} than in {names[1]}: by "
                    f"{number(*found)} cycles per image {atoms}."
                )
            else:
                said.append(
                    f"The same atoms depend on position more in {names[0]} than in {names[1]}: the "
                    f"variance that position explains beyond the null is {points(*found)} larger "
                    f"{atoms}."
                )
    return said
