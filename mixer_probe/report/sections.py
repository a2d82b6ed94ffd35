"""Results to sections: what each kind of result says, computed from its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mixer_probe.attribution import (
    Agreement,
    Attribution,
    AttributionPanel,
    Conductance,
    Faithfulness,
    PerturbationCurves,
    RandomisationCheck,
)
from mixer_probe.channels import (
    ChannelPage,
    ChannelPartners,
    ChannelsNeeded,
    ChannelStatistics,
    ClassSelectivity,
    DissectedChannel,
    Dissection,
)
from mixer_probe.cost import AccuracyCost, CostGrowth, MixerScales, ModelCost
from mixer_probe.invariance import (
    ArchitectureComparison,
    DistortionAccuracy,
    DistortionExamples,
    ErrorConsistency,
    RepresentationShift,
)
from mixer_probe.models import ModelCard
from mixer_probe.models.card import OwnAccuracy
from mixer_probe.probing import (
    AttentiveResult,
    Calibration,
    ConfusionMatrix,
    ControlCode,
    ControlTask,
    FewShotResult,
    OnlineCode,
    PatchPosition,
    PositionProbe,
    ProbeResult,
    RandomLabels,
    TargetProbe,
)
from mixer_probe.report.diff import ReportDiff
from mixer_probe.report.narrative import Narrative
from mixer_probe.report.section import Renderer, Section, Table
from mixer_probe.report.sections_anatomy import anatomy_section
from mixer_probe.report.sections_attribution import (
    agreement_section,
    attribution_section,
    conductance_section,
    curves_section,
    faithfulness_section,
    panel_section,
    randomisation_section,
)
from mixer_probe.report.sections_channel_pages import pages_section, partners_section
from mixer_probe.report.sections_channels import channel_section
from mixer_probe.report.sections_cost import accuracy_cost_section, cost_section, growth_section, scales_section
from mixer_probe.report.sections_diff import diff_section
from mixer_probe.report.sections_dissection import dissected_section, dissection_section
from mixer_probe.report.sections_equivalence import equivalence_section
from mixer_probe.report.sections_invariance import (
    architecture_section,
    consistency_section,
    distortion_section,
    examples_section,
    shift_section,
)
from mixer_probe.report.sections_kernels import kernels_section
from mixer_probe.report.sections_narrative import narrative_sections
from mixer_probe.report.sections_paper import paper_section
from mixer_probe.report.sections_probe_controls import (
    code_section,
    control_code_section,
    control_section,
    random_label_section,
)
from mixer_probe.report.sections_probe_places import (
    attentive_section,
    patch_position_section,
    position_probe_section,
    target_section,
)
from mixer_probe.report.sections_probes import calibration_section, confusion_section, few_shot_section, probe_section
from mixer_probe.report.sections_selectivity import needed_section, selectivity_section
from mixer_probe.report.sections_similarity import (
    identification_section,
    localisation_section,
    matches_section,
    model_similarity_section,
    similarity_section,
)
from mixer_probe.report.sections_spectra import spectra_section
from mixer_probe.report.sections_stem import position_section, stem_section
from mixer_probe.report.sections_tying import tying_section
from mixer_probe.report.sections_units import token_mixing_section
from mixer_probe.report.sections_visualization import visualization_section
from mixer_probe.report.skipped import Skipped
from mixer_probe.report.texts import percent, untrained_warning
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.localisation import LocalisationCKA
from mixer_probe.similarity.matches import LayerMatches
from mixer_probe.similarity.summary import ModelSimilarity
from mixer_probe.visualization import FeatureVisualization
from mixer_probe.weights import (
    Anatomy,
    ConvolutionEquivalence,
    KernelTying,
    PaperFigures,
    PositionEmbeddings,
    SpatialKernels,
    StemFilters,
    TokenMixing,
    WeightSpectra,
)


def models_section(cards: Sequence[ModelCard]) -> list[Section]:
    """Which networks, with which weights."""
    frame = pd.DataFrame(
        {
            "model": [c.model.name for c in cards],
            "family": [c.model.family for c in cards],
            "class": [c.architecture for c in cards],
            "parameters": [f"{c.model.parameters:,}" for c in cards],
            "GMACs": [c.macs / 1e9 for c in cards],
            "input": ["×".join(map(str, c.input_size)) for c in cards],
            **({"accuracy": [_own(c.own) for c in cards]} if any(c.own for c in cards) else {}),
            "weights": [c.model.weights for c in cards],
            "fingerprint": [c.model.fingerprint[:12] for c in cards],
        }
    )
    notes = tuple(f"{c.model.name}: {c.model.note}" for c in cards if c.model.note and c.model.trained)
    missing = tuple(f"{c.model.name} has no accuracy of its own here: {c.own.reason}" for c in cards if c.own and c.own.why)
    caption = "The networks. GMACs are multiply-accumulates of one image, in billions."
    if any(c.own for c in cards):
        caption += (
            " Accuracy is the network's own on the images of this report, with a 95 % interval, beside chance (always naming the "
            "commonest class) and what its card states."
        )
    tables = [Table(caption, frame, {"GMACs": "{:.4g}"})]
    tables += [Table(f"Layers of {c.model.name} in execution order.", c.to_frame(), folded=True) for c in cards]
    doubts = tuple(text for c in cards if (text := _doubt(c)))
    warned = (*untrained_warning(c.model for c in cards), *doubts)
    return [Section("models", "The networks", (*notes, *missing), tuple(tables), warned)]


def _own(own: OwnAccuracy | None) -> str:
    """The accuracy of a network on the study's images, or why there is none."""
    if own is None or not own.n:
        return "-" if own is None else own.why
    stated = "" if math.isnan(own.stated) else f"; card {percent(own.stated)}"
    return f"{percent(own.value)} [{percent(own.low)}, {percent(own.high)}], n = {own.n}; chance {percent(own.chance)}{stated}"


def _doubt(card: ModelCard) -> str:
    """A warning of a trained network that is right less often than it should be; "" for others."""
    own = card.own
    if own is None or not card.model.trained or not (own.at_chance or own.below_card):
        return ""
    what = f"{card.model.name} is right on {percent(own.value)} [{percent(own.low)}, {percent(own.high)}] of {own.n} images"
    than = (
        f"not above chance ({percent(own.chance)})"
        if own.at_chance
        else f"below the {percent(own.stated)} that its card states for {own.stated_on}"
    )
    return (
        f"{what}, {than}: before any other number is believed, check its input (mean, std, size, crop), its weights, and whether "
        "its classes are those of the images."
    )


def skipped_section(results: Sequence[Skipped]) -> list[Section]:
    """What was asked for and could not be done."""
    sentences = tuple(f"{r.step}: {r.reason}" for r in results)
    return [Section("skipped", "What was left out", sentences)]


RENDERERS: dict[type[Any], Renderer] = {
    Narrative: narrative_sections,
    ModelCard: models_section,
    Anatomy: anatomy_section,
    TokenMixing: token_mixing_section,
    SpatialKernels: kernels_section,
    KernelTying: tying_section,
    StemFilters: stem_section,
    PositionEmbeddings: position_section,
    WeightSpectra: spectra_section,
    PaperFigures: paper_section,
    ConvolutionEquivalence: equivalence_section,
    MixerScales: scales_section,
    ModelCost: cost_section,
    AccuracyCost: accuracy_cost_section,
    CostGrowth: growth_section,
    SimilarityMatrix: similarity_section,
    ModelSimilarity: model_similarity_section,
    LayerMatches: matches_section,
    LayerIdentification: identification_section,
    LocalisationCKA: localisation_section,
    ProbeResult: probe_section,
    FewShotResult: few_shot_section,
    ControlTask: control_section,
    OnlineCode: code_section,
    ControlCode: control_code_section,
    RandomLabels: random_label_section,
    ConfusionMatrix: confusion_section,
    Calibration: calibration_section,
    PositionProbe: position_probe_section,
    AttentiveResult: attentive_section,
    PatchPosition: patch_position_section,
    TargetProbe: target_section,
    ChannelStatistics: channel_section,
    ClassSelectivity: selectivity_section,
    ChannelsNeeded: needed_section,
    ChannelPartners: partners_section,
    ChannelPage: pages_section,
    Dissection: dissection_section,
    DissectedChannel: dissected_section,
    FeatureVisualization: visualization_section,
    DistortionExamples: examples_section,
    DistortionAccuracy: distortion_section,
    ArchitectureComparison: architecture_section,
    ErrorConsistency: consistency_section,
    RepresentationShift: shift_section,
    AttributionPanel: panel_section,
    Attribution: attribution_section,
    PerturbationCurves: curves_section,
    Faithfulness: faithfulness_section,
    RandomisationCheck: randomisation_section,
    Agreement: agreement_section,
    Conductance: conductance_section,
    ReportDiff: diff_section,
    Skipped: skipped_section,
}
