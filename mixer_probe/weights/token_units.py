"""Token-mixing units: what each hidden unit of a Mixer's token MLPs reads from, and writes to, the image plane.

A unit is a row of the first token-mixing layer of a block, drawn as a map over the patch grid (Tolstikhin et al. 2021, Figs. 5
and 6), and for the two-layer forms also a column of the second. Frequency is the power centroid of the mean-removed map; the
partner of a unit is the one with the most negative cosine similarity. The paper pairs kernels of opposing phase and sorts them
by frequency but gives no formula; both are ours. `mixer_probe.weights.units` defines the measures and their nulls,
`mixer_probe.weights.token_matrices` says which matrices of the four forms they are taken on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from mixer_probe.core.errors import LayerError, MeasureError, ModelError, UndefinedUnitsWarning, closest
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.threads import side_by_side
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.weights.token_matrices import TokenMatrices, token_matrices
from mixer_probe.weights.units import STATISTICS, UnitSet, matching_null, measure_units, paired_order, uniform_spread, unit_rows

Side = Literal["read", "gate", "write"]
SIDES: tuple[Side, ...] = ("read", "gate", "write")

# Units whose partner is as low in at most this share of the surrogates count as paired.
LEVEL = 0.05


@dataclass(frozen=True)
class TokenMixing(Result):
    """The units of every block: `read` has one `UnitSet` a block, and so have `gate` and `write` where the form has them.

    `form` is "Mixer", "gMixer", "ResMLP" or "gMLP", `layer` the first token-mixing layer inside a block, `grid` the tokens
    (rows, columns) and `patch` the height and width of a token in px. All methods take a block by number or path, and a side:

    - "read": what a unit reads. Rows of Mixer's fc1, of the value half of gMixer's, of ResMLP's linear_tokens (scaled by the
      root mean square of ls1), of gMLP's gate.proj. In the last two, unit i is the output token i.
    - "gate": the activated half of gMixer's fc1, which multiplies what the same unit reads.
    - "write": where a unit writes to, columns of Mixer's and gMixer's fc2."""

    title: ClassVar[str] = "Token-mixing units"

    model: ModelRecord
    form: str
    layer: str
    grid: tuple[int, int]
    patch: tuple[float, float]
    blocks: tuple[str, ...]
    read: tuple[UnitSet, ...]
    gate: tuple[UnitSet, ...]
    write: tuple[UnitSet, ...]
    surrogates: int
    shuffles: int
    seed: int

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that this form has."""
        return tuple(side for side in SIDES if getattr(self, side))

    @property
    def uniform_spread(self) -> float:
        """The spread in px of a unit that reads all tokens alike."""
        return uniform_spread(self.grid, self.patch)

    @property
    def chance(self) -> float:
        """The share of units that `share_paired` calls paired where phases are random: the largest k / (1 + surrogates) up to
        5 %. NaN for fewer than 19 surrogates, with which no unit can be called so."""
        steps = int(LEVEL * (1 + self.surrogates) + 1e-9)
        return steps / (1 + self.surrogates) if steps else float("nan")

    def index(self, block: int | str) -> int:
        """Position of a block given by number (negative counts from the end) or module path. Raises LayerError."""
        if isinstance(block, str):
            if block not in self.blocks:
                raise LayerError(f"no block '{block}' in {self.model.name}; {closest(block, self.blocks)}")
            return self.blocks.index(block)
        if not -len(self.blocks) <= block < len(self.blocks):
            raise LayerError(f"{self.model.name} has blocks 0 to {len(self.blocks) - 1}, not {block}")
        return block % len(self.blocks)

    @checked(MeasureError)
    def measures(self, block: int | str, side: Side = "read") -> UnitSet:
        """All that is measured on one side of one block. Raises LayerError for a side that this form does not have."""
        if side not in self.sides:
            raise LayerError(f"{self.model.name} is a {self.form} and has no side '{side}'; its sides: {', '.join(self.sides)}")
        sets: tuple[UnitSet, ...] = getattr(self, side)
        return sets[self.index(block)]

    @checked(MeasureError)
    def units(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Maps [unit, h, w] over the patch grid."""
        return self.measures(block, side).maps

    @checked(MeasureError)
    def frequency(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Power centroid [unit] in cycles per token; NaN for a constant unit."""
        return self.measures(block, side).frequency

    @checked(MeasureError)
    def partner(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Index [unit] of the unit with the most negative cosine similarity."""
        return self.measures(block, side).partner

    @checked(MeasureError)
    def partner_cosine(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Cosine similarity [unit] with the partner."""
        return self.measures(block, side).partner_cosine

    @checked(MeasureError)
    def order(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Units [unit] as the paper lays them out: low frequency first, each followed by its closest inverse still free."""
        return paired_order(self.units(block, side), self.frequency(block, side))

    @checked(MeasureError)
    def paired(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Whether the partner of each unit [unit] is beyond the phase-randomised null of that unit (p <= 0.05).

        Every unit has its own null: a smooth one finds an opposite by chance more easily."""
        paired: np.ndarray = self.measures(block, side).partner_p <= LEVEL + 1e-9
        return paired

    @checked(MeasureError)
    def share_paired(self, block: int | str, side: Side = "read") -> float:
        """Share of units whose partner is beyond the null; `chance` (0.05) where phases are random, NaN where that is."""
        return float(self.paired(block, side).mean()) if self.surrogates >= 1 / LEVEL - 1 else float("nan")

    @checked(MeasureError)
    def cosine_with_read(self, block: int | str, side: Side) -> np.ndarray:
        """Cosine [unit] of what each unit reads and its map of another side: 1 if it writes to where it reads, with that sign."""
        return self._cosines_with_read(block, side).diagonal()

    def _cosines_with_read(self, block: int | str, side: Side) -> np.ndarray:
        """Cosines [unit, unit] of what one unit reads and the map of another side of another unit."""
        read, other = (unit_rows(maps.reshape(len(maps), -1)) for maps in (self.units(block), self.units(block, side)))
        table: np.ndarray = read @ other.T
        return table

    @checked(MeasureError)
    def to_frame(self, side: Side | None = None) -> pd.DataFrame:
        """One row a unit of a side (by default of what units read) with every measure. None of them is an average."""
        return pd.concat([self._unit_frame(i, side or "read") for i in range(len(self.blocks))], ignore_index=True)

    def _unit_frame(self, i: int, side: Side) -> pd.DataFrame:
        units = self.measures(i, side)
        columns = {label: getattr(units, name) for name, label in _UNIT_COLUMNS.items()}
        head = {"model": self.model.name, "block": self.blocks[i], "depth": self._depth(i), "side": side}
        places = {"centre_row_px": units.centre[:, 0], "centre_column_px": units.centre[:, 1]}
        across = {} if side == "read" else {"cosine_with_read": self.cosine_with_read(i, side)}
        return pd.DataFrame({**head, "unit": np.arange(len(units.maps)), **columns, **places, **across})

    @checked(MeasureError)
    def summary(self, side: Side = "read") -> pd.DataFrame:
        """One row a block: means over units and ranks, each beside its mean under the shuffled null; the partner cosine also
        beside mean and 5 % quantile of the phase-randomised null, and the share of units paired beyond it. For sides that are
        not "read", also the mean `cosine_with_read`, beside mean and standard deviation over all ways to match the units."""
        return pd.DataFrame([self._block_row(i, side) for i in range(len(self.blocks))])

    def _block_row(self, i: int, side: Side) -> dict[str, Any]:
        units = self.measures(i, side)
        row: dict[str, Any] = {
            "model": self.model.name,
            "block": self.blocks[i],
            "depth": self._depth(i),
            "side": side,
            "units": len(units.maps),
        }
        for name in STATISTICS:
            row[_BLOCK_COLUMNS[name]] = getattr(units.statistics, name)
            row["shuffled_" + _BLOCK_COLUMNS[name]] = float(np.mean(getattr(units.shuffled, name)))
        if side != "read":
            mean, sd = matching_null(cosines := self._cosines_with_read(i, side))
            row |= {"cosine_with_read": float(cosines.diagonal().mean())}
            row |= {"null_cosine_with_read": mean, "null_cosine_with_read_sd": sd}
        row |= {"null_mean": units.null_mean, "null_q05": units.null_q05}
        return row | {"share_paired": self.share_paired(i, side), "mean_norm": float(units.norm.mean())}

    def _depth(self, i: int) -> float:
        return (i + 1) / len(self.blocks)


_UNIT_COLUMNS = {
    "norm": "norm",
    "frequency": "frequency_cycles_per_token",
    "orientation": "orientation_degrees",
    "coherence": "coherence",
    "peak_row": "peak_row",
    "peak_column": "peak_column",
    "peak_frequency": "peak_frequency_cycles_per_token",
    "phase": "phase_degrees",
    "peak_share": "peak_share",
    "spread": "spread_px",
    "partner": "partner",
    "partner_cosine": "partner_cosine",
    "partner_p": "partner_p",
}
_BLOCK_COLUMNS = {
    "frequency": "mean_frequency",
    "spread": "mean_spread_px",
    "coherence": "mean_coherence",
    "partner_cosine": "mean_partner_cosine",
    "effective_rank": "effective_rank",
    "participation_ratio": "participation_ratio",
}


@checked(MeasureError)
def token_mixing(model: Model, *, surrogates: int = 999, shuffles: int = 5, seed: int = 0) -> TokenMixing:
    """The units of every block of a Mixer, gMixer, ResMLP or gMLP: frequency, orientation, phase, localisation, partners, ranks.

    `surrogates` phase-randomised copies are the null of partners (19 or more for a level of 5 %; with so few the
    fraction of paired units depends on the seed), `shuffles` copies with
    permuted positions that of everything else. Warns (UndefinedUnitsWarning) of units of constant or not finite weight, whose
    frequency, orientation and phase are NaN.

    Raises ModelError for a network without token-mixing weights, saying what it has instead, and MeasureError for no draws."""
    found = token_matrices(model)
    grid = model.structure.token_grid
    if grid is None or grid[0] * grid[1] != found[0].read.shape[1]:
        raise ModelError(f"the patch grid of {model.name} is not known, so its units cannot be drawn as maps")
    patch = (model.input.size[1] / grid[0], model.input.size[2] / grid[1])

    sides = {side: _side(found, side) for side in SIDES}
    jobs = [matrix.reshape(-1, *grid) for matrices in sides.values() for matrix in matrices]

    def measured(k: int) -> UnitSet:
        # Every matrix has draws of its own.
        return _stored(measure_units(jobs[k], patch, surrogates, shuffles, (seed, k)), model.dtype)

    sets = iter(side_by_side(measured, range(len(jobs))))
    result = TokenMixing(
        model=model.record,
        form=" and ".join(dict.fromkeys(block.form for block in found)),
        layer=" and ".join(dict.fromkeys(block.layer for block in found)),
        grid=grid,
        patch=patch,
        blocks=tuple(block.block for block in found),
        **{side: tuple(islice(sets, len(matrices))) for side, matrices in sides.items()},
        surrogates=surrogates,
        shuffles=shuffles,
        seed=seed,
    )
    _warn_of_constant_units(result)
    return result


def _side(found: Sequence[TokenMatrices], side: Side) -> list[np.ndarray]:
    """The matrices of one side, none if a block lacks it."""
    matrices = [getattr(block, side) for block in found]
    return [] if any(matrix is None for matrix in matrices) else matrices


def _stored(units: UnitSet, dtype: torch.dtype) -> UnitSet:
    # Measures are taken in float64; the maps themselves need no more digits than the parameters have.
    return units if dtype == torch.float64 else replace(units, maps=units.maps.astype(np.float32))


def _warn_of_constant_units(result: TokenMixing) -> None:
    places = [(side, i) for side in result.sides for i in range(len(result.blocks))]
    counts = {place: int(np.isnan(result.frequency(place[1], place[0])).sum()) for place in places}
    found = [f"{n} of {result.blocks[i]} ({side})" for (side, i), n in counts.items() if n]
    if found:
        total = sum(counts.values())
        warnings.warn(
            f"{result.model.name} has {total} unit{'s' if total > 1 else ''} of constant weight, or not finite, without "
            f"frequency, orientation or phase: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}",
            UndefinedUnitsWarning,
            stacklevel=4,
        )
