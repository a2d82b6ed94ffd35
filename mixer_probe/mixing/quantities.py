"""Who reads from where: the Jacobian of spatial mixing of every block, on one axis for all
architectures.

With the block J_ij of the Jacobian from position j to position i (all channels of both), the energy
A2_ij is the mean over images of |J_ij|_F^2, and P_ij = A2_ij / sum_j A2_ij says how much of what
moves position i comes from position j. Three views:

- "branch": the residual branch that mixes positions, with its norm, without the skip connection;
- "block": with the skip connection, I + J; for a CNN the block as a whole;
- "cumulative": from the cells of the image to the block's output.

Quantities per block, of which those of rows are means over output positions i:

- distance_px: sum_j P_ij |pos_i - pos_j| in pixels, and relative_distance, divided by the distance
  of uniform mixing, P_ij = 1 / S;
- self_mass: P on the position itself; near_mass: on it and
  on those whose centre is within the radius;
- effective_positions: exp(entropy of P_i) / S;
- participation: (sum s^2)^2 / sum s^4 over the singular values s of A, the root of A2, divided by
  the smaller side of A;
- translation: the fraction of the energy of A, less its mean, that depends on the offset alone, as
  a convolution's does: 0 is the expectation for iid entries, 1 a convolution;
- dynamic: 1 - |mean of J|^2 / mean of |J|^2 over images, the part of the mixing that depends on the
  image: 0 for a linear layer;
- prefix_mass: the part of the energy of a row that comes from prefix tokens (class, distillation
  and register tokens). All other quantities leave prefix tokens out and renormalise the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.core.frame import Frame
from mixer_probe.core.memory import MOST, check_fits
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import evaluating, frozen, not_in_place, unfused
from mixer_probe.core.validate import checked
from mixer_probe.mixing.branches import branch_ends
from mixer_probe.mixing.cells import (
    Grid,
    centres,
    common_grid,
    overlap,
    rows_of_cells,
    sampled_positions,
)
from mixer_probe.mixing.energies import Energies
from mixer_probe.mixing.grid import with_grid
from mixer_probe.mixing.jacobians import (
    VIEWS,
    Products,
    View,
    block_calls,
    block_products,
    cumulative_products,
    grid_of,
)
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.stats import delta_interval

# Independent groups of images: more give no better intervals, and each is kept.
_MOST_GROUPS = 32
# Bounds of the quantities, where they have any.
_LIMITS = {
    "distance_px": (0, np.inf),
    "relative_distance": (0, np.inf),
    "self_mass": (0, 1),
    "near_mass": (0, 1),
    "effective_positions": (0, 1),
    "participation": (0, 1),
    "translation": (-np.inf, 1),
    "dynamic": (-np.inf, 1),
    "prefix_mass": (0, 1),
}
QUANTITIES = tuple(_LIMITS)
# Parts of the sampled positions of which each is left out in turn.
_MOST_PARTS = 16


@dataclass(frozen=True)
class SpatialMixing(Result):
    """From where every block of a network reads, in up to three views.

    `value` [view, layer, quantity] has the standard errors `se` and the 95 % interval [`low`,
    `high`], over images, random vectors and sampled positions (NaN for fewer than two groups of
    images), and so have their means over blocks, `overall` [view, quantity]. `matrix` [view, layer,
    cell, source] is P from source cells, of a grid twice as fine, to the output positions in each
    cell of the common grid of `cells` (rows, columns), rows summing to 1, and `matrix_se` its
    standard error. `uniform_px` [view, layer] is the distance of uniform mixing, `positions`
    [layer] how many output positions were measured, `grids` [layer, 2] the rows and columns that a
    block returns, and `forms` [view] how a view was computed. Where a Jacobian is exactly zero
    `zero` [view, layer] is true, all else is NaN, and the block is left out of `overall`. Mass is
    near within `radius_px`. `n` images form `groups` independent groups."""

    title: ClassVar[str] = "Spatial mixing"
    frame = Frame(
        "view layer quantity",
        """model=model.name model.trained view=views layer=layers.name layers.depth
        quantity=quantities value se low high zero uniform_px positions n""",
    )

    model: ModelRecord
    images: ImagesRecord
    views: Annotated[tuple[str, ...], "view"]
    forms: Annotated[tuple[str, ...], "view"]
    layers: Annotated[tuple[Layer, ...], "layer"]
    quantities: Annotated[tuple[str, ...], "quantity"]
    value: Annotated[np.ndarray, "view", "layer", "quantity"]
    se: Annotated[np.ndarray, "view", "layer", "quantity"]
    low: Annotated[np.ndarray, "view", "layer", "quantity"]
    high: Annotated[np.ndarray, "view", "layer", "quantity"]
    zero: Annotated[np.ndarray, "view", "layer"]
    uniform_px: Annotated[np.ndarray, "view", "layer"]
    overall: Annotated[np.ndarray, "view", "quantity"]
    overall_se: Annotated[np.ndarray, "view", "quantity"]
    overall_low: Annotated[np.ndarray, "view", "quantity"]
    overall_high: Annotated[np.ndarray, "view", "quantity"]
    matrix: Annotated[np.ndarray, "view", "layer", "cell", "source"]
    matrix_se: Annotated[np.ndarray, "view", "layer", "cell", "source"]
    grids: Annotated[np.ndarray, "layer", "2"]
    positions: Annotated[np.ndarray, "layer"]
    cells: tuple[int, int]
    size: tuple[int, int]
    radius_px: float
    n: int
    groups: int
    probes: int
    seed: int

    def index(self, quantity: str) -> int:
        """The index of a quantity. Raises MeasureError that lists close names."""
        if quantity not in self.quantities:
            raise MeasureError(f"no quantity '{quantity}'; {closest(quantity, self.quantities)}")
        return self.quantities.index(quantity)

    def curve(self, view: str, quantity: str) -> np.ndarray:
        """(value, low, high) [3, layer] of a quantity. Raises MeasureError for an unknown one."""
        if view not in self.views:
            raise MeasureError(f"no view '{view}'; {closest(view, self.views)}")
        at = self.views.index(view), slice(None), self.index(quantity)
        return np.stack([self.value[at], self.low[at], self.high[at]])


@checked(MeasureError)
def spatial_mixing(
    model: Model,
    images: ImageSource | torch.Tensor,
    *,
    views: Sequence[View] = VIEWS,
    cells: Grid | None = None,
    positions: int | None = None,
    probes: int = 1,
    radius: float = 0.25,
    seed: int = 0,
) -> SpatialMixing:
    """From where every block of a network reads: Jacobians between positions, averaged over images.

    `cells` (rows, columns) is the common grid, by default
    7 x 7 for images of 224 px. Of every block one output
    position per cell is measured, drawn with `seed`, or about `positions` of them; at most as many
    as there are. `probes` random vectors are used per position and image; token mixing of Mixer,
    gMixer and ResMLP needs none. `radius` is a fraction of the longer side of the image. Raises
    MeasureError for a block whose positions have no known grid, and for no view."""
    if not views or probes < 1 or (positions is not None and positions < 1):
        raise MeasureError(
            f"views {list(views)}, {probes} probes and {positions} positions were given; give at "
            "least one of each"
        )
    size = (model.input.size[1], model.input.size[2])
    cells = cells or common_grid(size)
    structure = model.structure
    layers = tuple(structure.find(run.name) for run in structure.runs)
    grids = [grid for _, grid in with_grid(layers, "spatial mixing")]
    lattice = cells if positions is None else (max(1, math.isqrt(positions)),) * 2
    rng = np.random.default_rng(seed)
    rows = [sampled_positions(grid, lattice, rng) for grid in grids]
    ends = list(_branch_ends(model))
    source = as_source(images)
    found: dict[View, list[list[Products]]] = {view: [] for view in views}
    forms: dict[View, dict[str, None]] = {view: {} for view in views}
    own: list[Grid] = []
    sources: dict[View, list[Grid]] = {"branch": own, "block": own}
    sources["cumulative"] = [cells] * len(layers)
    of_blocks, token_grid = [v for v in views if v != "cumulative"], model.structure.token_grid
    sizes, needed, groups = [], 0, min(_MOST_GROUPS, max(1, len(source) // 2))
    boxes = cells[0] * cells[1] * probes * ("cumulative" in views)
    each = boxes + len(layers) * bool(of_blocks)
    with (
        evaluating(model.module),
        frozen(model.module),
        unfused(model.module),
        not_in_place(model.module),
        task(f"{model.name}: spatial mixing", len(source) * each) as advance,
    ):
        for g, batch in enumerate(_groups(model, source)):
            x = batch.to(model.device, model.dtype)
            sizes.append(len(x))
            parts = []
            for k, call in enumerate(block_calls(model, x) if of_blocks else ()):
                if g == 0:
                    given = grid_of(call.args[0], call.run.block.spec.axes, token_grid)
                    own.append(given)
                    needed += 16 * groups * len(of_blocks) * len(rows[k]) * given[0] * given[1]
                    what = "energies between positions"
                    check_fits(needed, what, "give fewer positions", MeasureError, MOST)
                end, skips = ends[k]
                prefix = layers[k].prefix_tokens
                parts.append(
                    block_products(call, end, skips, rows[k], prefix, probes, (seed, g, k))
                )
                advance(len(x))
            for view in of_blocks:
                found[view].append([part[view][0] for part in parts])
                forms[view] |= dict.fromkeys(part[view][1] for part in parts)
            if "cumulative" in views:
                found["cumulative"].append(
                    cumulative_products(model, x, rows, cells, probes, (seed, g), advance)
                )
                forms["cumulative"] |= {"JVP": None}
    radius_px = radius * max(size)
    energies = {
        view: [
            Energies(
                grids[k],
                sources[view][k],
                rows[k],
                np.stack([group[k][0] for group in found[view]]),
                np.stack([group[k][1] for group in found[view]]),
                np.stack([group[k][2] for group in found[view]]),
                np.array(sizes),
            )
            for k in range(len(layers))
        ]
        for view in views
    }
    summaries = [[_Summary(e, size, cells, radius_px) for e in energies[view]] for view in views]

    def table(name: str) -> np.ndarray:
        return np.array([[getattr(s, name) for s in of] for of in summaries])

    value, pseudo, sampling = (table(name) for name in ("value", "pseudo", "sampling"))
    se, low, high = _bounds(value, pseudo, sampling)
    # Over the blocks whose Jacobian is not zero; groups of images are the same for all.
    there = ~table("zero")[..., None]
    count = np.maximum(there.sum(1), 1)

    def over_blocks(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.where(mask, values, 0).sum(1)
        return found

    none = there.any(1)
    overall = np.where(none, over_blocks(value, there) / count, np.nan)
    mean_pseudo = over_blocks(pseudo, there[:, :, None]) / count[:, None]
    overall_se, overall_low, overall_high = _bounds(
        overall, mean_pseudo, over_blocks(sampling, there) / count**2
    )
    return SpatialMixing(
        model=model.record,
        images=source.record,
        views=tuple(views),
        forms=tuple(" and ".join(forms[view]) for view in views),
        layers=layers,
        quantities=QUANTITIES,
        value=value,
        se=se,
        low=low,
        high=high,
        zero=table("zero"),
        uniform_px=table("uniform_px"),
        overall=overall,
        overall_se=overall_se,
        overall_low=overall_low,
        overall_high=overall_high,
        matrix=table("matrix").astype(np.float32),
        matrix_se=table("matrix_se").astype(np.float32),
        grids=np.array(grids),
        positions=np.array([len(r) for r in rows]),
        cells=cells,
        size=size,
        radius_px=radius_px,
        n=len(source),
        groups=len(sizes),
        probes=probes,
        seed=seed,
    )


def _groups(model: Model, source: ImageSource) -> Iterator[torch.Tensor]:
    """Independent groups of at least two images, or of the one that there is."""
    size = max(2, -(-len(source) // _MOST_GROUPS))
    before: torch.Tensor | None = None
    for batch in source.batches(transform_of(model), size):
        if before is not None and len(batch) == 1:
            before = torch.cat([before, batch])
            continue
        if before is not None:
            yield before
        before = batch
    if before is not None:
        yield before


def _branch_ends(model: Model) -> Iterator[tuple[tuple[str, int], bool]]:
    """Of every call of a block the module and its call inside that returns the spatial branch, and
    whether the block's input is added to what it returns and nothing else is done to the sum."""
    for run, found in zip(model.structure.runs, branch_ends(model), strict=True):
        if found.spatial is None:
            path, number = model.structure.parts(run, run.block.spec.spatial)[-1]
            yield (path, number if run.call == 0 else 0), False
        else:
            alone = found.skip is None and not found.activation and found.total == run.block.path
            # The first call of that module in the block.
            yield (found.spatial.module, 0), alone


class _Summary:
    """The quantities of one block in one view, their errors, and its matrix on the common grid."""

    def __init__(self, e: Energies, size: Grid, cells: Grid, radius_px: float) -> None:
        self._energies = e
        places = centres(e.grid, size)[e.rows]
        sources = centres(e.source, size)
        if e.source[0] * e.source[1] < e.grid[0] * e.grid[1]:
            # In the middle of the cell that holds it, as what it reads is known by cells.
            places = sources[overlap(e.grid, e.source)[e.rows].argmax(1)]
        away = sources - places[:, None]
        self._distance = np.hypot(*np.moveaxis(away, -1, 0))
        self._self = overlap(e.source, e.grid).T[e.rows]
        if e.source[0] * e.source[1] < e.grid[0] * e.grid[1]:
            self._self = overlap(e.grid, e.source)[e.rows]
        self._near = np.maximum(self._self, self._distance <= radius_px + 1e-9)
        self.uniform_px = float(self._distance.mean())
        step = np.array(size) / e.source
        keys = np.rint(2 * away / step).astype(np.int64).reshape(-1, 2)
        self._offsets = np.unique(keys, axis=0, return_inverse=True)[1].reshape(away.shape[:2])
        fine = (2 * cells[0], 2 * cells[1])
        self._to_cells = rows_of_cells(e.grid, cells, e.rows), overlap(e.source, fine)
        self._summarise(e)

    def _summarise(self, e: Energies) -> None:
        own, groups, count = e.mean(e.own), len(e.images), len(QUANTITIES)
        self.zero = not own.any()
        self.value, self.sampling = np.full((2, count), np.nan)
        self.pseudo = np.full((groups, count), np.nan)
        rows, columns = self._to_cells
        self.matrix, self.matrix_se = np.full((2, len(rows), columns.shape[1]), np.nan)
        if self.zero:
            return
        everything = np.ones(groups, dtype=bool)
        self.value = self._quantities(everything)
        self.matrix = self._matrix(own)
        self.sampling = self._sampling_variance(everything)
        if groups < 2:
            return
        others = [np.arange(groups) != g for g in range(groups)]
        without = np.stack([self._quantities(o) for o in others])
        self.pseudo = groups * self.value - (groups - 1) * without
        matrices = np.stack([self._matrix(e.mean(e.own, o)) for o in others])
        self.matrix_se = (groups - 1) / np.sqrt(groups) * matrices.std(0, ddof=1)

    def _matrix(self, own: np.ndarray) -> np.ndarray:
        rows, columns = self._to_cells
        mixed: np.ndarray = rows @ _rows_to_one(own) @ columns
        return mixed

    def _sampling_variance(self, groups: np.ndarray) -> np.ndarray:
        """What the choice of the measured positions adds to the variance of each quantity: the
        jackknife over parts of them, less where more of all positions are measured."""
        rows, e = len(self._energies.rows), self._energies
        missing, parts = 1 - rows / (e.grid[0] * e.grid[1]), min(rows, _MOST_PARTS)
        if missing <= 0 or parts < 2:
            return np.zeros(len(QUANTITIES))
        left = [np.arange(rows) % parts != part for part in range(parts)]
        without = np.stack([self._quantities(groups, chosen) for chosen in left])
        variance: np.ndarray = without.var(0) * (parts - 1) * missing
        return variance

    def _quantities(self, groups: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """All quantities from some groups of images and some of the rows, by default all."""
        e, at = self._energies, slice(None) if rows is None else rows
        own, prefix = e.mean(e.own, groups)[at], e.mean(e.prefix, groups)[at]
        distances, whole = self._distance[at], own.sum(1)
        P = _rows_to_one(own)
        logs = np.log(P, where=P > 0, out=np.zeros_like(P))
        distance, uniform = (P * distances).sum(1).mean(), distances.mean()
        A = np.sqrt(own)
        gram = A @ A.T if len(A) <= A.shape[1] else A.T @ A
        A = (A - A.mean()).ravel()
        offsets = self._offsets[at].ravel()
        pairs, sums = np.bincount(offsets), np.bincount(offsets, A)
        used = pairs > 0
        iid = (used.sum() - 1) / max(A.size - 1, 1)
        # Entries that are all the same have no structure, nor has a single row.
        total = np.square(A).sum()
        structured = (
            (sums[used] ** 2 / pairs[used]).sum() / total if total > 1e-20 * own.sum() else np.nan
        )
        # A group of one image has no pair.
        paired, dynamic = groups & (e.images > 1), np.nan
        if paired.any():
            weight = np.where(paired, e.images, 0) / e.images[paired].sum()
            crossed = np.tensordot(weight[e.images > 1], e.crossed[e.images > 1], 1)[at].sum()
            dynamic = 1 - crossed / e.mean(e.own, paired)[at].sum()
        return np.array(
            [
                distance,
                distance / uniform if uniform > 0 else np.nan,
                (P * self._self[at]).sum(1).mean(),
                (P * self._near[at]).sum(1).mean(),
                np.exp(-(P * logs).sum(1)).mean() / P.shape[1],
                np.trace(gram) ** 2 / np.square(gram).sum() / len(gram),
                (structured - iid) / (1 - iid) if iid < 1 else np.nan,
                dynamic,
                (prefix / (prefix + whole)).mean() if prefix.any() else np.nan,
            ]
        )


def _bounds(
    value: np.ndarray, pseudo: np.ndarray, sampling: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard errors and bounds [..., quantity] of quantities with jackknife pseudo-values
    [..., group, quantity] and the variance that sampled positions add."""
    groups = pseudo.shape[-2]
    if groups < 2:
        return (np.full(value.shape, np.nan),) * 3
    low, high = delta_interval(value, pseudo, axis=-2)
    variance = pseudo.var(-2, ddof=1) / groups
    with np.errstate(invalid="ignore", divide="ignore"):
        wide = np.where(variance > 0, np.sqrt(1 + sampling / variance), 1)
    least, most = (np.array([_LIMITS[q][side] for q in QUANTITIES]) for side in (0, 1))
    low, high = value - (value - low) * wide, value + (high - value) * wide
    return np.sqrt(variance) * wide, np.maximum(low, least), np.minimum(high, most)


def _rows_to_one(own: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; rows without energy are left out as uniform zeros."""
    whole = own.sum(1, keepdims=True)
    found: np.ndarray = np.divide(own, whole, out=np.zeros_like(own), where=whole > 0)
    return found
