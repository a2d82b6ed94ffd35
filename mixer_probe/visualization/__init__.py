"""Feature visualization: images that activate a unit, optimised in Fourier space, beside the real
images that do."""

from mixer_probe.visualization.feature_visualization import METHODS, FeatureVisualization, visualize
from mixer_probe.visualization.fourier import FourierImages, amplitude, colour_basis, frequencies
from mixer_probe.visualization.maco import MacoImages, Spectrum, natural_spectrum
from mixer_probe.visualization.objectives import Objective
from mixer_probe.visualization.transforms import (
    FOURIER_TRANSFORMS,
    MACO_TRANSFORMS,
    NO_TRANSFORMS,
    AffineParams,
    Transforms,
    sample_views,
)

__all__ = [
    "FOURIER_TRANSFORMS",
    "MACO_TRANSFORMS",
    "METHODS",
    "NO_TRANSFORMS",
    "AffineParams",
    "FeatureVisualization",
    "FourierImages",
    "MacoImages",
    "Objective",
    "Spectrum",
    "Transforms",
    "amplitude",
    "colour_basis",
    "frequencies",
    "natural_spectrum",
    "sample_views",
    "visualize",
]
