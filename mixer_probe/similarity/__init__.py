"""How alike two representations of the same images are, with the null that a value has to clear."""

from __future__ import annotations

from mixer_probe.similarity.across import compare_models
from mixer_probe.similarity.alignment import cka
from mixer_probe.similarity.comparison import compare
from mixer_probe.similarity.hsic import hsic
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.nulls import Null
from mixer_probe.similarity.streaming import StreamingCKA

__all__ = ["Null", "RepresentationsLike", "SimilarityMatrix", "StreamingCKA", "cka", "compare", "compare_models", "hsic"]
