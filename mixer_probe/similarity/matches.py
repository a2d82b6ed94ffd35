"""Best matches: which layer of another network is closest to each layer, and whether they follow
each other in one order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.similarity.registry import find_measure
from mixer_probe.stats import permutation_p


@dataclass(frozen=True)
class LayerMatches(Result):
    """For every layer of A the layer of B that is closest, by the matrix `matrix_label` of the same
    `n` images.

    `best_match` [La] is an index into `layers_b`, -1 where the measure is not defined for any of
    them. `value` [La] is the raw value of that pair. 95 % of the pairings of shuffled images have
    no closer best match than `null95` [La], and `above` [La] says which layers are beyond. There is
    no interval: that of the cell in the matrix ignores that the best of the cells was taken, and
    covers 90 to 95 % where 8 to 12 layers are equally similar.

    `tau` is Kendall's tau-b of the layers' own order with their best matches' (1: the same order,
    0: none), and `monotone` whether best matches never go back with depth; `tau_p` is the p-value
    of a tau as large among all orders of the best matches. NaN (`above`: False) where there is no
    null."""

    title: ClassVar[str] = "Best-matching layers"

    matrix_label: str
    layers_a: Annotated[tuple[Layer, ...], "layer_a"]
    layers_b: Annotated[tuple[Layer, ...], "layer_b"]
    model_a: ModelRecord | None
    model_b: ModelRecord | None
    n: int
    measure: str
    best_match: Annotated[np.ndarray, "layer_a"]
    value: Annotated[np.ndarray, "layer_a"]
    null95: Annotated[np.ndarray, "layer_a"]
    above: Annotated[np.ndarray, "layer_a"]
    tau: float
    monotone: bool
    tau_p: float

    @property
    def climbs(self) -> bool:
        """Whether the order of best matches is that of the layers beyond chance: `tau_p` is 5 % or
        less, and where there is a null at least half of the matches are above it."""
        return self.tau_p <= 0.05 and (
            bool(np.isnan(self.null95).all()) or float(self.above.mean()) >= 0.5
        )

    @property
    def least_similar(self) -> int | None:
        """Index of the layer of A whose best match is the least alike; None where the measure is
        not defined for any."""
        closeness = find_measure(self.measure).direction * self.value
        return None if np.isnan(closeness).all() else int(np.nanargmin(closeness))

    def to_frame(self) -> pd.DataFrame:
        """One layer of A per row with its best match; no name and NaN where there is none."""
        matches = [self.layers_b[i] if i >= 0 else None for i in self.best_match]
        columns = {
            "layer_a": [layer.name for layer in self.layers_a],
            "depth_a": [layer.depth for layer in self.layers_a],
            "layer_b": [layer.name if layer else None for layer in matches],
            "depth_b": [layer.depth if layer else np.nan for layer in matches],
            "value": self.value,
            "null95": self.null95,
            "above": self.above,
        }
        return pd.DataFrame(columns)


def best_matches(matrix: SimilarityMatrix) -> LayerMatches:
    """The closest layer of B for every layer of A, and the null of the same maximum.

    The first one where several are equally close."""
    best = closest_columns(matrix.closeness)
    null95 = None if matrix.null is None else matrix.null.row_maximum95
    floor = np.full(len(best), np.nan) if null95 is None else null95
    value = at_columns(matrix.values, best)
    direction, places = matrix.definition.direction, np.flatnonzero(best >= 0)
    tau = float(kendalltau(places, best[places]).statistic) if len(places) > 1 else float("nan")
    return LayerMatches(
        matrix_label=matrix.label,
        layers_a=matrix.layers_a,
        layers_b=matrix.layers_b,
        model_a=matrix.model_a,
        model_b=matrix.model_b,
        n=matrix.n,
        measure=matrix.measure,
        best_match=best,
        value=value,
        null95=floor,
        # Comparisons with NaN are False, which is what `above` says without a null.
        above=direction * value > direction * floor,
        tau=tau,
        monotone=bool((np.diff(best[places]) >= 0).all()),
        tau_p=tau_p(best[places]),
    )


def closest_columns(closeness: np.ndarray) -> np.ndarray:
    """Column of the largest value of each row of `closeness` [La, Lb], as integers [La]; -1 for
    rows of NaN."""
    known = ~np.isnan(closeness)
    closest: np.ndarray = np.where(known, closeness, -np.inf).argmax(axis=1)
    return np.where(known.any(axis=1), closest, -1)


def at_columns(values: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
    """`values` [La, Lb] at one of the `columns` per row, [La]; NaN without values, and for column
    -1."""
    if values is None:
        return np.full(len(columns), np.nan)
    taken: np.ndarray = values[np.arange(len(columns)), columns]
    return np.where(columns >= 0, taken, np.nan)


# Up to so many layers all orders are gone through, beyond that `_ORDERS` random ones.
_ALL_ORDERS, _ORDERS = 7, 9999


def tau_p(best: np.ndarray) -> float:
    """p-value of Kendall's tau of places and best matches [L] being as large by chance, over all
    orders of these; NaN for fewer than two layers or one match for all. Two layers are in order in
    one case of two."""
    n = len(best)
    if n < 2 or (best == best[0]).all():
        return float("nan")
    first, second = np.triu_indices(n, 1)

    def concordance(orders: np.ndarray) -> np.ndarray:
        return np.asarray(np.sign(orders[:, second] - orders[:, first]).sum(1))

    own = concordance(best[None])[0]
    if n <= _ALL_ORDERS:
        return float((concordance(best[np.array(list(permutations(range(n))))]) >= own).mean())
    orders = np.random.default_rng(0).permuted(np.broadcast_to(best, (_ORDERS, n)), axis=1)
    return float(permutation_p(own, concordance(orders)))
