"""Analyses of weights: what can be read from the parameters of a network."""

from mixer_probe.weights.convolution import ConvolutionalMixer, as_convolution
from mixer_probe.weights.dependence import dependence, mixing_of
from mixer_probe.weights.equivalence import ConvolutionEquivalence, convolution_equivalence
from mixer_probe.weights.kernels import SpatialKernel, SpatialKernels, spatial_kernels
from mixer_probe.weights.module_anatomy import Anatomy, ModuleAnatomy, anatomy
from mixer_probe.weights.paper import PaperFigures, paper_figures
from mixer_probe.weights.position import PositionEmbeddings, position_embeddings
from mixer_probe.weights.spectra import MatrixSpectrum, WeightSpectra, weight_spectra
from mixer_probe.weights.spectrum import (
    SpectralPeak,
    colour_centroid,
    orientation,
    power_centroid,
    radial_frequency,
    randomise_phases,
    spectral_peak,
)
from mixer_probe.weights.stem import StemComponents, StemFilters, stem_components, stem_filters
from mixer_probe.weights.token_matrices import TokenMatrices, token_matrices
from mixer_probe.weights.token_units import TokenMixing, token_mixing
from mixer_probe.weights.tying import KernelSpectrum, KernelTying, LayerTying, kernel_tying
from mixer_probe.weights.units import (
    BlockStatistics,
    UnitSet,
    effective_rank,
    localisation,
    paired_order,
    participation_ratio,
    partners,
)

__all__ = [
    "Anatomy",
    "BlockStatistics",
    "ConvolutionEquivalence",
    "ConvolutionalMixer",
    "KernelSpectrum",
    "KernelTying",
    "LayerTying",
    "MatrixSpectrum",
    "ModuleAnatomy",
    "PaperFigures",
    "PositionEmbeddings",
    "SpatialKernel",
    "SpatialKernels",
    "SpectralPeak",
    "StemComponents",
    "StemFilters",
    "TokenMatrices",
    "TokenMixing",
    "UnitSet",
    "WeightSpectra",
    "anatomy",
    "as_convolution",
    "colour_centroid",
    "convolution_equivalence",
    "dependence",
    "effective_rank",
    "kernel_tying",
    "localisation",
    "mixing_of",
    "orientation",
    "paired_order",
    "paper_figures",
    "participation_ratio",
    "partners",
    "position_embeddings",
    "power_centroid",
    "radial_frequency",
    "randomise_phases",
    "spatial_kernels",
    "spectral_peak",
    "stem_components",
    "stem_filters",
    "token_matrices",
    "token_mixing",
    "weight_spectra",
]
