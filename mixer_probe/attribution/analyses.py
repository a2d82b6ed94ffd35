"""The analyses of attributions, and how their results are shown. `run` takes a network, images and its attributions."""

from __future__ import annotations

from mixer_probe.attribution import (
    Agreement,
    Attribution,
    AttributionPanel,
    Conductance,
    Faithfulness,
    PerturbationCurves,
    RandomisationCheck,
    agreement,
    attribution_panel,
    faithfulness,
    layer_conductance,
    perturbation_curves,
    randomisation_check,
)
from mixer_probe.attribution.views import (
    agreement_section,
    attribution_section,
    conductance_section,
    curves_section,
    faithfulness_section,
    panel_section,
    randomisation_section,
)
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError

ROOM = Room(
    "attribution",
    "analysis of attributions",
    MeasureError,
    (
        Analysis(
            "overlays",
            "overlays",
            "Which pixels contribute to the class?",
            (AttributionPanel,),
            attribution_panel,
            needs="all networks",
            baseline=False,
        ),
        Analysis(
            "curves",
            "deletion and insertion",
            "Does the class probability fall when the attributed pixels are removed?",
            (PerturbationCurves,),
            perturbation_curves,
            needs="images",
            baseline=False,
        ),
        Analysis(
            "faithfulness",
            "faithfulness",
            "Does an attribution predict the effect of removing patches, and is it stable under noise?",
            (Faithfulness,),
            faithfulness,
            needs="images",
            baseline=False,
        ),
        Analysis(
            "randomisation",
            "randomisation check",
            "Does an attribution change when the weights are randomised?",
            (RandomisationCheck,),
            randomisation_check,
            needs="images",
            baseline=False,
        ),
        Analysis(
            "agreement",
            "agreement",
            "Do attribution methods, and networks, highlight the same patches?",
            (Agreement,),
            agreement,
            needs="all networks",
            baseline=False,
        ),
        Analysis(
            "conductance",
            "conductance",
            "Which hidden units contribute to the class?",
            (Conductance,),
            layer_conductance,
            needs="images",
            families=("mixer",),
            baseline=False,
        ),
    ),
    (
        View(AttributionPanel, panel_section),
        View(Attribution, attribution_section),
        View(PerturbationCurves, curves_section),
        View(Faithfulness, faithfulness_section),
        View(RandomisationCheck, randomisation_section),
        View(Agreement, agreement_section),
        View(Conductance, conductance_section),
    ),
)
