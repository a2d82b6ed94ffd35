"""Results on the disk: the same back, never of other code, never half, and no trouble where the
disk is."""

from __future__ import annotations

import gc
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mixer_probe_app import disk, local_files

import mixer_probe as mp
from mixer_probe.core.result import ImagesRecord


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


WRONG = [
    {},
    [],
    {"key": "'key'"},
    {"key": "'key'", "value": {"kind": "None"}, "warnings": []},
    {"key": "'other'", "value": 1},
]
WRONG += [{"key": "'key'", "value": 1, "warnings": 3}]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        b"\x1f\x8b\x08\x00broken",
        # Without the time, which would give the test another name in every process.
        *(gzip.compress(json.dumps(w).encode(), mtime=0) for w in WRONG),
        gzip.compress(b"[" * 10**5, mtime=0),
    ],
)
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
    local_files.cache_folder.cache_clear()
    monkeypatch.setenv(local_files.CACHE, str(tmp_path / "elsewhere"))
    assert local_files.cache_folder() == tmp_path / "elsewhere"
    local_files.cache_folder.cache_clear()


def test_what_is_used_stays_and_what_is_held_is_never_removed(own_folder: Path) -> None:
    for i in range(4):
        disk.write("numbers", i, os.urandom(3000).hex(), ())
        os.utime(disk.place("numbers", i, ".json.gz"), (i, i))
    places = [disk.place("numbers", i, ".json.gz") for i in range(4)]
    changed = places[0].stat().st_mtime_ns
    assert disk.read("numbers", 0) is not None
    assert places[0].stat().st_mtime_ns == changed

    class Session:
        pass

    session = Session()
    disk.hold(places[1], session)
    disk.tidy(most=int(2.5 * places[0].stat().st_size))
    assert [place.exists() for place in places] == [True, True, False, False]
    del session
    gc.collect()
    disk.tidy(most=places[0].stat().st_size)
    assert [place.exists() for place in places] == [True, False, False, False]


def test_uploads_count_too(own_folder: Path) -> None:
    (own_folder / local_files.UPLOADED / "abc" / "cats").mkdir(parents=True)
    (own_folder / local_files.UPLOADED / "abc" / "cats" / "1.png").write_bytes(bytes(10_000))
    os.utime(own_folder / local_files.UPLOADED / "abc", (1, 1))
    disk.write("numbers", "key", 1, ())
    disk.tidy(most=9_000)
    assert not (own_folder / local_files.UPLOADED / "abc").exists()
    assert disk.read("numbers", "key") == (1, ())


def test_files_that_vanish_meanwhile_are_no_trouble(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        disk.write("numbers", i, i, ())
    remove = disk._remove

    def removed(entry: Path) -> bool:
        entry.unlink()
        return remove(entry)

    monkeypatch.setattr(disk, "_remove", removed)
    disk.tidy(most=0)
    assert [disk.read("numbers", i) for i in range(3)] == [None] * 3


@pytest.mark.parametrize("damage", ["chunk", "note", "file in the way"])
def test_a_damaged_run_is_made_anew(own_folder: Path, damage: str) -> None:
    made: list[Path | None] = []

    def extract(place: Path | None) -> mp.Representations:
        made.append(place)
        return mp.extract(
            mp.load_model("zoo:resnet-s0"), mp.load_images("demo", limit=8), "blocks", out=place
        )

    first = disk.store("key", extract)
    values = [np.asarray(first[layer.name]) for layer in first.layers]
    del first
    gc.collect()
    place = made[0]
    assert place is not None
    if damage == "file in the way":
        shutil.rmtree(place)
        place.write_text("x")
    else:
        files = sorted(
            f
            for f in place.rglob("*")
            if f.is_file() and (f.name == "zarr.json") == (damage == "note")
        )
        for file in files if damage == "chunk" else files[:1]:
            file.write_bytes(file.read_bytes()[:-7] + b"damaged")
    again = disk.store("key", extract)
    assert all(
        np.array_equal(again[layer.name], value)
        for layer, value in zip(again.layers, values, strict=True)
    )
    # Damaged metadata is written again by the extraction itself.
    tries = 2 if damage == "note" else 3
    assert len(made) == tries
    assert len(disk.store("key", extract).ids) == 8
    assert len(made) == tries + 1
