"""Figures of the features that networks share."""

from mixer_probe.concepts.figures.sharing import sharing_points
from mixer_probe.concepts.figures.stitching import stitching_curves, stitching_maps

__all__ = ["sharing_points", "stitching_curves", "stitching_maps"]
