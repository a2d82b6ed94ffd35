"""Context managers that change settings of a network and restore each of them on leaving, whatever
happened.

One thread at a time changes a network: every context here takes the network's lock, and the hooks
of one thread do not see the forward passes of another (`in_this_thread`)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_finding = threading.Lock()
_drawing = threading.RLock()


def lock_of(network: nn.Module) -> threading.RLock:
    """The lock of a network, which a thread may take again while it has it."""
    with _finding:
        return _locks.setdefault(network, threading.RLock())


def share_lock(network: nn.Module, other: nn.Module) -> None:
    """One lock for two networks, of which one has the parts of the other."""
    lock = lock_of(network)
    with _finding:
        _locks[other] = lock


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, which does nothing where another thread than this one runs the module."""
    own = threading.get_ident()

    def see(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == own else None

    return see


@contextmanager
def plain_modes() -> Iterator[None]:
    """Outside `torch.inference_mode`, whose tensors take no gradients, and outside
    `torch.autocast`, which would compute in another type than the parameters'; both as they were
    afterwards."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            # Leaving inference mode asks for gradients again.
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside, without compilation, inference mode and autocast, for this thread alone;
    every module's own training flag restored outside."""
    with lock_of(network), plain_modes():
        # Hooks do not run inside of the code that `nn.Module.compile` puts in place of a call.
        compiled = [
            (m, m._compiled_call_impl)
            for m in network.modules()
            if m._compiled_call_impl is not None
        ]
        training = [m for m in network.modules() if m.training]
        try:
            for module, _ in compiled:
                module._compiled_call_impl = None
            network.eval()
            yield
        finally:
            for module in training:
                # `train()` would reach the children too, whose flags may differ.
                module.training = True
            for module, call in compiled:
                module._compiled_call_impl = call


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Parameters ask for no gradients inside.

    torch's counter of operations watches tensors that do, and stumbles over a parameter that is
    expanded without any."""
    with _switched(network, network.parameters(), "requires_grad", False):
        yield


@contextmanager
def unfused(network: nn.Module) -> Iterator[None]:
    """Attention maps are tensors of their own inside, not hidden in a fused kernel."""
    with _switched(network, network.modules(), "fused_attn", False):
        yield


@contextmanager
def not_in_place(network: nn.Module) -> Iterator[None]:
    """No activation overwrites its input inside: captum keeps the tensors that it caught without a
    copy."""
    with _switched(network, network.modules(), "inplace", False):
        yield


@contextmanager
def _switched(network: nn.Module, things: Iterable[Any], name: str, value: bool) -> Iterator[None]:
    """`value` in the attribute `name` of all `things` of the network that have it otherwise."""
    with lock_of(network):
        changed = [thing for thing in things if getattr(thing, name, value) is (not value)]
        try:
            for thing in changed:
                setattr(thing, name, value)
            yield
        finally:
            for thing in changed:
                setattr(thing, name, not value)


def copied(network: Network, memo: dict[int, Any] | None = None) -> Network:
    """A deep copy (`memo` as of `copy.deepcopy`), without hooks and settings that another thread
    has in the network just now."""
    with lock_of(network), plain_modes():
        return copy.deepcopy(network, memo)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's global generators (the CPU's, and that of a CUDA `device`) at `seed` inside,
    untouched outside.

    One thread at a time, for there is one generator for all."""
    cuda = device is not None and device.type == "cuda"
    with _drawing, torch.random.fork_rng([device] if cuda else []):
        # torch.manual_seed would seed those of all GPUs as well.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device is not None and device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
