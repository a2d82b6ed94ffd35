"""Attribution: which pixels, patches and hidden units contribute to a class, and how far each map
can be believed."""

from mixer_probe.attribution.agreements import Agreement, agreement
from mixer_probe.attribution.attributions import Attribution, attribute
from mixer_probe.attribution.conductance import Conductance, layer_conductance
from mixer_probe.attribution.curves import PerturbationCurves, perturbation_curves
from mixer_probe.attribution.maps import pool, spearman, ssim
from mixer_probe.attribution.methods import METHODS, allowed_methods
from mixer_probe.attribution.network import patch_grid
from mixer_probe.attribution.panel import AttributionPanel, attribution_panel
from mixer_probe.attribution.randomisation import RandomisationCheck, randomisation_check
from mixer_probe.attribution.robustness import Faithfulness, faithfulness

__all__ = [
    "METHODS",
    "Agreement",
    "Attribution",
    "AttributionPanel",
    "Conductance",
    "Faithfulness",
    "PerturbationCurves",
    "RandomisationCheck",
    "agreement",
    "allowed_methods",
    "attribute",
    "attribution_panel",
    "faithfulness",
    "layer_conductance",
    "patch_grid",
    "perturbation_curves",
    "pool",
    "randomisation_check",
    "spearman",
    "ssim",
]
