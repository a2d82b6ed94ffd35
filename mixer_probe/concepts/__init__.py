"""What networks have in common: whether the features of one serve another."""

from mixer_probe.concepts.stitching import Stitching, asymmetry, stitch

__all__ = ["Stitching", "asymmetry", "stitch"]
