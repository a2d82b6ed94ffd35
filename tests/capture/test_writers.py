"""Several writers of one run, and writers that are killed: nothing is lost, and each says what is
the matter."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mixer_probe.capture.store as store
import mixer_probe.capture.units as units
from mixer_probe.capture import extract, open_run
from mixer_probe.core import files
from mixer_probe.core.errors import StoreError
from mixer_probe.core.places import Place
from mixer_probe.models import Model
from tests.capture.test_integrity import numbers
from tests.capture.test_store import Source
from tests.helpers.interrupt import Killed, ending
from tests.networks import CASES

OPTIONS: dict[str, Any] = {"layers": "blocks", "batch_size": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    return CASES["dinov2-registers"].model()


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a unit."""
    monkeypatch.setattr(units, "LEAST", 2)


def _everything(count: Callable[[Any], Any]) -> list[tuple[Any, str, Any]]:
    """All that changes files or waits for them, each `count`ed."""
    from zarr.storage import _local

    targets: list[tuple[Any, str]] = [
        (os, "replace"),
        (os, "fsync"),
        (Path, "mkdir"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "write_bytes"),
        (_local, "_put"),
    ]
    return [(owner, name, count(getattr(owner, name))) for owner, name in targets]


@pytest.mark.parametrize(
    "error",
    [Killed(), OSError(errno.ENOSPC, "No space left on device")],
    ids=["killed", "full disk"],
)
def test_a_run_that_ends_at_any_moment_goes_on_to_the_same_numbers(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    """What changes files is counted, and the process ends at the first of it, the eighth, ... until
    nothing is left.

    A process that is killed does nothing more: what would be flushed at its end is not."""
    expected = numbers(extract(model, Source(5), **OPTIONS))
    tried = 0
    for moment in range(0, 1000, 7):
        out = tmp_path / str(moment) / "run"
        with monkeypatch.context() as patch:
            counted = ending(moment, error)
            for owner, name, work in _everything(counted):
                patch.setattr(owner, name, work)
            if isinstance(error, Killed):
                end = store.RunWriter.__exit__
                patch.setattr(
                    store.RunWriter,
                    "__exit__",
                    lambda self, kind, *rest, end=end: kind or end(self, kind, *rest),
                )
            try:
                extract(model, Source(5), **OPTIONS, out=out)
            except Killed:
                tried += 1
            except StoreError as told:
                tried += 1
                assert "No space left on device" in str(told), moment  # noqa: PT017
            else:
                break
        assert numbers(extract(model, Source(5), **OPTIONS, out=out)) == expected, moment
        assert [f.name for f in out.parent.iterdir() if not f.name.endswith(".lock")] == ["run"], (
            moment
        )
        left = [f for f in out.rglob("*") if f.name.endswith((".state", ".lease", ".partial"))]
        assert not left, moment
        shutil.rmtree(out.parent)
    with capsys.disabled():
        print(f"\nruns that ended ({error!r}) at {tried} moments: each goes on to the same numbers")
    assert tried > 15


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import mixer_probe.capture.store as store
import mixer_probe.capture.units as units
from mixer_probe.capture import extract
from mixer_probe.core.errors import StoreError
from mixer_probe.core.places import Place
from tests.capture.test_store import Source
from tests.helpers.interrupt import Killed, ending
from tests.networks import CASES

out, stop = Path(sys.argv[1]), int(sys.argv[2])
units.LEAST = 2
write = store.RunWriter._put
def slowly(self, unit):
    write(self, unit)
    print(unit.rows.stop, flush=True)
    if unit.rows.stop >= stop:
        time.sleep(60)
store.RunWriter._put = slowly
try:
    extract(CASES["dinov2-registers"].model(), Source(9), layers="blocks", batch_size=2, out=out)
except StoreError as error:
    print(error)
    sys.exit(2)
"""


def test_of_two_processes_one_writes_and_a_killed_one_is_gone_on_with(
    model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(out), "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "4\n":
            assert first.poll() is None
        with pytest.raises(StoreError) as caught:
            extract(model, Source(9), **OPTIONS, out=out)
        with pytest.raises(StoreError, match=r"unfinished \(4 of 9 images\)"):
            open_run(out)
        first.kill()
    assert str(caught.value) == (
        f"{out} is being written by another process (pid {first.pid}); wait for it or give "
        "another --out"
    )
    assert first.returncode == -signal.SIGKILL
    source = Source(9)
    assert numbers(extract(model, source, **OPTIONS, out=out)) == numbers(
        extract(model, Source(9), **OPTIONS)
    )
    assert source.starts == [4]
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


def test_who_waited_for_the_other_gets_its_run(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the place and the lock, the other has finished."""
    out = tmp_path / "run"
    other, source = Source(5), Source(5)
    real = files.only_writer

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(store, "only_writer", real)
        extract(model, other, **OPTIONS, out=out)
        return real(*arguments)

    monkeypatch.setattr(store, "only_writer", late)
    found = extract(model, source, **OPTIONS, out=out)
    assert source.given == 0
    assert numbers(found) == numbers(extract(model, Source(5), **OPTIONS))


def test_a_file_system_of_4_kilobytes_loses_nothing(model: Model, tmp_path: Path) -> None:
    """A real refusal: the largest file that this process may write is so large, from the first byte
    on."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 200, 1000, 4096):
        handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(StoreError, match="File too large") as caught:
                extract(model, Source(5), "all", reduce="none", out=out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handled)
        assert "free disk space" not in str(caught.value)
    found = extract(model, Source(5), "all", reduce="none", out=out)
    assert numbers(found) == numbers(extract(model, Source(5), "all", reduce="none"))
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


def test_a_unit_is_written_beside_the_passes_of_the_next(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, put, write = threading.Event(), store.RunWriter._put, store.RunWriter.write

    def put_late(self: store.RunWriter, unit: Any) -> None:
        assert unit.index or passed.wait(30)
        put(self, unit)

    def note(self: store.RunWriter, start: int, arrays: Any) -> None:
        if start == 2:
            passed.set()
        write(self, start, arrays)

    monkeypatch.setattr(store.RunWriter, "_put", put_late)
    monkeypatch.setattr(store.RunWriter, "write", note)
    run = extract(model, Source(6), out=tmp_path / "run", **OPTIONS)
    assert numbers(run) == numbers(extract(model, Source(6), **OPTIONS))


def test_what_a_full_disk_refuses_while_the_next_unit_passes_is_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both units, beside the run."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "array_of", full)
        with pytest.raises(StoreError, match="0 of 6 images are safe"):
            extract(model, Source(6), out=tmp_path / "run", **OPTIONS)
    kept = sorted(path.name for path in (tmp_path / "run" / "units").glob("*.part-2"))
    assert kept == ["000000.part-2", "000001.part-2"]
    run = extract(model, Source(6), out=tmp_path / "run", **OPTIONS)
    assert numbers(run) == numbers(extract(model, Source(6), **OPTIONS))


def test_files_that_go_while_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the leases of other processes do."""
    place, look = Place(tmp_path), Path.stat
    for name in ("units/a", "units/b.lease", "units/c"):
        place.write(name, b"1234")

    def stat(self: Path, **options: Any) -> os.stat_result:
        if self.suffix == ".lease":
            self.unlink(missing_ok=True)
        return look(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert place.sizes("units") == {"units/a": 4, "units/c": 4}
