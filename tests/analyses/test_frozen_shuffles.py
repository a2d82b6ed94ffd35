"""The script on distortions: one command, no network, all it promises, and sentences that are true
of planted networks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.skipped import Skipped
from mixer_probe.invariance import DistortionAccuracy, ErrorConsistency
from mixer_probe.report import make_sections
from mixer_probe.study import ResultCache
from tests.analyses.scripts import load, pictures, run
from tests.helpers.golden import check_folder
from tests.invariance.planted import colours, quadrants


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("frozen_shuffles")


def test_smoke(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    update_golden: bool,
) -> None:
    out = tmp_path / "out"
    said = run(
        "frozen_shuffles",
        monkeypatch,
        capsys,
        "--smoke",
        "--limit",
        40,
        "--device",
        "cpu",
        "--out",
        out,
    )
    drawn = {
        "distortion-accuracy",
        "architectures-distortions",
        "error-consistency-pairs",
        "representation-shift-cka",
    }
    assert drawn <= pictures(out)
    tables = {
        "architectures-under-distortions",
        "error-consistency",
        "shift-of-representations",
        "distorted-images",
    }
    assert {f"{name}.csv" for name in tables} <= {p.name for p in out.iterdir()}
    assert "mixer-s0 has an accuracy of" in said
    assert "n = 40" in said
    results = mp.load_results(out / "results.json")
    table = pd.read_csv(out / "accuracy-under-distortions.csv")
    accuracy = [r for r in results if isinstance(r, DistortionAccuracy)]
    assert [r.model.name for r in accuracy] == ["zoo:mixer-s0", "zoo:resnet-s0"]
    assert {r.images.n for r in accuracy} == {40}
    np.testing.assert_allclose(
        table["accuracy"], np.concatenate([r.accuracy.value for r in accuracy])
    )
    assert "Robustness by architecture" in (out / "report.html").read_text(encoding="utf-8")
    # What was saved can be reported again without a network.
    assert (
        next(s.paragraphs[0] for s in make_sections(results) if s.anchor == "distortions") in said
    )
    check_folder("frozen_shuffles", out, update_golden)


def test_a_network_against_itself_and_one_that_is_not_there(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, names = (
        mp.load_images("demo", limit=30),
        ["zoo:resnet-s0", "zoo:no-such-network", "zoo:resnet-s0"],
    )
    results = script.study(names, images, "cpu", ResultCache(tmp_path), smoke=True)
    skipped = [r for r in results if isinstance(r, Skipped)]
    assert [s.step for s in skipped] == ["distortions of zoo:no-such-network"]
    consistency = next(r for r in results if isinstance(r, ErrorConsistency))
    assert consistency.kappa[0, 0, 1] == 1
    said = "\n".join(t for s in make_sections(results) for t in s.paragraphs)
    # No pair of answers differed, of which 30 images leave as much possible as Wilson's interval
    # does.
    low = 1 - 2 / (1 + 30 / 1.959964**2)
    assert f"kappa 1.00 [{low:.2f}, 1.00], maximum 1.00" in said
    assert "the gap between the highest and the lowest" not in said, (
        "one family has no gap to another"
    )
    # A second start reads what the first one kept.
    monkeypatch.setattr(script, "distortion_accuracy", None)
    again = script.study(names, images, "cpu", ResultCache(tmp_path), smoke=True)
    assert [t for s in make_sections(again) for t in s.paragraphs] == said.split("\n")


def test_nothing_that_can_be_measured_is_one_clear_error(
    script: ModuleType, tmp_path: Path
) -> None:
    steps = ResultCache(tmp_path)
    with pytest.raises(
        MixerProbeError,
        match=r"no network could be measured; the first reason: .*is among the 10 of zoo:resnet-s0",
    ):
        script.study(["zoo:resnet-s0"], quadrants(3), "cpu", steps, smoke=True)
    with pytest.raises(MixerProbeError, match="no network could be measured"):
        script.study(["zoo:nothing"], colours(3), "cpu", steps)


def test_a_bad_argument_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^frozen_shuffles: 'no-such-folder' is no folder[^\n]*$"):
        run("frozen_shuffles", monkeypatch, capsys, "--data", "no-such-folder", "--out", tmp_path)


def test_the_middle_of_each_kind(script: ModuleType) -> None:
    model = mp.load_model("zoo:mixer-s0", device="cpu")
    chosen = script.middling(mp.invariance.standard_distortions(model))
    assert len(chosen) == len({d.kind for d in chosen}) == 8
    assert chosen[0].grid == 8
    assert set(script.SHIFT_KINDS) <= {d.kind for d in chosen}
