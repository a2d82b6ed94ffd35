"""Spatial mixing: from where each layer of a Mixer, ViT or CNN reads, what its blocks do to the
residual stream, and what depends on them."""

from mixer_probe.mixing.attention import (
    AttentionDistance,
    AttentionMaps,
    attention_distance,
    attention_maps,
)
from mixer_probe.mixing.branches import Branches, branch_ends
from mixer_probe.mixing.components import TokenComponents, token_components
from mixer_probe.mixing.frequency import FrequencyProfile, frequency_profile
from mixer_probe.mixing.high_norm import HighNormTokens
from mixer_probe.mixing.lens import ClassLens, class_lens
from mixer_probe.mixing.lesions import Lesions, lesions
from mixer_probe.mixing.quantities import SpatialMixing, spatial_mixing
from mixer_probe.mixing.receptive_field import (
    EffectiveReceptiveField,
    effective_receptive_field,
)
from mixer_probe.mixing.residual import ResidualStream, residual_stream
from mixer_probe.mixing.settings import MixingSettings
from mixer_probe.mixing.theoretical_field import theoretical_field
from mixer_probe.mixing.unit_importance import (
    RankCorrelation,
    UnitImportance,
    unit_importance,
)

__all__ = [
    "AttentionDistance",
    "AttentionMaps",
    "Branches",
    "ClassLens",
    "EffectiveReceptiveField",
    "FrequencyProfile",
    "HighNormTokens",
    "Lesions",
    "MixingSettings",
    "RankCorrelation",
    "ResidualStream",
    "SpatialMixing",
    "TokenComponents",
    "UnitImportance",
    "attention_distance",
    "attention_maps",
    "branch_ends",
    "class_lens",
    "effective_receptive_field",
    "frequency_profile",
    "lesions",
    "residual_stream",
    "spatial_mixing",
    "theoretical_field",
    "token_components",
    "unit_importance",
]
