"""Processes with the environment that torchrun gives them, forked from one that has imported all:
each costs a fraction of a second."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable


def run_ranks(
    world: int,
    work: Callable[[], object],
    until: Callable[[], object] | None = None,
    victim: int = 0,
) -> list[int]:
    """Exit codes of `world` processes that do the work together. When `until` returns, one of them
    is killed, and, as torchrun does it, the others after it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pids = [_fork(rank, world, port, work) for rank in range(world)]
    if until is not None:
        until()
        os.kill(pids[victim], signal.SIGKILL)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _fork(rank: int, world: int, port: int, work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
