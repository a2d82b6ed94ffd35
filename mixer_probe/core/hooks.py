"""The one place that hooks into a network: what its modules are given and return, call by call.

Everything that looks inside a forward pass does it here: the trace of a network, extraction,
attribution, visualization, counts of operations and measurements of mixing. Hooks see this thread's
passes alone and are gone when the context is left."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixer_probe.core.switches import in_this_thread


@dataclass(slots=True)
class Call:
    """One call of the module at `path`; `number` counts the finished calls of that module in a
    pass, from 0. `output` is None before the call."""

    path: str
    number: int
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


_first_image: ContextVar[int | None] = ContextVar("first_image", default=None)


@contextmanager
def passing(first: int) -> Iterator[None]:
    """Says that the batch of the passes inside begins with the image of this index."""
    token = _first_image.set(first)
    try:
        yield
    finally:
        _first_image.reset(token)


def first_image() -> int | None:
    """The index of the first image of the batch that passes, None where nobody says so."""
    return _first_image.get()


_repeating: ContextVar[int] = ContextVar("repeating", default=0)


@contextmanager
def repeating() -> Iterator[None]:
    """Calls inside repeat a part of the pass: they are not counted, and of the hooks set outside
    only those that are part of what the network computes take part."""
    token = _repeating.set(_repeating.get() + 1)
    try:
        yield
    finally:
        _repeating.reset(token)


class Stop(BaseException):
    """Raised by a hook to end the pass. Not an Exception, so that no network's own `except
    Exception` swallows it."""


class Passes:
    """Forward passes of a hooked network, each counting calls from 0."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.finished: Counter[str] = Counter()

    def run(self, *inputs: Any, **options: Any) -> Any:
        """The output of one pass; None where a hook stopped it."""
        self.finished.clear()
        try:
            return self._network(*inputs, **options)
        except Stop:
            return None


@contextmanager
def hooked(
    network: nn.Module,
    paths: Iterable[str],
    after: Callable[[Call], Any],
    before: Callable[[Call], Any] | None = None,
    identity: Callable[[], str] | None = None,
) -> Iterator[Passes]:
    """Calls `after` (and `before`) at every call of the modules at `paths`. What `after` returns,
    unless None, replaces the output, and what `before` returns the positional arguments. Hooks
    with an `identity` are part of what the network computes: the fingerprint that this thread sees
    depends on it.

    A tensor is what the module returned only until the next operation in place: keep a copy."""
    passes, level = Passes(network), _repeating.get()

    def see_before(path: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            assert before is not None
            if identity is None and _repeating.get() != level:
                return None
            changed = before(Call(path, passes.finished[path], module, args, kwargs))
            return None if changed is None else (changed, kwargs)

        return in_this_thread(see)

    def see_after(path: str) -> Callable[..., Any]:
        def see(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            number = passes.finished[path]
            if _repeating.get() == level:
                passes.finished[path] = number + 1
            elif identity is None:
                return None
            return after(Call(path, number, module, args, kwargs, output))

        return in_this_thread(see)

    with ExitStack() as stack:
        for path in dict.fromkeys(paths):
            module = network.get_submodule(path)
            if before is not None:
                stack.callback(
                    module.register_forward_pre_hook(see_before(path), with_kwargs=True).remove
                )
            hook = see_after(path)
            if identity is not None:
                hook.identity = in_this_thread(identity)  # type: ignore[attr-defined]
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield passes


@contextmanager
def returned(network: nn.Module, outputs: Mapping[str, Any]) -> Iterator[None]:
    """Modules at these paths return the given outputs, in this thread, and nothing inside of them
    runs. Hooks see them called.

    A pass that differs from an earlier one behind some blocks can so begin with their outputs."""
    own = threading.get_ident()

    def instead(forward: Callable[..., Any], value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: (
            value if threading.get_ident() == own else forward(*args, **kwargs)
        )

    with ExitStack() as stack:
        for path, value in outputs.items():
            module: Any = network.get_submodule(path)
            stack.callback(_restore, module, vars(module).get("forward"))
            module.forward = instead(module.forward, value)
        yield


def _restore(module: Any, forward: Any) -> None:
    """The module's `forward`: one of its own, or that of its class."""
    del module.forward
    if forward is not None:
        module.forward = forward


def all_paths(network: nn.Module) -> list[str]:
    """The paths of all modules inside the network."""
    return [path for path, _ in network.named_modules() if path]
