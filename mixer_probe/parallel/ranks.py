"""The processes that torchrun started, and what they tell each other.

They run the same commands in the same order. Work is divided by leases (`Lease`), results lie in
files, and only decisions are sent: over gloo, which every machine has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from mixer_probe.core.errors import MixerProbeError

T = TypeVar("T")


class Ranks(NamedTuple):
    """This process is number `rank` of `world`, and number `local` of those on its machine."""

    rank: int
    world: int
    local: int

    @property
    def first(self) -> bool:
        """Whether this is the process that decides and reports."""
        return self.rank == 0


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works for itself, whatever the others do."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def ranks() -> Ranks:
    """Where this process stands; it is the only one inside `alone`, and without torchrun."""
    if _alone.get():
        return Ranks(0, 1, int(os.environ.get("LOCAL_RANK", 0)))
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return Ranks(0, 1, 0)
    return Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def gather(value: T) -> list[T]:
    """The values of all ranks in their order; every rank calls it."""
    here = ranks()
    if here.world == 1:
        return [value]
    found: list[Any] = [None] * here.world
    dist.all_gather_object(found, value, group=_group())
    return found


def agree(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank, on all of them; every rank calls it. A
    MixerProbeError that it raises is raised on all of them."""
    here = ranks()
    if here.world == 1:
        return make()
    answer: list[Any] = [None, None]
    if here.first:
        try:
            answer = [make(), None]
        except MixerProbeError as error:
            answer = [None, error]
    dist.broadcast_object_list(answer, src=0, group=_group())
    if answer[1] is not None:
        raise answer[1]
    return answer[0]  # type: ignore[no-any-return]


@cache
def _group() -> Any:
    """A gloo group of all ranks."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.new_group(backend="gloo")
