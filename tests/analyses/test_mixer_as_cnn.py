"""The script on the equivalence: all it promises, and networks that are no Mixers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.skipped import Skipped
from mixer_probe.weights import ConvolutionEquivalence
from tests.analyses.scripts import load, options, pictures, run
from tests.helpers.golden import check_folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("mixer_as_cnn")


def test_smoke(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    update_golden: bool,
) -> None:
    out = tmp_path / "out"
    said = run("mixer_as_cnn", monkeypatch, capsys, "--smoke", "--device", "cpu", "--out", out)
    assert pictures(out) == {"mixer-as-cnn-mixer-s0"}
    table = pd.read_csv(out / "a-mixer-as-a-cnn.csv").set_index(["form", "dtype"])
    assert (table["parameters"] == 1062026).all()
    assert (table["parameters_as_cnn"] == 1062026).all()
    assert (table["linear_layers"] == 0).all()
    # A stem, two full-field, 1x1 pairs of convolutions in each of eight blocks, and a head.
    assert (table["convolutions"] == 1 + 8 * 4 + 1).all()
    assert table.loc["tied", "float64"]["largest_difference"] < 1e-12
    assert (table["same_class"] == 8).all()
    assert "34 convolutions and 0 linear layers" in said
    assert said.count("n = 8 images") == 4
    (saved,) = (
        r for r in mp.load_results(out / "results.json") if isinstance(r, ConvolutionEquivalence)
    )
    assert saved.images.n == 8
    assert (out / "report.html").is_file()
    check_folder("mixer_as_cnn", out, update_golden)


def test_what_is_no_mixer_is_left_out_with_the_reason(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = options(
        script,
        monkeypatch,
        "--smoke",
        "--limit",
        2,
        "--forms",
        "tied",
        "--out",
        tmp_path,
        "--device",
        "cpu",
    )
    images = mp.load_images("demo", limit=2)
    names = ["zoo:vit-s0", "zoo:nothing", "zoo:mixer-s0", "zoo:resnet-s0"]
    found = script.study(names, images, chosen)
    assert [type(r) for r in found] == [ConvolutionEquivalence, Skipped, Skipped, Skipped]
    assert [s.step for s in found[1:]] == [
        "zoo:vit-s0 as a CNN",
        "zoo:nothing as a CNN",
        "zoo:resnet-s0 as a CNN",
    ]
    assert "not every one of those is a Mixer" in found[3].reason
    monkeypatch.setattr(script, "convolution_equivalence", None)
    again = script.study(["zoo:mixer-s0"], images, chosen)
    assert again[0].to_frame().equals(found[0].to_frame())
    monkeypatch.undo()
    with pytest.raises(
        MixerProbeError, match="no network could be written as a CNN; the first reason"
    ):
        script.study(["zoo:vit-s0"], images, chosen)
