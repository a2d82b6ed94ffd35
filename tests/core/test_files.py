"""Files: whole or not at all, under the umask, one writer at a time, and what is said about
them."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mixer_probe.core import files
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import save_results
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import export_report
from mixer_probe.report.pages import save_pages
from mixer_probe.study import ResultCache


def _pages(folder: Path) -> None:
    save_pages([Figure((1, 1))], folder / "x.pdf")


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: files.write_text(folder / "x.txt", "naïve 猫"),
    "bytes": lambda folder: files.write_bytes(folder / "x.bin", b"\0\1"),
    "results": lambda folder: save_results([Skipped("a", "b")], folder / "r.json"),
    "report": lambda folder: export_report(
        [Skipped("a", "b")], folder, "T", drawn={"extra": Figure((1, 1))}
    ),
    "steps": lambda folder: ResultCache(folder).get("a", {}, lambda: [Skipped("a", "b")]),
    "pages": _pages,
}


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def written(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file()]


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002, 0o022])
@pytest.mark.parametrize("name", WRITERS)
def test_files_have_the_mode_that_the_umask_leaves(
    tmp_path: Path, umask: Callable[[int], int], name: str, mask: int
) -> None:
    umask(mask)
    WRITERS[name](tmp_path / "out")
    modes = {f.name: oct(stat.S_IMODE(f.stat().st_mode)) for f in written(tmp_path)}
    assert modes
    assert set(modes.values()) == {oct(0o666 & ~mask)}


def test_text_and_bytes_come_back_and_folders_are_made(tmp_path: Path) -> None:
    assert (
        files.write_text(tmp_path / "a" / "b" / "x.txt", "naïve 猫").read_text(encoding="utf-8")
        == "naïve 猫"
    )
    assert files.write_bytes(tmp_path / "a" / "x.bin", b"\0\xff").read_bytes() == b"\0\xff"


REFUSED = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("name", WRITERS)
def test_what_the_system_refuses_is_told_in_its_words_and_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    WRITERS[name](tmp_path)
    before = {f: f.read_bytes() for f in written(tmp_path)}

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if name == "steps":
        for file in written(tmp_path):
            file.unlink()
        before = {}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=REFUSED[number]) as caught:
            WRITERS[name](tmp_path)
    assert ("free disk space" in str(caught.value)) == (
        name == "steps" and number in (errno.ENOSPC, errno.EDQUOT)
    )
    assert {f: f.read_bytes() for f in written(tmp_path)} == before


@pytest.mark.parametrize("path", ["file/x.txt", "a" * 300, "\0", ".", ""])
def test_places_that_cannot_be_are_one_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        files.write_text(Path(f"{tmp_path}/{path}") if path else Path(path), "text")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mixer_probe.core import files
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
files.write_text(Path(sys.argv[1]), "the new one")
"""


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(
        StoreError, match=r"cannot write .*pipe: it is a device or a pipe; give the name of a file"
    ):
        files.write_text(pipe, "new")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_is_removed(
    tmp_path: Path, at: str
) -> None:
    file = tmp_path / "x.txt"
    file.write_text("the old one")
    (tmp_path / "own.tmp").write_text("of a person")
    assert (
        subprocess.run([sys.executable, "-c", KILLED, str(file), at], check=False).returncode
        == -signal.SIGKILL
    )
    assert file.read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 3
    files.remove_leftovers(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["own.tmp", "x.txt"]


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9.png", r"caf\xe9.png"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("猫 naïve".encode(), "猫 naïve"),
        (b"a\\xe9", r"a\xe9"),
    ],
)
def test_names_that_are_no_utf_8_are_printable(name: bytes, text: str) -> None:
    assert files.printable(os.fsdecode(name)) == text
    assert files.printable(Path(os.fsdecode(name))) == text
    assert files.printable(os.fsdecode(name)).encode()


def test_half_a_pair_is_printable_too(tmp_path: Path) -> None:
    assert files.printable("a\ud83d") == r"a\ud83d"
    assert files.write_text(tmp_path / "x", "caf\udce9 \ud83d").read_text() == r"caf\xe9 \ud83d"


# -- one writer ------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from mixer_probe.core.files import only_writer
from mixer_probe.study import ResultCache
with only_writer(Path("place"), Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_writes_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(StoreError) as caught, files.only_writer(tmp_path / "place", lock):
            pass
        first.kill()
    assert str(caught.value) == (
        f"{tmp_path}/place is being written by another process (pid {first.pid}); wait for it or "
        "give another --out"
    )
    with files.only_writer(tmp_path / "place", lock):
        assert lock.exists()
    assert not list(lock.parent.iterdir())


def test_of_threads_that_write_to_one_place_one_works_at_a_time(tmp_path: Path) -> None:
    """Forty entries and exits by eight threads; what is there at once is counted inside."""
    inside, most, refused, done = [0], [0], [0], [0]

    def work() -> None:
        for _ in range(40):
            try:
                with files.only_writer(tmp_path, tmp_path / ".lock"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
                    done[0] += 1
            except StoreError:
                refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert done[0] + refused[0] == 320
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"cannot write .*place: (File exists|Not a directory)"),
        files.only_writer(tmp_path / "place", tmp_path / "file" / ".lock"),
    ):
        pass
