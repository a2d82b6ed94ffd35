"""The section on the atoms of a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixer_probe.concepts.atoms import ALL, SOME, ConceptAtoms
from mixer_probe.concepts.figures.atoms import atom_gallery, atom_scatter
from mixer_probe.concepts.findings.atoms import atom_sentences
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.text import slug
from mixer_probe.core.words import images_text, name_of, untrained_warning

_READING = (
    "Maps: mean activity by position, yellow where it is largest. Crops show half of the image "
    "around the cell (box) of the largest activity. Class, position and frequency are those in the "
    "network with most of the energy; *: significant, corrected for all atoms and networks. "
    "Energy: fraction of the variance of the network's activations. Logit change: mean magnitude "
    "for the right class without the atom, with 95 % intervals; full markers where it is larger, "
    "with Bonferroni's correction, than that of the same code along random directions of the same "
    "norm (open diamonds)."
)


def atom_sections(results: Sequence[ConceptAtoms]) -> list[Section]:
    """A section for every dictionary."""
    return [_section(result) for result in results]


def _section(r: ConceptAtoms) -> Section:
    places = ", ".join(f"{m.name} {layer}" for m, layer in zip(r.models, r.layers, strict=True))
    owners = {ALL: "shared by all networks"}
    owners |= {i: f"of {name_of(m)} alone" for i, m in enumerate(r.models)}
    owners[SOME] = "of neither kind"
    content: list[Picture | Table] = [
        Picture(
            partial(atom_gallery, r, r.of(owner).tolist()),
            f"Atoms {kind}, the same atom side by side in each network; {images_text(r.images)}.",
            _READING,
            f"Most active crops, energy and effect of atoms {kind}",
            vector=False,
            name=f"atoms-{kind}-{places}",
            photo=True,
        )
        for owner, kind in owners.items()
        if len(r.of(owner))
    ]
    if r.n_causal and len(r.models) > 1:
        content.append(
            Picture(
                partial(atom_scatter, r),
                "How much an atom is shared, against what its removal does.",
                "Each point is an atom in a network. Horizontal: entropy of its energy over the "
                "networks. Vertical: mean magnitude of the change of the logit of the right class, "
                "minus that of the same code along random directions. Bars: 95 % intervals for "
                "other images and directions; full markers: above 0, with Bonferroni's correction. "
                "Atoms at the left with full markers are different and used; those with open "
                "markers differ and are not distinguishable from random directions.",
                f"Sharedness of atoms against the effect of their removal: {places}",
                name=f"atoms-effect-{places}",
            )
        )
    frame = r.to_frame()
    formats = {
        name: "{:.3f}"
        for name in frame.columns
        if frame[name].dtype.kind == "f" and not name.endswith("_p")
    }
    content.append(
        Table(
            "Every atom in every network: energy, most active class, variance explained by "
            "position, mean frequency (cycles per image), and the effects of its removal.",
            frame,
            formats | {"energy": "{:.2e}", "class_p": "{:.3f}", "position_p": "{:.3f}"},
            folded=True,
        )
    )
    return Section(
        f"atoms-{slug(places)}",
        f"What are the atoms at relative depth {r.depths.mean():.2f}, and which are used?",
        atom_sentences(r),
        tuple(content),
        untrained_warning(r.models),
    )
