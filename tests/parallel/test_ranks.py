"""Several processes on one piece of work: the same bits whatever their number, and when they
die."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import mixer_probe as mp
from mixer_probe.capture.stream import divide_hashing
from mixer_probe.core import fingerprint
from mixer_probe.core.errors import StoreError
from mixer_probe.parallel import Ranks, agree, alone, gather, ranks
from tests.helpers.forked import run_ranks
from tests.parallel.generations import digest

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def output(module: str, *arguments: str) -> str:
    """What a script of this folder prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_process_killed_at_twenty_moments_changes_no_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = output("tests.parallel.generations", str(tmp_path))
    with capsys.disabled():
        print(f"\n{told.strip()}")
    found = re.fullmatch(r"units after each kill: \[(.*)\]; \d+ files are equal\n", told)
    assert found
    done = [int(n) for n in found[1].split(", ")]
    assert len(done) == 20
    assert done == sorted(done)
    # Some died in the middle of the work.
    assert len(set(done)) > 8
    # And none came after the last unit.
    assert done[-1] < 90


def test_every_command_gives_the_same_with_1_2_and_3_processes(tmp_path: Path) -> None:
    told = output("tests.parallel.commands", str(tmp_path))
    for command in ("extract", "compare", "probe", "channels", "report"):
        assert f"{command}: results and" in told


def test_torchrun_starts_the_command_line(tmp_path: Path) -> None:
    arguments = ["extract", "zoo:mixer-s0", "--limit", "20", "--layers", "blocks.0"]
    launched = ["--nproc-per-node", "2", "-m", "mixer_probe", *arguments]
    told = output("torch.distributed.run", *launched, "--out", str(tmp_path / "two"))
    # The first process speaks for all.
    assert told.count("Representations(zoo:mixer-s0, 20 images of demo, 1 layers)") == 1
    images = mp.load_images("demo", limit=20)
    mp.extract(mp.load_model("zoo:mixer-s0"), images, "blocks.0", out=tmp_path / "one")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def _in_three(work: Callable[[], object]) -> None:
    assert run_ranks(3, work) == [0, 0, 0]


def test_what_the_first_decides_all_do() -> None:
    def work() -> None:
        here = ranks()
        assert here == Ranks(here.local, 3, here.local)
        assert agree(lambda: f"decided by {here.rank}") == "decided by 0"
        assert gather(here.rank * 10) == [0, 10, 20]
        with alone():
            assert ranks() == Ranks(0, 1, here.local)
            assert agree(lambda: here.rank) == here.rank
            assert gather("mine") == ["mine"]

        def fail() -> None:
            raise StoreError("the place is taken")

        with pytest.raises(StoreError, match="the place is taken"):
            agree(fail)

    _in_three(work)


def test_processes_divide_the_reading_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read by one of them, for the keys of all."""
    # Files that were just written would be read every time.
    monkeypatch.setattr(fingerprint, "_SETTLED_NS", -1)
    for i in range(7):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    images = mp.load_images(tmp_path)
    expected = mp.load_images(tmp_path).verify()
    fingerprint._known_files.clear()

    def work() -> None:
        read: list[str] = []
        opened = builtins.open

        def counting(file: object, *rest: object, **options: object) -> object:
            read.append(str(file))
            return opened(file, *rest, **options)  # type: ignore[call-overload]

        builtins.open = counting  # type: ignore[assignment]
        divide_hashing(images)
        own = [Path(file).name for file in read if file.endswith(".png")]
        assert images.keys == expected
        assert [Path(f).name for f in read if f.endswith(".png")] == own
        assert sorted(own) == [f"{i}.png" for i in range(ranks().rank, 7, 3)]

    _in_three(work)


def test_an_error_of_one_process_is_that_of_all(tmp_path: Path) -> None:
    """None waits for one that has given up."""

    def work() -> None:
        from mixer_probe.capture import extract
        from mixer_probe.core.errors import ImagesError
        from tests.capture.test_store import Source
        from tests.networks import CASES

        source = Source(6)
        source.fails_at, source.error = 4, ImagesError("image 4 is gone")
        with pytest.raises(ImagesError, match="image 4 is gone"):
            extract(CASES["mixer"].model(), source, out=tmp_path / "run", batch_size=2)

    _in_three(work)


def test_one_process_without_torchrun_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks() == Ranks(0, 1, 0)
    # Some clusters set these for every job.
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks() == Ranks(0, 1, 0)
