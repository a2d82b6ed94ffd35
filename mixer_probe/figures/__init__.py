"""Results to matplotlib Figures, one function a figure. Nothing is shown or saved here."""

from mixer_probe.figures.anatomy import anatomy_bars
from mixer_probe.figures.channels import channel_depth
from mixer_probe.figures.kernels import average_kernels, kernel_depth, kernel_maps
from mixer_probe.figures.position import position_curves, position_similarity
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
from mixer_probe.figures.spectra import singular_values, spectra_depth
from mixer_probe.figures.stem import stem_colour, stem_component_pictures, stem_pictures
from mixer_probe.figures.tying import kernel_dictionary, kernel_energy, kernel_tying_depth
from mixer_probe.figures.weights import token_mixing_depth, token_mixing_scatter, token_mixing_units

__all__ = [
    "anatomy_bars",
    "average_kernels",
    "channel_depth",
    "kernel_depth",
    "kernel_dictionary",
    "kernel_energy",
    "kernel_maps",
    "kernel_tying_depth",
    "layer_identification_bars",
    "localisation_maps",
    "match_figure",
    "model_summary",
    "position_curves",
    "position_similarity",
    "probe_curves",
    "similarity_heatmaps",
    "similarity_map",
    "similarity_measures",
    "singular_values",
    "spectra_depth",
    "stem_colour",
    "stem_component_pictures",
    "stem_pictures",
    "token_mixing_depth",
    "token_mixing_scatter",
    "token_mixing_units",
]
