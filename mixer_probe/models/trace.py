"""One dry forward pass: which modules run, in which order, how often, and what shapes they
return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mixer_probe.core import hooks
from mixer_probe.core.switches import evaluating

# Two images, so that a first axis of 2 tells rows of images from windows, tables and other tensors.
BATCH = 2


@dataclass(frozen=True)
class Call:
    """One call of one module: `shape` is None when it does not return a single tensor."""

    path: str
    call: int
    shape: tuple[int, ...] | None


def trace(module: nn.Module, input_size: tuple[int, int, int]) -> tuple[Call, ...]:
    """All calls of named modules in the order in which they finish, for a batch of two blank images
    [2, 3, H, W].

    The module is run in eval mode without gradients and left as it was found."""
    calls: list[Call] = []

    def record(call: hooks.Call) -> None:
        shape = tuple(call.output.shape) if isinstance(call.output, torch.Tensor) else None
        calls.append(Call(call.path, call.number, shape))

    # Not inference_mode: what a network caches in its first pass must stay usable for gradients.
    with (
        evaluating(module),
        torch.no_grad(),
        hooks.hooked(module, hooks.all_paths(module), record) as passes,
    ):
        passes.run(blank_images(module, input_size))
    return tuple(calls)


def blank_images(
    module: nn.Module, input_size: tuple[int, int, int], n: int = BATCH
) -> torch.Tensor:
    """Zeros [n, 3, H, W] on the device and in the type of the module's parameters."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(n, *input_size, device=like.device, dtype=like.dtype)
