"""`paper_figures`: what Figs. 5, 6 and 7 of the Mixer paper show, of any Mixer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.weights.spectrum import colour_centroid
from mixer_probe.weights.stem import StemFilters, stem_filters
from mixer_probe.weights.token_units import TokenMixing, token_mixing


@dataclass(frozen=True)
class PaperFigures(Result):
    """The hidden units of all token-mixing MLPs (what they read: Figs. 5 and 6) and the linear units of the embedding (Fig. 7).

    `stem_shuffled` [draw] are mean frequencies, in cycles per pixel, of the embedding's filters with their pixels shuffled, the
    colours of a pixel together: what is left without any arrangement in the plane."""

    title: ClassVar[str] = "Figures of the Mixer paper"

    model: ModelRecord
    units: TokenMixing
    stem: StemFilters
    stem_shuffled: np.ndarray

    def to_frame(self) -> pd.DataFrame:
        """One row a block: measures of its units, each with its null."""
        return self.units.summary()

    @property
    def stem_frequency(self) -> float:
        """Mean power centroid of the embedding's filters in cycles per pixel; constant filters have none."""
        return float(np.nanmean(self.stem.frequency))


@checked(MeasureError)
def paper_figures(model: Model, *, surrogates: int = 999, shuffles: int = 5, seed: int = 0) -> PaperFigures:
    """Units and embedding of a Mixer, gMixer, ResMLP or gMLP, as the paper's figures show them.

    `surrogates` and `shuffles` as in `token_mixing`. Raises ModelError for a network without token-mixing weights."""
    # What units write to is in none of the figures, and is half of the numbers.
    units = replace(token_mixing(model, surrogates=surrogates, shuffles=shuffles, seed=seed), gate=(), write=())
    stem = stem_filters(model)
    return PaperFigures(model.record, units, stem, _shuffled_frequencies(stem.filters, shuffles, seed))


def _shuffled_frequencies(filters: np.ndarray, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, 7))
    flat = filters.reshape(*filters.shape[:2], -1).astype(np.float64)
    return np.array([np.nanmean(colour_centroid(_permuted(flat, rng).reshape(filters.shape))) for _ in range(draws)])


def _permuted(flat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Filters [unit, channel, pixel] with the pixels of each in an order of its own."""
    order = rng.permuted(np.tile(np.arange(flat.shape[2]), (len(flat), 1)), axis=1)
    return np.take_along_axis(flat, order[:, None], axis=2)
