"""Settings of a network that hold inside a `with` block, and are each what they were outside, whatever happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn


class evaluating:
    """Context manager: eval mode inside, every module's own training flag restored outside."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._training: list[nn.Module] = []

    def __enter__(self) -> None:
        self._training = [m for m in self._module.modules() if m.training]
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            # `train()` would reach the children too, whose flags may differ.
            module.training = True


def frozen(network: nn.Module) -> AbstractContextManager[None]:
    """Parameters ask for no gradients inside.

    torch's counter of operations watches tensors that do, and stumbles over a parameter that is expanded without any."""
    return _switched(network.parameters(), "requires_grad", False)


def unfused(network: nn.Module) -> AbstractContextManager[None]:
    """Attention maps are tensors of their own inside, not hidden in a fused kernel."""
    return _switched(network.modules(), "fused_attn", False)


def not_in_place(network: nn.Module) -> AbstractContextManager[None]:
    """No activation overwrites its input inside: captum keeps the tensors that it caught without a copy."""
    return _switched(network.modules(), "inplace", False)


@contextmanager
def _switched(things: Iterable[Any], name: str, value: bool) -> Iterator[None]:
    """`value` in the attribute `name` of all `things` that have it otherwise."""
    changed = [thing for thing in things if getattr(thing, name, value) is (not value)]
    try:
        for thing in changed:
            setattr(thing, name, value)
        yield
    finally:
        for thing in changed:
            setattr(thing, name, not value)
