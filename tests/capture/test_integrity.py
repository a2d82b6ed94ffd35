"""Attacks on what is kept: every flipped bit and every cut is refused in a sentence, or changes
nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_probe.capture.units as units
from mixer_probe.capture import Representations, extract, open_run
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import load_results, save_results, to_dict
from mixer_probe.core.skipped import Skipped
from mixer_probe.models import Model
from mixer_probe.study import ResultCache
from tests.capture.test_store import Source
from tests.networks import CASES

FLIPS, CUTS = 120, 130


@pytest.fixture(scope="module")
def model() -> Model:
    return CASES["dinov2-registers"].model()


def numbers(run: Representations) -> list[Any]:
    """All that a run says, read now."""
    arrays = [run[name] for name in run] + [run.prefix(name) for name in run._prefixes]
    parts = [
        run.record,
        run.ids,
        run.class_names,
        run.non_finite,
        None if run.labels is None else run.labels.tolist(),
    ]
    return [json.dumps(to_dict(parts)), *(array.tobytes() for array in arrays)]


def broken(n: int, **settings: Any) -> Source:
    source = Source(n)
    source.fails_at = settings.pop("fails_at", None)
    return source


@dataclass
class Place:
    """Something on the disk, how it is made, and what is read of it: damage is refused, or does not
    change that."""

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    writes: bool = False


def _skipped() -> list[Skipped]:
    return [Skipped("a step", "a reason"), Skipped("café", "x" * 300)]


def places(model: Model) -> dict[str, Place]:
    options: dict[str, Any] = {"layers": "blocks", "reduce": "none", "batch_size": 4}

    def run(folder: Path) -> None:
        extract(model, Source(9), **options, out=folder / "run")

    def unfinished(folder: Path) -> None:
        with pytest.raises(OSError, match="disk went away"):
            extract(model, broken(9, fails_at=7), **options, out=folder / "run")

    def results(folder: Path) -> None:
        save_results(_skipped(), folder / "r.json", {"seed": 3, "text": "a  b"}, "A title")

    def step(folder: Path) -> None:
        ResultCache(folder).get("a", {}, _skipped)

    return {
        "run": Place(run, lambda folder: numbers(open_run(folder / "run"))),
        "unfinished run": Place(
            unfinished,
            lambda folder: numbers(extract(model, Source(9), **options, out=folder / "run")),
            writes=True,
        ),
        "results": Place(results, lambda folder: load_results(folder / "r.json")),
        # What cannot be read of a step is computed again.
        "step": Place(step, lambda folder: ResultCache(folder).get("a", {}, _skipped), writes=True),
    }


def flip(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[random.integers(len(content))] ^= 1 << random.integers(8)
    return bytes(changed)


def cut(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(len(content))]


@pytest.mark.parametrize(("how", "times"), [(flip, FLIPS), (cut, CUTS)])
def test_damage_is_refused_in_a_sentence_or_changes_nothing(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: Any,
    times: int,
) -> None:
    """Any error but StoreError fails this test, and so do other numbers. Files are taken in turn,
    so that each kind is hit."""
    monkeypatch.setattr(units, "LEAST", 4)
    random = np.random.default_rng(0)
    found: Counter[tuple[str, str]] = Counter()
    sentences: set[str] = set()
    read_changes = 0
    for name, place in places(model).items():
        whole = tmp_path / name
        whole.mkdir()
        place.make(whole)
        files = sorted(f.relative_to(whole) for f in whole.rglob("*") if f.is_file())
        expected = place.read(_copy(whole, tmp_path / "work"))
        tries = times if name == "run" else times // 6
        for i in range(tries):
            # What only reads works on the one place, whose file is put right afterwards.
            work = _copy(whole, tmp_path / "work") if place.writes else whole
            file = work / files[int(i * len(files) / tries)]
            # Metadata that the group's has too, and what only writers read.
            copy = name == "run" and (
                file.parent.name == "units" or (file.name == "zarr.json" and file.parent != work)
            )
            before = file.read_bytes()
            file.write_bytes(how(before, random))
            try:
                same = place.read(work) == expected
            except StoreError as error:
                found[name, "refused"] += 1
                sentences.add(str(error))
            else:
                found[name, "nothing changed" if same else "SILENT"] += 1
                read_changes += same and name == "run" and not copy
            if not place.writes:
                file.write_bytes(before)
    told = [f"{name}: {what} {count}" for (name, what), count in sorted(found.items())]
    with capsys.disabled():
        print(f"\n{how.__name__}: {sum(found.values())} tried; " + ", ".join(told))
    assert not [key for key in found if key[1] == "SILENT"]
    assert not [
        text
        for text in sentences
        if "\n" in text or not re.search("again|recreate it|give the folder", text)
    ]
    assert sum(count for (name, _), count in found.items() if name == "run") == times
    assert read_changes < 0.2 * found["run", "refused"]
    assert found["results", "nothing changed"] == 0


def _copy(whole: Path, work: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    return work


@pytest.mark.parametrize(
    "what", ["chunk", "prefix chunk", "half a chunk", "no bytes", "another chunk", "array"]
)
def test_what_is_lost_after_opening_is_told_when_it_is_read(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """zarr fills in NaN for chunks that are not there."""
    monkeypatch.setattr(units, "LEAST", 4)
    extract(model, Source(9), "blocks", reduce="none", out=tmp_path / "run")
    run = open_run(tmp_path / "run")
    before = run["blocks.0"]
    folder = tmp_path / "run" / ("prefix/blocks.1" if what.startswith("prefix") else "blocks.1")
    chunk = folder / "c" / "1" / "0" / "0"
    if what == "array":
        shutil.rmtree(folder)
    elif what.endswith(" chunk") and what.startswith("another"):
        chunk.write_bytes(b"\0" * 100)
    elif what.startswith(("half", "no")):
        chunk.write_bytes(chunk.read_bytes()[: 40 if what.startswith("half") else 0])
    else:
        chunk.unlink()
    read = run.prefix if what.startswith("prefix") else run.__getitem__
    with pytest.raises(
        StoreError,
        match=(
            r"the run at .*run is damaged \(.*blocks\.1.*run the same extract again with "
            r"verify=True \(--verify\), which rewrites the damaged parts"
        ),
    ):
        read("blocks.1")
    np.testing.assert_array_equal(run["blocks.0"], before)
    if not what.startswith("prefix"):
        with pytest.raises(StoreError, match="is damaged"):
            run.rows("blocks.1", np.array([0, 5]))
        if what != "array":
            assert run.rows("blocks.1", slice(0, 4)).shape == (4, 16, 24)


def test_every_array_has_a_checksum_and_one_row_of_chunks(model: Model, tmp_path: Path) -> None:
    extract(model, Source(3), "blocks", reduce="none", out=tmp_path / "run")
    metadata = {
        f.parent.name: json.loads(f.read_text()) for f in (tmp_path / "run").rglob("zarr.json")
    }
    arrays = {name: node for name, node in metadata.items() if node["node_type"] == "array"}
    assert {"image_id", "label", "blocks.0", "blocks.1"} <= set(arrays)
    for name, node in arrays.items():
        (last,) = node["codecs"][-1:]
        if not name.startswith(("image", "label")):
            assert last["name"] == "sharding_indexed"
            assert last["configuration"]["index_codecs"][-1]["name"] == "crc32c"
            (last,) = last["configuration"]["codecs"][-1:]
        assert last["name"] == "crc32c"


def test_runs_of_the_version_before_say_so(model: Model, tmp_path: Path) -> None:
    extract(model, Source(3), out=tmp_path / "run")
    root = json.loads((tmp_path / "run" / "zarr.json").read_text())
    root["attributes"]["format"] = "mixer-probe run 1"
    (tmp_path / "run" / "zarr.json").write_text(json.dumps(root))
    told = (
        r"no run of this version of mixer_probe \(expected format 'mixer-probe run \d', found "
        r"'mixer-probe run 1'\)"
    )
    with pytest.raises(StoreError, match=told):
        open_run(tmp_path / "run")
