"""Invariance of frozen networks: accuracy, errors and representations when images are distorted."""

from mixer_probe.invariance.accuracy import DistortionAccuracy, Estimate, distortion_accuracy
from mixer_probe.invariance.architectures import ArchitectureComparison, compare_architectures
from mixer_probe.invariance.consistency import (
    ErrorConsistency,
    error_consistency,
    expected_agreement,
    kappa,
    kappa_bounds,
)
from mixer_probe.invariance.examples import DistortionExamples, distortion_examples
from mixer_probe.invariance.image_response import (
    ImageResponse,
    NearestImages,
    image_response,
    image_shift,
    neighbours_by_layer,
)
from mixer_probe.invariance.permutation import absorb_distortion, permute_patches
from mixer_probe.invariance.predictions import disagreements, predictions
from mixer_probe.invariance.shift import RepresentationShift, representation_shift
from mixer_probe.invariance.standard import own_grid, standard_distortions

__all__ = [
    "ArchitectureComparison",
    "DistortionAccuracy",
    "DistortionExamples",
    "ErrorConsistency",
    "Estimate",
    "ImageResponse",
    "NearestImages",
    "RepresentationShift",
    "absorb_distortion",
    "compare_architectures",
    "disagreements",
    "distortion_accuracy",
    "distortion_examples",
    "error_consistency",
    "expected_agreement",
    "image_response",
    "image_shift",
    "kappa",
    "kappa_bounds",
    "neighbours_by_layer",
    "own_grid",
    "permute_patches",
    "predictions",
    "representation_shift",
    "standard_distortions",
]
