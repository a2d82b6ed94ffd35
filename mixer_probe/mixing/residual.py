"""The residual stream: how large the skip connection is beside each branch, and what every branch
contributes to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import Call
from mixer_probe.core.memory import LARGE, at_once
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.mixing.attention import cells_of
from mixer_probe.mixing.branches import Branches, branch_ends
from mixer_probe.mixing.estimates import Estimates, estimate
from mixer_probe.mixing.logit_parts import LogitParts
from mixer_probe.mixing.passes import forward_passes, images_record
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

BRANCHES = ("spatial", "channel")
PARTS = ("stem", "spatial branches", "channel branches", "biases", "logit")
Target = Literal["label", "prediction"]


@dataclass(frozen=True)
class ResidualStream(Result):
    """Skip connections beside branches, and contributions of branches to the logits, averaged over
    images.

    Arrays [block, branch] have the spatial branch, then the channel branch; one branch that mixes
    both stands as the spatial one, and what a block does not have is not `present`. `ratio` is
    |z| / |f(z)| of the skip connection z and the branch f(z), layer scale included, averaged over
    positions (Raghu et al. 2021); `prefix_ratio` that of prefix tokens. Positions at which a branch
    is exactly zero are left out, and a branch that is so everywhere is `zero`. `maps` are ratios by
    position, on at most 14 x 14 cells.

    `contribution` is what a branch adds to the logit of the `target` class (the "label", or the
    "prediction" where labels are none of the network's classes) minus the mean logit over classes,
    with the norms after the last block frozen at their statistics: with the stem and the constant
    that biases give, contributions add up to that logit exactly. `parts` of the sum are the stem,
    all spatial and all channel branches, the biases, and the logit itself. NaN where that is
    impossible, for which `reason` says why. Bounds are 95 % intervals over images."""

    title: ClassVar[str] = "Residual stream"
    frame = Frame(
        "block branch",
        """model=model.name model.trained block=blocks.name blocks.depth kind=branches
        ratio=ratio.value ratio_se=ratio.se ratio_low=ratio.low ratio_high=ratio.high
        prefix_ratio=prefix_ratio.value prefix_ratio_low=prefix_ratio.low
        prefix_ratio_high=prefix_ratio.high contribution=contribution.value
        contribution_se=contribution.se contribution_low=contribution.low
        contribution_high=contribution.high zero n""",
    )

    model: ModelRecord
    images: ImagesRecord
    blocks: Annotated[tuple[Layer, ...], "block"]
    branches: Annotated[tuple[str, ...], "branch"]
    present: Annotated[np.ndarray, "block", "branch"]
    zero: Annotated[np.ndarray, "block", "branch"]
    ratio: Annotated[Estimates, "block", "branch"]
    prefix_ratio: Annotated[Estimates, "block", "branch"]
    maps: Annotated[tuple[np.ndarray, ...], "block", "branch", "row", "column"]
    contribution: Annotated[Estimates, "block", "branch"]
    parts: Annotated[tuple[str, ...], "part"]
    part: Annotated[Estimates, "part"]
    target: Target
    reason: str
    n: int

    def to_frame(self) -> Any:
        """One row per branch that there is."""
        return super().to_frame()[self.present.ravel()].reset_index(drop=True)


class _Reader:
    """Reads ratios of norms in forward passes, and hands on what the logits are split into."""

    def __init__(self, model: Model, ends: Sequence[Branches], logits: LogitParts) -> None:
        self.layers = [model.layer(e.block) for e in ends]
        self._ends, self._logits = ends, logits
        self._blocks = {(a.module, a.call): k for k, a in enumerate(self.layers)}
        self._branches = {
            (branch.module, branch.call): (k, b, branch)
            for k, e in enumerate(ends)
            for b, branch in enumerate((e.spatial, e.channel))
            if branch is not None
        }
        self._skips = {
            (e.skip.module, e.skip.call): e.skip
            for e in ends
            if e.skip is not None and e.spatial is not None
        }
        self.paths = [path for path, _ in (*self._blocks, *self._branches, *self._skips)]
        self.paths += logits.norms if not logits.reason else []
        self._given = torch.zeros(0)
        self._skip: tuple[Tensor, Tensor | None] | None = None
        self._first: tuple[Tensor, Tensor | None] | None = None
        # [image], [image] of prefix tokens, and sums and counts over images by position.
        self.ratios: dict[tuple[int, int], list[Tensor]] = {}
        self.prefix: dict[tuple[int, int], list[Tensor]] = {}
        self.maps: dict[tuple[int, int], list[Tensor]] = {}
        self.zero: dict[tuple[int, int], bool] = {}

    def before(self, call: Call) -> None:
        k = self._blocks.get((call.path, call.number))
        if k is not None:
            self._given, self._skip = call.args[0], None
            (self._logits.given if k else self._logits.begin)(self._given)

    def after(self, call: Call) -> Tensor | None:
        place = call.path, call.number
        if place in self._skips:
            self._skip = _norms(call.output, self._skips[place])
        if place in self._branches:
            k, b, layer = self._branches[place]
            self._branch(k, b, layer, call.output)
        if place in self._blocks:
            k = self._blocks[place]
            if self._first is not None:
                # The skip connection of a convolutional block is computed after its branch.
                self._ratio(k, 0, self._skip or _norms(self._given, self.layers[k]), self._first)
                self._first = None
            return self._logits.finish(call)
        return self._logits.frozen(call) if call.path in self._logits.norms else None

    def _branch(self, k: int, b: int, layer: Layer, output: Tensor) -> None:
        norms = _norms(output, layer)
        if not self._logits.reason:
            self._logits.add(output)
        if b == 0 and self._ends[k].channel is None:
            self._first = norms
        elif b == 0:
            self._ratio(k, 0, _norms(self._given, self.layers[k]), norms)
            self._given = self._given + output
        else:
            self._ratio(k, 1, _norms(self._given, self.layers[k]), norms)

    def _ratio(self, k: int, b: int, skip: Any, branch: Any) -> None:
        ratios, prefix = (
            None if z is None else z / torch.where(f > 0, f, torch.nan)
            for z, f in zip(skip, branch, strict=True)
        )
        assert ratios is not None
        key = k, b
        self.zero[key] = self.zero.get(key, True) and not bool(branch[0].any())
        self.ratios.setdefault(key, []).append(ratios.nanmean(1))
        if prefix is not None:
            self.prefix.setdefault(key, []).append(prefix.nanmean(1))
        found = torch.stack([ratios.nansum(0), ratios.isfinite().double().sum(0)])
        self.maps[key] = [*self.maps.get(key, []), found]


def _norms(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Norms [image, position] of positions and of prefix tokens."""
    positions, prefix = positions_and_prefix(x.detach(), layer)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    found = torch.linalg.vector_norm(positions, dim=-1, dtype=wide).double()
    if prefix is None:
        return found, None
    return found, torch.linalg.vector_norm(prefix, dim=-1, dtype=wide).double()


def _map(found: Sequence[Tensor], layer: Layer) -> np.ndarray:
    """Ratios [row, column], on at most 14 x 14 cells, from sums and counts by position."""
    total, count = torch.stack(list(found)).sum(0).cpu()
    assert layer.grid is not None
    ratio = (total / count).reshape(1, 1, *layer.grid)
    return np.asarray(F.adaptive_avg_pool2d(ratio, cells_of(layer.grid))[0, 0].float().numpy())


def _classes(model: Model, images: ImageSource) -> np.ndarray | None:
    """The network's own class of every image, None where labels are none of its classes."""
    try:
        return labels_as_outputs(model, images, "the logit of the true class")
    except (ImagesError, MeasureError):
        return None


@checked(MeasureError)
def residual_stream(
    model: Model, images: ImageSource | Tensor, *, batch_size: int = 32
) -> ResidualStream:
    """Norm ratios of skip connections and branches of every block, and, for pre-norm residual
    networks of one grid, the contribution of every branch to the logits; see `ResidualStream`.

    Raises LayerError for a network without a residual branch whose output a module returns."""
    ends, source = branch_ends(model), as_source(images)
    if all(e.spatial is None for e in ends):
        raise LayerError(
            f"no block of {model.name} has a residual branch whose output one module returns, so "
            "that there are no norms to compare"
        )
    logits = LogitParts(model, ends)
    reader = _Reader(model, ends, logits)
    classes = None if logits.reason else _classes(model, source)
    bytes_each = sum(
        2
        * a.channels
        * (a.positions + a.prefix_tokens)
        * (8 if model.dtype == torch.float64 else 4)
        for a in reader.layers
    )
    split: list[tuple[Tensor, Tensor, Tensor]] = []
    n = 0
    for output in forward_passes(
        model,
        source,
        reader.paths,
        reader.after,
        reader.before,
        batch_size=min(batch_size, at_once(bytes_each, LARGE)),
        title=f"residual stream of {model.name}",
        gradients=not logits.reason,
    ):
        own = len(reader.ratios[next(iter(reader.ratios))][-1])
        wanted = None if classes is None else torch.from_numpy(classes[n : n + own])
        found = logits.split(output, wanted)
        split += [] if found is None else [found]
        n += own
    present = np.array([[e.spatial is not None, e.channel is not None] for e in ends])
    contribution = np.full((*present.shape, n), np.nan)
    parts = np.full((len(PARTS), n), np.nan)
    if not logits.reason:
        terms, constant, score = (torch.cat(one).cpu().numpy() for one in zip(*split, strict=True))
        contribution[present] = terms[:, 1:].T
        sums = [np.where(p, contribution[:, b].T, 0).sum(1) for b, p in enumerate(present.T)]
        if not present[:, 1].any():
            sums[1] = np.full(n, np.nan)
        parts = np.stack([terms[:, 0], *sums, constant, score])
    zero = np.array([[reader.zero.get((k, b), False) for b in range(2)] for k in range(len(ends))])
    return ResidualStream(
        model=model.record,
        images=images_record(source),
        blocks=tuple(reader.layers),
        branches=BRANCHES,
        present=present,
        zero=zero,
        ratio=_estimated(reader.ratios, present.shape, n),
        prefix_ratio=_estimated(reader.prefix, present.shape, n),
        maps=tuple(_maps(reader, k) for k in range(len(ends))),
        contribution=estimate(contribution),
        parts=PARTS,
        part=estimate(parts),
        target="prediction" if classes is None else "label",
        reason=logits.reason,
        n=n,
    )


def _estimated(
    found: dict[tuple[int, int], list[Tensor]], shape: tuple[int, ...], n: int
) -> Estimates:
    values = np.full((*shape, n), np.nan)
    for key, parts in found.items():
        values[key] = torch.cat(parts).cpu().numpy()
    return estimate(values)


def _maps(reader: _Reader, k: int) -> np.ndarray:
    """Ratios [branch, row, column] of block k, NaN where there is no branch."""
    layer = reader.layers[k]
    if layer.grid is None:
        return np.full((2, 0, 0), np.nan, dtype=np.float32)
    blank = np.full(cells_of(layer.grid), np.nan, dtype=np.float32)
    found = [reader.maps.get((k, b)) for b in range(2)]
    return np.stack([blank if one is None else _map(one, layer) for one in found])
