"""Results to matplotlib Figures, one function a figure. Nothing is shown or saved here."""

from mixer_probe.figures.anatomy import anatomy_bars
from mixer_probe.figures.attribution import perturbation_figure, randomisation_figure
from mixer_probe.figures.attribution_agreement import agreement_figure, agreement_matrices, network_agreement
from mixer_probe.figures.attribution_overlays import attribution_maps, attribution_overlays, overlay_image
from mixer_probe.figures.channel_catalogue import channel_catalogue
from mixer_probe.figures.channel_dissection import dissected_channel_pictures, dissection_concepts, dissection_depth
from mixer_probe.figures.channel_page import channel_page
from mixer_probe.figures.channel_partners import partner_depth, partner_strength
from mixer_probe.figures.channel_selectivity import channels_needed_curves, selectivity_depth, selectivity_distributions
from mixer_probe.figures.channels import channel_depth
from mixer_probe.figures.conductance import conductance_units
from mixer_probe.figures.cost import accuracy_cost_frontier, cost_growth_curves, mac_bars
from mixer_probe.figures.courses import Course, depth_courses
from mixer_probe.figures.equivalence import mixer_as_cnn
from mixer_probe.figures.invariance import (
    architecture_dots,
    distortion_curves,
    distortion_pictures,
    error_consistency_heatmaps,
    error_consistency_pairs,
    representation_shift_curves,
)
from mixer_probe.figures.kernels import average_kernels, kernel_depth, kernel_maps
from mixer_probe.figures.paper import paper_figure_5, paper_figure_6, paper_figure_7
from mixer_probe.figures.position import position_curves, position_similarity
from mixer_probe.figures.probe_answers import class_accuracy, confusion_heatmaps, reliability_diagrams
from mixer_probe.figures.probe_controls import code_curves, control_code_curves, control_curves, random_label_curves
from mixer_probe.figures.probe_places import attention_maps, patch_position_curves, position_maps
from mixer_probe.figures.probe_targets import target_curves
from mixer_probe.figures.probes import few_shot_curves, probe_curves, probe_paths
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
from mixer_probe.figures.visualization import feature_ascent, feature_pictures
from mixer_probe.figures.weights import token_mixing_depth, token_mixing_scatter, token_mixing_units

__all__ = [
    "Course",
    "accuracy_cost_frontier",
    "agreement_figure",
    "agreement_matrices",
    "anatomy_bars",
    "architecture_dots",
    "attention_maps",
    "attribution_maps",
    "attribution_overlays",
    "average_kernels",
    "channel_catalogue",
    "channel_depth",
    "channel_page",
    "channels_needed_curves",
    "class_accuracy",
    "code_curves",
    "conductance_units",
    "confusion_heatmaps",
    "control_code_curves",
    "control_curves",
    "cost_growth_curves",
    "depth_courses",
    "dissected_channel_pictures",
    "dissection_concepts",
    "dissection_depth",
    "distortion_curves",
    "distortion_pictures",
    "error_consistency_heatmaps",
    "error_consistency_pairs",
    "feature_ascent",
    "feature_pictures",
    "few_shot_curves",
    "kernel_depth",
    "kernel_dictionary",
    "kernel_energy",
    "kernel_maps",
    "kernel_tying_depth",
    "layer_identification_bars",
    "localisation_maps",
    "mac_bars",
    "match_figure",
    "mixer_as_cnn",
    "model_summary",
    "network_agreement",
    "overlay_image",
    "paper_figure_5",
    "paper_figure_6",
    "paper_figure_7",
    "partner_depth",
    "partner_strength",
    "patch_position_curves",
    "perturbation_figure",
    "position_curves",
    "position_maps",
    "position_similarity",
    "probe_curves",
    "probe_paths",
    "random_label_curves",
    "randomisation_figure",
    "reliability_diagrams",
    "representation_shift_curves",
    "selectivity_depth",
    "selectivity_distributions",
    "similarity_heatmaps",
    "similarity_map",
    "similarity_measures",
    "singular_values",
    "spectra_depth",
    "stem_colour",
    "stem_component_pictures",
    "stem_pictures",
    "target_curves",
    "token_mixing_depth",
    "token_mixing_scatter",
    "token_mixing_units",
]
