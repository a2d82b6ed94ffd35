"""Figures of results of this room, one function a figure. Nothing is shown or saved here."""

from mixer_probe.attribution.figures.agreement import (
    agreement_figure,
    agreement_matrices,
    network_agreement,
)
from mixer_probe.attribution.figures.conductance import conductance_units
from mixer_probe.attribution.figures.curves import perturbation_figure, randomisation_figure
from mixer_probe.attribution.figures.overlays import (
    attribution_maps,
    attribution_overlays,
    overlay_image,
)

__all__ = [
    "agreement_figure",
    "agreement_matrices",
    "attribution_maps",
    "attribution_overlays",
    "conductance_units",
    "network_agreement",
    "overlay_image",
    "perturbation_figure",
    "randomisation_figure",
]
