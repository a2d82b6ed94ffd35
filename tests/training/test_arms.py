"""Several runs: in parallel processes as in one, and none taken for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mixer_probe.training import Arm, TrainingError, train_arms
from mixer_probe.training.runs import Run
from tests.training.small import images, recipe

TRAIN, TEST = images(), images(30, "test", 1)


def arms() -> list[Arm]:
    return [
        Arm("mixer", name, name, recipe(epochs=1, warmup=w)) for name, w in (("a", 0), ("b", 1))
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_finished_runs_of_another_recipe_are_refused(workers: int, tmp_path: Path) -> None:
    train_arms(arms()[:1], [0], TRAIN, TEST, tmp_path)
    (arm, _) = arms()
    other = replace(arm, recipe=replace(arm.recipe, weight_decay=0.1))
    with pytest.raises(TrainingError, match=r"weight_decay was 0\.05 and is 0\.1"):
        train_arms([other], [0], TRAIN, TEST, tmp_path, workers=workers)


def test_parallel_processes_train_the_same_bits(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder, workers in zip(folders, (0, 2), strict=True):
        train_arms(arms(), [0], TRAIN, TEST, folder, workers=workers)
    for arm in arms():
        one, two = (Run.read(arm.path(folder, 0)) for folder in folders)
        assert one.card.sha256 == two.card.sha256
        assert one.curve[1:] == two.curve[1:]
