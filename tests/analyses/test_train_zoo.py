"""The script that trains the bundled networks: cards, and a test that stays untouched."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_probe import zoo
from mixer_probe.training import Trainer
from mixer_probe.training.examples import cifar10
from mixer_probe.zoo.architectures import ARCHITECTURES
from mixer_probe.zoo.cards import CLASS_NAMES, card_from_json
from tests.analyses.scripts import load, options, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for name in CLASS_NAMES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.png")
    return tmp_path / "data"


def test_smoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--smoke", "--only", "resnet-s1", "--device", "cpu", "--out", tmp_path]
    said = run("train_zoo", monkeypatch, capsys, *arguments)
    place = tmp_path / "resnet-s1"
    assert {file.name for file in place.iterdir()} == {
        "card.json",
        "curve.csv",
        "model.safetensors",
    }
    assert "images/s" in said
    assert f"cp {place}/card.json" in said
    assert f"{zoo.cards.CHECKPOINTS / 'resnet-s1'}.json" in said
    card = card_from_json((place / "card.json").read_text())
    # What a bundled card says, with the settings of the trainer.
    assert card.architecture == ARCHITECTURES["resnet"]
    assert card.sha256 == hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    known = zoo.card("resnet-s1")
    for name in ("name", "seed", "parameters", "mean", "std", "class_names", "input_size"):
        assert getattr(card, name) == getattr(known, name)
    assert card.initial_norm == pytest.approx(known.initial_norm, rel=1e-6)
    assert card.data_note == "trained on CIFAR-10"
    assert card.command == "python analyses/train_zoo.py --smoke --only resnet-s1"
    # The second time there is nothing to do.
    monkeypatch.setattr(Trainer, "_one_step", lambda self: pytest.fail("a step"))
    assert "images/s" not in run("train_zoo", monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("family", ["mixer", "vit", "resnet"])
def test_recipes_are_those_of_the_bundled_networks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("train_zoo")
    asked = options(script, monkeypatch, "--data", "x")
    for seed in (0, 1):
        card = zoo.card(f"{family}-s{seed}")
        made = script.recipe(card.name, asked)
        settings = made.settings()
        stated = {key: value for key, value in card.recipe.items() if key != "resumed"}
        assert {key: settings[key] for key in stated} == stated
        assert (made.seed, made.network, made.arguments) == (seed, family, {})


def test_held_out_images_are_of_the_training_and_the_test_stays_untouched(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", folder, "--only", "resnet-s0", "--epochs", 1, "--holdout", 10]
    said = run("train_zoo", monkeypatch, capsys, *arguments, "--device", "cpu", "--out", out)
    card = card_from_json((out / "holdout" / "resnet-s0" / "card.json").read_text())
    assert card.test_images == 10
    assert card.recipe["test"].startswith("held-out CIFAR-10/train: 10 images")
    assert card.recipe["images"].startswith("CIFAR-10/train: 20 images")
    assert card.command.endswith("--data CIFAR10 --only resnet-s0 --epochs 1 --holdout 10")
    assert "resnet-s0: test accuracy" in said
    script, images = load("train_zoo"), cifar10(str(folder), "train", out)
    one, other = script.hold_out(images, 10)
    both = torch.cat([one.pixels, other.pixels]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 30
    assert torch.equal(script.hold_out(images, 10)[1].pixels, other.pixels)


def test_missing_or_other_data_is_one_sentence_that_says_where_to_get_it(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments = ["--device", "cpu", "--out", tmp_path / "out"]
    with pytest.raises(
        SystemExit, match=r"no folder .*nowhere/train: .*kriz/cifar\.html, or torch"
    ):
        run("train_zoo", monkeypatch, capsys, "--data", tmp_path / "nowhere", *arguments)
    (folder / "train" / "truck").rename(folder / "train" / "lorry")
    with pytest.raises(SystemExit, match=r"are airplane, .*lorry.*, not those of CIFAR-10: "):
        run("train_zoo", monkeypatch, capsys, "--data", folder, *arguments)
    with pytest.raises(SystemExit):
        run("train_zoo", monkeypatch, capsys, *arguments)
    assert "--data is missing" in capsys.readouterr().err
