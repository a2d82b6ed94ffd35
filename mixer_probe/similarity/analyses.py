"""The analyses of similarity, and how their results are shown. `run` takes two runs on the same images and the measure."""

from __future__ import annotations

from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.similarity import SimilarityMatrix, compare
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.localisation import LocalisationCKA
from mixer_probe.similarity.matches import LayerMatches
from mixer_probe.similarity.summary import ModelSimilarity
from mixer_probe.similarity.views import (
    identification_section,
    localisation_section,
    matches_section,
    model_similarity_section,
    similarity_section,
)

ROOM = Room(
    "similarity",
    "analysis of similarity",
    MeasureError,
    (
        Analysis(
            "similarity",
            "similarity",
            "Which layers of two networks represent the same images similarly?",
            (SimilarityMatrix,),
            compare,
            needs="all networks",
            baseline=False,
        ),
    ),
    (
        View(SimilarityMatrix, similarity_section),
        View(ModelSimilarity, model_similarity_section),
        View(LayerMatches, matches_section),
        View(LayerIdentification, identification_section),
        View(LocalisationCKA, localisation_section),
    ),
)
