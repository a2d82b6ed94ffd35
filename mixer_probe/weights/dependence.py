"""What the outputs of every module depend on, found by perturbing its input in a real forward pass.

A module mixes over locations if a change at one position moves the output at several, or if changes
at several positions move the same output (a patch embedding, whose kernel is its stride, does only
the second). It mixes over channels if changes of two channels of one position move the same output
value. Class names play no part; what the axes of a tensor mean comes from the structure of the
network. The hidden units of a token-mixing MLP stand on its location axis: each belongs to one
channel and reads many positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.hooks import Call, all_paths, hooked
from mixer_probe.core.switches import copied
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Axes
from mixer_probe.models.model import Model

Mixes = Literal["across", "within", "both", "neither"]
Choice = Callable[[str, Mapping[str, Mixes]], bool]

# Which axes of a tensor count positions, and which channels; the first counts images.
_LAYOUTS: dict[Axes, tuple[tuple[int, ...], tuple[int, ...]]] = {
    Axes.BNC: ((1,), (2,)),
    Axes.BCN: ((2,), (1,)),
    Axes.BCU: ((2,), (1,)),
    Axes.BCHW: ((2, 3), (1,)),
    Axes.BHWC: ((1, 2), (3,)),
    Axes.BNHD: ((1,), (2, 3)),
    Axes.BHND: ((2,), (1, 3)),
}
# Relative to the largest output: far above float64 rounding, far below the 1e-6 with which some
# layers start.
_MOVED = 1e-11
# Two neighbours, which stand in one group of a grouped layer, and the last, which gates the first
# where halves gate each other.
_CHANNELS = 3
_LABELS: dict[tuple[bool, bool], Mixes] = {
    (True, True): "both",
    (True, False): "across",
    (False, True): "within",
    (False, False): "neither",
}


@checked(MeasureError)
def dependence(model: Model, choose: Choice, seed: int = 0) -> dict[str, Mixes]:
    """How the modules of a network mix, by module path, in the order in which they finish their
    first call.

    `choose(path, found)` says whether to measure a module, given how those that finished before it
    mix, all that it holds among them. Modules that do not map one tensor of known axes to another
    are left out. A copy of the network in float64 on the CPU sees one image of noise drawn with
    `seed`; parameters that are exactly zero everywhere (fresh heads, last batch norms) are replaced
    by random ones in it, so that the architecture is measured and not its initialisation.

    Raises MeasureError for outputs that are not finite."""
    network, generator = copied(model.module).cpu().double().eval(), _generator(seed)
    image = torch.randn(1, *model.input.size, generator=_generator(seed), dtype=torch.float64)
    measurement = _Measurement(model, choose, seed)
    with torch.no_grad():
        for p in network.parameters():
            if not p.any():
                spread = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
                p.copy_(spread * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        with hooked(network, all_paths(network), measurement.end, measurement.start) as passes:
            passes.run(image)
    return measurement.found


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Measurement:
    """One forward pass: the inputs of the modules that are running, and how those that finished
    mix."""

    def __init__(self, model: Model, choose: Choice, seed: int) -> None:
        self.found: dict[str, Mixes] = {}
        self._model, self._choose, self._seed = model, choose, seed
        self._structure = model.structure
        self._inputs: list[Tensor | None] = []
        self._finished: set[str] = set()
        self._busy = False

    def start(self, call: Call) -> None:
        if not self._busy:
            # A copy: in-place activations overwrite the input before the module returns.
            self._inputs.append(
                call.args[0].clone() if call.args and isinstance(call.args[0], Tensor) else None
            )

    def end(self, call: Call) -> None:
        if self._busy:
            return
        path, x, again = call.path, self._inputs.pop(), call.path in self._finished
        self._finished.add(path)
        if (
            again
            or x is None
            or not isinstance(call.output, Tensor)
            or not self._choose(path, self.found)
        ):
            return
        axes = self._axes(path, x, call.output)
        if axes is None:
            return
        # Three positions side by side, where the smallest kernel meets two: a corner, and those
        # right of it and below.
        sizes = [x.shape[axis] for axis in _layout(x, axes[0])[0]]
        count = math.prod(sizes)
        grid, prefix = self._structure.token_grid, self._structure.prefix
        first, columns = 0, sizes[-1] if len(sizes) == 2 else 2
        if len(sizes) == 1 and grid and count in (math.prod(grid), math.prod(grid) + prefix):
            first, columns = count - math.prod(grid), grid[1]
        places = sorted({min(first + step, count - 1) for step in (0, 1, columns)})
        self._busy = True
        try:
            run = lambda x: call.module(x, *call.args[1:], **call.kwargs)  # noqa: E731
            mixes = mixing_of(run, x, *axes, places, self._seed)
        except MeasureError as error:
            raise MeasureError(f"'{path}' of {self._model.name}: {error}") from error
        finally:
            self._busy = False
        self.found[path] = mixes

    def _axes(self, path: str, x: Tensor, output: Tensor) -> tuple[Axes, Axes] | None:
        """Axes of input and output: a module keeps the order of its axes unless it makes maps to
        sequences or pools them."""
        try:
            after = Axes[self._structure.find(f"{path}#0").axes]
        except LayerError:
            # Attention in windows reads a stack of sequences, whose places in the image do not
            # matter here.
            if not (x.ndim == output.ndim == 3 and x.shape[:2] == output.shape[:2]):
                return None
            after = Axes.BNC
        if x.ndim == 2:
            return Axes.BC, after
        if x.ndim == 3:
            return after if after in (Axes.BCN, Axes.BCU) else Axes.BNC, after
        if x.ndim != 4:
            return None
        if tuple(x.shape[1:]) == self._model.input.size:
            return Axes.BCHW, after
        before = after if len(after.value.split(", ")) == 4 else self._model.adapter.outside
        return None if before is None else (before, after)


@checked(MeasureError)
def mixing_of(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    before: Axes,
    after: Axes,
    places: Sequence[int] = (0, 1),
    seed: int = 0,
) -> Mixes:
    """How a function mixes, found by perturbing its input [image, ...] at `places` (numbers of
    positions, as they lie in memory).

    `before` and `after` say what the axes of input and output mean. Every place is perturbed in all
    channels at once, then three channels of the first place, one at a time; all of it runs as one
    batch. Raises MeasureError for outputs that are not finite."""
    positions, channels = _layout(x, before)
    # [(1 + places + channels) * image, ...]: the input once as it is and once for each perturbation
    batch = x.repeat(1 + len(places) + _CHANNELS, *[1] * (x.ndim - 1))
    view = batch.permute(0, *positions, *channels)
    widths = [x.shape[axis] for axis in channels]
    # Large and upwards, so that it is the largest of a pooling window; uneven, so that a norm sees
    # it.
    step = 3 * float(x.std()) or 1.0
    uneven = step * (1 + torch.rand(widths, generator=_generator(seed), dtype=x.dtype))
    at = [_unravelled(p, [x.shape[axis] for axis in positions]) for p in places]
    for k, place in enumerate(at, start=1):
        view[(k * len(x), *place)] += uneven
    count = math.prod(widths)
    for k, channel in enumerate(sorted({0, min(1, count - 1), count - 1}), start=1 + len(places)):
        view[(k * len(x), *at[0], *_unravelled(channel, widths))] += 2 * step
    outputs = run(batch)
    positions, channels = _layout(outputs, after)
    if not outputs.isfinite().all():
        raise MeasureError("its outputs are not finite, so what they depend on cannot be measured")
    # [input, image and position, channel], prefix tokens among the positions
    width = math.prod(outputs.shape[axis] for axis in channels)
    unchanged, *changed = outputs.permute(0, *positions, *channels).reshape(
        1 + len(places) + _CHANNELS, -1, width
    )
    smallest = _MOVED * unchanged.abs().max()
    moved = torch.stack([(y - unchanged).abs() > smallest for y in changed])
    by_place, by_channel = moved[: len(places)].any(2), moved[len(places) :]
    across = len(places) > 1 and bool((by_place.sum(1) > 1).any() or (by_place.sum(0) > 1).any())
    within = bool((by_channel.sum(0) > 1).any())
    return _LABELS[across, within]


def _unravelled(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(number, tuple(shape))) if shape else ()


def _layout(x: Tensor, axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return ((), tuple(range(1, x.ndim))) if axes is Axes.BC else _LAYOUTS[axes]
