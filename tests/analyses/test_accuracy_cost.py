"""The script on accuracy and cost: all it promises, planted networks, and a list with a missing one
in the middle."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import ImagesWarning, MixerProbeError
from mixer_probe.core.skipped import Skipped
from mixer_probe.cost import AccuracyCost, CostGrowth, MixerScales, ModelCost
from mixer_probe.probing import ProbeResult
from mixer_probe.report import make_sections
from tests.analyses.scripts import load, options, pictures, run
from tests.helpers.golden import check_folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("accuracy_cost")


def test_smoke(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    update_golden: bool,
) -> None:
    out = tmp_path / "out"
    said = run(
        "accuracy_cost",
        monkeypatch,
        capsys,
        "--smoke",
        "--limit",
        50,
        "--batch",
        1,
        "--device",
        "cpu",
        "--out",
        out,
    )
    assert {"accuracy-cost", "cost-growth", "cost-macs"} <= pictures(out)
    tables = {p.name for p in out.glob("*.csv")}
    assert {
        "cost.csv",
        "growth-of-cost.csv",
        "accuracy-and-cost.csv",
        "table-1-of-the-mixer-paper.csv",
    } <= tables
    assert "7 match the parameter counts in Table 1" in said
    assert "n = 50, chance 10.0 %" in said
    assert "207,171,168 parameters" in said
    results = mp.load_results(out / "results.json")
    assert {MixerScales, ModelCost, CostGrowth, ProbeResult, AccuracyCost} <= {
        type(r) for r in results
    }
    costs = pd.read_csv(out / "cost.csv").set_index("model")
    assert costs.loc["zoo:mixer-s0", ["parameters", "macs"]].tolist() == [1062026, 201721088]
    assert (out / "report.html").stat().st_size > 1e5
    # What was saved says the same without a network.
    assert (
        next(s.paragraphs[0] for s in make_sections(results) if s.anchor == "accuracy-cost") in said
    )
    check_folder("accuracy_cost", out, update_golden)


def test_a_mixer_is_linear_and_a_vit_is_not(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = options(
        script,
        monkeypatch,
        "--smoke",
        "--no-probes",
        "--batch",
        1,
        "--out",
        tmp_path,
        "--device",
        "cpu",
    )
    found = script.study(["zoo:mixer-s0", "zoo:vit-s0"], chosen)
    mixer, vit = (r for r in found if isinstance(r, CostGrowth))
    assert mixer.exponent == pytest.approx(1, abs=1e-12)
    # 8 blocks of 8 S C^2 + 2 S^2 C and an embedding of 12 S C, for 256 and 1,024 tokens of width
    # 128.
    macs = [8 * (8 * s * 128**2 + 2 * s * s * 128) + 12 * s * 128 for s in (256, 1024)]
    assert vit.exponent == pytest.approx(np.log(macs[1] / macs[0]) / np.log(4), abs=1e-12)
    assert not any(isinstance(r, AccuracyCost) for r in found)


def test_twins_and_a_missing_network_and_a_second_start(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same network twice is equally accurate; what is missing is told; a second start computes
    nothing anew."""
    chosen = options(
        script,
        monkeypatch,
        "--smoke",
        "--limit",
        40,
        "--batch",
        1,
        "--out",
        tmp_path,
        "--device",
        "cpu",
    )
    names = ["zoo:resnet-s0", "zoo:no-such-network", "zoo:resnet-s0?untrained"]
    found = script.study(names, chosen)
    assert [s.step for s in found if isinstance(s, Skipped)] == ["all of zoo:no-such-network"]
    (against,) = (r for r in found if isinstance(r, AccuracyCost))
    assert [m.name for m in against.models] == ["zoo:resnet-s0", "zoo:resnet-s0?untrained"]
    # As dear by count, and by far less accurate: beaten beyond both intervals, on the frontier of
    # neither count.
    assert against.dominated[-1, :2].tolist() == [[False, True]] * 2
    assert against.frontier[-1, :2].tolist() == [[True, False]] * 2

    def never(*_arguments: object, **_named: object) -> None:
        raise AssertionError("this was finished already")

    for name in ("model_costs", "cost_growth", "probes"):
        monkeypatch.setattr(script, name, never)
    again = script.study(names, chosen)
    assert [r.to_frame().to_csv() for r in again] == [r.to_frame().to_csv() for r in found]


def test_a_network_that_the_data_does_not_suit(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One class only: costs are told, the probe is not, and why."""
    folder = tmp_path / "one"
    for split in ("train", "test"):
        (folder / split / "cat").mkdir(parents=True)
        for i, image in enumerate(
            mp.load_images("demo", split=split, limit=3)[k] for k in range(3)
        ):
            image.save(folder / split / "cat" / f"{i}.png")
    arguments = (
        "--smoke",
        "--data",
        folder,
        "--batch",
        1,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    chosen = options(script, monkeypatch, *arguments)
    with pytest.warns(ImagesWarning):
        found = script.study(["zoo:resnet-s0"], chosen)
    assert [s.step for s in found if isinstance(s, Skipped)] == ["probes of zoo:resnet-s0"]
    assert any(isinstance(r, ModelCost) for r in found)
    assert not any(isinstance(r, AccuracyCost) for r in found)


def test_nothing_at_all_is_one_clear_error(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    chosen = options(script, monkeypatch, "--smoke", "--no-probes", "--out", tmp_path)
    with pytest.raises(
        MixerProbeError, match=r"no network could be measured; the first reason: .*closest"
    ):
        script.study(["zoo:mixre-s0"], chosen)
    with pytest.raises(SystemExit) as end:
        run("accuracy_cost", monkeypatch, capsys, "--data", "no-such-folder", "--out", tmp_path)
    assert str(end.value.code).startswith("accuracy_cost: ")
    assert "no-such-folder" in str(end.value.code)
    assert len(str(end.value.code).splitlines()) == 1
