"""The script on spatial mixing: its first section answers its question, with the saved numbers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.skipped import Skipped
from mixer_probe.mixing import EffectiveReceptiveField, SpatialMixing
from mixer_probe.report import make_sections
from tests.analyses.scripts import load, options, pictures, run
from tests.helpers.golden import check_folder

FEW = ("--smoke", "--images", "2", "--what", "erf", "--workers", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("spatial_mixing")


def test_smoke(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    update_golden: bool,
) -> None:
    out = tmp_path / "out"
    arguments = ("--smoke", "--workers", 1, "--device", "cpu", "--out", out)
    said = run("spatial_mixing", monkeypatch, capsys, *arguments)
    assert {"mixing-distance", "mixing-quantities", "mixing-maps"} <= pictures(out)
    results = mp.load_results(out)
    mixing = [r for r in results if isinstance(r, SpatialMixing)]
    names = ["zoo:mixer-s0", "zoo:mixer-s0?untrained", "zoo:resnet-s0", "zoo:resnet-s0?untrained"]
    assert [r.model.name for r in mixing] == names
    assert {r.n for r in mixing} == {4}
    assert sum(isinstance(r, EffectiveReceptiveField) for r in results) == 4
    # The first section has the comparison, then the table of all means, and what training changed.
    first = make_sections(results)[0]
    assert first.anchor == "spatial-mixing"
    assert [getattr(item, "name", "table") for item in first.content[:2]] == [
        "mixing-distance",
        "table",
    ]
    assert "mixer-s0 farther than resnet-s0 (by " in said
    assert "mixer-s0: training changed the " in said
    assert all(sentence in said for sentence in first.paragraphs)
    table = pd.read_csv(out / "spatial-mixing.csv")
    kept = table[(table["view"] == "branch") & (table["quantity"] == "relative_distance")]
    mean = kept.groupby("model")["value"].mean()
    # Of 16 x 16 tokens a Mixer reads from nearly everywhere, 3 x 3 convolutions from near by.
    assert mean["zoo:mixer-s0"] > 0.7 > 0.4 > mean["zoo:resnet-s0"]
    check_folder("spatial_mixing", out, update_golden)


def test_a_missing_network_and_a_second_start(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = options(script, monkeypatch, *FEW, "--no-baselines", "--out", tmp_path)
    images, train = script.load(chosen)
    assert train is not None
    names = ["zoo:no-such-network", "zoo:mixer-s0"]
    found = script.study(names, images, train, chosen)
    assert [r.step for r in found if isinstance(r, Skipped)] == ["mixing of zoo:no-such-network"]
    assert [r.model.name for r in found if isinstance(r, EffectiveReceptiveField)] == names[1:]

    def never(*_arguments: object, **_named: object) -> None:
        raise AssertionError("this was finished already")

    monkeypatch.setattr(
        "mixer_probe.mixing.analyses.effective_receptive_field", never, raising=True
    )
    again = script.study(names, images, train, chosen)
    assert [r.to_frame().to_csv() for r in again] == [r.to_frame().to_csv() for r in found]


def test_what_cannot_be_is_one_clear_error(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    chosen = options(script, monkeypatch, *FEW, "--out", tmp_path)
    with pytest.raises(
        MixerProbeError, match=r"no network could be measured; the first reason: .*closest"
    ):
        script.study(["zoo:mixre-s0"], *script.load(chosen), chosen)
    for arguments, reason in (
        (("--data", "no-such-folder"), "no-such-folder"),
        (("--what", "jacobean"), "jacobian"),
    ):
        with pytest.raises(SystemExit) as end:
            run("spatial_mixing", monkeypatch, capsys, *arguments, "--out", tmp_path)
        assert str(end.value.code).startswith("spatial_mixing: ")
        assert reason in str(end.value.code)
        assert len(str(end.value.code).splitlines()) == 1
