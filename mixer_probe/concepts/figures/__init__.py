"""Figures of the features that networks share."""

from mixer_probe.concepts.figures.sharing import sharing_points

__all__ = ["sharing_points"]
