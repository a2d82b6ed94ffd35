"""Results on the disk: the same back, never of other code, never half, and no trouble where the disk is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from mixer_probe_app import disk, offers

import mixer_probe as mp
from mixer_probe.results import ImagesRecord


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disk, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_a_result_comes_back(own_folder: Path) -> None:
    found = mp.token_mixing(mp.load_model("zoo:mixer-s0"))
    disk.write("token mixing", ("a", 1), found, ("odd",))
    again, warnings = disk.read("token mixing", ("a", 1)) or (None, ())
    assert warnings == ("odd",)
    assert type(again) is type(found)
    np.testing.assert_array_equal(again.units(0), found.units(0))
    assert disk.read("token mixing", ("a", 2)) is None
    assert [path.suffix for path in own_folder.rglob("*") if path.is_file()] == [".gz"]


def test_other_code_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write("numbers", "key", (1, 2.5, "text", None), ())
    assert disk.read("numbers", "key") == ((1, 2.5, "text", None), ())
    monkeypatch.setattr(disk, "code_version", lambda: "another")
    assert disk.read("numbers", "key") is None


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08\x00broken"])
def test_a_damaged_file_is_as_none(content: bytes) -> None:
    disk.write("numbers", "key", 1, ())
    file = disk.place("numbers", "key", ".json.gz")
    file.write_bytes(content)
    assert disk.read("numbers", "key") is None
    assert not file.exists()


def test_what_is_no_data_is_not_kept(own_folder: Path) -> None:
    disk.write("pictures", "key", b"bytes", ())
    disk.write("pictures", "other", object(), ())
    assert not [path for path in own_folder.rglob("*") if path.is_file()]


def test_a_disk_that_takes_nothing_is_no_trouble(own_folder: Path) -> None:
    (own_folder / "results").write_text("in the way")
    disk.write("numbers", "key", 1, ())
    assert disk.read("numbers", "key") is None


def test_the_oldest_goes_first(own_folder: Path) -> None:
    for i in range(4):
        disk.write("numbers", i, "x" * 1000 + os.urandom(3000).hex(), ())
        os.utime(disk.place("numbers", i, ".json.gz"), (i, i))
    size = disk.place("numbers", 0, ".json.gz").stat().st_size
    disk.tidy(most=int(2.5 * size))
    assert [disk.read("numbers", i) is not None for i in range(4)] == [False, False, True, True]


def test_records_survive() -> None:
    record = ImagesRecord("demo", "test", 3, 2, "abc")
    disk.write("records", "key", {"a": record}, ())
    assert disk.read("records", "key") == ({"a": record}, ())


def test_the_place_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offers.cache_folder.cache_clear()
    monkeypatch.setenv(offers.CACHE, str(tmp_path / "elsewhere"))
    assert offers.cache_folder() == tmp_path / "elsewhere"
    offers.cache_folder.cache_clear()
