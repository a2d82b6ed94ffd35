"""Results to matplotlib Figures, one function a figure. Nothing is shown or saved here."""

from mixer_probe.figures.channels import channel_depth
from mixer_probe.figures.probes import probe_curves
from mixer_probe.figures.similarity import similarity_heatmaps, similarity_map
from mixer_probe.figures.weights import stem_pictures, token_mixing_depth, token_mixing_units

__all__ = [
    "channel_depth",
    "probe_curves",
    "similarity_heatmaps",
    "similarity_map",
    "stem_pictures",
    "token_mixing_depth",
    "token_mixing_units",
]
