"""From a traced network to its layers: family, blocks, mixing parts, and the meaning of every
tensor's axes."""

from __future__ import annotations

import fnmatch
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from mixer_probe.core.errors import LayerError, ModelError, closest
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


@dataclass(frozen=True)
class BlockRun:
    """One call of a block, as a layer name ("blocks.0", with "#k" where the block runs several
    times a forward pass).

    What runs inside it finishes after the trace's call `start` and not after its own, `order`."""

    name: str
    block: Block
    call: int
    start: int
    order: int


def find_adapter(network: nn.Module, name: str) -> Adapter:
    """The family whose block classes the network is built from.

    Raises ModelError that names the known families for a network that has none of their blocks, or
    blocks of several."""
    found = [adapter for adapter in ADAPTERS if _find_blocks(network, adapter)]
    if len(found) == 1:
        return found[0]
    known = known_families()
    if not found:
        raise ModelError(
            f"'{name}' ({type(network).__name__}) has no block of a known family; known families: "
            f"{known}"
        )
    mixed = " and ".join(a.family for a in found)
    raise ModelError(
        f"'{name}' ({type(network).__name__}) mixes blocks of {mixed}; known are networks of one "
        f"family: {known}"
    )


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
    """The layers of one traced network. `layers` are the ones every network has; `find` reads any
    module path.

    `blocks` are the block modules in the order in which they first run, `runs` all their calls:
    with weights that are shared over depth there are more calls than modules. `prefix` is the
    number of prefix tokens in the sequence that the blocks see.

    Raises ModelError for a network that uses known blocks in another way than its family does, and
    for one whose prefix tokens are neither stated nor countable."""

    def __init__(
        self,
        network: nn.Module,
        calls: Sequence[Call],
        adapter: Adapter,
        input_size: tuple[int, int, int],
    ) -> None:
        self._network = network
        self._modules = dict(network.named_modules())
        # A module at several places has the path of the first, in the trace as well.
        self._paths = {id(module): path for path, module in self._modules.items()}
        self._adapter = adapter
        self._size = input_size
        self._calls = {(c.path, c.call): (i, c) for i, c in enumerate(calls)}
        self._counts: dict[str, int] = {}
        for c in calls:
            self._counts[c.path] = self._counts.get(c.path, 0) + 1
        blocks = [b for b in _find_blocks(network, adapter) if b.path in self._counts]
        self.blocks = tuple(sorted(blocks, key=lambda b: self._order(b.path)))
        if not self.blocks:
            raise ModelError("no block of the network runs in a forward pass in eval mode")
        self._inside = {b.path: {id(m) for m in b.module.modules()} for b in self.blocks}
        runs = [
            (self._order(b.path, call), b, call)
            for b in self.blocks
            for call in range(self._counts[b.path])
        ]
        runs.sort(key=lambda run: run[0])
        starts = [-1, *(order for order, _, _ in runs)]
        self.runs = tuple(
            BlockRun(self._name(block.path, call), block, call, start, order)
            for start, (order, block, call) in zip(starts, runs, strict=False)
        )
        self._first_block = self.runs[0].order
        self._last_block = self.runs[-1].order
        self.prefix = self._count_prefix() if self._tokens else 0

    @property
    def single_blocks(self) -> tuple[Block, ...]:
        """The blocks, each of which runs once: what an analysis of weights takes, for it gives each
        block one depth.

        Raises LayerError for a network with a block that runs several times."""
        several = next((b.path for b in self.blocks if self._counts[b.path] > 1), None)
        if several:
            raise LayerError(
                f"'{several}' runs {self._counts[several]} times a forward pass, so its weights "
                "have no single depth; analyses of representations and attributions take each call"
            )
        return self.blocks

    @cached_property
    def _tokens(self) -> int:
        """Tokens of the sequence that the blocks see, 0 where they see maps. Raises ModelError for
        blocks that return something else than their family's, or that see sequences of several
        lengths."""
        reasons = [
            f"'{r.name}' {a}"
            for r in self.runs
            if isinstance(a := self._axes(r.block.path, r.call), str)
        ]
        sequences = [r for r in self.runs if self._axes(r.block.path, r.call) is Axes.BNC]
        lengths = {self._calls[r.block.path, r.call][1].shape[1] for r in sequences}  # type: ignore[index]
        if len(lengths) > 1:
            # Which of the tokens are prefix tokens, and which grid the others form, is then
            # ambiguous.
            reasons.append(f"its blocks see {' and '.join(map(str, sorted(lengths)))} tokens")
        if reasons:
            name = type(self._network).__name__
            raise ModelError(
                f"{name} is of no known family: {reasons[0]}; known families: {known_families()}"
            )
        return lengths.pop() if lengths else 0

    def _count_prefix(self) -> int:
        """Class, distillation and register tokens before the patch tokens in a block's sequence:
        stated, or counted.

        Stated by the network, or the innermost network around the blocks. Counted as the tokens
        beyond the patches of the embedding: the positions of the last map before the first block,
        or the tokens of a linear layer that reads every value of the image once. Half of the
        blocks' tokens or fewer, and more than these, are a count of something else."""
        tokens = self._tokens
        statements = (
            getattr(self._modules[r.rstrip(".")], "num_prefix_tokens", None)
            for r in reversed(self._roots)
        )
        stated = next(
            (
                n
                for n in statements
                if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < tokens
            ),
            None,
        )
        counts = [math.prod(self._last_map)] if self._last_map else []
        counts += [n for _, n in self._linear_embeddings]
        patches = next((n for n in counts if n <= tokens < 2 * n), 0)
        cure = (
            "set num_prefix_tokens on it to the number of class, distillation and register tokens "
            "before the patches (0 for none)"
        )
        name = type(self._network).__name__
        if stated is None and not patches:
            raise ModelError(
                f"{name}: which of the {tokens} tokens of its blocks are patches is neither stated "
                f"nor countable; {cure}"
            )
        if stated is not None and patches and stated + patches != tokens:
            raise ModelError(
                f"{name} states num_prefix_tokens={stated}, and {tokens - patches} of the {tokens} "
                f"tokens of its blocks are no patches of its embedding, which makes {patches}; "
                f"{cure}"
            )
        return tokens - patches if stated is None else stated

    @cached_property
    def _linear_embeddings(self) -> list[tuple[str, int]]:
        """(module path, tokens) of the linear layers before the first block that read every value
        of the image once."""
        return [
            (path, math.prod(call.shape[1:-1]))
            for (path, _), (order, call) in self._calls.items()
            if order < self._first_block
            and isinstance(linear := self._modules[path], nn.Linear)
            and call.shape is not None
            and math.prod(call.shape[1:-1]) * linear.in_features == math.prod(self._size)
        ]

    @cached_property
    def _last_map(self) -> tuple[int, int] | None:
        """(rows, columns) of what the last convolution, norm or pooling before the first block
        returns."""
        first = self.blocks[0].path + "."
        grids = [
            shape[2:]
            for (path, _), (order, call) in self._calls.items()
            if order < self._first_block
            and not path.startswith(first)
            and _is_channels_first(self._modules[path])
            and len(shape := call.shape or ()) == 4
        ]
        return (grids[-1][0], grids[-1][1]) if grids else None

    def _order(self, path: str, call: int = 0) -> int:
        return self._calls[path, call][0]

    # -- the standard layers -----------------------------------------------------------------------

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Stem, every block with its spatial- and channel-mixing parts, final norm and head, in
        execution order."""
        found: list[tuple[tuple[str, int] | None, Kind]] = [(self._stem, "stem")]
        for run in self.runs:
            for part in self.parts(run, run.block.spec.spatial):
                module = self._modules[part[0]]
                pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
                found.append((part, "channel" if pointwise else "spatial"))
            found += [(part, "channel") for part in self.parts(run, run.block.spec.channel)]
            found.append(((run.block.path, run.call), "block"))
        found.append((self._first(self._adapter.norms, after=self._last_block), "norm"))
        found.append((self._first(self._adapter.heads, after=self._last_block), "head"))
        layers = [self._read(*place, kind) for place, kind in found if place]
        return tuple(sorted(layers, key=lambda layer: layer.order))

    @cached_property
    def _stem(self) -> tuple[str, int] | None:
        return self._first(self._adapter.stems, before=self._first_block)

    @property
    def stem_path(self) -> str | None:
        """The module that ends the stem, the last before the first block; not one that returns its
        input."""
        return self._stem[0] if self._stem else None

    def parts(self, run: BlockRun, names: Sequence[str]) -> list[tuple[str, int]]:
        """(module path, call) of what runs in one call of a block under these names; a module that
        blocks share included."""
        # A switched-off part of timm's mobile blocks is an Identity: it exists and mixes nothing.
        # Swin's drop_path1 is one by design: there it stands for the branch that ends in it.
        return [
            (path, call)
            for name in names
            for path, call in self.calls(run, name)
            if not isinstance(self._modules[path], nn.Identity) or path.endswith("drop_path1")
        ]

    def calls(self, run: BlockRun, name: str) -> list[tuple[str, int]]:
        """(module path, call) of the calls of the module `name` of a block in one call of the
        block; none where it does not exist or does not run."""
        try:
            module = run.block.module.get_submodule(name)
        except AttributeError:
            return []
        path = self._paths.get(id(module), "")
        return [
            (path, call)
            for call in range(self._counts.get(path, 0))
            if run.start < self._order(path, call) <= run.order
        ]

    def _first(
        self, names: Sequence[str], before: float = math.inf, after: float = -1
    ) -> tuple[str, int] | None:
        """(module path, call) of the first of these that runs there: its last call before the
        blocks, or its first after."""
        for path in (root + name for name in names for root in self._roots):
            calls = [
                c for c in range(self._counts.get(path, 0)) if after < self._order(path, c) < before
            ]
            module = self._modules.get(path)
            returns_input = isinstance(module, nn.Identity) or (
                isinstance(module, nn.Sequential) and not len(module)
            )
            if calls and not returns_input:
                return path, calls[-1] if after < 0 else calls[0]
        return None

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        """Where stem and head may be: beside the blocks, or anywhere above them in a network that
        wraps another."""
        parts = self.blocks[0].path.split(".")[:-1]
        return tuple("".join(part + "." for part in parts[:k]) for k in range(len(parts) + 1))

    def _depth(self, path: str, order: int) -> float:
        """i/L after call i of the L calls of blocks, its parts at equal steps before it, 0 at the
        stem, 1 after the last."""
        total = len(self.runs)
        i = bisect_left(self.runs, order, key=lambda run: run.order)
        if i < total and id(self._modules[path]) in self._inside[self.runs[i].block.path]:
            run = self.runs[i]
            if order == run.order:
                return (i + 1) / total
            parts = self.parts(run, (*run.block.spec.spatial, *run.block.spec.channel))
            done = sum(self._order(*part) <= order for part in parts)
            return (i + done / (len(parts) + 1)) / total
        return i / total

    # -- any module path ---------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every readable layer name in execution order; modules that run k times have #0 ..
        #k-1."""
        return [
            self._name(path, call)
            for path, call in self._calls
            if isinstance(self._axes(path, call), Axes)
        ]

    def _name(self, path: str, call: int) -> str:
        return f"{path}#{call}" if self._counts[path] > 1 else path

    def find(self, name: str) -> Layer:
        """The layer of that name. Raises LayerError that lists close names or says why the tensor
        cannot be read."""
        known = {layer.name: layer for layer in self.layers}
        if name in known:
            return known[name]
        path, _, call = name.partition("#")
        if path not in self._modules or not path:
            raise LayerError(f"no layer '{name}'; {closest(name, self.names())}")
        if path not in self._counts:
            raise LayerError(
                f"'{name}' does not run in a forward pass in eval mode; "
                f"{closest(name, self.names())}"
            )
        runs = self._counts[path]
        if (runs > 1 and not call) or not (call or "0").isdigit() or int(call or 0) >= runs:
            calls = " or ".join(f"{path}#{k}" for k in range(runs)) if runs > 1 else path
            raise LayerError(
                f"'{path}' runs {runs} times a forward pass, so '{name}' is no single layer; ask "
                f"for {calls}"
            )
        return self._read(path, int(call or 0), "other")

    def at(self, path: str, call: int) -> Layer:
        """The layer of one call of a module; raises LayerError as `find` does."""
        return self.find(self._name(path, call))

    def select(self, layers: str | Sequence[str]) -> tuple[Layer, ...]:
        """Layers by name, glob ('*' stays inside one dotted part, '**' does not), kind, or the
        words 'blocks', 'spatial', 'channel', 'stem', 'norm', 'head' and 'all', in execution order
        without repeats.

        Raises LayerError for an item that matches nothing, with close names, and for no item at
        all."""
        wanted = [layers] if isinstance(layers, str) else list(layers)
        if not wanted:
            raise LayerError(
                "no layers asked for; give names, globs or a word such as 'blocks' or 'all'"
            )
        found: list[Layer] = []
        for item in wanted:
            standard = _of_word(item, self.layers)
            if standard:
                found += standard
            elif any(c in item for c in "*?["):
                names = [name for name in self.names() if _matches(name, item)]
                if not names:
                    literal = max(re.split(r"[*?\[\]]+", item), key=len)
                    raise LayerError(f"no layer matches '{item}'; {closest(literal, self.names())}")
                found += map(self.find, names)
            elif item in WORDS and item not in self._counts:
                kinds = dict.fromkeys(layer.kind for layer in self.layers)
                raise LayerError(
                    f"this network has no layer of kind '{item}'; its kinds: {', '.join(kinds)}"
                )
            else:
                found.append(self.find(item))
        by_name = {layer.name: layer for layer in found}
        return tuple(sorted(by_name.values(), key=lambda layer: layer.order))

    # -- axes --------------------------------------------------------------------------------------

    def _read(self, path: str, call: int, kind: Kind) -> Layer:
        """The layer of one call of a module. Raises LayerError for a tensor that is no
        representation.

        A sequence as long as the patch tokens has their grid, and one with the prefix tokens before
        them has both; positions of any other number have no grid."""
        order, entry = self._calls[path, call]
        axes, name = self._axes(path, call), self._name(path, call)
        if not isinstance(axes, Axes):
            raise LayerError(f"'{name}' cannot be read: it {axes}")
        shape = entry.shape
        assert shape is not None
        size = dict(zip(axes.name, shape, strict=False))
        grid, prefix = None, 0
        if axes is Axes.BC:
            channels, positions = math.prod(shape[1:]), 0
        elif axes in (Axes.BCHW, Axes.BHWC):
            grid = size["H"], size["W"]
            channels, positions = size["C"], math.prod(grid)
        elif axes is Axes.BCU:
            channels, positions = size["C"], size["U"]
        else:
            channels, positions = size["C"] if "C" in size else size["H"] * size["D"], size["N"]
            # The grid of the enclosing block where blocks have maps (Swin), else of the embedding.
            near = self.token_grid
            block = next((b for b in self.blocks if path.startswith(b.path + ".")), None)
            if block and block.spec.axes is Axes.BHWC:
                around = self._calls[block.path, 0][1].shape or ()
                near = (around[1], around[2]) if len(around) == 4 else None
            patches = math.prod(near) if near else self._tokens - self.prefix
            if positions in (patches, patches + self.prefix):
                grid, prefix, positions = near, positions - patches, patches
        return Layer(
            name,
            kind,
            self._depth(path, order),
            grid,
            channels,
            prefix,
            positions,
            axes.name,
            order,
        )

    def _axes(self, path: str, call: int) -> Axes | str:
        """What the axes of that call's output mean, or a sentence that says why it is no
        representation.

        The axes that the adapter states, if they have the rank of the tensor; else those that the
        module's class or the family fixes for it."""
        shape = self._calls[path, call][1].shape
        if shape is None:
            return "does not return a single tensor"
        stated: Axes | str | None
        block = next(
            (b for b in self.blocks if path == b.path or path.startswith(b.path + ".")), None
        )
        if block:
            stated = block.spec.axes_at(path[len(block.path) + 1 :], block.module)
        else:
            # Paths around the blocks are stated from the root of the family's network, wherever in
            # this one that is.
            paths = [path.removeprefix(root) for root in self._roots if path.startswith(root)]
            stated = next((axes for p in paths if (axes := look_up(self._adapter.around, p))), None)
        if isinstance(stated, str):
            return stated
        rank = len(shape)
        if rank < 2 or shape[0] != BATCH:
            return (
                f"returns a tensor of shape {shape} for {BATCH} images, whose first axis is not "
                "the image"
            )
        # A map of one position after the last block is a pooled vector, wherever its channel axis
        # is.
        one_position = rank == 4 and (shape[2:] == (1, 1) or shape[1:3] == (1, 1))
        if rank == 2 or (one_position and self._order(path, call) > self._last_block):
            return Axes.BC
        if stated is not None and len(stated.name) == rank:
            return stated
        if rank == 3:
            return Axes.BNC
        if rank == 4:
            return (
                Axes.BCHW
                if _is_channels_first(self._modules[path])
                else (stated or self._adapter.outside)
            )
        return f"returns a tensor of {rank} axes, whose meaning is not known"

    @cached_property
    def token_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patch tokens; None where they are not known.

        Of the map that the tokens are made from, or of patches of the size that a linear embedding
        states."""
        patches = self._tokens - self.prefix
        if not self._tokens or (
            self._last_map is not None and math.prod(self._last_map) == patches
        ):
            return self._last_map
        for path, _ in self._linear_embeddings:
            stated = getattr(self._modules[path.rpartition(".")[0]], "patch_size", None)
            sides = (
                (stated, stated)
                if isinstance(stated, int)
                else tuple(stated)
                if isinstance(stated, (tuple, list))
                else ()
            )
            if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
                grid = self._size[1] // sides[0], self._size[2] // sides[1]
                if math.prod(grid) == patches:
                    return grid
        return None


def _is_channels_first(module: nn.Module) -> bool:
    """Modules whose class fixes the channel axis at 1, such as convolutions and batch norms."""
    names = ("Conv2d", "BatchNorm2d", "LayerNorm2d", "Pool2d", "GroupNorm")
    return any(name in cls.__name__ for cls in type(module).__mro__ for name in names)


def matching(item: str, layers: Sequence[Layer]) -> list[Layer]:
    """The `layers` that a word, kind, glob or name stands for, as in `Structure.select`; none if it
    stands for no layer."""
    return _of_word(item, layers) or [
        layer for layer in layers if layer.name == item or _matches(layer.name, item)
    ]


def _of_word(item: str, layers: Sequence[Layer]) -> list[Layer]:
    """The layers of a kind, or of the word for it; all of them for "all"."""
    kind = WORDS.get(item, item)
    return [layer for layer in layers if item == "all" or layer.kind == kind]


def _matches(name: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern.replace("**", "*"))
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
