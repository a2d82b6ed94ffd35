"""Feature visualization: images that excite a unit, optimised in Fourier space, beside the real images that do."""

from mixer_probe.visualization.feature_visualization import METHODS, FeatureVisualization, visualize
from mixer_probe.visualization.fourier import FourierImages, amplitude, colour_basis, frequencies
from mixer_probe.visualization.maco import MacoImages, Spectrum, natural_spectrum
from mixer_probe.visualization.objectives import Objective
from mixer_probe.visualization.robustness import (
    FOURIER_ROBUSTNESS,
    MACO_ROBUSTNESS,
    NO_ROBUSTNESS,
    Placement,
    Robustness,
    sample_views,
)

__all__ = [
    "FOURIER_ROBUSTNESS",
    "MACO_ROBUSTNESS",
    "METHODS",
    "NO_ROBUSTNESS",
    "FeatureVisualization",
    "FourierImages",
    "MacoImages",
    "Objective",
    "Placement",
    "Robustness",
    "Spectrum",
    "amplitude",
    "colour_basis",
    "frequencies",
    "natural_spectrum",
    "sample_views",
    "visualize",
]
