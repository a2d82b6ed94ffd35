"""Figures of results of this room, one function a figure. Nothing is shown or saved here."""

from mixer_probe.weights.figures.anatomy import anatomy_bars
from mixer_probe.weights.figures.equivalence import mixer_as_cnn
from mixer_probe.weights.figures.kernels import average_kernels, kernel_depth, kernel_maps
from mixer_probe.weights.figures.paper import paper_figure_5, paper_figure_6, paper_figure_7
from mixer_probe.weights.figures.position import position_curves, position_similarity
from mixer_probe.weights.figures.spectra import singular_values, spectra_depth
from mixer_probe.weights.figures.stem import stem_colour, stem_component_pictures, stem_pictures
from mixer_probe.weights.figures.tying import kernel_dictionary, kernel_energy, kernel_tying_depth
from mixer_probe.weights.figures.units import (
    token_mixing_depth,
    token_mixing_scatter,
    token_mixing_units,
)

__all__ = [
    "anatomy_bars",
    "average_kernels",
    "kernel_depth",
    "kernel_dictionary",
    "kernel_energy",
    "kernel_maps",
    "kernel_tying_depth",
    "mixer_as_cnn",
    "paper_figure_5",
    "paper_figure_6",
    "paper_figure_7",
    "position_curves",
    "position_similarity",
    "singular_values",
    "spectra_depth",
    "stem_colour",
    "stem_component_pictures",
    "stem_pictures",
    "token_mixing_depth",
    "token_mixing_scatter",
    "token_mixing_units",
]
