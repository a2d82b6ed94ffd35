"""The images that the networks of similarity_tests.py are trained on, and its table in the docs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.similarity.grounding import GroundedTests, grounded_tests, layer_order_test
from mixer_probe.training import StudyAnswer, TrainingImages
from tests.analyses.scripts import FOLDER, load

STORED = FOLDER / "results" / "similarity_tests.json"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return load("similarity_tests")


def images(n: int = 400) -> TrainingImages:
    labels = torch.arange(n) % 10
    pixels = torch.zeros(n, 3, 8, 8, dtype=torch.uint8)
    return TrainingImages(pixels, labels, tuple("abcdefghij"), "toy", "0" * 64)


def test_half_of_the_labels_and_all_are_random(script: ModuleType) -> None:
    given = images()
    half, whole, none = (script.random_labels(given, f) for f in (0.5, 1.0, 0.0))
    # A random label is the right one in one of ten cases.
    assert (half.labels != given.labels).float().mean() == pytest.approx(0.45, abs=0.03)
    assert (whole.labels != given.labels).float().mean() == pytest.approx(0.9, abs=0.03)
    assert torch.equal(none.labels, given.labels)
    changed = half.labels != given.labels
    assert torch.equal(half.labels[changed], whole.labels[changed])
    assert len({part.fingerprint for part in (given, half, whole)}) == 3
    assert half.name == "toy, 50% random labels"


def test_squares_tell_the_class_of_some_images(script: ModuleType) -> None:
    given = images()
    all_told = script.squares(given, 1.0).pixels
    colours = {tuple(all_told[i, :, 0, 0].tolist()) for i in range(10)}
    assert len(colours) == 10
    assert torch.equal(all_told[:10], all_told[10:20])
    for fraction, right in ((0.5, 0.55), (0.0, 0.1)):
        changed = script.squares(given, fraction)
        same = (changed.pixels == all_told).all(3).all(2).all(1)
        assert same.float().mean() == pytest.approx(right, abs=0.04)
        assert not changed.pixels[:, :, 4:].any()
        assert not changed.pixels[..., 4:].any()
        assert (changed.pixels[:, :, :4, :4] == changed.pixels[:, :, :1, :1]).all()
        assert torch.equal(changed.labels, given.labels)
    assert not given.pixels.any()


def test_arms_are_those_of_the_groups_and_test_images_tell_nothing(script: ModuleType) -> None:
    arms = script.arms(smoke=False)
    names = [arm.name for arm in arms]
    assert sorted(names) == sorted({name for group in script.GROUPS.values() for name in group})
    assert len({arm.folder for arm in arms}) == len(arms)
    given, test = images(), images(40)
    for arm in arms:
        fit, seen = script.images_of(arm.name, given, test)
        assert torch.equal(seen.labels, test.labels)
        assert (fit.fingerprint != given.fingerprint) == ("%" in arm.name)
        assert (seen.fingerprint != test.fingerprint) == ("square" in arm.name)
    shown = {script.images_of(name, given, test)[1].fingerprint for name in script.SQUARES}
    assert len(shown) == 1


def toy() -> GroundedTests:
    distance = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5)))
    values = np.stack([-distance, distance])[:, None]
    return grounded_tests(["cka", "rsa"], [layer_order_test(values)], "8 test images")


def test_the_table_is_written_between_its_marks(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "similarity.md"
    file.write_text(f"before\n{script.MARKS[0]}old\n{script.MARKS[1]}\nafter\n", encoding="utf-8")
    results = [toy(), StudyAnswer("What?", ("That.",))]
    script.write_docs(results, file)
    assert file.read_text(encoding="utf-8").splitlines() == [
        "before",
        script.MARKS[0].strip(),
        "| measure | layer order, rank correlation |",
        "| --- | --- |",
        "| CKA | ● 1.00 |",
        "| RSA (correlation) | ○ -1.00 |",
        "| by chance | 0.00 |",
        "| smallest p | 0.017 |",
        "",
        "- Layer order, rank correlation (0.00 by chance): 1 of 2 measures pass at p <= 0.05 after "
        "max-T correction over measures (n = 1 networks): CKA (1.00).",
        "- That.",
        script.MARKS[1],
        "after",
    ]


def test_the_docs_say_what_the_stored_results_do(script: ModuleType) -> None:
    text = script.DOCS.read_text(encoding="utf-8")
    said = text.partition(script.MARKS[0])[2].partition(script.MARKS[1])[0]
    results = mp.load_results(STORED) if STORED.exists() else None
    assert said == (script.NOT_RUN if results is None else script.documented(results))
