"""Results to matplotlib Figures, one function a figure. Nothing is shown or saved here."""

from mixer_probe.figures.channels import channel_depth
from mixer_probe.figures.probes import probe_curves
from mixer_probe.figures.similarity import (
    layer_identification_bars,
    localisation_maps,
    match_figure,
    model_summary,
    similarity_heatmaps,
    similarity_map,
    similarity_measures,
)
from mixer_probe.figures.weights import stem_pictures, token_mixing_depth, token_mixing_units

__all__ = [
    "channel_depth",
    "layer_identification_bars",
    "localisation_maps",
    "match_figure",
    "model_summary",
    "probe_curves",
    "similarity_heatmaps",
    "similarity_map",
    "similarity_measures",
    "stem_pictures",
    "token_mixing_depth",
    "token_mixing_units",
]
