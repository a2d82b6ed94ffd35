"""Hooks that reduce or copy inside the forward pass, stop it after the last layer asked for, and
are always removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Generic, TypeVar

import torch

from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import ImagesError, LayerError
from mixer_probe.core.hooks import Call, Passes, Stop, hooked, repeating
from mixer_probe.core.switches import evaluating, unfused
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

# Where attention maps pass inside a module of attention.
_MAPS = ".attn_drop"
T = TypeVar("T")
Reducer = Callable[[Layer, torch.Tensor, torch.Tensor | None], T]


@contextmanager
def capture(
    model: Model, layers: Sequence[Layer], reducer: Reducer[T]
) -> Iterator[Callable[[torch.Tensor], dict[str, T]]]:
    """A function from a batch [B, 3, H, W] to `{layer name: reducer(layer, positions, prefix)}`.

    The reducer runs inside the hook, on the device, where the tensor is still what the module
    returned: an in-place ReLU or addition may overwrite it a moment later, so a reducer must return
    a new tensor, never a view. Results appear only after a whole forward pass, so one that fails
    leaves nothing half-counted. The network runs in eval mode without gradients or autocast, for
    this thread alone: other threads wait to capture, and what they run meanwhile is not seen. On
    leaving the context the hooks are gone and every module has its own training flag back, whatever
    happened. Attention maps are those that pass through an `attn_drop`, or would without a fused
    kernel. Raises ImagesError for a batch of another size than the model's."""
    session = _Session(layers, reducer)
    fused = [
        path
        for layer in layers
        if layer.module.endswith(_MAPS)
        for path in [layer.module.removesuffix(_MAPS)]
        if getattr(model.module.get_submodule(path), "fused_attn", False)
    ]
    with (
        evaluating(model.module),
        hooked(model.module, (layer.module for layer in layers), session.see) as passes,
        hooked(model.module, fused, lambda _call: None, session.see_maps),
    ):
        yield lambda batch: session.run(model, passes, batch)


class _Seen(BaseException):
    """Ends the second call of a module of attention. As `Stop`, not an Exception."""


class _Session(Generic[T]):
    """The state of one `capture`: what is wanted, and what was found."""

    def __init__(self, layers: Sequence[Layer], reducer: Reducer[T]) -> None:
        self._wanted = {(layer.module, layer.call): layer for layer in layers}
        self._names = [layer.name for layer in layers]
        self._reducer = reducer
        self._found: dict[str, T] = {}

    def see(self, call: Call) -> None:
        layer = self._wanted.get((call.path, call.number))
        if layer is None:
            return
        self._found[layer.name] = self._reducer(layer, *positions_and_prefix(call.output, layer))
        if len(self._found) == len(self._wanted):
            raise Stop

    def see_maps(self, call: Call) -> None:
        """Attention maps that a fused kernel hides: its module is called once more without it, as
        far as to the maps."""

        def see(inside: Call) -> None:
            self.see(replace(inside, path=call.path + _MAPS, number=call.number))
            raise _Seen

        with (
            repeating(),
            unfused(call.module),
            hooked(call.module, [_MAPS.removeprefix(".")], see),
            suppress(_Seen),
        ):
            call.module.forward(*call.args, **call.kwargs)

    def run(self, model: Model, passes: Passes, batch: torch.Tensor) -> dict[str, T]:
        if tuple(batch.shape[1:]) != model.input.size:
            raise ImagesError(
                f"the images are {tuple(batch.shape[1:])} and {model.name} takes {model.input.size}"
            )
        self._found = {}
        # Not inference_mode: what a network caches in its first pass must stay usable for
        # gradients.
        with torch.no_grad():
            passes.run(batch)
        found, self._found = self._found, {}
        missing = [name for name in self._names if name not in found]
        if missing:
            raise LayerError(
                f"'{missing[0]}' did not run in this forward pass, though it did for a blank image"
            )
        return {name: found[name] for name in self._names}


def mean_over_positions(
    _layer: Layer, positions: torch.Tensor, _prefix: torch.Tensor | None
) -> torch.Tensor:
    """[image, channel]: the mean over positions, without prefix tokens; half precision is summed in
    float32."""
    wide = positions.dtype if positions.dtype in (torch.float32, torch.float64) else torch.float32
    if positions.shape[1] == 1:
        return positions[:, 0].to(wide, copy=True)
    return positions.mean(1, dtype=wide)


def first_prefix_token(
    _layer: Layer, _positions: torch.Tensor, prefix: torch.Tensor | None
) -> torch.Tensor:
    """[image, channel]: the first prefix token, which is the class token where there is one."""
    assert prefix is not None
    return prefix[:, 0].to(_storable(prefix.dtype), copy=True)


def every_position(
    _layer: Layer, positions: torch.Tensor, prefix: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A copy of all positions [image, position, channel], and of the prefix tokens."""
    return _copy(positions), None if prefix is None else _copy(prefix)


def _copy(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=_storable(x.dtype), device=x.device).copy_(x)


def _storable(dtype: torch.dtype) -> torch.dtype:
    """NumPy has no bfloat16; float32 holds it exactly."""
    return torch.float32 if dtype is torch.bfloat16 else dtype
