"""The script: one command, no network, every promised file, and sentences that are those of the
saved numbers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.channels import ChannelPartners
from mixer_probe.core.errors import ModelError
from mixer_probe.core.skipped import Skipped
from mixer_probe.models import describe
from mixer_probe.probing import ProbeResult
from mixer_probe.report import Narrative, narrate
from mixer_probe.similarity import SimilarityMatrix
from mixer_probe.study import StudySettings
from tests.helpers.golden import check_folder
from tests.tiny import tiny_models

SCRIPT = Path(__file__).parents[2] / "analyses" / "learned_features.py"
QUICK = StudySettings(
    measures=("cka",),
    analyses={"weights": (), "probing": (), "channels": (), "attribution": (), "mixing": ()},
    permutations=20,
    resamples=20,
    baselines=False,
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learned_features", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_smoke(tmp_path: Path, update_golden: bool) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--smoke", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = {p.name for p in out.iterdir()}
    assert {
        "report.html",
        "results.json",
        "findings.csv",
        "learned-features.svg",
        "learned-features.png",
    } <= files
    results = mp.load_results(out)
    narrative = next(r for r in results if isinstance(r, Narrative))
    # The narrative can be made again of what was saved, and is what was printed.
    again = narrate([r for r in results if not isinstance(r, Narrative)])
    assert [f.sentence for f in again.findings] == [f.sentence for f in narrative.findings]
    assert all(f.sentence in done.stdout for f in narrative.findings)
    probe = next(
        r for r in results if isinstance(r, ProbeResult) and r.model.name == "zoo:mixer-s0"
    )
    right = int((probe.predicted[-1] == probe.labels).sum())
    assert f"after the last layer {100 * right / 60:.1f} % [" in done.stdout
    twins = [
        r for r in results if isinstance(r, SimilarityMatrix) and "?untrained" in r.model_a.name
    ]
    assert [(r.model_a.name, r.model_b.name) for r in twins] == [
        ("zoo:mixer-s0?untrained", "zoo:resnet-s0?untrained")
    ]
    assert any(isinstance(r, ChannelPartners) for r in results)
    assert set(pd.read_csv(out / "findings.csv")["sentence"]) == {
        f.sentence for f in narrative.findings
    }
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.index('id="finding-similarity"') < page.index('id="models"')
    assert '<p>Evidence: <a href="#similarity">' in page
    check_folder("learned_features", out, update_golden)


def test_a_network_that_is_not_there_and_going_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = mp.load_images("demo", limit=30)
    names = ["zoo:resnet-s0", "zoo:no-such-network", "zoo:vit-s0"]
    first = script.study(names, images, None, "cpu", tmp_path, QUICK)
    assert "loading a model" in [r.step for r in first if isinstance(r, Skipped)]
    pairs = [
        (r.model_a.name, r.model_b.name)
        for r in first
        if isinstance(r, SimilarityMatrix) and r.model_a != r.model_b
    ]
    assert pairs == [
        ("zoo:resnet-s0", "zoo:vit-s0"),
        ("zoo:resnet-s0?untrained", "zoo:vit-s0?untrained"),
    ]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the second start computes it again")

    monkeypatch.setattr(script.mp, "compare", never)
    again = script.study(names, images, None, "cpu", tmp_path, QUICK)
    assert narrate(again).to_frame().equals(narrate(first).to_frame())


def test_no_network_at_all_is_one_clear_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no-such-network"):
        script.study(
            ["zoo:no-such-network"], mp.load_images("demo", limit=30), None, "cpu", tmp_path, QUICK
        )


def test_pairs_are_the_first_of_every_two_architectures(script: ModuleType) -> None:
    mixer, vit, resnet = (describe(model) for model in tiny_models())
    pairs = list(script.first_pairs([mixer, vit, vit, resnet]))
    named = [tuple(name.removeprefix("tiny-") for name in pair) for pair in pairs]
    assert named == [("mixer", "vit"), ("mixer", "resnet"), ("vit", "vit"), ("vit", "resnet")]


def test_a_bad_argument_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--data", "no-such-folder", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no-such-folder" in done.stderr
