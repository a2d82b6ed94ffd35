"""Do methods, or networks, point at the same patches of the same image?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd

from mixer_probe.attribution.attributions import Attribution
from mixer_probe.attribution.maps import pool
from mixer_probe.attribution.randomisation import rank_table
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.stats import max_p, mean_interval

# Paired values that are in memory at once.
_VALUES = 2**22


@dataclass(frozen=True)
class Agreement(Result):
    """Rank correlation of patch sums between every two attributions of the same images: `values` [a, b, image].

    The null pairs maps of different images, which agree as far as both look at the middle: `null` [a, b] is its mean and
    `null95` [a, b] what the mean over images stays within in 95 % of `permutations` random pairings. `p_value` [a, b] is that of
    the mean under random orders of the images, adjusted for the choice among all pairs (Westfall and Young 1993), NaN on the
    diagonal."""

    title: ClassVar[str] = "Agreement of attributions"

    models: tuple[ModelRecord, ...]
    methods: tuple[str, ...]
    images: ImagesRecord
    ids: tuple[str, ...]
    grid: tuple[int, int]
    magnitudes: bool
    values: np.ndarray
    null: np.ndarray
    null95: np.ndarray
    p_value: np.ndarray
    permutations: int
    seed: int = 0

    @property
    def mean(self) -> np.ndarray:
        """Mean over images [a, b]."""
        return mean_interval(self.values)[0]

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: mean rank correlation over images with its 95 % interval, and the null."""
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

    Maps are summed over the patches of `grid` (None for the coarsest of their networks' grids), as magnitudes if asked for.
    Signed and unsigned methods rank differently: what speaks loudly against a class comes last in the one and first in the other.

    Raises MeasureError for fewer than two attributions and for attributions of different images."""
    if len(attributions) < 2:
        raise MeasureError(f"agreement needs two or more attributions, not {len(attributions)}")
    first = attributions[0]
    if any(a.images.pictures != first.images.pictures for a in attributions):
        raise MeasureError(
            "the attributions were computed on different images; compute them on the same images in the same order"
        )
    shared = grid or min((a.grid for a in attributions), key=lambda g: g[0] * g[1])
    rows = [_patches(a, shared, magnitudes) for a in attributions]
    tables = np.stack([np.stack([rank_table(a, b) for b in rows]) for a in rows])
    null, null95 = _null(tables, permutations, seed)
    return Agreement(
        models=tuple(a.model for a in attributions),
        methods=tuple(a.method for a in attributions),
        images=first.images,
        ids=first.ids,
        grid=shared,
        magnitudes=magnitudes,
        values=np.diagonal(tables, axis1=2, axis2=3).copy(),
        null=null,
        null95=null95,
        p_value=_p_values(tables, permutations, seed),
        permutations=permutations,
        seed=seed,
    )


def _patches(a: Attribution, grid: tuple[int, int], magnitudes: bool) -> np.ndarray:
    return pool(np.abs(a.maps) if magnitudes else a.maps, grid).reshape(len(a.maps), -1)


def _null(tables: np.ndarray, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 95 % quantile [a, b] of the mean over images when no image meets itself (cyclic shifts of random orders)."""
    n = tables.shape[-1]
    if n < 2:
        nothing = np.full(tables.shape[:2], np.nan)
        return nothing, nothing
    generator = np.random.default_rng(seed)
    orders = np.stack([generator.permutation(n) for _ in range(permutations)])
    means = _paired(tables, orders, np.roll(orders, 1, axis=1))
    return _mirrored(means.mean(0)), _mirrored(np.quantile(means, 0.95, axis=0, method="higher"))


def _p_values(tables: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Adjusted p-values [a, b] of the means over images under random orders of them: each pair's means in units of their own
    deviation, against the largest of all pairs."""
    sides, n = len(tables), tables.shape[-1]
    found = np.full((sides, sides), np.nan)
    pairs = np.triu_indices(sides, 1)
    generator = np.random.default_rng([seed, n])
    orders = np.stack([np.arange(n), *(generator.permutation(n) for _ in range(permutations))])
    means = _paired(tables[pairs], np.broadcast_to(np.arange(n), orders.shape), orders)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (means - means.mean(0)) / means.std(0)
    found[pairs] = max_p(scaled[0], scaled[1:])
    found.T[pairs] = found[pairs]
    return found


def _paired(tables: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Means over images [order, ...] of tables [..., image, image] where image rows[order] meets columns[order], each once."""
    step = max(1, _VALUES // tables[..., 0].size)
    parts = [_mean(tables[..., rows[k : k + step], columns[k : k + step]]) for k in range(0, len(rows), step)]
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 0)


def _mirrored(values: np.ndarray) -> np.ndarray:
    """The upper triangle on both sides: a pair has one null, whichever of the two is named first."""
    upper = np.triu(values)
    result: np.ndarray = upper + np.triu(values, 1).T
    return result


def _mean(values: np.ndarray) -> np.ndarray:
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(there, values, 0).sum(-1) / there.sum(-1)
    return mean
