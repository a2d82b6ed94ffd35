"""`mixer-probe channels`: what it prints and writes, and one line with exit code 2 for what cannot
be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

import mixer_probe as mp
from mixer_probe.channels import analyses
from mixer_probe.core.result import load_results, same
from mixer_probe.core.section import Picture
from tests.helpers.golden import check_folder
from tests.test_cli import Run, run

__all__ = ["run"]
SMALL = (
    "--limit",
    "40",
    "--device",
    "cpu",
    "--permutations",
    "19",
    "--layers",
    "blocks.0,blocks.7",
)


def test_channels_prints_sentences_with_n_and_null(run: Run) -> None:
    code, printed, err = run(
        "channels", "zoo:mixer-s0", *SMALL, "--what", "statistics,selectivity,needed"
    )
    assert code == 0, err
    assert "mixer-s0: 0 of 256 channels are constant over 40 images" in printed
    assert "of 256 channels" in printed
    assert "999 label permutations, n = 40" in printed
    assert "Untrained baseline: " in printed
    assert "most selective of 128 channels reach 90.0 % of the gain over chance" in printed


def test_what_is_finished_is_kept_in_the_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    command = ("channels", "zoo:mixer-s0", *SMALL, "--no-baselines", "--out", str(out))
    code, _, err = run(*command, "--what", "selectivity")
    assert code == 0, err
    (first,) = load_results(out / "results.json")
    computed = analyses.class_selectivity

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analyses, "class_selectivity", interrupted)
    code, _, err = run(*command, "--what", "selectivity")
    assert code == 0, err
    (again,) = load_results(out / "results.json")
    assert same(again, first)
    # Other channels are other pages.
    monkeypatch.setattr(analyses, "class_selectivity", computed)
    shown = []
    for channel in (3, 4):
        code, _, err = run(*command, "--channel", f"blocks.7:{channel}", "--top", "1")
        assert code == 0, err
        shown += [page.channel for page in load_results(out / "results.json")]
    assert shown == [3, 4]


def test_channels_writes_pictures_tables_and_results(
    run: Run, tmp_path: Path, update_golden: bool
) -> None:
    out = tmp_path / "c"
    arguments = (
        *SMALL[:-1],
        "blocks.7",
        "--what",
        "partners,pages",
        "--top",
        "3",
        "--out",
        str(out),
    )
    code, printed, err = run("channels", "zoo:mixer-s0", "zoo:vit-s0", *arguments)
    assert code == 0, err
    assert printed.splitlines()[-1] == str(out / "report.html")
    names = {file.name for file in out.iterdir()}
    tables = ("best-matching-channels", "channel-page")
    assert {"report.html", "results.json", *(f"{name}.csv" for name in tables)} <= names
    results = load_results(out / "results.json")
    pages = [r for r in results if type(r).__name__ == "ChannelPage"]
    assert [(p.model.name, p.layer.name, p.n, len(p.top.ids)) for p in pages] == [
        ("zoo:mixer-s0", "blocks.7", 40, 3),
        ("zoo:vit-s0", "blocks.7", 40, 3),
    ]
    assert [p.partners[0][0] for p in pages] == ["zoo:vit-s0", "zoo:mixer-s0"]
    for picture in (
        "partners",
        *(f"channel-page-{p.model.name[4:]}-blocks.7-{p.channel}" for p in pages),
    ):
        assert {f"{picture}.svg", f"{picture}.png"} <= names
    matches = pd.read_csv(out / "best-matching-channels.csv")
    assert set(matches["model_a"]) == {
        f"zoo:{m}{t}" for m in ("mixer-s0", "vit-s0") for t in ("", "?untrained")
    }
    check_folder("channels", out, update_golden)


def test_statistics_are_of_all_images(run: Run) -> None:
    code, printed, _ = run("channels", "zoo:mixer-s0", *SMALL, "--what", "statistics", "--json")
    rows = pd.DataFrame(json.loads(printed)["channel-statistics"])
    assert code == 0
    by_hand = mp.channel_statistics(
        mp.load_model("zoo:mixer-s0", device="cpu"),
        mp.load_images("demo", limit=40),
        ["blocks.0", "blocks.7"],
    )
    np.testing.assert_allclose(rows["mean"], np.concatenate(by_hand.mean), rtol=1e-6)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files of one dot: how they look is tested elsewhere."""
    monkeypatch.setattr(Picture, "figure", property(lambda _: Figure(figsize=(1, 1))))


def test_a_channel_by_its_number_has_a_page_wherever_there_is_such_a_layer(
    run: Run, undrawn: None, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    wanted = (
        "--channel",
        "blocks.3:17",
        "--channel",
        "blocks.3:2",
        "--channel",
        "layer1.0.conv2:0",
    )
    options = (
        "--limit",
        "30",
        "--device",
        "cpu",
        "--permutations",
        "19",
        "--top",
        "2",
        "--no-baselines",
        "--out",
        str(out),
    )
    code, printed, err = run("channels", "zoo:mixer-s0", "zoo:resnet-s0", *wanted, *options)
    assert code == 0, err
    results = load_results(out / "results.json")
    assert [(type(r).__name__, r.model.name, r.layer.name, r.channel) for r in results] == [
        ("ChannelPage", "zoo:mixer-s0", "blocks.3", 2),
        ("ChannelPage", "zoo:mixer-s0", "blocks.3", 17),
        ("ChannelPage", "zoo:resnet-s0", "layer1.0.conv2", 0),
    ]
    reps = mp.extract(
        mp.load_model("zoo:mixer-s0", device="cpu"), mp.load_images("demo", limit=30), "blocks.3"
    )
    means = np.sort(reps["blocks.3"][:, 17])[::-1]
    np.testing.assert_allclose(results[1].top.values, means[:2], rtol=1e-5)
    np.testing.assert_allclose(results[1].lowest.values, means[::-1][:2], rtol=1e-5)
    assert results[1].statistics["n_images"] == 30
    assert len(results[1].auroc) == len(results[2].auroc) == 10
    assert results[1].rule == "selected by number"
    assert "mixer-s0: 2 channels, of blocks.3: selected by number." in printed


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(mp.load_images("demo", limit=8)):
        image.save(folder / f"{i}.png")
    return str(folder)


def test_without_labels_what_needs_none_is_there(run: Run, unlabelled: str) -> None:
    arguments = (
        "--data",
        unlabelled,
        "--device",
        "cpu",
        "--layers",
        "blocks.0",
        "--permutations",
        "0",
    )
    code, printed, err = run("channels", "zoo:mixer-s0", *arguments)
    assert code == 0, err
    assert "class selectivity: the images (" in printed
    assert "heaviest tails" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--what", "selectivty"), "closest: selectivity"),
        (("--what", "partners"), "need two networks or more"),
        (("--what", "dissection"), "give --masks FOLDER or --attributes FILE.csv"),
        (("--masks", "/nowhere"), "/nowhere is no folder of masks"),
        (
            ("--channel", "blocks.3"),
            "--channel is LAYER:NUMBER such as blocks.3:17, not 'blocks.3'",
        ),
        (("--channel", "blocks.3:many"), "--channel is LAYER:NUMBER"),
        (("--channel", "blocks.3:-1"), "--channel is LAYER:NUMBER"),
        (
            ("--channel", "blocks.3:128"),
            "blocks.3:128 is out of range: 'blocks.3' of zoo:mixer-s0 has channels 0 to 127",
        ),
        (("--channel", "blocks.33:1"), "no layer 'blocks.33' in zoo:mixer-s0 (closest: blocks.3"),
        (("--layers", "blocks.99"), "no layer 'blocks.99'"),
        (("--permutations", "5"), "5 permutations"),
        (("--data", "photos", "--limit", "4", "--what", "needed"), "one image"),
        (("--data", "/nowhere"), "/nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    arguments = () if "--limit" in options else ("--limit", "20")
    code, out, err = run(
        "channels",
        "zoo:mixer-s0",
        *arguments,
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "c"),
        *options,
    )
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("what", ["selectivity", "needed"])
def test_unlabelled_images_are_told_before_any_network_runs(
    run: Run, unlabelled: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mixer_probe.models.load_model", lambda *_, **__: pytest.fail("a network was loaded")
    )
    code, out, err = run(
        "channels", "zoo:mixer-s0", "--data", unlabelled, "--what", f"pages,{what}"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--what {what} needs labels, and" in err


def test_an_image_folder_of_two_classes(run: Run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(16):
        folder = tmp_path / "data" / ("red" if i % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 60, (40, 40, 3)) + 150 * (np.arange(3) == (0 if i % 2 else 2))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    options = (
        "--data",
        str(tmp_path / "data"),
        "--device",
        "cpu",
        "--layers",
        "stem",
        "--what",
        "selectivity",
        "--no-baselines",
    )
    code, printed, err = run("channels", "zoo:resnet-s0", *options, "--permutations", "99")
    assert code == 0, err
    # Colour is what a stem reads.
    assert "AUROC 1.000" in printed or "AUROC 0.000" in printed
    assert "Untrained" not in printed


def test_attributes_dissect_and_visualize_makes_images(
    run: Run, undrawn: None, tmp_path: Path
) -> None:
    ids = mp.load_images("demo", limit=40).ids
    classes = [name.split("/")[0] for name in ids]
    table = pd.DataFrame(
        {
            "image": ids,
            "ship": [int(c == "ship") for c in classes],
            "frog": [int(c == "frog") for c in classes],
        }
    )
    table.to_csv(tmp_path / "attributes.csv", index=False)
    options = (
        *SMALL[:-1],
        "blocks.7",
        "--attributes",
        str(tmp_path / "attributes.csv"),
        "--out",
        str(tmp_path / "c"),
    )
    code, printed, err = run("channels", "zoo:mixer-s0", *options)
    assert code == 0, err
    results = load_results(tmp_path / "c" / "results.json")
    assert [type(r).__name__ for r in results] == ["Dissection", "DissectedChannel", "Dissection"]
    assert results[0].concepts == ("ship", "frog")
    assert [r.model.trained for r in results] == [True, True, False]
    assert "Concept detectors (network dissection)" in printed


def test_visualize_makes_images_for_the_pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixer_probe.visualization import visualize

    # A few steps show as well as many what is handed on.
    monkeypatch.setattr(
        "mixer_probe.channels.analyses.visualize",
        lambda *a, **k: visualize(*a, **k, steps=2, seeds=(0,)),
    )
    code, printed, err = run(
        "channels", "zoo:mixer-s0", *SMALL[:-2], "--channel", "blocks.2:9", "--visualize", "--json"
    )
    assert code == 0, err
    tables = json.loads(printed)
    assert {row["channel"] for row in tables["channel-page"]} == {9}
    assert len(tables) == 2
