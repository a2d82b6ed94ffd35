"""Token-mixing units: what each hidden unit of a Mixer's token MLPs reads from, and writes to, the
image plane.

A unit is a row of the first token-mixing layer of a block, drawn as a map over the patch grid
(Tolstikhin et al. 2021, Figs. 5 and 6), and for the two-layer forms also a column of the second.
Frequency is the power centroid of the mean-removed map; the opposite-phase unit of a unit is that
of most negative cosine similarity. The paper pairs kernels of opposing phase and sorts them by
frequency but gives no formula; both are ours. `mixer_probe.weights.units` defines the measures and
their nulls, `mixer_probe.weights.token_matrices` the matrices of the four forms.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from mixer_probe.core.errors import (
    LayerError,
    MeasureError,
    ModelError,
    UndefinedUnitsWarning,
    closest,
    layer_index,
)
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.threads import parallel_map
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.weights.token_matrices import token_matrices
from mixer_probe.weights.units import (
    STATISTICS,
    UnitSet,
    matching_null,
    measure_units,
    paired_order,
    uniform_spread,
    unit_rows,
)

Side = Literal["read", "gate", "write"]
SIDES: tuple[Side, ...] = ("read", "gate", "write")

# The orders of the units of a block.
ORDERS = ("pairs", "frequency", "localisation", "norm")
# Units whose opposite-phase unit is as low in at most this fraction of the surrogates count as
# paired.
LEVEL = 0.05


@dataclass(frozen=True)
class TokenMixing(Result):
    """The units of every block: `read` holds one `UnitSet` per block, as do `gate` and `write`
    where the form has them.

    `form` is "Mixer", "gMixer", "ResMLP" or "gMLP", `layer` the first token-mixing layer inside a
    block, `grid` the tokens (rows, columns) and `patch` the height and width of a token in px. All
    methods take a block by number or path, and a side:

    - "read": what a unit reads. Rows of Mixer's fc1, of the value half of gMixer's, of ResMLP's
      linear_tokens (scaled by the root mean square of ls1), of gMLP's gate.proj. In the last two,
      unit i is the output token i.
    - "gate": the activated half of gMixer's fc1, which multiplies what the same unit reads.
    - "write": where a unit writes to, columns of Mixer's and gMixer's fc2."""

    title: ClassVar[str] = "Token-mixing units"

    model: ModelRecord
    form: str
    layer: str
    grid: tuple[int, int]
    patch: tuple[float, float]
    blocks: Annotated[tuple[str, ...], "block"]
    read: Annotated[tuple[UnitSet, ...], "block"]
    gate: Annotated[tuple[UnitSet, ...], "block?"]
    write: Annotated[tuple[UnitSet, ...], "block?"]
    surrogates: int
    shuffles: int
    seed: int

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that this form has."""
        return tuple(side for side in SIDES if getattr(self, side))

    @property
    def units_are_tokens(self) -> bool:
        """Whether unit i is the output token i, and no hidden unit."""
        return self.form in ("ResMLP", "gMLP")

    @property
    def uniform_spread(self) -> float:
        """The spread in px of a unit of uniform |weight|."""
        return uniform_spread(self.grid, self.patch)

    @property
    def chance(self) -> float:
        """The expected fraction of paired units where phases are random: the largest k / (1 +
        surrogates) up to 5 %. NaN for fewer than 19 surrogates, with which no unit can be
        paired."""
        steps = int(LEVEL * (1 + self.surrogates) + 1e-9)
        return steps / (1 + self.surrogates) if steps else float("nan")

    def index(self, block: int | str) -> int:
        """Index of a block given by number (negative counts from the end) or module path. Raises
        LayerError."""
        return layer_index(block, [(path,) for path in self.blocks], self.model.name, "block")

    @checked(MeasureError)
    def measures(self, block: int | str, side: Side = "read") -> UnitSet:
        """All that is measured on one side of one block. Raises LayerError for a side that this
        form does not have."""
        if side not in self.sides:
            raise LayerError(
                f"{self.model.name} is a {self.form} and has no side '{side}'; its sides: "
                f"{', '.join(self.sides)}"
            )
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
        """Index [unit] of the opposite-phase unit, that of most negative cosine similarity."""
        return self.measures(block, side).partner

    @checked(MeasureError)
    def order(self, block: int | str, side: Side = "read", by: str = "pairs") -> np.ndarray:
        """Units [unit] in one of the orders `ORDERS`, of equals the first ones first.

        "pairs": in opposite-phase pairs, low frequency first, as in the paper (see `paired_order`).
        "frequency", "localisation" and "norm": low frequency, small spread and large norm first.
        Raises MeasureError for an unknown order."""
        units = self.measures(block, side)
        if by == "pairs":
            return paired_order(units.maps, units.frequency)
        keys = {"frequency": units.frequency, "localisation": units.spread, "norm": -units.norm}
        if by not in keys:
            raise MeasureError(f"there is no order '{by}' of units; {closest(by, ORDERS)}")
        return np.argsort(keys[by], kind="stable")

    @checked(MeasureError)
    def paired(self, block: int | str, side: Side = "read") -> np.ndarray:
        """Whether the cosine of each unit [unit] with its opposite-phase unit is significant under
        random phases (p <= 0.05).

        Every unit has its own null: a smooth one finds an opposite by chance more easily."""
        paired: np.ndarray = self.measures(block, side).partner_p <= LEVEL + 1e-9
        return paired

    @checked(MeasureError)
    def fraction_paired(self, block: int | str, side: Side = "read") -> float:
        """Fraction of units that are paired; `chance` (0.05) is expected where phases are random.
        NaN where `chance` is."""
        return (
            float(self.paired(block, side).mean())
            if self.surrogates >= 1 / LEVEL - 1
            else float("nan")
        )

    @checked(MeasureError)
    def cosine_with_read(self, block: int | str, side: Side) -> np.ndarray:
        """Cosine [unit] of the read weights of each unit and its map of another side: 1 if it
        writes as it reads."""
        return self._cosines_with_read(block, side).diagonal()

    def _cosines_with_read(self, block: int | str, side: Side) -> np.ndarray:
        """Cosines [unit, unit] of the read weights of one unit and the map of another side of
        another unit."""
        read, other = (
            unit_rows(maps.reshape(len(maps), -1))
            for maps in (self.units(block), self.units(block, side))
        )
        table: np.ndarray = read @ other.T
        return table

    @checked(MeasureError)
    def to_frame(self, side: Side | None = None) -> pd.DataFrame:
        """One row per unit of a side ("read" by default) with every measure."""
        side, tables = side or "read", []
        for i, block in enumerate(self.blocks):
            head = {
                "model": self.model.name,
                "block": block,
                "depth": (i + 1) / len(self.blocks),
                "side": side,
            }
            more = {} if side == "read" else {"cosine_with_read": self.cosine_with_read(i, side)}
            units = _UNITS.of(self.measures(i, side), more)
            tables.append(pd.concat([pd.DataFrame(head, index=units.index), units], axis=1))
        return pd.concat(tables, ignore_index=True)

    @checked(MeasureError)
    def summary(self, side: Side = "read") -> pd.DataFrame:
        """One row per block: means over units and ranks, each beside its mean under the shuffled
        null; the cosine with the opposite-phase unit also beside mean and 5 % quantile of the
        phase-randomised null, and the fraction of units that are paired. For sides other than
        "read", also the mean `cosine_with_read`, beside mean and standard deviation over all
        matchings of the units."""
        rows = []
        for i, block in enumerate(self.blocks):
            units = self.measures(i, side)
            row: dict[str, Any] = {
                "model": self.model.name,
                "block": block,
                "depth": (i + 1) / len(self.blocks),
                "side": side,
                "units": len(units.maps),
            }
            for name in STATISTICS:
                row[_BLOCK_COLUMNS[name]] = getattr(units.statistics, name)
                row["shuffled_" + _BLOCK_COLUMNS[name]] = float(
                    np.mean(getattr(units.shuffled, name))
                )
            if side != "read":
                mean, sd = matching_null(cosines := self._cosines_with_read(i, side))
                row |= {"cosine_with_read": float(cosines.diagonal().mean())}
                row |= {"null_cosine_with_read": mean, "null_cosine_with_read_sd": sd}
            row |= {"null_mean": units.null_mean, "null_q05": units.null_q05}
            rows.append(
                row
                | {
                    "fraction_paired": self.fraction_paired(i, side),
                    "mean_norm": float(units.norm.mean()),
                }
            )
        return pd.DataFrame(rows)


_UNITS = Frame(
    "unit",
    """unit norm frequency_cycles_per_token=frequency orientation_degrees=orientation coherence
    peak_row peak_column peak_frequency_cycles_per_token=peak_frequency phase_degrees=phase
    peak_fraction spread_px=spread partner partner_cosine partner_p
    centre_row_px,centre_column_px=centre""",
)
_BLOCK_COLUMNS = {
    "frequency": "mean_frequency",
    "spread": "mean_spread_px",
    "coherence": "mean_coherence",
    "partner_cosine": "mean_partner_cosine",
    "effective_rank": "effective_rank",
    "participation_ratio": "participation_ratio",
}


@checked(MeasureError)
def token_mixing(
    model: Model, *, surrogates: int = 999, shuffles: int = 5, seed: int = 0
) -> TokenMixing:
    """The units of every block of a Mixer, gMixer, ResMLP or gMLP: frequency, orientation, phase,
    localisation, pairs, ranks.

    `surrogates` phase-randomised copies are the null of opposite-phase units (19 or more for a
    level of 5 %; with so few the fraction of paired units depends on the seed), `shuffles` copies
    with permuted positions that of everything else. Warns (UndefinedUnitsWarning) of units of
    constant or not finite weight, whose frequency, orientation and phase are NaN.

    Raises ModelError for a network without token-mixing weights, with what it has instead, and
    MeasureError for no draws."""
    found = token_matrices(model)
    grid = model.structure.token_grid
    if grid is None or grid[0] * grid[1] != found[0].read.shape[1]:
        raise ModelError(
            f"the patch grid of {model.name} is not known, so its units cannot be drawn as maps"
        )
    patch = (model.input.size[1] / grid[0], model.input.size[2] / grid[1])

    sides: dict[Side, list[np.ndarray]] = {}
    for side in SIDES:
        matrices = [getattr(block, side) for block in found]
        sides[side] = [] if any(matrix is None for matrix in matrices) else matrices
    maps = [matrix.reshape(-1, *grid) for matrices in sides.values() for matrix in matrices]

    def measured(k: int) -> UnitSet:
        # Every matrix has draws of its own.
        units = measure_units(maps[k], patch, surrogates, shuffles, (seed, k))
        # The maps need no more digits than the parameters have.
        return (
            units
            if model.dtype == torch.float64
            else replace(units, maps=units.maps.astype(np.float32))
        )

    sets = iter(parallel_map(measured, range(len(maps))))
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
    places = [(side, i) for side in result.sides for i in range(len(result.blocks))]
    constant = {
        place: n
        for place in places
        if (n := int(np.isnan(result.frequency(place[1], place[0])).sum()))
    }
    if constant:
        total, where = (
            sum(constant.values()),
            [f"{n} of {result.blocks[i]} ({side})" for (side, i), n in constant.items()],
        )
        warnings.warn(
            f"{result.model.name} has {total} unit{'s' if total > 1 else ''} of constant weight, "
            "or not finite, without frequency, orientation or phase: "
            f"{', '.join(where[:5])}{', ...' if len(where) > 5 else ''}",
            UndefinedUnitsWarning,
            stacklevel=3,
        )
    return result


def low_frequency_units(
    result: TokenMixing, baseline: TokenMixing
) -> tuple[float, list[np.ndarray]]:
    """The 5 % quantile of the frequencies of all units of the untrained baseline, and which units
    [unit] of each block of `result` are below it."""
    untrained = np.concatenate([baseline.frequency(i) for i in range(len(baseline.blocks))])
    limit = float(np.quantile(untrained[np.isfinite(untrained)], LEVEL))
    return limit, [result.frequency(i) < limit for i in range(len(result.blocks))]


def related_blocks(result: TokenMixing) -> pd.DataFrame:
    """The rows of `summary("write")` whose cosine between read and write weights differs from that
    of randomly matched units, at 5 % over all blocks and both signs (Bonferroni), from the lowest
    cosine to the highest."""
    table = result.summary("write")
    z = (table["cosine_with_read"] - table["null_cosine_with_read"]) / table[
        "null_cosine_with_read_sd"
    ]
    related: pd.DataFrame = table[z.abs() > norm.isf(LEVEL / 2 / len(table))].sort_values(
        "cosine_with_read"
    )
    return related


def most_oriented_block(result: TokenMixing) -> tuple[int, float]:
    """The block of the largest mean coherence, -1 if no unit has an orientation, and its p-value
    against shuffled units (Bonferroni over blocks)."""
    coherence = np.array([units.statistics.coherence for units in result.read])
    if not np.isfinite(coherence).any():
        return -1, float("nan")
    most = int(np.nanargmax(coherence))
    return most, min(1.0, len(coherence) * result.read[most].coherence_p)
