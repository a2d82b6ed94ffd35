"""The data of Figs. 5, 6 and 7 of the Mixer paper (Tolstikhin et al. 2021), for any Mixer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import binom

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.finding import Number
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import mean_interval
from mixer_probe.stats.claims import leader
from mixer_probe.weights.spectrum import colour_centroid
from mixer_probe.weights.stem import StemFilters, stem_filters
from mixer_probe.weights.token_units import TokenMixing, token_mixing


@dataclass(frozen=True)
class PaperFigures(Result):
    """The hidden units of all token-mixing MLPs (what they read: Figs. 5 and 6) and the linear
    units of the embedding (Fig. 7).

    `stem_shuffled` [draw] are mean frequencies, in cycles per pixel, of the embedding's filters
    with their pixels shuffled, the colours of a pixel together: what is left without spatial
    structure."""

    title: ClassVar[str] = "Figures of the Mixer paper"

    model: ModelRecord
    units: TokenMixing
    stem: StemFilters
    stem_shuffled: Annotated[np.ndarray, "draw"]

    def to_frame(self) -> pd.DataFrame:
        """One row per block: measures of its units, each with its null."""
        return self.units.summary()

    @property
    def stem_frequency(self) -> float:
        """Mean power centroid of the embedding's filters in cycles per pixel; constant filters have
        none."""
        return float(np.nanmean(self.stem.frequency))


@checked(MeasureError)
def paper_figures(
    model: Model, *, surrogates: int = 999, shuffles: int = 5, seed: int = 0
) -> PaperFigures:
    """Units and embedding of a Mixer, gMixer, ResMLP or gMLP, as the paper's figures show them.

    `surrogates` and `shuffles` as in `token_mixing`. Raises ModelError for a network without
    token-mixing weights."""
    # What units write to is in none of the figures, and is half of the numbers.
    units = replace(
        token_mixing(model, surrogates=surrogates, shuffles=shuffles, seed=seed), gate=(), write=()
    )
    stem = stem_filters(model)
    rng = np.random.default_rng((seed, 7))
    pixels = stem.filters.reshape(*stem.filters.shape[:2], -1).astype(np.float64)
    shuffled = []
    for _ in range(shuffles):
        # Every filter in an order of its own, the colours of a pixel together.
        order = rng.permuted(np.tile(np.arange(pixels.shape[2]), (len(pixels), 1)), axis=1)
        filters = np.take_along_axis(pixels, order[:, None], axis=2).reshape(stem.filters.shape)
        shuffled.append(np.nanmean(colour_centroid(filters)))
    return PaperFigures(model.record, units, stem, np.array(shuffled))


def structured_blocks(r: PaperFigures) -> tuple[np.ndarray, float]:
    """Whether the mean frequency of the units of a block is below that of all shuffles of their
    positions [block], and the binomial p-value of so many blocks."""
    structured = np.array(
        [s.statistics.frequency < np.min(s.shuffled.frequency) for s in r.units.read]
    )
    return structured, float(
        binom.sf(int(structured.sum()) - 1, len(structured), 1 / (1 + r.units.shuffles))
    )


def smoothest_block(r: PaperFigures) -> int | None:
    """The block whose units have the lowest frequency relative to shuffled ones, where it differs
    from every other block."""
    ratios = [s.frequency / float(np.mean(s.shuffled.frequency)) for s in r.units.read]
    return leader(
        [Number("", *row) for row in np.array([mean_interval(x) for x in ratios]).tolist()],
        lowest=True,
    )
