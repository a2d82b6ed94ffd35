"""The section on what networks share in dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.concepts.figures.sharing import sharing_points
from mixer_probe.concepts.findings.sharing import sharing_sentences
from mixer_probe.concepts.sharing import ConceptSharing
from mixer_probe.core.section import Picture, Section, Table, table_of
from mixer_probe.core.text import slug


def sharing_sections(results: Sequence[ConceptSharing]) -> list[Section]:
    """A section for each comparison of networks, followed by its controls."""
    groups: list[list[ConceptSharing]] = []
    for r in results:
        if r.condition == "networks" or not groups:
            groups.append([])
        groups[-1].append(r)
    return [_section(group) for group in groups]


def _section(results: Sequence[ConceptSharing]) -> Section:
    first = results[0]
    places = ", ".join(f"{m.name} {layer}" for m, layer in zip(first.models, first.layers))
    picture = Picture(
        partial(sharing_points, results),
        f"What networks share in a dictionary of {first.atoms} atoms ({places}).",
        "Left: fraction of the variance of the second network's activations that is explained from "
        "the first network's code. Middle: 1 if the same atoms are equally active in both networks "
        "at the same positions. Right: 0 if every atom is of one network, 1 if all have the same "
        "energy in both. Bars: 95 % intervals for other images and other seeds of the dictionary.",
        f"What networks share at {places}",
    )
    table = Table(
        "All pairs, with 95 % intervals.",
        table_of(results),
        dict.fromkeys(
            [f"{q}{end}" for q in ("r2", "cofiring", "sharing") for end in ("", "_low", "_high")],
            "{:.3f}",
        ),
        folded=True,
    )
    return Section(
        f"sharing-{slug(places)}",
        f"What do the networks share at relative depth {first.depths.mean():.2f}?",
        sharing_sentences(results),
        (picture, table),
    )
