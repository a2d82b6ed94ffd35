"""Layers side by side, one thread each: threads inside of small products and eigenvalue problems cost more than they gain."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` of every item, in order, on all cores. Raises what `work` raises."""
    workers = min(available_cores(), len(items))
    if workers < 2:
        return [work(item) for item in items]
    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


_lock = threading.Lock()
_inside = 0
_outside = ExitStack()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Inside, neither BLAS nor torch splits its work among threads; both do again after the last of several that overlap."""
    _enter(+1)
    try:
        yield
    finally:
        _enter(-1)


def _enter(step: int) -> None:
    global _inside
    with _lock:
        if not _inside:
            _outside.callback(torch.set_num_threads, torch.get_num_threads())
            _outside.enter_context(threadpool_limits(1))
            torch.set_num_threads(1)
        _inside += step
        if not _inside:
            _outside.close()
