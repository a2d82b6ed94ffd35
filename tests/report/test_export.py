"""What a study leaves in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

import mixer_probe as mp
from mixer_probe.core.errors import StoreError
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import export_report, make_sections
from mixer_probe.report.export import exporting
from tests.helpers.interrupt import Killed, ending
from tests.networks import CASES
from tests.tiny import tiny_models


def test_everything_is_there_and_loads_back(tmp_path: Path) -> None:
    results = [
        mp.token_mixing(tiny_models()[0]),
        Skipped("a step", "a reason"),
        Skipped("another", "why not"),
    ]
    sections = export_report(
        results, tmp_path / "out", "A title", {"command": "python x.py"}, {"extra": Figure((1, 1))}
    )
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {
        "report.html",
        "results.json",
        "skipped-analyses.csv",
        "extra.svg",
        "extra.png",
    } <= files
    assert {name.removesuffix(".svg") for name in files if name.endswith(".svg")} == {
        name.removesuffix(".png") for name in files if name.endswith(".png")
    }
    assert [s.paragraphs for s in sections] == [s.paragraphs for s in make_sections(results)]
    again = mp.load_results(tmp_path / "out" / "results.json")
    assert [type(r) for r in again] == [type(r) for r in results]
    np.testing.assert_array_equal(again[0].to_frame().to_numpy(), results[0].to_frame().to_numpy())
    assert pd.read_csv(tmp_path / "out" / "skipped-analyses.csv")["reason"].tolist() == [
        "a reason",
        "why not",
    ]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "A title" in page
    assert "python x.py" in page


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    results = [mp.token_mixing(tiny_models()[0])]
    for name in ("a", "b"):
        export_report(results, tmp_path / name, "T")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_no_place_and_no_result_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot create the folder"):
        export_report([Skipped("a", "b")], tmp_path / "file", "T")
    with pytest.raises(StoreError, match="no result to report"):
        export_report([], tmp_path / "out", "T")


# -- one report after another ----------------------------------------------------------------------


def report(out: Path, *names: str) -> None:
    """A report with a picture for each name."""
    export_report(
        [Skipped("a", name) for name in names],
        out,
        "T",
        drawn={name: Figure((0.2, 0.2)) for name in names},
    )


def pictures(out: Path) -> set[str]:
    return {file.stem for file in out.glob("*.svg")}


def test_what_the_report_before_wrote_goes_and_nothing_else(tmp_path: Path) -> None:
    report(tmp_path, "old", "edited", "both")
    (tmp_path / "old.svg.txt").write_text("of a person")
    (tmp_path / "edited.svg").write_text("changed by a person")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.json").write_text("a step")
    report(tmp_path, "new", "both")
    assert pictures(tmp_path) == {"edited", "new", "both"}
    assert (tmp_path / "edited.svg").read_text() == "changed by a person"
    assert not (tmp_path / "edited.png").exists()
    assert (tmp_path / "old.svg.txt").exists()
    assert (tmp_path / "parts" / "a.json").exists()
    assert [r.reason for r in mp.load_results(tmp_path)] == ["new", "both"]


@pytest.mark.parametrize("names", ["../outside.txt", "/outside.txt", "a/../../outside.txt"])
def test_a_list_of_files_reaches_nothing_outside(tmp_path: Path, names: str) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    report(tmp_path / "out", "a")
    name = names if not names.startswith("/") else str(outside)
    digest = hashlib.sha256(b"x").hexdigest()
    (tmp_path / "out" / ".mixer-probe-files.json").write_text(json.dumps({name: digest}))
    report(tmp_path / "out", "b")
    assert outside.read_text() == "x"


def _broken_off(out: Path, error: BaseException) -> None:
    with exporting(out) as export:
        export.write("new.svg", b"half")
        raise error


def test_an_interrupted_report_leaves_the_one_before(tmp_path: Path) -> None:
    report(tmp_path, "old")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    for error in (
        KeyboardInterrupt(),
        Killed(),
        ValueError("a bug"),
        StoreError("x"),
        FileNotFoundError("an image"),
    ):
        with pytest.raises(type(error)) as caught:
            _broken_off(tmp_path, error)
        assert caught.value is error
        assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_killed_at_any_moment_pictures_of_two_reports_are_never_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What changes a folder is counted, and the process ends at the first of it, the second, ...
    until nothing is left."""
    tried = 0
    for moment in range(1000):
        out = tmp_path / str(moment)
        report(out, "old", "gone")
        with monkeypatch.context() as patch:
            counted = ending(moment, Killed())
            for owner, name in (
                (os, "replace"),
                (Path, "rename"),
                (Path, "unlink"),
                (Path, "write_bytes"),
                (shutil, "rmtree"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                report(out, "new", "more")
            except Killed:
                tried += 1
            else:
                break
        (out / ".mixer-probe.lock").unlink(missing_ok=True)
        assert pictures(out) <= {"old", "gone"} or pictures(out) <= {"new", "more"}, moment
        report(out, "third")
        assert pictures(out) == {"third"}
        assert {f.name for f in out.iterdir()} == {
            *(
                ".mixer-probe-files.json",
                "skipped-analyses.csv",
                "report.html",
                "results.json",
                "third.svg",
                "third.png",
            )
        }
    with capsys.disabled():
        print(f"\nreports killed at {tried} moments: never two together, the next one complete")
    assert tried > 20


def test_a_second_writer_of_a_report_is_told(tmp_path: Path) -> None:
    report(tmp_path, "old")
    with exporting(tmp_path) as export:
        export.write("new.svg", b"new")
        with pytest.raises(
            StoreError, match="is being written by another thread of this process; wait for it"
        ):
            report(tmp_path, "second")
    assert (tmp_path / "new.svg").read_bytes() == b"new"
    assert pictures(tmp_path) == {"new"}


def test_names_that_are_no_utf_8_are_written_everywhere_as_they_are_printed(tmp_path: Path) -> None:
    """Files, classes, the folder itself and the model: in runs, results, tables, pictures and the
    page."""
    folder = os.fsencode(tmp_path / "photos-") + b"\xff"
    for label in (b"caf\xe9", b"dog"):
        os.makedirs(folder + b"/" + label)
        for i in range(2):
            Image.new("RGB", (32, 32), (i * 90, 50, len(label) * 20)).save(
                os.fsdecode(folder + b"/" + label + b"/" + str(i).encode() + b"\xe4.png"), "PNG"
            )
    images = mp.load_images(os.fsdecode(folder))
    model = replace(CASES["mixer"].model(), name="model \udce9")
    assert images.ids[0] == r"caf\xe9/0\xe4.png"
    assert images.class_names == (r"caf\xe9", "dog")
    run = mp.extract(model, images, out=tmp_path / "run")
    assert run.ids == images.ids
    result = mp.attribute(model, images, "saliency", target=0)
    assert result.model.name == r"model \xe9"
    export_report(
        [result, mp.compare(run, run, permutations=0, resamples=0)], tmp_path / "out", "T"
    )
    assert mp.load_results(tmp_path / "out")[0].ids == images.ids
    tables = "".join(f.read_text(encoding="utf-8") for f in (tmp_path / "out").glob("*.csv"))
    assert r"0\xe4.png" in tables
    assert r"model \xe9" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
