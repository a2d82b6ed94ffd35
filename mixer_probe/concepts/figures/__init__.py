"""Figures of the features that networks share."""

from mixer_probe.concepts.figures.atoms import atom_gallery, atom_scatter

__all__ = ["atom_gallery", "atom_scatter"]
