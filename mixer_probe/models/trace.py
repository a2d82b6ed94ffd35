"""One dry forward pass: which modules run, in which order, how often, and what shapes they return."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixer_probe.models.switches import evaluating, in_this_thread

# Two images, so that a first axis of 2 tells rows of images from windows, tables and other tensors.
BATCH = 2


@dataclass(frozen=True)
class Call:
    """One call of one module: `shape` is None when it does not return a single tensor."""

    path: str
    call: int
    shape: tuple[int, ...] | None


def trace(module: nn.Module, input_size: tuple[int, int, int]) -> tuple[Call, ...]:
    """All calls of named modules in the order in which they finish, for a batch of two blank images [2, 3, H, W].

    The module is run in eval mode without gradients and left as it was found."""
    calls: list[Call] = []
    seen: dict[str, int] = {}

    def record(path: str, output: object) -> None:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
        calls.append(Call(path, seen.get(path, 0), shape))
        seen[path] = seen.get(path, 0) + 1

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return in_this_thread(lambda _module, _args, output: record(path, output))

    # Not inference_mode: what a network caches in its first pass must stay usable for gradients.
    with evaluating(module), torch.no_grad(), ExitStack() as stack:
        for path, m in module.named_modules():
            if path:
                stack.callback(m.register_forward_hook(hook(path)).remove)
        module(blank_images(module, input_size))
    return tuple(calls)


def blank_images(module: nn.Module, input_size: tuple[int, int, int], n: int = BATCH) -> torch.Tensor:
    """Zeros [n, 3, H, W] on the device and in the type of the module's parameters."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(n, *input_size, device=like.device, dtype=like.dtype)
