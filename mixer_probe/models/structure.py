"""From a traced network to its layers: family, blocks, mixing parts, and the meaning of every tensor's axes."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from mixer_probe.errors import LayerError, ModelError, closest
from mixer_probe.models.adapter import Adapter, BlockSpec, look_up
from mixer_probe.models.cnn import CNN
from mixer_probe.models.layer import Axes, Kind, Layer
from mixer_probe.models.mixer import MIXER
from mixer_probe.models.trace import BATCH, Call
from mixer_probe.models.vit import VIT

ADAPTERS = (MIXER, VIT, CNN)
# A backbone inside the embedding (hybrid networks) is part of the stem, whatever its blocks are.
_EMBEDDINGS = {"patch_embed", "stem"}
WORDS: dict[str, Kind] = {
    "stem": "stem",
    "blocks": "block",
    "spatial": "spatial",
    "channel": "channel",
    "norm": "norm",
    "head": "head",
}


@dataclass(frozen=True)
class Block:
    """A block of the network: its module path, what its class states, and the module itself."""

    path: str
    spec: BlockSpec
    module: nn.Module


def find_adapter(network: nn.Module, name: str) -> Adapter:
    """The family whose block classes the network is built from.

    Raises ModelError that names the known families for a network that has none of their blocks, or blocks of several."""
    found = [adapter for adapter in ADAPTERS if _find_blocks(network, adapter)]
    if len(found) == 1:
        return found[0]
    known = known_families()
    if not found:
        raise ModelError(f"'{name}' ({type(network).__name__}) has no block of a known family; known families: {known}")
    mixed = " and ".join(a.family for a in found)
    raise ModelError(f"'{name}' ({type(network).__name__}) mixes blocks of {mixed}; known are networks of one family: {known}")


def has_blocks(network: nn.Module) -> bool:
    """Whether the network holds blocks of any known family."""
    return any(_find_blocks(network, adapter) for adapter in ADAPTERS)


def known_families() -> str:
    """The families and the networks that they include, for messages."""
    return "; ".join(f"{a.family} ({a.includes})" for a in ADAPTERS)


def _find_blocks(network: nn.Module, adapter: Adapter) -> tuple[Block, ...]:
    """Outermost blocks in registration order."""
    blocks: list[Block] = []
    for path, module in network.named_modules():
        spec = adapter.spec(module) if path else None
        inside = any(path.startswith(b.path + ".") for b in blocks)
        if spec and not inside and not _EMBEDDINGS.intersection(path.split(".")):
            blocks.append(Block(path, spec, module))
    return tuple(blocks)


class Structure:
    """The layers of one traced network. `layers` are the ones every network has; `find` reads any module path.

    `prefix` is the number of prefix tokens in the sequence that the blocks see.

    Raises ModelError for a network that uses known blocks in another way than its family does."""

    def __init__(self, network: nn.Module, calls: Sequence[Call], adapter: Adapter) -> None:
        self._network = network
        self._modules = dict(network.named_modules())
        self._adapter = adapter
        self._calls = {self._key(c): (i, c) for i, c in enumerate(calls)}
        self._counts: dict[str, int] = {}
        for c in calls:
            self._counts[c.path] = self._counts.get(c.path, 0) + 1
        blocks = [b for b in _find_blocks(network, adapter) if b.path in self._counts]
        self.blocks = tuple(sorted(blocks, key=lambda b: self._order(b.path)))
        if not self.blocks:
            raise ModelError("no block of the network runs in a forward pass in eval mode")
        self._first_block = self._order(self.blocks[0].path)
        self._last_block = self._order(self.blocks[-1].path)
        self._check_blocks()

    def _check_blocks(self) -> None:
        reasons = [f"'{b.path}' {a}" for b in self.blocks if isinstance(a := self._axes(b.path, 0), str)]
        sequences = [b.path for b in self.blocks if self._axes(b.path, 0) is Axes.BNC]
        lengths = {self._calls[path, 0][1].shape[1] for path in sequences}  # type: ignore[index]
        if len(lengths) > 1:
            # Which of the tokens are prefix tokens, and which grid the others form, is then anybody's guess.
            reasons.append(f"its blocks see {' and '.join(map(str, sorted(lengths)))} tokens")
        if reasons:
            name = type(self._network).__name__
            raise ModelError(f"{name} is of no known family: {reasons[0]}; known families: {known_families()}")

    @staticmethod
    def _key(call: Call) -> tuple[str, int]:
        return call.path, call.call

    def _order(self, path: str, call: int = 0) -> int:
        return self._calls[path, call][0]

    # -- the standard layers -------------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Stem, every block with its spatial- and channel-mixing parts, final norm and head, in execution order."""
        found = [self._read(path, kind) for path, kind in self._standard()]
        ordered = sorted(found, key=lambda layer: layer.order)
        return tuple(replace(layer, depth=self._depth(layer.module, layer.order)) for layer in ordered)

    def _standard(self) -> Iterator[tuple[str, Kind]]:
        stem = self.stem_path
        if stem:
            yield stem, "stem"
        for block in self.blocks:
            for path in self._parts(block, block.spec.spatial):
                yield path, "channel" if _is_pointwise(self._modules[path]) else "spatial"
            yield from ((path, "channel") for path in self._parts(block, block.spec.channel))
            yield block.path, "block"
        norm = self._first(self._adapter.norms, after=self._last_block)
        if norm:
            yield norm, "norm"
        head = self._first(self._adapter.heads, after=self._last_block)
        if head:
            yield head, "head"

    @cached_property
    def stem_path(self) -> str | None:
        """The module whose output enters the first block."""
        return self._first(self._adapter.stems, before=self._first_block)

    def _parts(self, block: Block, names: Sequence[str]) -> list[str]:
        paths = [f"{block.path}.{name}" for name in names]
        # A switched-off part of timm's mobile blocks is an Identity: it exists and mixes nothing.
        return [p for p in paths if p in self._counts and not _is_bare_identity(self._modules[p], p)]

    def _first(self, names: Sequence[str], before: float = math.inf, after: float = -1) -> str | None:
        for path in (root + name for name in names for root in self._roots):
            runs = path in self._counts and after < self._order(path) < before
            if runs and not (isinstance(self._modules[path], nn.Identity) and after >= 0):
                return path
        return None

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        """Where stem and head may be: beside the blocks, or anywhere above them in a network that wraps another."""
        parts = self.blocks[0].path.split(".")[:-1]
        return tuple("".join(part + "." for part in parts[:k]) for k in range(len(parts) + 1))

    def _depth(self, path: str, order: int) -> float:
        """i/L after block i of L, a block's parts at equal steps before it, 0 at the stem, 1 after the last block."""
        total = len(self.blocks)
        for i, block in enumerate(self.blocks):
            if path == block.path:
                return (i + 1) / total
            if path.startswith(block.path + "."):
                parts = [self._order(p) for p in self._parts(block, (*block.spec.spatial, *block.spec.channel))]
                done = sum(part <= order for part in parts)
                return (i + done / (len(parts) + 1)) / total
        return sum(self._order(b.path) < order for b in self.blocks) / total

    # -- any module path -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every readable layer name in execution order; modules that run k times have #0 .. #k-1."""
        return [self._name(path, call) for path, call in self._calls if isinstance(self._axes(path, call), Axes)]

    def _name(self, path: str, call: int) -> str:
        return f"{path}#{call}" if self._counts[path] > 1 else path

    def find(self, name: str) -> Layer:
        """The layer of that name. Raises LayerError that lists close names or says why the tensor cannot be read."""
        known = {layer.name: layer for layer in self.layers}
        if name in known:
            return known[name]
        path, _, call = name.partition("#")
        if path not in self._modules or not path:
            raise LayerError(f"no layer '{name}'; {closest(name, self.names())}")
        if path not in self._counts:
            raise LayerError(f"'{name}' does not run in a forward pass in eval mode; {closest(name, self.names())}")
        runs = self._counts[path]
        if (runs > 1 and not call) or not (call or "0").isdigit() or int(call or 0) >= runs:
            calls = " or ".join(f"{path}#{k}" for k in range(runs)) if runs > 1 else path
            raise LayerError(f"'{path}' runs {runs} times a forward pass, so '{name}' is no single layer; ask for {calls}")
        layer = self._read(path, "other", int(call or 0))
        return replace(layer, depth=self._depth(path, layer.order))

    def select(self, layers: str | Sequence[str]) -> tuple[Layer, ...]:
        """Layers by name, glob ('*' stays inside one dotted part, '**' does not), kind, or the words 'blocks',
        'spatial', 'channel', 'stem', 'norm', 'head' and 'all', in execution order without repeats.

        Raises LayerError for an item that matches nothing, with close names, and for no item at all."""
        wanted = [layers] if isinstance(layers, str) else list(layers)
        if not wanted:
            raise LayerError("no layers asked for; give names, globs or a word such as 'blocks' or 'all'")
        found = {layer.name: layer for item in wanted for layer in self._select_one(item)}
        return tuple(sorted(found.values(), key=lambda layer: layer.order))

    def _select_one(self, item: str) -> list[Layer]:
        if item == "all":
            return list(self.layers)
        kind = WORDS.get(item, item)
        by_kind = [layer for layer in self.layers if layer.kind == kind]
        if by_kind:
            return by_kind
        if any(c in item for c in "*?["):
            names = [name for name in self.names() if _matches(name, item)]
            if not names:
                literal = max(re.split(r"[*?\[\]]+", item), key=len)
                raise LayerError(f"no layer matches '{item}'; {closest(literal, self.names())}")
            return [self.find(name) for name in names]
        if item in WORDS and item not in self._counts:
            raise LayerError(f"this network has no layer of kind '{item}'; its kinds: {', '.join(self._kinds())}")
        return [self.find(item)]

    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(layer.kind for layer in self.layers))

    # -- axes ----------------------------------------------------------------------------------------------------------

    def _read(self, path: str, kind: Kind, call: int = 0) -> Layer:
        order, entry = self._calls[path, call]
        axes = self._axes(path, call)
        if not isinstance(axes, Axes):
            raise LayerError(f"'{self._name(path, call)}' cannot be read: it {axes}")
        shape = entry.shape
        assert shape is not None
        grid, positions, prefix, channels = self._measure(path, axes, shape)
        return Layer(self._name(path, call), kind, 0.0, grid, channels, prefix, positions, axes.name, order)

    def _axes(self, path: str, call: int) -> Axes | str:
        """What the axes of that call's output mean, or a sentence that says why it is no representation."""
        shape = self._calls[path, call][1].shape
        if shape is None:
            return "does not return a single tensor"
        block = next((b for b in self.blocks if path == b.path or path.startswith(b.path + ".")), None)
        stated = block.spec.axes_at(path[len(block.path) + 1 :], block.module) if block else self._around(path)
        if isinstance(stated, str):
            return stated
        if len(shape) < 2 or shape[0] != BATCH:
            return f"returns a tensor of shape {shape} for {BATCH} images, whose first axis is not the image"
        if len(shape) == 2 or (len(shape) == 4 and self._is_pooled(path, call, shape)):
            return Axes.BC
        return self._by_rank(path, stated, len(shape))

    def _around(self, path: str) -> Axes | str | None:
        """What the adapter states about a path outside the blocks, wherever the network's root is."""
        paths = [path.removeprefix(root) for root in self._roots if path.startswith(root)]
        return next((axes for p in paths if (axes := look_up(self._adapter.around, p))), None)

    def _by_rank(self, path: str, stated: Axes | None, rank: int) -> Axes | str:
        """The stated axes if they have this rank, else those that the module's class or the family fixes for it."""
        if stated is not None and len(stated.value.split(", ")) == rank:
            return stated
        if rank == 3:
            return Axes.BNC
        if rank == 4:
            return Axes.BCHW if _is_channels_first(self._modules[path]) else (stated or self._adapter.outside)
        return f"returns a tensor of {rank} axes, whose meaning is not known"

    def _is_pooled(self, path: str, call: int, shape: tuple[int, ...]) -> bool:
        """A map of one position after the last block is a pooled vector, wherever its channel axis is."""
        after = self._order(path, call) > self._last_block
        return after and (shape[2:] == (1, 1) or shape[1:3] == (1, 1))

    def _measure(self, path: str, axes: Axes, shape: tuple[int, ...]) -> tuple[tuple[int, int] | None, int, int, int]:
        """Grid, positions without prefix tokens, prefix tokens, channels."""
        if axes is Axes.BC:
            return None, 0, 0, math.prod(shape[1:])
        if axes is Axes.BCHW:
            return (shape[2], shape[3]), shape[2] * shape[3], 0, shape[1]
        if axes is Axes.BHWC:
            return (shape[1], shape[2]), shape[1] * shape[2], 0, shape[3]
        n, channels = {
            Axes.BNC: (shape[1], shape[-1]),
            Axes.BCN: (shape[-1], shape[1]),
            Axes.BCU: (shape[-1], shape[1]),
            Axes.BNHD: (shape[1], shape[2] * shape[-1]),
            Axes.BHND: (shape[2], shape[1] * shape[-1]),
        }[axes]
        return *((None, n, 0) if axes is Axes.BCU else self._sequence(path, n)), channels

    def _sequence(self, path: str, n: int) -> tuple[tuple[int, int] | None, int, int]:
        """Grid, positions and prefix tokens of a sequence of `n`: the whole grid, or prefix tokens and then the grid."""
        grid = self._grid_near(path)
        size = math.prod(grid) if grid else self._embedded
        if n == size:
            return grid, n, 0
        if n == size + self.prefix:
            return grid, size, self.prefix
        return None, n, 0

    def _grid_near(self, path: str) -> tuple[int, int] | None:
        """The token grid at a place: that of the enclosing block where blocks have maps (Swin), else of the embedding."""
        block = next((b for b in self.blocks if path.startswith(b.path + ".")), None)
        if block and block.spec.axes is Axes.BHWC:
            shape = self._calls[block.path, 0][1].shape
            return (shape[1], shape[2]) if shape and len(shape) == 4 else None
        return self.token_grid

    @cached_property
    def token_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patch tokens, from the last convolution before the first block."""
        first = self.blocks[0].path + "."
        grids = [
            shape[2:]
            for (path, _), (order, call) in self._calls.items()
            if order < self._first_block
            and not path.startswith(first)
            and isinstance(self._modules[path], nn.Conv2d)
            and len(shape := call.shape or ()) == 4
        ]
        return (grids[-1][0], grids[-1][1]) if grids else None

    @cached_property
    def prefix(self) -> int:
        """Class, distillation and register tokens before the patch tokens in a block's sequence."""
        if self.blocks[0].spec.axes is not Axes.BNC or not self._embedded:
            return 0
        shape = self._calls[self.blocks[0].path, 0][1].shape
        return max((shape[1] if shape else 0) - self._embedded, 0)

    @cached_property
    def _embedded(self) -> int:
        """How many patch tokens the embedding makes: its grid, or the sequence that the stem returns; 0 if unknown."""
        if self.token_grid:
            return math.prod(self.token_grid)
        shape = self._calls[self.stem_path, 0][1].shape if self.stem_path else None
        return shape[1] if shape and len(shape) == 3 else 0


def _is_channels_first(module: nn.Module) -> bool:
    """Modules whose class fixes the channel axis at 1, such as convolutions and batch norms."""
    names = ("Conv2d", "BatchNorm2d", "LayerNorm2d", "Pool2d", "GroupNorm")
    return any(name in cls.__name__ for cls in type(module).__mro__ for name in names)


def _is_bare_identity(module: nn.Module, path: str) -> bool:
    # Swin's drop_path1 is an Identity by design: there it stands for the branch that ends in it.
    return isinstance(module, nn.Identity) and not path.endswith("drop_path1")


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def matching(item: str, layers: Sequence[Layer]) -> list[Layer]:
    """The `layers` that a word, kind, glob or name stands for, as in `Structure.select`; none if it stands for no layer."""
    kind = WORDS.get(item, item)
    by_kind = [layer for layer in layers if layer.kind == kind]
    return by_kind or [layer for layer in layers if item in ("all", layer.name) or _matches(layer.name, item)]


def _matches(name: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern.replace("**", "*"))
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
