"""One number per pair of networks: how well the layers of each find a match in the other, and their
hierarchical clustering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list
from scipy.cluster.hierarchy import linkage as cluster
from scipy.spatial.distance import squareform

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.similarity.matches import at_columns, closest_columns
from mixer_probe.similarity.matrix import SimilarityMatrix


@dataclass(frozen=True)
class ModelSimilarity(Result):
    """Networks against networks, from matrices of the measure `label` on the same `n` images.

    `values` [M, M] is symmetric: the mean, over all layers of both networks, of how close the best
    match in the other is; 1 on the diagonal, NaN where no matrix was given. Where `calibrated`, 0
    is the mean of shuffled images and 1 equality; a best match is the largest of many, so unrelated
    networks read a little above 0. `order` [M] and `linkage` [M - 1, 4] are the leaves and the tree
    of average-linkage clustering on 1 - value (Bar-Joseph et al. 2001 for the order of the leaves);
    without a tree, for fewer than 3 networks or with NaN, the order is as given and `linkage` is
    [0, 4]."""

    title: ClassVar[str] = "Models against models"

    models: Annotated[tuple[ModelRecord, ...], "model"]
    values: Annotated[np.ndarray, "model", "model"]
    label: str
    n: int
    order: Annotated[np.ndarray, "model"]
    linkage: Annotated[np.ndarray, "model - 1?", 4]
    calibrated: bool

    def to_frame(self) -> pd.DataFrame:
        """One pair of networks per row."""
        rows = [
            {"model_a": a.name, "model_b": b.name, "value": self.values[i, j]}
            for (i, a), (j, b) in combinations(enumerate(self.models), 2)
        ]
        return pd.DataFrame(rows, columns=["model_a", "model_b", "value"])


def model_similarity(matrices: Sequence[SimilarityMatrix]) -> ModelSimilarity:
    """All networks that the `matrices` compare, one number per pair.

    The direction of a matrix does not matter, and those of a network with itself are left out.
    Values are calibrated by the null; without nulls they are raw, distances as 1 - value / largest.

    Raises MeasureError for fewer than two networks, a pair given twice, a matrix that does not say
    of which networks it is, and matrices that differ in measure, estimator, images, grid, or in
    having a null."""
    pairs: dict[tuple[ModelRecord, ModelRecord], SimilarityMatrix] = {}
    for matrix in matrices:
        a, b = matrix.model_a, matrix.model_b
        if a is None or b is None:
            raise MeasureError(
                "a matrix does not say of which networks it is: make it with compare or "
                "compare_models"
            )
        if (a, b) in pairs or (b, a) in pairs:
            raise MeasureError(
                f"{a.name} and {b.name} are compared twice: give one matrix per pair of networks"
            )
        if a != b:
            pairs[a, b] = matrix
    if not pairs:
        raise MeasureError("no matrix compares two different networks: give at least one that does")
    for what, found in (
        ("measures", {matrix.label for matrix in pairs.values()}),
        ("numbers of images", {str(matrix.n) for matrix in pairs.values()}),
        ("images", {matrix.images.fingerprint[:8] for matrix in pairs.values() if matrix.images}),
        ("grids", {str(matrix.grid) for matrix in pairs.values()}),
        ("nulls", {"none" if matrix.null is None else "one" for matrix in pairs.values()}),
    ):
        if len(found) > 1:
            raise MeasureError(
                f"the matrices have different {what} ({', '.join(sorted(found))}): give those that "
                "share one"
            )
    models = tuple(dict.fromkeys(model for pair in pairs for model in pair))
    places, values = (
        {model: i for i, model in enumerate(models)},
        np.full((len(models), len(models)), np.nan),
    )
    np.fill_diagonal(values, 1)
    for (a, b), matrix in pairs.items():
        values[places[a], places[b]] = values[places[b], places[a]] = mutual_match(matrix)
    order, linkage = np.arange(len(models)), np.zeros((0, 4))
    if len(models) >= 3 and not np.isnan(values).any():
        # Noise may put a pair beyond 1, and no distance is below 0.
        distances = squareform(np.clip(1 - values, 0, None), checks=False)
        linkage = cluster(distances, "average", optimal_ordering=True)
        order = leaves_list(linkage).astype(np.int64)
    first = next(iter(pairs.values()))
    return ModelSimilarity(
        models, values, first.label, first.n, order, linkage, first.null is not None
    )


def mutual_match(matrix: SimilarityMatrix) -> float:
    """Mean over all layers of both networks of the (calibrated) value of the best match in the
    other; NaN if there is none."""
    values, measure = matrix.calibrated, matrix.definition
    if values is None:
        values = matrix.values if measure.larger_is_closer else 1 - matrix.values / measure.highest
    rows = at_columns(values, closest_columns(matrix.closeness))
    columns = at_columns(values.T, closest_columns(matrix.closeness.T))
    found = np.concatenate([rows, columns])
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else float("nan")
