"""Blocks compiled by `torch.compile` while images stream through a network, so that hooks on
blocks run as always, outside of the compiled code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from mixer_probe.core.errors import ModelError
from mixer_probe.core.threads import Overlapping

_BACKEND: str | Callable[..., Any] = "inductor"
# Compilations of a class of blocks in this process: one for each shape, of each network.
_MOST = 128


@contextmanager
def compiled(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """The blocks run compiled inside, in this thread.

    A block runs as it is where gradients are asked for, and where a module inside of it has hooks
    or a forward pass of its own, which compiled code would not run. Blocks of one class, with the
    same settings and shapes, share one compilation, for batches of any size but 1. Raises
    ModelError, from the pass, where torch.compile fails."""
    plain = [block for block in blocks if "forward" not in vars(block)]
    with _most if plain else nullcontext(), ExitStack() as stack:
        for block in plain:
            _compile(block)
            stack.callback(delattr, block, "forward")
        yield


@Overlapping
@contextmanager
def _most() -> Iterator[None]:
    """Inside, torch compiles a class up to `_MOST` times before it leaves it uncompiled."""
    # All versions of torch know the limit by this name.
    with torch._dynamo.config.patch(cache_size_limit=_MOST):
        yield


def _compile(block: Any) -> None:
    """Put a forward pass that is compiled where it can be in place of the block's own."""
    plain, inside, own = block.forward, list(block.modules())[1:], threading.get_ident()

    def forward(*args: Any, **kwargs: Any) -> Any:
        watched = any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in inside
        )
        if watched or torch.is_grad_enabled() or threading.get_ident() != own:
            return plain(*args, **kwargs)
        if args and isinstance(args[0], torch.Tensor):
            torch._dynamo.maybe_mark_dynamic(args[0], 0)
        try:
            return _of_class(type(block).forward, _BACKEND)(block, *args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
            raise ModelError(
                f"torch.compile fails for a {type(block).__name__} ({reason}); leave out "
                "compiled=True (--compile)"
            ) from error

    block.forward = forward


@cache
def _of_class(forward: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    """The compiled forward pass of a class, which the module is given to."""
    try:
        return torch.compile(forward, backend=backend, dynamic=False)
    except RuntimeError as error:
        raise ModelError(f"{error}; leave out compiled=True (--compile)") from error
