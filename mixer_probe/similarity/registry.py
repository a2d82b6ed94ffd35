"""All measures by name: what `measure="all"` runs and reports list."""

from __future__ import annotations

from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.similarity.alignment import CKA, CKA_RBF
from mixer_probe.similarity.canonical import MEAN_CCA, PWCCA, SVCCA
from mixer_probe.similarity.distances import DISTANCE_CORRELATION, RSA, RSA_EUCLIDEAN
from mixer_probe.similarity.matching import SOFT_MATCHING
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.neighbours import JACCARD, MUTUAL_KNN
from mixer_probe.similarity.predictivity import PREDICTIVITY, PREDICTIVITY_REVERSE
from mixer_probe.similarity.procrustes import ANGULAR_PROCRUSTES, PROCRUSTES

_ALL = (
    CKA,
    CKA_RBF,
    MEAN_CCA,
    SVCCA,
    PWCCA,
    PROCRUSTES,
    ANGULAR_PROCRUSTES,
    RSA,
    RSA_EUCLIDEAN,
    PREDICTIVITY,
    PREDICTIVITY_REVERSE,
    MUTUAL_KNN,
    JACCARD,
    DISTANCE_CORRELATION,
    SOFT_MATCHING,
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}


def find_measure(name: str) -> Measure:
    """The measure of that name. Raises MeasureError that lists close names."""
    if name not in MEASURES:
        raise MeasureError(f"unknown measure '{name}'; {closest(str(name), MEASURES)}")
    return MEASURES[name]
