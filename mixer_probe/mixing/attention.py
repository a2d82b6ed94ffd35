"""Attention maps of ViTs: how far their heads attend, and tokens of large norm.

Attention weights say which values are averaged, and not what becomes of them on the way through the
value projection, the skip connection and the MLPs: the Jacobian does (`spatial_mixing`)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixer_probe.capture import ImageSource
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import LayerError, MeasureError, closest
from mixer_probe.core.frame import Frame
from mixer_probe.core.hooks import Call
from mixer_probe.core.memory import WORKING, at_once
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.mixing.estimates import Estimates, estimate
from mixer_probe.mixing.high_norm import HighNormTokens, high_norm_tokens
from mixer_probe.mixing.passes import forward_passes, images_record
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.weights.kernels import step_of
from mixer_probe.weights.offsets import pair_distance

# Maps are stored on grids of at most so many rows and columns.
CELLS = 14


@dataclass(frozen=True)
class AttentionDistance(Result):
    """How far the heads of every block attend, averaged over images, and its tokens of large norm.

    Arrays [block, head] are NaN beyond a block's own `heads`. With a_ij the attention of patch i to
    patch j, prefix tokens dropped and rows renormalised: `distance` is sum_j a_ij |pos_i - pos_j|
    in pixels, averaged over patches i (Raghu et al. 2021, "Do Vision Transformers See Like
    Convolutional Neural Networks?"; without renormalising uniform attention of a ViT-B/16 would
    have 115.9009 px and not 116.4922). `entropy` is -sum_j a_ij ln a_ij in nats, `prefix` the
    attention of patches to prefix tokens, before rows are renormalised (NaN without such tokens).
    `uniform` and `uniform_entropy` are those of equal attention to all patches that a head can see:
    of the grid, or of the window where attention is within windows, as in Swin. `mean` is the
    distance averaged over heads.

    `rollout` is the mean distance in the product of (A + I) / 2 up to every block, A averaged over
    heads (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers"), of all tokens,
    prefix tokens then dropped and rows renormalised; NaN where attention is within windows, or the
    difference of two maps.

    `tokens` are those of large norm after every block.

    `maps` are averaged over heads and images, on `shapes` (rows, columns) of at most 14 x 14 cells,
    of windows where there are windows. Bounds are 95 % intervals over images."""

    title: ClassVar[str] = "Attention distance"
    frame = Frame(
        "block head",
        """model=model.name model.trained block=blocks.name blocks.depth head
        distance=distance.value distance_se=distance.se distance_low=distance.low
        distance_high=distance.high uniform relative relative_low relative_high
        entropy=entropy.value entropy_se=entropy.se entropy_low=entropy.low
        entropy_high=entropy.high relative_entropy prefix=prefix.value prefix_se=prefix.se
        prefix_low=prefix.low prefix_high=prefix.high n""",
    )

    model: ModelRecord
    images: ImagesRecord
    blocks: Annotated[tuple[Layer, ...], "block"]
    heads: Annotated[np.ndarray, "block"]
    windowed: Annotated[np.ndarray, "block"]
    distance: Annotated[Estimates, "block", "head"]
    entropy: Annotated[Estimates, "block", "head"]
    prefix: Annotated[Estimates, "block", "head"]
    uniform: Annotated[np.ndarray, "block"]
    uniform_entropy: Annotated[np.ndarray, "block"]
    mean: Annotated[Estimates, "block"]
    rollout: Annotated[Estimates, "block"]
    tokens: Annotated[HighNormTokens, "block"]
    shapes: Annotated[np.ndarray, "block", "2"]
    maps: Annotated[tuple[np.ndarray, ...], "block", "cell", "cell"]
    n: int

    @property
    def relative(self) -> Annotated[np.ndarray, "block", "head"]:
        """Distance divided by that of uniform attention."""
        return _over(self.distance.value, self.uniform)

    @property
    def relative_low(self) -> Annotated[np.ndarray, "block", "head"]:
        """Lower bound of `relative`."""
        return _over(self.distance.low, self.uniform)

    @property
    def relative_high(self) -> Annotated[np.ndarray, "block", "head"]:
        """Upper bound of `relative`."""
        return _over(self.distance.high, self.uniform)

    @property
    def relative_entropy(self) -> Annotated[np.ndarray, "block", "head"]:
        """Entropy divided by that of uniform attention."""
        return _over(self.entropy.value, self.uniform_entropy)

    def to_frame(self) -> Any:
        """One row per block and head."""
        frame = super().to_frame()
        return frame[
            frame["head"] < np.repeat(self.heads, self.distance.value.shape[1])
        ].reset_index(drop=True)


def _over(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(reference[:, None] > 0, values / reference[:, None], np.nan)


@dataclass(frozen=True)
class AttentionMaps(Result):
    """Attention of every head of a block, averaged over images.

    `maps` [head, position, position] are of patches to patches, prefix tokens dropped and rows
    renormalised; `prefix` [head, position] is the attention of every patch to prefix tokens before
    that, and `of_prefix` [head, token, position] that of the prefix tokens to the patches.
    Positions are those of `grid`, or of one window, averaged over windows."""

    title: ClassVar[str] = "Attention maps"
    frame = Frame("head", "model=model.name block=block.name head prefix.mean n")

    model: ModelRecord
    images: ImagesRecord
    block: Layer
    grid: tuple[int, int]
    maps: Annotated[np.ndarray, "head", "position", "position"]
    prefix: Annotated[np.ndarray, "head", "position"]
    of_prefix: Annotated[np.ndarray, "head", "token", "position"]
    n: int


@dataclass(frozen=True)
class _Attention:
    """Where a block's attention maps pass: `places` are (path, call) of its `attn_drop`s, `grid`
    the positions that one map covers, and `step` the pixels from one to the next."""

    layer: Layer
    places: tuple[tuple[str, int], ...]
    grid: tuple[int, int]
    step: tuple[float, float]
    windowed: bool
    heads: int

    @property
    def size(self) -> int:
        """Patches that one map covers."""
        return self.grid[0] * self.grid[1]


def _attentions(model: Model) -> list[_Attention]:
    """The attention of every call of a block. Raises LayerError for a network without any, and for
    windows that do not fill their grid."""
    found = []
    for run in model.structure.runs:
        layer, block = model.layer(run.name), run.block.module
        window: Any = getattr(block, "window_size", None)
        inside = [
            path.rpartition("attn_drop")[0].removesuffix(".")
            for path, _ in block.named_modules()
            if path.rpartition(".")[2] == "attn_drop"
        ]
        parents = [place for name in inside for place in model.structure.calls(run, name)]
        if not parents or layer.grid is None or layer.axes not in (Axes.BNC.name, Axes.BHWC.name):
            continue
        windowed = layer.axes == Axes.BHWC.name
        grid = tuple(window) if windowed else layer.grid
        if windowed and (layer.grid[0] % grid[0] or layer.grid[1] % grid[1]):
            raise LayerError(
                f"windows of {grid[0]} x {grid[1]} do not fill the {layer.grid[0]} x "
                f"{layer.grid[1]} positions of '{run.name}': give an input_size that they fill"
            )
        heads = sum(
            int(getattr(model.module.get_submodule(path), "num_heads", 1)) for path, _ in parents
        )
        places = tuple((f"{path}.attn_drop", call) for path, call in parents)
        step = step_of(model.input.size, layer.grid)
        found.append(_Attention(layer, places, (grid[0], grid[1]), step, windowed, heads))
    if not found:
        raise LayerError(
            f"{model.name} is a {model.family} without attention maps; those of ViT, DeiT, BEiT, "
            "EVA and Swin are read"
        )
    return found


class _Reader:
    """Reads the attention of blocks in forward passes, and the norms after them."""

    def __init__(
        self,
        model: Model,
        attentions: list[_Attention],
        read: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.attentions = attentions
        # Where maps pass, where blocks end, and where windows are given their masks.
        self._maps = {place: k for k, a in enumerate(attentions) for place in a.places}
        self._ends = {(a.layer.module, a.layer.call): k for k, a in enumerate(attentions)}
        self._masked = {
            a.places[0][0].removesuffix(".attn_drop"): k
            for k, a in enumerate(attentions)
            if a.windowed
        }
        self.paths = [path for path, _ in (*self._maps, *self._ends)] + list(self._masked)
        self._own = read or self._reduce
        self._pieces: dict[int, list[Tensor]] = defaultdict(list)
        self._distances = [
            torch.from_numpy(pair_distance(a.grid, a.step)).to(model.device) for a in attentions
        ]
        self._rolled = torch.zeros(0)
        # One matrix over all tokens per block moves its values.
        self.rolls = all(len(a.places) == 1 and not a.windowed for a in attentions)
        self.masks: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}
        self.values: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in attentions]
            for name in ("distance", "entropy", "prefix", "rollout", "norm")
        }

    def before(self, call: Call) -> None:
        k = self._masked.get(call.path)
        if k is not None and call.kwargs.get("mask") is not None:
            self.masks[k] = call.kwargs["mask"].detach() == 0

    def after(self, call: Call) -> None:
        k = self._maps.get((call.path, call.number))
        if k is not None:
            self._pieces[k].append(call.output.detach())
        k = self._ends.get((call.path, call.number))
        if k is None:
            return
        pieces = self._pieces.pop(k, [])
        if len(pieces) != len(self.attentions[k].places):
            raise LayerError(
                f"the attention maps of '{call.path}' do not pass through its attn_drop, so they "
                "cannot be read"
            )
        positions, _ = positions_and_prefix(call.output, self.attentions[k].layer)
        self.values["norm"][k].append(_wide(positions).norm(dim=-1))
        maps = torch.cat([_wide(piece) for piece in pieces], dim=1)
        self._own(k, maps.reshape(len(positions), -1, *maps.shape[1:]))

    def _reduce(self, k: int, maps: Tensor) -> None:
        """One batch of maps [image, window, head, token, token] of attention k."""
        attention = self.attentions[k]
        prefix, distances = attention.layer.prefix_tokens, self._distances[k].to(maps.dtype)
        to_prefix, patches, total = split_prefix(maps, prefix)
        # Of renormalised rows a / t, without making them.
        self._add("distance", k, torch.einsum("bwhij,ij->bwhi", patches, distances) / total)
        self._add("entropy", k, torch.special.entr(patches).sum(-1) / total + total.log())
        self._add("prefix", k, to_prefix if prefix else torch.full_like(to_prefix, torch.nan))
        weights = (1 / total).nan_to_num() / math.prod(maps.shape[1:3])
        mean = torch.einsum("bwhij,bwhi->ij", patches, weights) / len(maps)
        found = coarse(mean, attention.grid).double() * len(maps)
        self.sums[k] = self.sums[k] + found if k in self.sums else found
        # Differential attention subtracts one map of a head from another.
        self.rolls = self.rolls and maps.shape[2] == attention.heads
        if self.rolls:
            step = maps[:, 0].mean(1) / 2
            step.diagonal(dim1=1, dim2=2).add_(0.5)
            self._rolled = step if k == 0 else step @ self._rolled
            _, rolled, total = split_prefix(self._rolled, prefix)
            far = torch.einsum("bij,ij->bi", rolled, distances) / total
            self.values["rollout"][k].append(far.double().nanmean(-1))

    def _add(self, name: str, k: int, found: Tensor) -> None:
        """Values [image, window, head, query] as means over windows and queries."""
        self.values[name][k].append(found.double().transpose(1, 2).flatten(2).nanmean(-1))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def split_prefix(maps: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attention [..., token, token] as that of every patch to prefix tokens [..., patch], to the
    patches [..., patch, patch], and the sum of the latter, NaN where a row has none."""
    rows = maps[..., prefix:, :]
    patches = rows[..., prefix:]
    total = patches.sum(-1)
    return rows[..., :prefix].sum(-1), patches, torch.where(total > 0, total, torch.nan)


def patches_of(maps: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """(attention of every patch to prefix tokens [..., patch], attention [..., patch, patch] with
    rows that sum to 1) of attention [..., token, token].

    A row without any attention to patches is NaN."""
    to_prefix, patches, total = split_prefix(maps, prefix)
    return to_prefix, patches / total[..., None]


def _grid(layer: Layer) -> tuple[int, int]:
    assert layer.grid is not None
    return layer.grid


def coarse(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention [..., position, position] of a grid on at most 14 x 14 cells, by averages over
    positions, rows that sum to 1."""
    cells = cells_of(grid)
    if cells == grid:
        return maps
    lead, pooled = maps.shape[:-2], maps.reshape(-1, *grid, *grid)
    for _ in range(2):
        # Keys, then queries, which are the last axes after the first round.
        shape = pooled.shape[:3]
        pooled = F.adaptive_avg_pool2d(pooled.flatten(0, 2)[:, None], cells)
        pooled = pooled.reshape(*shape, *cells).permute(0, 3, 4, 1, 2)
    pooled = pooled.reshape(*lead, cells[0] * cells[1], cells[0] * cells[1])
    return pooled / pooled.sum(-1, keepdim=True)


def cells_of(grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the cells on which maps of a grid are stored."""
    return min(grid[0], CELLS), min(grid[1], CELLS)


def _uniform(attention: _Attention, mask: Tensor | None) -> tuple[float, float]:
    """Mean distance in pixels and entropy of equal attention to all positions that a query sees."""
    distance = pair_distance(attention.grid, attention.step)
    seen = np.ones((1, *distance.shape)) if mask is None else mask.cpu().numpy().astype(float)
    count = seen.sum(-1)
    return float(((seen * distance).sum(-1) / count).mean()), float(np.log(count).mean())


@checked(MeasureError)
def attention_distance(
    model: Model, images: ImageSource | Tensor, *, batch_size: int = 32
) -> AttentionDistance:
    """Mean attention distance, entropy and attention to prefix tokens of every head, rollout, and
    tokens of large norm, for ViT, DeiT, BEiT, EVA and Swin; see `AttentionDistance`.

    Fused attention is switched off for the passes. Raises LayerError for a network without
    attention maps."""
    attentions = _attentions(model)
    reader = _Reader(model, attentions)
    _pass(model, images, reader, batch_size)
    found = {
        name: [torch.cat(one).cpu().numpy() for one in values if one]
        for name, values in reader.values.items()
    }
    heads = np.array([one.shape[1] for one in found["distance"]])
    n = len(found["distance"][0])

    def per_head(name: str) -> np.ndarray:
        array = np.full((len(heads), int(heads.max()), n), np.nan)
        for k, one in enumerate(found[name]):
            array[k, : heads[k]] = one.T
        return array

    distance = per_head("distance")
    uniform = np.array([_uniform(a, reader.masks.get(k)) for k, a in enumerate(attentions)])
    rolled = np.array(found["rollout"]) if reader.rolls else np.full((len(heads), n), np.nan)
    return AttentionDistance(
        model=model.record,
        images=images_record(images),
        blocks=tuple(a.layer for a in attentions),
        heads=heads,
        windowed=np.array([a.windowed for a in attentions]),
        distance=estimate(distance),
        entropy=estimate(per_head("entropy")),
        prefix=estimate(per_head("prefix")),
        uniform=uniform[:, 0],
        uniform_entropy=uniform[:, 1],
        mean=estimate(np.nansum(distance, axis=1) / heads[:, None]),
        rollout=estimate(rolled),
        tokens=high_norm_tokens(found["norm"], [_grid(a.layer) for a in attentions]),
        shapes=np.array([cells_of(a.grid) for a in attentions]),
        maps=tuple((total / n).float().cpu().numpy() for total in reader.sums.values()),
        n=n,
    )


@checked(MeasureError)
def attention_maps(
    model: Model, images: ImageSource | Tensor, block: str, *, batch_size: int = 32
) -> AttentionMaps:
    """Attention of every head of a block such as "blocks.3", averaged over images; see
    `AttentionMaps`.

    Raises LayerError for a block without attention maps, with close names."""
    attentions = _attentions(model)
    names = [a.layer.name for a in attentions]
    if block not in names:
        raise LayerError(f"no block with attention '{block}'; {closest(block, names)}")
    attention = attentions[names.index(block)]
    sums: dict[str, Tensor] = {}

    def add(_k: int, maps: Tensor) -> None:
        to_prefix, patches = patches_of(maps, attention.layer.prefix_tokens)
        of_prefix = maps[..., : attention.layer.prefix_tokens, attention.layer.prefix_tokens :]
        parts = {"maps": patches, "prefix": to_prefix, "of_prefix": of_prefix}
        for name, part in parts.items():
            total = part.double().mean(1).sum(0)
            sums[name] = sums[name] + total if name in sums else total

    reader = _Reader(model, [attention], add)
    n = _pass(model, images, reader, batch_size)
    return AttentionMaps(
        model=model.record,
        images=images_record(images),
        block=attention.layer,
        grid=attention.grid,
        **{name: (total / n).float().cpu().numpy() for name, total in sums.items()},
        n=n,
    )


def _pass(model: Model, images: ImageSource | Tensor, reader: _Reader, batch_size: int) -> int:
    """Read all images; gives their number."""
    # Scores, weights, and what is computed of them, in float32 or float64.
    bytes_each = 32 * max(
        a.heads * (a.layer.positions + a.layer.prefix_tokens) * (a.size + a.layer.prefix_tokens)
        for a in reader.attentions
    )
    passes = forward_passes(
        model,
        images,
        reader.paths,
        reader.after,
        reader.before,
        batch_size=min(batch_size, at_once(bytes_each, WORKING)),
        title=f"attention of {model.name}",
    )
    return sum(len(output) for output in passes)
