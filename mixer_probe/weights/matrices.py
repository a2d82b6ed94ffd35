"""Every matrix that mixes positions or channels in the blocks of a network, with its role, read
from the blocks' own modules.

The rules name the leaves of timm's blocks: fused layers are split into the matrices that they hold
(query, key and value; the two halves of a gated MLP; the attention and MLP parts of a parallel
block).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.layers.mlp import GluMlp
from torch import nn

from mixer_probe.core.errors import LayerError
from mixer_probe.models.layer import Axes
from mixer_probe.models.model import Model
from mixer_probe.models.structure import Block
from mixer_probe.weights.operators import applied_weight
from mixer_probe.zoo.architectures import UntiedMlp

Mixes = Literal["spatial", "channel", "both"]
Pair = tuple[int, int]

_QUERY_KEY = ("query", "key")
_QUERY_KEY_VALUE = (*_QUERY_KEY, "value")
_SEPARATE = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
_OUTPUTS = {
    "proj": "proj",
    "attn_out_proj": "proj",
    "mlp_out_proj": "channel fc2",
    "out_proj": "proj",
}
_GATED = {"fc1_g": "fc1 (gate)", "fc1_x": "fc1 (value)"}
_BIAS_NETWORKS = ("cpb_mlp", "rel_pos")
_NO_FEATURES = "makes position biases from coordinates and mixes no features"
_NOT_2D = "is neither a linear layer nor a 2-D convolution"


@dataclass(frozen=True)
class MixingMatrix:
    """One matrix or kernel: `weight` [out, in] or [out, in / groups, kh, kw] as the layer applies
    it.

    `main` is False for what is beside the mixing branches: shortcuts, downsampling between blocks,
    squeeze-and-excitation, output gates. `grid` is the input grid (rows, columns) of a convolution,
    a multiple of its stride."""

    layer: str
    role: str
    kind: Mixes
    block: str
    depth: float
    main: bool
    weight: torch.Tensor = field(repr=False)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    grid: Pair | None = None

    def frequency_grid(self, largest: int | None) -> Pair:
        """The grid of a convolution, halved until no side is above `largest`, but not below the
        extent of the kernel."""
        assert self.grid is not None
        size = self.weight.shape[2:]
        if tuple(size) == self.stride and self.dilation == (1, 1):
            return self.stride
        sides = []
        for length, taps, stride, dilation in zip(self.grid, size, self.stride, self.dilation):
            while largest is not None and length > largest:
                length = -(-length // 2)
            sides.append(-(-max(length, dilation * (taps - 1) + 1) // stride) * stride)
        return sides[0], sides[1]


@dataclass(frozen=True)
class HeadProducts:
    """The products left @ right of every head, [head, out, d] and [head, d, in], of one attention
    layer."""

    layer: str
    role: str
    kind: Mixes
    block: str
    depth: float
    left: torch.Tensor = field(repr=False)
    right: torch.Tensor = field(repr=False)


@dataclass(frozen=True)
class MixingMatrices:
    """All of a network. `left_out` pairs the path of every other weight inside the blocks with the
    reason."""

    matrices: tuple[MixingMatrix, ...]
    products: tuple[HeadProducts, ...]
    left_out: tuple[tuple[str, str], ...]


def mixing_matrices(model: Model) -> MixingMatrices:
    """The linear layers and convolutions of all blocks, and of the downsampling between blocks, in
    execution order of the blocks.

    A token MLP per group of channels has two matrices for each group. Weights of one axis (norms,
    scales, biases) are no matrices and are not listed."""
    blocks = model.structure.single_blocks
    matrices: list[MixingMatrix] = []
    products: list[HeadProducts] = []
    left_out: list[tuple[str, str]] = []
    for i, block in enumerate(blocks):
        own = list(_untied_matrices(block, (i + 1) / len(blocks)))
        for path, module in _leaves(block.module):
            if not _in_bias_network(path):
                weight, layer, leaf = (
                    applied_weight(module),
                    f"{block.path}.{path}",
                    _Leaf(block, path, module),
                )
                for part in leaf.parts():
                    rows_columns = weight[part.rows][:, part.columns]
                    own.append(
                        _matrix(
                            model,
                            layer,
                            module,
                            part,
                            rows_columns,
                            block.path,
                            (i + 1) / len(blocks),
                        )
                    )
        matrices += own
        for path, attention in block.module.named_modules():
            if hasattr(attention, "num_heads"):
                products += _head_products(
                    ".".join(filter(None, (block.path, path))), attention, own
                )
        listed = {m.layer for m in own}
        untied = {id(p) for mlp in _untied_mlps(block).values() for p in mlp.parameters()}
        for path, parameter in block.module.named_parameters():
            if f"{block.path}.{path.removesuffix('.weight')}" in listed or id(parameter) in untied:
                continue
            if _in_bias_network(path) and path.endswith("weight"):
                left_out.append((f"{block.path}.{path}", _NO_FEATURES))
            elif sum(size > 1 for size in parameter.shape) >= 2:
                left_out.append((f"{block.path}.{path}", _NOT_2D))
    return MixingMatrices((*matrices, *_between_blocks(model)), tuple(products), tuple(left_out))


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for path, leaf in module.named_modules():
        if isinstance(leaf, (nn.Linear, nn.Conv2d)):
            yield path, leaf


def _untied_mlps(block: Block) -> dict[str, UntiedMlp]:
    return {p: m for p, m in block.module.named_modules() if isinstance(m, UntiedMlp)}


def _untied_matrices(block: Block, depth: float) -> Iterator[MixingMatrix]:
    """The matrices of every group of channels, "blocks.0.mlp_tokens.fc1_weight[3]"."""
    for path, mlp in _untied_mlps(block).items():
        for name in ("fc1", "fc2"):
            for g, weight in enumerate(mlp.get_parameter(f"{name}_weight").detach()):
                layer = f"{block.path}.{path}.{name}_weight[{g}]"
                yield MixingMatrix(
                    layer, f"token {name}", "spatial", block.path, depth, True, weight
                )


def _in_bias_network(path: str) -> bool:
    return any(part in _BIAS_NETWORKS for part in path.split("."))


def _matrix(
    model: Model,
    layer: str,
    leaf: nn.Linear | nn.Conv2d,
    part: _Part,
    weight: torch.Tensor,
    block: str,
    depth: float,
) -> MixingMatrix:
    """The matrix or kernel that a leaf applies; the grid of a convolution follows from its output,
    a multiple of the stride."""
    place = (layer, part.role, part.kind, block, depth, part.main)
    if isinstance(leaf, nn.Linear) or (leaf.kernel_size == (1, 1) and leaf.groups == 1):
        # The stride of a 1 x 1 convolution drops positions, and the matrix is the same.
        return MixingMatrix(*place, weight.flatten(1))
    (down, right), dilation = leaf.stride, (leaf.dilation[0], leaf.dilation[1])
    if leaf.kernel_size != (1, 1):
        for name in filter(None, (layer, f"{layer}#0", block)):
            try:
                grid = model.layer(name).grid
            except LayerError:
                continue
            if grid:
                input_grid = (grid[0] * down, grid[1] * right)
                return MixingMatrix(
                    *place, weight, (down, right), dilation, leaf.groups, input_grid
                )
    return MixingMatrix(*place, weight, (1, 1), dilation, leaf.groups, (1, 1))


@dataclass(frozen=True)
class _Part:
    """A matrix that a leaf holds: some of the rows or columns of its weight, with their role."""

    role: str
    kind: Mixes
    main: bool = True
    rows: Any = ...
    columns: Any = ...


class _Leaf:
    """A linear layer or convolution at `path` of a block: what it mixes, its role, and the matrices
    that it holds."""

    def __init__(self, block: Block, path: str, module: nn.Linear | nn.Conv2d) -> None:
        self.path, self.module = path, module
        above, _, self.name = path.rpartition(".")
        self.parent: Any = block.module.get_submodule(above)
        on_tokens = isinstance(module, nn.Linear) and block.spec.axes_at(path, block.module) in (
            Axes.BCN,
            Axes.BCU,
        )
        self.kind: Mixes = "spatial" if on_tokens else "channel"
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            self.kind = "spatial" if module.in_channels == module.groups else "both"
        self.branch = "token" if self.kind == "spatial" else "channel"

    def parts(self) -> list[_Part]:
        """The matrices that it holds; fused layers hold several."""
        rows, columns = self.module.weight.shape[:2]
        if self.name == "qkv":
            index = torch.arange(rows)
            if getattr(self.parent, "head_first", False):
                index = index.reshape(self.parent.num_heads, 3, -1).transpose(0, 1).flatten()
            return [
                _Part(role, _attention_kind(role), rows=part)
                for role, part in zip(_QUERY_KEY_VALUE, index.chunk(3))
            ]
        if hasattr(self.parent, "in_split") and self.name in ("in_proj", "out_proj"):
            # A parallel block stacks the MLP on queries, keys and values, and may join the two
            # outputs side by side.
            hidden, *widths = (int(n) for n in self.parent.in_split)
            if self.name == "in_proj":
                ends = [0, hidden, *(hidden + sum(widths[: k + 1]) for k in range(3))]
                roles = ("channel fc1", *_QUERY_KEY_VALUE)
                return [
                    _Part(r, _attention_kind(r), rows=slice(a, b))
                    for r, a, b in zip(roles, ends, ends[1:])
                ]
            split = columns - hidden
            outputs = {"proj": slice(0, split), "channel fc2": slice(split, None)}
            return [_Part(role, "channel", columns=part) for role, part in outputs.items()]
        if self.name == "fc1" and isinstance(self.parent, GluMlp):
            halves = (slice(0, rows // 2), slice(rows // 2, rows))
            names = (
                ("value", "gate") if getattr(self.parent, "gate_last", True) else ("gate", "value")
            )
            return [
                _Part(f"{self.branch} fc1 ({name})", self.kind, rows=half)
                for name, half in zip(names, halves)
            ]
        role = self.role()
        kind = _attention_kind(role) if role in _QUERY_KEY else self.kind
        return [_Part(role, kind, main=role not in ("gate", "shortcut"))]

    def role(self) -> str:
        """What it does in its block, in the field's words where it has some, else its path."""
        path, name, in_attention = self.path, self.name, hasattr(self.parent, "num_heads")
        first, above = path.partition(".")[0], path.rpartition(".")[0].rpartition(".")[2]
        if first in ("downsample", "shortcut"):
            return "shortcut"
        if first == "se" or (name == "gate" and in_attention):
            return "gate"
        if name in _SEPARATE or (name == "proj" and above in _QUERY_KEY_VALUE):
            return _SEPARATE.get(name, above)
        if path == "linear_tokens" or path.endswith("gate.proj"):
            return "token mixing"
        if name in _OUTPUTS and (in_attention or above == "output"):
            return _OUTPUTS[name]
        if name in ("fc1", "fc2", *_GATED):
            return f"{self.branch} {_GATED.get(name, name)}"
        # ConvMixer's blocks number their parts.
        return (
            {"spatial": "depthwise", "channel": "pointwise"}.get(self.kind, path)
            if first.isdigit()
            else path
        )


def _attention_kind(role: str) -> Mixes:
    """Query and key decide which positions are read; values and outputs are what is written in
    each."""
    return "spatial" if role in _QUERY_KEY else "channel"


def _head_products(layer: str, attention: Any, own: list[MixingMatrix]) -> list[HeadProducts]:
    """W_Q' W_K and W_O W_V of every head: what attention compares, and what it writes; none where a
    matrix is not known."""
    roles = (*_QUERY_KEY_VALUE, "proj")
    found = {m.role: m for m in own if m.layer.startswith(layer + ".") and m.role in roles}
    if len(found) < len(roles):
        return []
    q, k, v, o = (found[role].weight for role in roles)
    width = getattr(attention, "head_dim", None)
    # Differential attention has two query heads for each value head.
    heads = q.shape[0] // width if width else attention.num_heads
    query = q.reshape(heads, -1, q.shape[1])
    output = o.reshape(len(o), attention.num_heads, -1).transpose(0, 1)
    place = (found["query"].block, found["query"].depth)
    return [
        HeadProducts(
            layer, "query-key", "spatial", *place, query.mT, _repeated(k, query.shape[1], heads)
        ),
        HeadProducts(
            layer,
            "value-output",
            "channel",
            *place,
            output,
            _repeated(v, output.shape[2], attention.num_heads),
        ),
    ]


def _repeated(rows: torch.Tensor, width: int, heads: int) -> torch.Tensor:
    """Keys or values [head, d, in] for every query head, of which several may share one."""
    own = rows.reshape(-1, width, rows.shape[1])
    return own.repeat_interleave(heads // len(own), 0)


def _between_blocks(model: Model) -> Iterator[MixingMatrix]:
    """Linear layers and convolutions that run between the blocks: downsampling of ConvNeXt and
    Swin."""
    structure = model.structure
    blocks = structure.blocks
    orders = [structure.find(block.path).order for block in blocks]
    inside = tuple(block.path + "." for block in blocks)
    for path, leaf in _leaves(model.module):
        if path.startswith(inside) or path not in structure.names():
            continue
        layer = structure.find(path)
        if orders[0] < layer.order < orders[-1]:
            plain = isinstance(leaf, nn.Linear) or leaf.kernel_size == (1, 1)
            part = _Part("downsample", "channel" if plain else "both", main=False)
            yield _matrix(model, path, leaf, part, applied_weight(leaf), "", layer.depth)
