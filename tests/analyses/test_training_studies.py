"""The studies of training: small runs of each, and their stored results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.report import make_sections
from mixer_probe.training import RunQuantity, RunSimilarity, StudyAnswer, UnitHistory
from tests.analyses.scripts import FOLDER, load, pictures, run

STORED = FOLDER / "results"
# Quantities, similarities and histories of each.
COUNTS = {
    "permutation_training": (6 + 3 + 3, 3, 0),
    "training_dynamics": (3 * 4 + 3, 0, 1),
    "parameter_tying": (2 + 5, 0, 0),
    "similarity_tests": (2, 0, 0),
}


@pytest.fixture(autouse=True)
def scripts_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", COUNTS)
def test_smoke(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    said = run(name, monkeypatch, capsys, "--smoke", "--seeds", 0, 1, "--out", out)
    results = mp.load_results(out)
    kinds = (RunQuantity, RunSimilarity, UnitHistory)
    assert tuple(sum(isinstance(r, kind) for r in results) for kind in kinds) == COUNTS[name]
    assert all(r.seeds == (0, 1) for r in results if isinstance(r, RunQuantity))
    first = make_sections(results)[0]
    (answer,) = (r for r in results if isinstance(r, StudyAnswer))
    assert first.paragraphs == answer.sentences
    assert all(sentence in said for sentence in answer.sentences)
    assert pictures(out)
    if name != "training_dynamics":
        return
    # A second start trains nothing, and says the same.
    again = run(name, monkeypatch, capsys, "--smoke", "--seeds", 0, 1, "--out", out)
    assert "images/s" not in again
    assert again.splitlines()[:20] == said[said.index(first.title) :].splitlines()[:20]


@pytest.mark.parametrize("file", sorted(STORED.glob("*.json")), ids=lambda file: file.stem)
def test_stored_results_are_complete_and_say_what_they_said(file: Path) -> None:
    results = mp.load_results(file)
    quantities = [r for r in results if isinstance(r, RunQuantity)]
    assert len(quantities) == COUNTS[file.stem][0]
    seeds = (0, 1, 2, 3) if file.stem == "similarity_tests" else (0, 1, 2)
    for r in quantities:
        assert r.seeds == seeds
        assert np.isfinite(r.values).all() or r.unit == "log2"
    # The answer follows from the numbers.
    (answer,) = (r for r in results if isinstance(r, StudyAnswer))
    assert load(file.stem).answer([r for r in results if r is not answer]) == answer


@pytest.mark.parametrize("name", COUNTS)
def test_a_missing_folder_says_how_to_get_the_images(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"no folder .*kriz/cifar\.html"):
        run(name, monkeypatch, capsys, "--data", tmp_path, "--out", tmp_path / "out")
