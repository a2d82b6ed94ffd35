"""The analyses of similarity, and how their results are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mixer_probe.capture import Inputs
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.similarity.alignment import CKA_NAMES
from mixer_probe.similarity.comparison import compare
from mixer_probe.similarity.grounding import GroundedTests
from mixer_probe.similarity.identification import LayerIdentification
from mixer_probe.similarity.matches import LayerMatches
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.summary import ModelSimilarity
from mixer_probe.similarity.views import (
    grounded_section,
    identification_section,
    matches_section,
    model_similarity_section,
    similarity_section,
)

# CKA has all its draws in a few matrix products; other measures start anew with each. Twenty are
# the fewest with an interval.
OTHER_DRAWS = 20


def similarity(pair: Sequence[Inputs]) -> Iterator[Result]:
    """Similarity of two networks by the measures of the settings, and of a network with itself by
    CKA."""
    a, b = pair
    for measure in a.settings.measures:
        if a is not b or measure in CKA_NAMES:
            permutations, resamples = _draws(a.settings, measure)
            yield compare(
                a.test,
                b.test,
                measure,
                permutations=permutations,
                resamples=resamples,
                seed=a.settings.seed,
            )


def _draws(s: StudySettings, measure: str) -> tuple[int, int]:
    most = max(s.permutations, s.resamples) if measure in CKA_NAMES else OTHER_DRAWS
    return min(s.permutations, most), min(s.resamples, most)


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
            similarity,
            needs="pairs",
            each="measures",
            decided_by=lambda i: {
                "images": i.images,
                "layers": i.settings.layers,
                "autocast": i.settings.autocast,
                "measures": i.settings.measures,
                "draws": [_draws(i.settings, measure) for measure in i.settings.measures],
                "seed": i.settings.seed,
            },
        ),
    ),
    (
        View(SimilarityMatrix, similarity_section),
        View(ModelSimilarity, model_similarity_section),
        View(LayerMatches, matches_section),
        View(LayerIdentification, identification_section),
        View(GroundedTests, grounded_section),
    ),
)
