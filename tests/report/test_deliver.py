"""What a study leaves in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import mixer_probe as mp
from mixer_probe.errors import StoreError
from mixer_probe.report import Skipped, deliver, make_sections
from tests.tiny import tiny_models


def test_everything_is_there_and_loads_back(tmp_path: Path) -> None:
    results = [mp.token_mixing(tiny_models()[0]), Skipped("a step", "a reason"), Skipped("another", "why not")]
    sections = deliver(results, tmp_path / "out", "A title", {"command": "python x.py"}, {"extra": Figure((1, 1))})
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"report.html", "results.json", "left-out.csv", "extra.svg", "extra.png"} <= files
    assert {name.removesuffix(".svg") for name in files if name.endswith(".svg")} == {
        name.removesuffix(".png") for name in files if name.endswith(".png")
    }
    assert [s.paragraphs for s in sections] == [s.paragraphs for s in make_sections(results)]
    again = mp.load_results(tmp_path / "out" / "results.json")
    assert [type(r) for r in again] == [type(r) for r in results]
    np.testing.assert_array_equal(again[0].to_frame().to_numpy(), results[0].to_frame().to_numpy())
    assert pd.read_csv(tmp_path / "out" / "left-out.csv")["reason"].tolist() == ["a reason", "why not"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "A title" in page
    assert "python x.py" in page


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    results = [mp.token_mixing(tiny_models()[0])]
    for name in ("a", "b"):
        deliver(results, tmp_path / name, "T")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_no_place_and_no_result_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make the folder"):
        deliver([Skipped("a", "b")], tmp_path / "file", "T")
    with pytest.raises(StoreError, match="no result to report"):
        deliver([], tmp_path / "out", "T")
