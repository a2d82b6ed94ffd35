"""Energies of Jacobians between positions, from the networks: of the branch of a block that mixes
positions, of the block, and from the image to every block.

What has no closed form is estimated with Rademacher vectors v of independent signs. One
vector-Jacobian product with v at the channels of output position i gives the row v^T J_ij for every
j, and E |v^T J_ij|^2 = |J_ij|_F^2; one Jacobian-vector product with v on the pixels of a cell of
the image gives its column at every position of every block. Both are unbiased."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.hooks import Call, Stop, hooked
from mixer_probe.core.memory import LARGE, at_once, slices
from mixer_probe.mixing.attention_rows import attention_rows, has_plain_attention
from mixer_probe.mixing.cells import Grid
from mixer_probe.mixing.closed_form import branch_products, has_closed_form
from mixer_probe.models.layer import Axes
from mixer_probe.models.model import Model
from mixer_probe.models.structure import BlockRun

View = Literal["branch", "block", "cumulative"]
VIEWS: tuple[View, ...] = ("branch", "block", "cumulative")
# More products at once take memory, and no less time.
_MOST_AT_ONCE = 8
# Rows of a Jacobian [row, image, token, channel] for output tokens and vectors.
Pull = Callable[[Tensor, Tensor], Tensor]
# Own, crossed, prefix energies of one group of images.
Products = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class BlockCall:
    """One call of a block in a forward pass: what it was given, and how to call it again."""

    run: BlockRun
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def output(self, x: Tensor, end: tuple[str, int] | None) -> Tensor:
        """What the block, given `x` first, returns, or its module and call `end` inside."""
        if end is None:
            found: Tensor = self.run.block.module(x, *self.args[1:], **self.kwargs)
            return found
        path, number = end
        inside = path[len(self.run.block.path) + 1 :]
        outputs: list[Tensor] = []

        def see(call: Call) -> None:
            if call.number == number:
                outputs.append(call.output)
                raise Stop

        with hooked(self.run.block.module, [inside], see) as passes:
            passes.run(x, *self.args[1:], **self.kwargs)
        return outputs[0]


def block_calls(model: Model, x: Tensor) -> list[BlockCall]:
    """What every call of a block is given in a forward pass of the batch, in order."""
    runs = {(run.block.path, run.call): run for run in model.structure.runs}
    found: list[BlockCall] = []

    def see(call: Call) -> None:
        run = runs.get((call.path, call.number))
        if run is not None:
            first, *rest = call.args
            found.append(BlockCall(run, (first.detach().clone(), *rest), call.kwargs))

    with torch.no_grad(), hooked(model.module, {p for p, _ in runs}, lambda _: None, see) as passes:
        passes.run(x)
    return found


def as_sequence(x: Tensor, axes: Axes) -> Tensor:
    """[..., token, channel] of a block's tensor with any axes before those of one image."""
    if axes is Axes.BCHW:
        return x.flatten(-2).transpose(-1, -2)
    return x.flatten(-3, -2) if axes is Axes.BHWC else x


def from_sequence(x: Tensor, axes: Axes, like: Tensor) -> Tensor:
    """The inverse of `as_sequence`, for a tensor shaped as `like` after its first axes."""
    turned = x.transpose(-1, -2) if axes is Axes.BCHW else x
    return turned.reshape(*x.shape[:-2], *like.shape[1:])


def grid_of(x: Tensor, axes: Axes, tokens: Grid | None) -> Grid:
    """The grid of a block's tensor; `tokens` is that of a sequence."""
    shape = tuple(x.shape)
    grid = shape[2:] if axes is Axes.BCHW else shape[1:3] if axes is Axes.BHWC else tokens
    assert grid is not None
    return grid[0], grid[1]


def signs(shape: Sequence[int], seed: Sequence[int], like: Tensor) -> Tensor:
    """Independent signs, the same on every device."""
    drawn = np.random.default_rng(list(seed)).integers(0, 2, tuple(shape), dtype=np.int8)
    return torch.from_numpy(2 * drawn - 1).to(like)


def products(found: Tensor) -> tuple[Tensor, Tensor]:
    """For gradients or tangents [..., image, position, channel] of a group: the mean over its
    images of their squares summed over channels, and the mean over pairs of different images of
    their products, both [..., position]; the second is NaN for one image."""
    n, found = found.shape[-3], found.double()
    squares = found.square().sum((-3, -1))
    if n == 1:
        return squares, torch.full_like(squares, torch.nan)
    total = found.sum(-3).square().sum(-1)
    return squares / n, (total - squares) / (n * (n - 1))


def block_products(
    call: BlockCall,
    end: tuple[str, int] | None,
    skips: bool,
    rows: np.ndarray,
    prefix: int,
    probes: int,
    seed: Sequence[int],
) -> dict[View, tuple[Products, str]]:
    """Energies of the spatial branch of a block that ends at `end`, and of the block with its skip
    connection, from one group of images; with how each was computed.

    Where the block `skips`, its input is added to the branch, so that its Jacobian is I + J;
    otherwise that of its output is measured."""
    axes, x = call.run.block.spec.axes, call.args[0]
    at = torch.from_numpy(rows).to(x.device)
    if has_closed_form(call.run.block.module):
        (own, crossed), (trace, pair_trace) = branch_products(call.run.block.module, x, at)
        none, form = torch.zeros(len(rows), dtype=own.dtype), "closed form"
        found: dict[View, tuple[Products, str]] = {"branch": (_numpy(own, crossed, none), form)}
        own, crossed, index = own.clone(), crossed.clone(), torch.arange(len(rows))
        own[index, at] += x.shape[-1] + 2 * trace
        crossed[index, at] += x.shape[-1] + 2 * pair_trace
        return found | {"block": (_numpy(own, crossed, none), form)}
    sources: list[tuple[Sequence[View], Pull | None, int]] = []
    pull: Pull | None
    module = call.run.block.module
    if skips and has_plain_attention(module, call.args[1:], call.kwargs):
        sources.append((("branch", "block"), partial(attention_rows, module, x), x.shape[-1]))
    else:
        given = x.detach().requires_grad_()
        with torch.enable_grad():
            outputs = [call.output(given, end)] + ([] if skips else [call.output(given, None)])
        of: list[Sequence[View]] = [("branch", "block")] if skips else [("branch",), ("block",)]
        for views, y in zip(of, outputs, strict=True):
            pull = partial(_gradient_rows, y, given, axes) if y.requires_grad else None
            sources.append((views, pull, as_sequence(y, axes).shape[-1]))
    found, at = {}, prefix + at
    for views, pull, channels in sources:
        if pull is None:
            empty = np.zeros((len(rows), as_sequence(x, axes).shape[-2] - prefix))
            found |= {v: ((empty, empty, np.zeros(len(rows))), "VJP") for v in views}
            continue
        sums: dict[View, list[Tensor]] = {}
        for probe in range(probes):
            vectors = signs((len(rows), channels), (*seed, probe), x)
            parts: dict[View, list[tuple[Tensor, ...]]] = {v: [] for v in views}
            for part in slices(len(rows), min(at_once(16 * x.nbytes, LARGE), _MOST_AT_ONCE)):
                row = pull(at[part], vectors[part])
                for view in views:
                    if view == "block" and skips:
                        # The Jacobian of the skip connection is the identity.
                        row[torch.arange(len(row)), :, at[part]] += vectors[part][:, None]
                    own, crossed = products(row)
                    parts[view].append(
                        (own[:, prefix:], crossed[:, prefix:], own[:, :prefix].sum(1))
                    )
            for view in views:
                new = [torch.cat(p) / probes for p in zip(*parts[view], strict=True)]
                sums[view] = [a + b for a, b in zip(sums[view], new)] if view in sums else new
        found |= {view: (_numpy(*arrays), "VJP") for view, arrays in sums.items()}
    return found


def _gradient_rows(y: Tensor, x: Tensor, axes: Axes, at: Tensor, vectors: Tensor) -> Tensor:
    """v^T J_ij [row, image, token, channel] of a block's output y by its input x, for the output
    tokens `at` [row] and a vector for each [row, channel], by vector-Jacobian products."""
    tokens, channels = as_sequence(y, axes).shape[-2:]
    v = y.new_zeros(len(at), tokens, channels)
    v[torch.arange(len(v)), at] = vectors
    (gradient,) = torch.autograd.grad(
        y,
        x,
        from_sequence(v[:, None].expand(-1, len(y), -1, -1), axes, y),
        retain_graph=True,
        is_grads_batched=True,
    )
    return as_sequence(gradient, axes).contiguous()


def _numpy(*arrays: Tensor) -> Products:
    own, crossed, prefix = (a.cpu().numpy() for a in arrays)
    return own, crossed, prefix


def cumulative_products(
    model: Model,
    x: Tensor,
    rows: Sequence[np.ndarray],
    cells: Grid,
    probes: int,
    seed: Sequence[int],
    advance: Callable[[int], None],
) -> list[Products]:
    """Energies from the cells of the image to the output positions `rows` of every block, from one
    group of images: own and crossed [row, cell] per block, and no prefix."""
    structure = model.structure
    blocks = structure.runs
    runs = {(run.block.path, run.call): k for k, run in enumerate(blocks)}
    prefix = [structure.find(run.name).prefix_tokens for run in blocks]
    at = [torch.from_numpy(r).to(x.device) for r in rows]
    network = model.module

    def outputs(images: Tensor) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}

        def see(call: Call) -> None:
            k = runs.get((call.path, call.number))
            if k is not None:
                sequence = as_sequence(call.output, blocks[k].block.spec.axes)
                found[k] = sequence[:, prefix[k] + at[k]]
                if len(found) == len(runs):
                    raise Stop

        with hooked(network, {path for path, _ in runs}, see) as passes:
            passes.run(images)
        return tuple(found[k] for k in range(len(rows)))

    def column(tangent: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        tangents = torch.func.jvp(outputs, (x,), (tangent.expand_as(x),))[1]
        return tuple(products(t) for t in tangents)

    step = min(at_once(64 * x.nbytes, LARGE), _MOST_AT_ONCE)
    sums: list[list[Tensor]] = []
    boxes = list(_boxes(cells, (x.shape[-2], x.shape[-1])))
    for probe in range(probes):
        noise = signs(x.shape[1:], (*seed, probe), x)
        columns: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rows]
        for part in slices(len(boxes), step):
            tangent = noise.new_zeros(len(boxes[part]), *noise.shape)
            for one, (down, right) in zip(tangent, boxes[part]):
                one[:, down, right] = noise[:, down, right]
            for k, found in enumerate(torch.func.vmap(column)(tangent)):
                columns[k].append(found)
            advance(len(x) * len(tangent))
        new = [[torch.cat(c) / probes for c in zip(*one, strict=True)] for one in columns]
        sums = (
            [[a + b for a, b in zip(s, n)] for s, n in zip(sums, new, strict=True)] if sums else new
        )
    none = [np.zeros(len(r)) for r in rows]
    return [
        (own.T.cpu().numpy(), crossed.T.cpu().numpy(), no)
        for (own, crossed), no in zip(sums, none, strict=True)
    ]


def _boxes(cells: Grid, size: Grid) -> Iterator[tuple[slice, slice]]:
    """The pixels of every cell, as slices."""
    down, right = (
        [round(k * side / n) for k in range(n + 1)] for n, side in zip(cells, size, strict=True)
    )
    for a, b in pairwise(down):
        for c, d in pairwise(right):
            yield slice(a, b), slice(c, d)
