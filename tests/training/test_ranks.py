"""Training by two processes of torchrun: the same network up to rounding, one of them writes, and
both stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixer_probe.parallel import ranks
from mixer_probe.training import Recipe, Run, Trainer, TrainingError, runs, train, trainer
from tests.helpers.forked import run_ranks
from tests.training.small import images, recipe

TRAIN, TEST = images(), images(30, "test", seed=1)
# Rounding is not blown up by a division by the square root of squared gradients, as Adam's.
SGD = recipe(optimizer="sgd", learning_rate=0.1, precision="float32", checkpoints=2)


def go(made: Recipe, folder: Path, **how: Any) -> Run | None:
    torch.set_num_threads(1)
    if not ranks().first:

        def refuse(*arguments: Any) -> None:
            raise AssertionError(f"the second process writes {arguments}")

        for place, name in (
            (trainer, "write_bytes"),
            (trainer, "write_text"),
            (trainer, "write_weights"),
            (trainer, "write_curve"),
            (runs, "write_bytes"),
        ):
            setattr(place, name, refuse)
    return train(made, TRAIN, TEST, folder, **how)


def test_two_processes_train_the_network_of_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whether they were stopped in between, and with mixup, which needs all of a batch."""

    def work() -> None:
        assert go(SGD, tmp_path / "two", stop_after=10) is None
        run = go(SGD, tmp_path / "two", say=print)
        assert run is not None
        assert [point.step for point in run.curve] == [0, 1, 4, 8, 12, 16, 20, 24]

    assert run_ranks(2, work) == [0, 0]
    # The first speaks for both.
    assert capfd.readouterr().out.count("two: test accuracy") == 1
    one, two = go(SGD, tmp_path / "one"), Run.find(tmp_path / "two")
    assert one is not None
    assert two is not None
    mine, other = (run.model(SGD).module.state_dict() for run in (one, two))
    for name, value in mine.items():
        # Stored in float16, whose last bit is 2^-11.
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
    for a, b in zip(one.curve, two.curve, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4, nan_ok=True)
    assert two.card.recipe == one.card.recipe


def test_a_loss_that_is_not_a_number_stops_both(tmp_path: Path) -> None:
    def work() -> None:
        step = Trainer._one_step

        def second_fails(self: Trainer) -> Tensor:
            loss = step(self)
            return loss * float("nan") if self.step == 6 and not self.here.first else loss

        Trainer._one_step = second_fails  # type: ignore[method-assign]
        go(SGD, tmp_path, stop_after=3)
        with pytest.raises(TrainingError, match="is nan at step 6 of 24; the state of step 3 is"):
            go(SGD, tmp_path)

    assert run_ranks(2, work) == [0, 0]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3


def test_batches_that_cannot_be_divided_are_refused(tmp_path: Path) -> None:
    def work() -> None:
        with pytest.raises(TrainingError, match="batches of 15 images cannot be divided evenly"):
            go(recipe(batch_size=15), tmp_path)

    assert run_ranks(2, work) == [0, 0]
