"""Agreement between attribution methods, or networks: rank correlation of their maps of the same
images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd

from mixer_probe.attribution.attributions import Attribution
from mixer_probe.attribution.maps import pool, rank_table
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.memory import at_once, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.stats import FEWEST, max_p, mean_interval

# Level of a claim of agreement.
LEVEL = 0.05


@dataclass(frozen=True)
class Agreement(Result):
    """Rank correlation of patch sums between every two attributions of the same images: `values`
    [a, b, image].

    The null pairs maps of different images, which agree as far as all maps share structure such as
    a centre bias: `null` [a, b] is its mean and `null95` [a, b] the 95th percentile of the mean
    over images in `permutations` random pairings. `p_value` [a, b] is that of the mean under random
    orders of the images, adjusted for the choice among all pairs (Westfall and Young 1993), NaN on
    the diagonal."""

    title: ClassVar[str] = "Agreement of attributions"

    models: Annotated[tuple[ModelRecord, ...], "attribution"]
    methods: Annotated[tuple[str, ...], "attribution"]
    images: ImagesRecord
    ids: Annotated[tuple[str, ...], "image"]
    grid: tuple[int, int]
    magnitudes: bool
    values: Annotated[np.ndarray, "attribution", "attribution", "image"]
    null: Annotated[np.ndarray, "attribution", "attribution"]
    null95: Annotated[np.ndarray, "attribution", "attribution"]
    p_value: Annotated[np.ndarray, "attribution", "attribution"]
    permutations: int
    seed: int = 0

    @property
    def mean(self) -> np.ndarray:
        """Mean over images [a, b]."""
        return mean_interval(self.values)[0]

    @property
    def compared(self) -> Literal["methods", "networks", "both"]:
        """What the attributions differ in."""
        if len({m.fingerprint for m in self.models}) == 1:
            return "methods"
        return "networks" if len(set(self.methods)) == 1 else "both"

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of attributions whose agreement is defined."""
        mean = self.mean
        return [
            pair for pair in combinations(range(len(self.methods)), 2) if np.isfinite(mean[pair])
        ]

    def significant(self, pair: tuple[int, int]) -> bool:
        """Whether a pair agrees more than expected from other images' maps: a positive mean with an
        adjusted p-value of at most 5 %, for images enough to bear a claim."""
        return bool(self.mean[pair] > 0 and self.p_value[pair] <= LEVEL and len(self.ids) >= FEWEST)

    def to_frame(self) -> pd.DataFrame:
        """One row per pair: mean rank correlation over images with its 95 % interval, and the
        null."""
        mean, low, high = mean_interval(self.values)
        return pd.DataFrame(
            [
                {
                    "model_a": self.models[i].name,
                    "method_a": self.methods[i],
                    "model_b": self.models[j].name,
                    "method_b": self.methods[j],
                    "spearman": mean[i, j],
                    "low": low[i, j],
                    "high": high[i, j],
                    "null": self.null[i, j],
                    "null95": self.null95[i, j],
                    "p_adjusted": self.p_value[i, j],
                    "n_images": int(np.isfinite(self.values[i, j]).sum()),
                }
                for i, j in combinations(range(len(self.methods)), 2)
            ]
        )


@checked(MeasureError)
def agreement(
    attributions: Sequence[Attribution],
    *,
    grid: tuple[int, int] | None = None,
    magnitudes: bool = False,
    permutations: int = 999,
    seed: int = 0,
) -> Agreement:
    """Agreement of attributions of the same images, by several methods or several networks.

    Maps are summed over the patches of `grid` (None for the coarsest of their networks' grids),
    their magnitudes if asked for. Signed and unsigned methods rank differently: strong evidence
    against a class ranks last in the one and first in the other.

    Raises MeasureError for fewer than two attributions and for attributions of different images."""
    if len(attributions) < 2:
        raise MeasureError(f"agreement needs two or more attributions, not {len(attributions)}")
    first = attributions[0]
    if any(a.images.pictures != first.images.pictures for a in attributions):
        raise MeasureError(
            "the attributions were computed on different images; compute them on the same images "
            "in the same order"
        )
    grid = grid or min((a.grid for a in attributions), key=lambda g: g[0] * g[1])
    sums = [
        pool(np.abs(a.maps) if magnitudes else a.maps, grid).reshape(len(a.maps), -1)
        for a in attributions
    ]
    tables = np.stack([np.stack([rank_table(a, b) for b in sums]) for a in sums])
    # The null: no image is paired with itself, by cyclic shifts of random orders. A pair has one
    # null, whichever comes first.
    n, generator = tables.shape[-1], np.random.default_rng(seed)
    null = null95 = np.full(tables.shape[:2], np.nan)
    if n > 1:
        orders = np.stack([generator.permutation(n) for _ in range(permutations)])
        means = _paired(tables, orders, np.roll(orders, 1, axis=1))
        sides = means.mean(0), np.quantile(means, 0.95, axis=0, method="higher")
        null, null95 = (np.triu(side) + np.triu(side, 1).T for side in sides)
    # Each pair's mean under random orders of the images, in units of its own deviation, against the
    # largest of all pairs.
    pairs, generator = np.triu_indices(len(tables), 1), np.random.default_rng([seed, n])
    orders = np.stack([np.arange(n), *(generator.permutation(n) for _ in range(permutations))])
    means = _paired(tables[pairs], np.broadcast_to(np.arange(n), orders.shape), orders)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (means - means.mean(0)) / means.std(0)
    p_value = np.full(tables.shape[:2], np.nan)
    p_value[pairs] = p_value.T[pairs] = max_p(scaled[0], scaled[1:])
    return Agreement(
        models=tuple(a.model for a in attributions),
        methods=tuple(a.method for a in attributions),
        images=first.images,
        ids=first.ids,
        grid=grid,
        magnitudes=magnitudes,
        values=np.diagonal(tables, axis1=2, axis2=3).copy(),
        null=null,
        null95=null95,
        p_value=p_value,
        permutations=permutations,
        seed=seed,
    )


def _paired(tables: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Means over images [order, ...] of tables [..., image, image] where image rows[order] is
    paired with columns[order]."""
    parts = []
    # The paired values, and a copy with zeros.
    for part in slices(len(rows), at_once(2 * tables[..., 0].nbytes)):
        values = tables[..., rows[part], columns[part]]
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            parts.append(np.where(known, values, 0).sum(-1) / known.sum(-1))
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 0)


def excesses(
    results: Sequence[Agreement],
) -> dict[tuple[ModelRecord, ModelRecord], tuple[np.ndarray, int]]:
    """Excess agreement [image] of every pair of networks over the 95th percentile of the null, mean
    over methods, and the number of methods: those that all pairs have, or where there are none
    those that both networks have.

    Cheap methods have more images than others: the mean is over the images that all methods of a
    pair have."""
    rows: dict[tuple[ModelRecord, ModelRecord], dict[str, dict[str, float]]] = {}
    for r in results:
        for i, j in combinations(range(len(r.models)), 2):
            excess = dict(zip(r.ids, (r.values[i, j] - r.null95[i, j]).tolist(), strict=True))
            rows.setdefault((r.models[i], r.models[j]), {})[r.methods[0]] = excess
    # A method that only some networks have, such as attention rollout, may agree more or less than
    # the others do.
    shared = set.intersection(*map(set, rows.values())) if rows else set()
    found = {}
    for pair, by_method in rows.items():
        used = [values for name, values in by_method.items() if name in shared or not shared]
        ids = [i for i in used[0] if all(i in values for values in used)]
        found[pair] = (np.array([np.mean([values[i] for values in used]) for i in ids]), len(used))
    return found
