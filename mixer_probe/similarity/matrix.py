"""`SimilarityMatrix`: every layer of one network against every layer of another, with its null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from mixer_probe.models.layer import Layer
from mixer_probe.results import ImagesRecord, ModelRecord, Result
from mixer_probe.similarity.nulls import Null


@dataclass(frozen=True)
class SimilarityMatrix(Result):
    """Similarity `values` [La, Lb] of `layers_a` of one network with `layers_b` of another, on the same `n`
    images.

    Values are raw: unbiased ones may be below 0. NaN marks pairs for which the measure is not defined, such
    as a constant layer. `p_a` and `p_b` are the channels of each layer, `method` says whether moments or Gram
    matrices were used, `reduce` how positions were reduced, `null` what shuffled images give (None where that
    was not asked for)."""

    title: ClassVar[str] = "Similarity of layers"

    values: np.ndarray
    layers_a: tuple[Layer, ...]
    layers_b: tuple[Layer, ...]
    model_a: ModelRecord | None
    model_b: ModelRecord | None
    images: ImagesRecord | None
    measure: str
    estimator: str
    kernel: str
    n: int
    p_a: tuple[int, ...]
    p_b: tuple[int, ...]
    null: Null | None
    method: str
    reduce: str
    seed: int
    bandwidth: float | None = None

    def to_frame(self) -> pd.DataFrame:
        """One pair of layers a row, with its null (NaN if there is none), n, channels and estimator."""
        mean = np.full(self.values.shape, np.nan) if self.null is None else self.null.mean
        quantile = np.full(self.values.shape, np.nan) if self.null is None else self.null.quantile95
        a, b = len(self.layers_a), len(self.layers_b)
        columns = {
            "layer_a": np.repeat([layer.name for layer in self.layers_a], b),
            "depth_a": np.repeat([layer.depth for layer in self.layers_a], b),
            "layer_b": np.tile([layer.name for layer in self.layers_b], a),
            "depth_b": np.tile([layer.depth for layer in self.layers_b], a),
            "value": self.values.ravel(),
            "null_mean": mean.ravel(),
            "null_q95": quantile.ravel(),
            "n": self.n,
            "p_a": np.repeat(self.p_a, b),
            "p_b": np.tile(self.p_b, a),
            "estimator": self.estimator,
        }
        return pd.DataFrame(columns)
