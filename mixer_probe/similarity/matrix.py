"""`SimilarityMatrix`: every layer of one network against every layer of another, with its null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.intervals import Interval
from mixer_probe.similarity.measure import Measure
from mixer_probe.similarity.nulls import Null
from mixer_probe.similarity.registry import find_measure


@dataclass(frozen=True)
class SimilarityMatrix(Result):
    """Similarity `values` [La, Lb] of `layers_a` of one network with `layers_b` of another, on the
    same `n` images.

    Values are raw: unbiased ones may be below 0. NaN marks pairs for which the measure is not
    defined, such as a constant layer. `measure` is a name in `similarity.MEASURES`; `estimator`,
    `kernel` and `bandwidth` are those of CKA and empty for others. `p_a` and `p_b` are the features
    of each layer, `method` says how the numbers were computed ("gram", "moments", "minibatch",
    "pairs"), `reduce` how positions were reduced, `grid` on which cells they were averaged,
    `without_top_pc` how many principal components were left out. `null` is what shuffled images
    give and `interval` what other images might have given; both are None where that was not asked
    for, or not possible."""

    title: ClassVar[str] = "Similarity of layers"
    frame = Frame(
        "layer_a layer_b",
        """layer_a=layers_a.name depth_a=layers_a.depth layer_b=layers_b.name
        depth_b=layers_b.depth measure=definition.name value=values low=interval.low
        high=interval.high null_mean=null.mean null_q95=null.quantile95 above_null calibrated n
        p_a p_b estimator method""",
    )

    values: Annotated[np.ndarray, "layer_a", "layer_b"]
    layers_a: Annotated[tuple[Layer, ...], "layer_a"]
    layers_b: Annotated[tuple[Layer, ...], "layer_b"]
    model_a: ModelRecord | None
    model_b: ModelRecord | None
    images: ImagesRecord | None
    measure: str
    estimator: str
    kernel: str
    n: int
    p_a: Annotated[tuple[int, ...], "layer_a"]
    p_b: Annotated[tuple[int, ...], "layer_b"]
    null: Annotated[Null | None, "layer_a", "layer_b"]
    method: str
    reduce: str
    seed: int
    bandwidth: float | None = None
    interval: Annotated[Interval | None, "layer_a", "layer_b"] = None
    without_top_pc: int = 0
    grid: tuple[int, int] | None = None

    @property
    def definition(self) -> Measure:
        """The measure's own declaration: its invariances, direction and range."""
        return find_measure("cka_rbf" if self.kernel == "rbf" else self.measure)

    @property
    def label(self) -> str:
        """How figures and sentences call the measure."""
        if self.measure != "cka":
            return self.definition.label
        rest = f", without {self.without_top_pc} PC" if self.without_top_pc else ""
        return f"CKA ({self.kernel.replace('rbf', 'RBF')}, {self.estimator}{rest})"

    @property
    def above_null(self) -> Annotated[np.ndarray | None, "layer_a", "layer_b"]:
        """Which cells [La, Lb] are closer than 95 % of their null; None without a null. About 5 %
        of independent cells are."""
        if self.null is None:
            return None
        direction = self.null.direction
        with np.errstate(invalid="ignore"):
            above: np.ndarray = direction * self.values > direction * self.null.quantile95
        return above

    @property
    def calibrated(self) -> Annotated[np.ndarray | None, "layer_a", "layer_b"]:
        """(value - null mean) / (best value - null mean), [La, Lb]: 0 is what shuffled images give,
        1 what equal representations give. NaN where shuffled images give the best value too, as
        with more features than images. None without a null."""
        if self.null is None:
            return None
        room = self.definition.best - self.null.mean
        rescaled: np.ndarray = np.full(room.shape, np.nan)
        np.divide(self.values - self.null.mean, room, out=rescaled, where=np.abs(room) > NO_ROOM)
        return rescaled

    @property
    def of_one_network(self) -> bool:
        """Whether a network is compared with itself, where every layer is its own best match."""
        return self.model_a is not None and self.model_a == self.model_b

    @property
    def closeness(self) -> np.ndarray:
        """Values [La, Lb] with the sign that makes larger mean more alike."""
        return self.definition.direction * self.values

    @property
    def best_pair(self) -> tuple[int, int] | None:
        """Indices of the closest two layers; None where the measure is not defined for any."""
        if np.isnan(self.values).all():
            return None
        row, column = np.unravel_index(np.nanargmax(self.closeness), self.values.shape)
        return int(row), int(column)

    @property
    def best_above_null(self) -> bool | None:
        """Whether the closest two layers are closer than the closest two under 95 % of the
        pairings; None without a null."""
        if self.null is None or self.best_pair is None:
            return None
        return bool(
            self.closeness[self.best_pair] > self.definition.direction * self.null.maximum95
        )

    def to_frame(self) -> pd.DataFrame:
        """One pair of layers per row, with its interval and null (NaN if there is none), n,
        features and estimator."""
        return super().to_frame().astype({"above_null": "boolean"})


def rank_correlations(matrices: Sequence[SimilarityMatrix]) -> list[float]:
    """Spearman's correlation of how any two of the matrices [La, Lb] rank the pairs of layers; none
    where one is constant."""
    ranks = pd.DataFrame({i: m.closeness.ravel() for i, m in enumerate(matrices)}).rank()
    if not (ranks.std() > 0).all():
        return []
    rhos = ranks.corr().to_numpy()[np.triu_indices(len(matrices), 1)]
    return [float(rho) for rho in rhos if not np.isnan(rho)]


# What is left between the mean of shuffled images and the best value by rounding alone.
NO_ROOM = 1e-6


def plain_matrix(
    values: np.ndarray,
    widths: tuple[Mapping[str, int], Mapping[str, int]],
    estimator: str,
    n: int,
    null: Null | None,
    interval: Interval | None,
    method: str,
    seed: int,
) -> SimilarityMatrix:
    """Linear CKA of layers of which only names, order and features are known, and no network or
    images."""
    a, b = widths
    return SimilarityMatrix(
        values=values,
        layers_a=plain_layers(a),
        layers_b=plain_layers(b),
        model_a=None,
        model_b=None,
        images=None,
        measure="cka",
        estimator=estimator,
        kernel="linear",
        n=n,
        p_a=tuple(a.values()),
        p_b=tuple(b.values()),
        null=null,
        method=method,
        reduce="",
        seed=seed,
        interval=interval,
    )


def plain_layers(widths: Mapping[str, int]) -> tuple[Layer, ...]:
    """Layers of which only names, order and features are known."""
    last = max(1, len(widths) - 1)
    items = enumerate(widths.items())
    return tuple(
        Layer(name, "other", i / last, None, width, 0, 0, order=i) for i, (name, width) in items
    )
