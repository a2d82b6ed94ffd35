"""Figures of the features that networks share."""

from mixer_probe.concepts.figures.atoms import atom_gallery, atom_scatter
from mixer_probe.concepts.figures.matches import match_curves
from mixer_probe.concepts.figures.sharing import sharing_points
from mixer_probe.concepts.figures.stitching import stitching_curves, stitching_maps

__all__ = [
    "atom_gallery",
    "atom_scatter",
    "match_curves",
    "sharing_points",
    "stitching_curves",
    "stitching_maps",
]
