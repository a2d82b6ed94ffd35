"""Freed memory stays in the process inside `kept_heap`, and leaves it afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixer_probe.capture import heap
from mixer_probe.capture.heap import kept_heap

resource = pytest.importorskip("resource")
ROOT = Path(__file__).parents[2]
MIB = 2**20
# Larger ones than 32 MiB are not kept.
BLOCK = 16 * MIB
PAGES = BLOCK // 4096

on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)


def regions_cleared(times: int = 20) -> float:
    """How often the system cleared a block while one was asked for and let go `times` times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(BLOCK // 4)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / PAGES


def resident() -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) // 1024


def in_own_process(script: str) -> list[float]:
    """The numbers that a script prints: the heap of other tests may have free places of the size in
    question, or none."""
    script = f"from tests.capture.test_heap import *\n{script}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return [float(number) for number in run.stdout.split()]


@on_glibc
def test_memory_is_used_again_without_being_cleared():
    # Small objects may come to lie in the first places; from then on nothing is cleared.
    assert in_own_process("with kept_heap: print(regions_cleared())")[0] < 5


@on_glibc
def test_memory_goes_back_at_the_end():
    script = (
        "print(resident())\nwith kept_heap:\n    [torch.ones(BLOCK // 4) for _ in range(16)]\n    "
        "print(resident())\nprint(resident())"
    )
    before, inside, after = in_own_process(script)
    assert inside > before + 200
    assert after < before + 56


def test_overlapping_uses_and_errors_leave_nothing_behind():
    outer, inner = kept_heap, kept_heap
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert kept_heap.inside == 1
    inner.__exit__(None, None, None)
    with pytest.raises(ZeroDivisionError), kept_heap:
        raise ZeroDivisionError
    assert kept_heap.inside == 0


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with kept_heap:
        assert torch.ones(3).sum() == 3
