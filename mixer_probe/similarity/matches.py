"""Best matches: which layer of another network is closest to each layer, and whether the order of layers is kept."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.matrix import SimilarityMatrix
from mixer_probe.stats import permutation_p


@dataclass(frozen=True)
class LayerMatches(Result):
    """For every layer of A the layer of B that is closest, by the matrix `matrix_label` of the same `n` images.

    `partner` [La] is an index into `layers_b`, -1 where the measure is not defined for any of them. `value` [La] is the raw
    value of that pair, `low` and `high` [La] the 95 % interval of that cell; it does not know that the best was picked.
    `null95` [La] does: 95 % of the pairings of shuffled images have no closer best partner, and `above` [La] says which layers
    are beyond. `tau` is Kendall's tau-b of the layers' own order with their partners' (1: the same order, 0: none), and
    `monotone` whether partners never go back with depth; `tau_p` is the p-value of a tau as large among all orders of the
    partners. NaN (`above`: False) where there is no interval or null."""

    title: ClassVar[str] = "Best-matching layers"

    matrix_label: str
    layers_a: tuple[Layer, ...]
    layers_b: tuple[Layer, ...]
    model_a: ModelRecord | None
    model_b: ModelRecord | None
    n: int
    measure: str
    partner: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null95: np.ndarray
    above: np.ndarray
    tau: float
    monotone: bool
    tau_p: float

    @property
    def climbs(self) -> bool:
        """Whether the order of best matches is that of the layers beyond chance: `tau_p` is 5 % or less, and where there is a
        null at least half of the matches are above it."""
        return self.tau_p <= 0.05 and (bool(np.isnan(self.null95).all()) or float(self.above.mean()) >= 0.5)

    def to_frame(self) -> pd.DataFrame:
        """One layer of A a row with its partner; no name and NaN where there is none."""
        partners = [self.layers_b[i] if i >= 0 else None for i in self.partner]
        columns = {
            "layer_a": [layer.name for layer in self.layers_a],
            "depth_a": [layer.depth for layer in self.layers_a],
            "layer_b": [layer.name if layer else None for layer in partners],
            "depth_b": [layer.depth if layer else np.nan for layer in partners],
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "null95": self.null95,
            "above": self.above,
        }
        return pd.DataFrame(columns)


def best_matches(matrix: SimilarityMatrix) -> LayerMatches:
    """The closest layer of B for every layer of A, its interval, and the null of the same maximum.

    The first one where several are equally close."""
    partner = closest_partners(matrix.closeness)
    null95 = None if matrix.null is None else matrix.null.row_maximum95
    floor = np.full(len(partner), np.nan) if null95 is None else null95
    interval, value = matrix.interval, at_partners(matrix.values, partner)
    direction = matrix.definition.direction
    return LayerMatches(
        matrix_label=matrix.label,
        layers_a=matrix.layers_a,
        layers_b=matrix.layers_b,
        model_a=matrix.model_a,
        model_b=matrix.model_b,
        n=matrix.n,
        measure=matrix.measure,
        partner=partner,
        value=value,
        low=at_partners(None if interval is None else interval.low, partner),
        high=at_partners(None if interval is None else interval.high, partner),
        null95=floor,
        # Comparisons with NaN are False, which is what `above` says without a null.
        above=direction * value > direction * floor,
        tau=_tau(partner),
        monotone=bool((np.diff(partner[partner >= 0]) >= 0).all()),
        tau_p=tau_p(partner[partner >= 0]),
    )


def closest_partners(closeness: np.ndarray) -> np.ndarray:
    """Column of the largest value of each row of `closeness` [La, Lb], as integers [La]; -1 for rows of NaN."""
    known = ~np.isnan(closeness)
    closest: np.ndarray = np.where(known, closeness, -np.inf).argmax(axis=1)
    return np.where(known.any(axis=1), closest, -1)


def at_partners(values: np.ndarray | None, partner: np.ndarray) -> np.ndarray:
    """`values` [La, Lb] at the partner of each row, [La]; NaN without a partner or values."""
    if values is None:
        return np.full(len(partner), np.nan)
    taken: np.ndarray = values[np.arange(len(partner)), partner]
    return np.where(partner >= 0, taken, np.nan)


# Up to so many layers all orders are gone through, beyond that `_ORDERS` random ones.
_ALL_ORDERS, _ORDERS = 7, 9999


def tau_p(partner: np.ndarray) -> float:
    """p-value of Kendall's tau of places and partners [L] being as large by chance, over all orders of the partners; NaN for
    fewer than two layers or one partner for all. Two layers are in order in one case of two."""
    n = len(partner)
    if n < 2 or (partner == partner[0]).all():
        return float("nan")
    first, second = np.triu_indices(n, 1)

    def concordance(orders: np.ndarray) -> np.ndarray:
        return np.asarray(np.sign(orders[:, second] - orders[:, first]).sum(1))

    own = concordance(partner[None])[0]
    if n <= _ALL_ORDERS:
        return float((concordance(partner[np.array(list(permutations(range(n))))]) >= own).mean())
    orders = np.random.default_rng(0).permuted(np.broadcast_to(partner, (_ORDERS, n)), axis=1)
    return float(permutation_p(own, concordance(orders)))


def _tau(partner: np.ndarray) -> float:
    """Kendall's tau-b of place and partner; NaN for fewer than two layers, or one partner for all."""
    places = np.flatnonzero(partner >= 0)
    if len(places) < 2:
        return float("nan")
    return float(kendalltau(places, partner[places]).statistic)
