"""The script on the paper's figures: pages on disk, untrained networks said to be so, checkpoints,
what is no Mixer."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch

import mixer_probe as mp
from mixer_probe import zoo
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import make_sections
from mixer_probe.weights import PaperFigures
from tests.analyses.scripts import load, options, pictures, run
from tests.helpers.golden import check_folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("mixer_paper_figures")


def test_smoke(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    update_golden: bool,
) -> None:
    out = tmp_path / "out"
    said = run("mixer_paper_figures", monkeypatch, capsys, "--smoke", "--out", out)
    assert pictures(out) == {
        "figure-5-mixer-s0",
        "figure-5-last-mixer-s0",
        "figure-6-mixer-s0",
        "figure-7-mixer-s0",
    }
    assert (out / "pages.pdf").read_bytes().count(b"/MediaBox [ 0 0 595.44 841.68 ]") == 4
    assert (out / "figures-of-the-mixer-paper.csv").is_file()
    assert "n = 128 units per block" in said
    assert "Provenance of timm's checkpoints" in said
    (saved,) = mp.load_results(out / "results.json")
    assert next(s.paragraphs[1] for s in make_sections([saved])) in said
    check_folder("mixer_paper_figures", out, update_golden)


def test_an_untrained_network_is_said_to_be_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = options(script, monkeypatch, "--smoke", "--untrained", "--out", tmp_path)
    found = script.study(["zoo:mixer-s0", "zoo:vit-s0"], chosen)
    assert [type(r) for r in found] == [PaperFigures, Skipped]
    assert "no token-mixing weights" in found[1].reason
    section = make_sections(found)[0]
    assert section.warnings[0].startswith("zoo:mixer-s0?untrained is untrained")
    ratios = found[0].to_frame()["mean_frequency"] / found[0].to_frame()["shuffled_mean_frequency"]
    assert ratios.between(0.97, 1.03).all()
    monkeypatch.setattr(script, "paper_figures", None)
    assert script.study(["zoo:mixer-s0"], chosen)[0].to_frame().equals(found[0].to_frame())
    monkeypatch.undo()
    with pytest.raises(MixerProbeError, match="there is no figure to draw; the first reason"):
        script.study(["zoo:resnet-s0"], chosen)


def test_weights_from_a_file(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in zoo.load("mixer-s1").state_dict().items()}, file
    )
    chosen = options(
        script,
        monkeypatch,
        "--models",
        "zoo:mixer-s0",
        "--checkpoint",
        file,
        "--smoke",
        "--out",
        tmp_path / "out",
    )
    (found,) = script.study(chosen.models, chosen)
    assert found.model.weights == "file mine.safetensors"
    with pytest.raises(SystemExit):
        options(script, monkeypatch, "--checkpoint", file)
