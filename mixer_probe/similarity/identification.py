"""Layer identification, the sanity check of Kornblith et al. 2019, "Similarity of Neural Network
Representations Revisited" (section 6.1): does a measure find the same layer again in a network that
differs in its random seed only?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Layer
from mixer_probe.similarity.comparison import Grid, as_grid, compare
from mixer_probe.similarity.inputs import RepresentationsLike
from mixer_probe.similarity.matches import closest_columns
from mixer_probe.similarity.registry import MEASURES


@dataclass(frozen=True)
class LayerIdentification(Result):
    """For every measure, the closest layer of the other network for each of the same `layers` of
    two networks.

    `best_match` [measure, 2, L] is an index into `layers`: [:, 0] of the second network for the
    layers of the first, [:, 1] the other way; -1 where the measure is not defined. `labels` are the
    measures' names for readers, `reduce` and `grid` say what became of positions, and `n` counts
    images.

    A measure that is not symmetric asks two questions: of "predictivity", [:, 1] is the best
    predictor of a layer, and [:, 0] the layer that is easiest to predict from it, which is often
    the same one for all; "predictivity_reverse" has them the other way round."""

    title: ClassVar[str] = "Layer identification across seeds"
    frame = Frame(
        "measure",
        """model_a,model_b=models.name measure=measures a_to_b,b_to_a=fraction both chance
        layers=layer n reduce""",
    )

    models: Annotated[tuple[ModelRecord, ModelRecord], 2]
    layers: Annotated[tuple[Layer, ...], "layer"]
    measures: Annotated[tuple[str, ...], "measure"]
    labels: Annotated[tuple[str, ...], "measure"]
    best_match: Annotated[np.ndarray, "measure", 2, "layer"]
    n: int
    reduce: str
    grid: tuple[int, int] | None

    @property
    def fraction(self) -> Annotated[np.ndarray, "measure", 2]:
        """Fraction [measure, 2] of the layers whose closest layer is the one at the same place; NaN
        where none is defined."""
        right, defined = self._counts
        with np.errstate(invalid="ignore"):
            found: np.ndarray = right / defined
        return found

    @property
    def chance(self) -> float:
        """Fraction that a random choice of the layer would give."""
        return 1 / len(self.layers)

    @property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Layers found again and layers with a best match, [measure, 2] each."""
        right = self.best_match == np.arange(len(self.layers))
        return right.sum(axis=2), (self.best_match >= 0).sum(axis=2)

    @property
    def both(self) -> Annotated[np.ndarray, "measure"]:
        """`fraction` over both directions [measure].

        It has no interval: neighbouring layers are not independent, and two networks are one draw
        of a pair of seeds."""
        right, defined = (counts.sum(axis=1) for counts in self._counts)
        with np.errstate(invalid="ignore"):
            return np.asarray(right / defined)


@checked(MeasureError)
def layer_identification(
    reps_a: RepresentationsLike,
    reps_b: RepresentationsLike,
    measure: str | Sequence[str] = "all",
    *,
    grid: Grid | None = None,
    seed: int = 0,
) -> LayerIdentification:
    """For each layer of two networks of one architecture: is the closest layer of the other the one
    at the same place?

    `measure` is a name in `similarity.MEASURES`, several of them, or "all". Layers with positions
    (reduce="none") are compared flattened, or on the cells of a common `grid`. The first layer
    counts where several are equally close.

    Raises MeasureError for different layers, different reductions, and what `compare` raises."""
    layers = tuple([layer.name for layer in reps.layers] for reps in (reps_a, reps_b))
    if layers[0] != layers[1]:
        only = ", ".join(sorted(set(layers[0]) ^ set(layers[1]))) or "the order"
        raise MeasureError(
            f"{reps_a.model.name} and {reps_b.model.name} do not have the same layers ({only}): "
            "take two seeds of one architecture"
        )
    if reps_a.reduce != reps_b.reduce:
        raise MeasureError(
            f"positions were reduced by '{reps_a.reduce}' and '{reps_b.reduce}': extract both in "
            "the same way"
        )
    names = (
        list(MEASURES)
        if measure == "all"
        else [measure]
        if isinstance(measure, str)
        else list(measure)
    )
    if not names:
        raise MeasureError("no measure was given: name one of similarity.MEASURES, or take 'all'")
    matrices = compare(reps_a, reps_b, names, grid=grid, seed=seed, permutations=0, resamples=0)
    best = [[closest_columns(m.closeness), closest_columns(m.closeness.T)] for m in matrices]
    return LayerIdentification(
        models=(reps_a.model, reps_b.model),
        layers=reps_a.layers,
        measures=tuple(names),
        labels=tuple(m.label for m in matrices),
        best_match=np.array(best),
        n=len(reps_a.ids),
        reduce=reps_a.reduce,
        grid=as_grid(grid),
    )
