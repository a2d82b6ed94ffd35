"""Work on several layers in parallel, one thread per layer: threading inside small matrix products
costs more than it gains."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from mixer_probe.core.memory import slices

T = TypeVar("T")
R = TypeVar("R")


# What this process has of the cores, where it shares them with others of its kind.
_part: int | None = None
_decoders: int | None = None


def available_cores() -> int:
    """The cores this process may run on."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return cores if _part is None else min(cores, _part)


def use_cores(n: int) -> None:
    """Use `n` cores from now on, in this whole process."""
    global _part
    _part = n
    torch.set_num_threads(n)
    threadpool_limits(n)


def use_part(processes: int) -> None:
    """Divide the cores of this machine with as many processes from now on, 1: have them all.
    Threads inside a matrix product stay as many as they are, since the last bits depend on them."""
    global _part
    _part = None
    if processes > 1:
        _part = max(1, available_cores() // processes)


def in_threads(make: Callable[[T], R], items: Sequence[T], threads: int | None = None) -> list[R]:
    """`make` of every item, in order, in `threads` (one per core), for work that waits or leaves
    the interpreter lock; each thread takes many items at a time, so that millions cost little.
    Raises what `make` raises."""
    n = threads or available_cores()
    if n < 2 or len(items) < 2:
        return [make(item) for item in items]
    parts = (items[part] for part in slices(len(items), min(1024, -(-len(items) // (4 * n)))))
    with ThreadPoolExecutor(n) as pool:
        return list(chain.from_iterable(pool.map(lambda part: [make(i) for i in part], parts)))


def use_decoders(n: int | None) -> None:
    """Decode images in `n` processes from now on where none are asked for; None: as many as the
    machine suggests."""
    global _decoders
    _decoders = n


def chosen_decoders() -> int | None:
    """What `use_decoders` was last given."""
    return _decoders


def parallel_map(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in order, on all cores. Raises what `work` raises."""
    workers = min(available_cores(), len(items))
    if workers < 2:
        return [work(item) for item in items]
    with _one_thread_each, ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


class Overlapping:
    """A process-wide context manager: the first thread enters it, and the last one to leave exits
    it. A decorator of the function that creates it."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self.inside = 0
        self._context: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if not self.inside:
                self._context = self._make()
                self._context.__enter__()
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.inside -= 1
            if not self.inside:
                self._context.__exit__(None, None, None)


@Overlapping
@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Inside, neither BLAS nor torch splits its work among threads."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
