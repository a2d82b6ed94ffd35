"""Similarity of representations of the same images, with permutation nulls and intervals."""

from __future__ import annotations

from mixer_probe.similarity.across import compare_models
from mixer_probe.similarity.alignment import cka
from mixer_probe.similarity.canonical import mean_cca, pwcca, svcca
from mixer_probe.similarity.comparison import compare
from mixer_probe.similarity.distances import distance_correlation, rsa, sample_dissimilarities
from mixer_probe.similarity.grounding import GroundedTests
from mixer_probe.similarity.hsic import hsic
from mixer_probe.similarity.identification import LayerIdentification, layer_identification
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.similarity.intervals import Interval
from mixer_probe.similarity.matches import LayerMatches, best_matches
from mixer_probe.similarity.matching import soft_matching
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.minibatch import MinibatchCKA
from mixer_probe.similarity.neighbours import mutual_knn, nearest_images, neighbourhood_jaccard
from mixer_probe.similarity.nulls import Null
from mixer_probe.similarity.predictivity import linear_predictivity, linear_regression_r2
from mixer_probe.similarity.procrustes import angular_procrustes, procrustes
from mixer_probe.similarity.registry import MEASURES, find_measure
from mixer_probe.similarity.streaming import StreamingCKA
from mixer_probe.similarity.summary import ModelSimilarity, model_similarity
from mixer_probe.similarity.within_classes import compare_within_classes

__all__ = [
    "MEASURES",
    "GroundedTests",
    "Interval",
    "LayerIdentification",
    "LayerMatches",
    "Measure",
    "MinibatchCKA",
    "ModelSimilarity",
    "Null",
    "RepresentationsLike",
    "SimilarityMatrix",
    "StreamingCKA",
    "angular_procrustes",
    "best_matches",
    "cka",
    "compare",
    "compare_models",
    "compare_within_classes",
    "distance_correlation",
    "find_measure",
    "hsic",
    "layer_identification",
    "linear_predictivity",
    "linear_regression_r2",
    "mean_cca",
    "model_similarity",
    "mutual_knn",
    "nearest_images",
    "neighbourhood_jaccard",
    "procrustes",
    "pwcca",
    "rsa",
    "sample_dissimilarities",
    "soft_matching",
    "svcca",
]
