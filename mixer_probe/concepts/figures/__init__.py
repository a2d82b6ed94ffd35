"""Figures of the features that networks share."""

from mixer_probe.concepts.figures.stitching import stitching_curves, stitching_maps

__all__ = ["stitching_curves", "stitching_maps"]
