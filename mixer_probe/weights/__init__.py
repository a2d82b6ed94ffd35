"""What the parameters alone say."""

from mixer_probe.weights.spectrum import colour_centroid, power_centroid, radial_frequency, randomise_phases
from mixer_probe.weights.stem import StemFilters, stem_filters
from mixer_probe.weights.token_mixing import TokenMixing, paired_order, partner_null, partners, token_mixing

__all__ = [
    "StemFilters",
    "TokenMixing",
    "colour_centroid",
    "paired_order",
    "partner_null",
    "partners",
    "power_centroid",
    "radial_frequency",
    "randomise_phases",
    "stem_filters",
    "token_mixing",
]
