"""Leases: one holder at a time, and none that is dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixer_probe.core.places import Place
from mixer_probe.parallel import leases
from mixer_probe.parallel.leases import Lease

NAME = "units/000003.lease"


def write(place: Path, pid: int, host: str | None = None, age: float = 0.0) -> None:
    about = {"key": "other", "host": host or socket.gethostname(), "pid": pid}
    (place / "units").mkdir(exist_ok=True)
    (place / NAME).write_text(json.dumps({**about, "time": time.time() - age}))


def test_one_holds_it_until_it_gives_it_back(tmp_path: Path) -> None:
    first, second = Lease(Place(tmp_path), NAME), Lease(Place(tmp_path), NAME)
    assert first.take()
    assert not second.take()
    assert second.holder() == f"process {os.getpid()}"
    assert first.holder() is None
    second.release()  # has none
    assert not second.take()
    first.release()
    assert second.take()
    second.release()
    assert not (tmp_path / NAME).exists()


def test_that_of_a_dead_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    write(tmp_path, process.pid)
    lease = Lease(Place(tmp_path), NAME)
    assert lease.holder() is None
    assert lease.take()
    lease.release()


def test_that_of_a_living_process_is_not(tmp_path: Path) -> None:
    write(tmp_path, os.getppid(), age=60)
    assert not Lease(Place(tmp_path), NAME).take()


def test_of_other_machines_one_that_says_nothing_is_dead(tmp_path: Path) -> None:
    write(tmp_path, 1, "elsewhere", age=leases.EXPIRES - 30)
    lease = Lease(Place(tmp_path), NAME)
    assert lease.holder() == "process 1 on elsewhere"
    assert not lease.take()
    write(tmp_path, 1, "elsewhere", age=leases.EXPIRES + 1)
    assert lease.take()
    lease.release()


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.01)
    lease = Lease(Place(tmp_path), NAME)
    assert lease.take()
    first = json.loads((tmp_path / NAME).read_text())["time"]
    deadline = time.monotonic() + 10
    while json.loads((tmp_path / NAME).read_text())["time"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease.release()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"key": 1}', "\0"])
def test_what_is_no_lease_is_free(tmp_path: Path, content: str) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / NAME).write_text(content)
    lease = Lease(Place(tmp_path), NAME)
    assert lease.take()
    lease.release()
