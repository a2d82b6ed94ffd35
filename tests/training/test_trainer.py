"""The trainer: to the last bit as if it had never stopped, what it refuses, and its formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixer_probe.core.errors import CheckpointError, ImagesError, ModelError, StoreError
from mixer_probe.images.distortions import Distortion, PatchShuffle, distort, paper_shuffle
from mixer_probe.images.labelled import from_arrays
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.training import (
    Augmentation,
    CurvePoint,
    Recipe,
    Run,
    Trainer,
    TrainingError,
    TrainingImages,
    train,
    trainer,
)
from mixer_probe.training.recipe import checkpoint_steps
from mixer_probe.training.runs import rounded
from tests.training.small import DROPPED, images, recipe

TRAIN, TEST = images(), images(30, "test", seed=1)


@dataclass(frozen=True)
class Plain(Augmentation):
    """Normalises and changes nothing."""

    mix: float = 0.0

    def distort(self, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (images - mean) / std


def go(made: Recipe, folder: Path, on: TrainingImages = TRAIN, **how: Any) -> Run:
    """A finished run; where it stops before its end, what is returned is no run and not used."""
    return train(made, on, TEST, folder, **how)  # type: ignore[return-value]


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return found


def alike(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b or (a != a and b != b))


def after_each(
    monkeypatch: pytest.MonkeyPatch, see: Callable[[Trainer, Tensor], Tensor | None]
) -> None:
    """Call `see` with the trainer and [loss, norm of the gradient] after every step; what it
    returns replaces them."""
    step = Trainer._one_step

    def watched(self: Trainer) -> Tensor:
        loss = step(self)
        found = see(self, loss)
        return loss if found is None else found

    monkeypatch.setattr(Trainer, "_one_step", watched)


# -- stopped and resumed ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mixer", "vit", "resnet"])
def test_twice_ten_steps_are_twenty_to_the_last_bit(network: str, tmp_path: Path) -> None:
    """With mixup, CutMix and dropout; the stop is in the middle of an epoch."""
    made = recipe(network, arguments=DROPPED[network], checkpoints=3)
    assert made.augmentation.mix
    go(made, tmp_path / "whole", stop_after=20)
    go(made, tmp_path / "halves", stop_after=10)
    assert state(tmp_path / "halves")["step"] == 10
    go(made, tmp_path / "halves", stop_after=20)
    whole, halves = state(tmp_path / "whole"), state(tmp_path / "halves")
    assert whole.keys() >= {"model", "average", "optimizer", "curve", "step"}
    assert whole["optimizer"]["state"]
    assert alike(whole, halves)
    ends = [go(made, tmp_path / name) for name in ("whole", "halves")]
    assert ends[0].card.sha256 == ends[1].card.sha256
    assert alike(ends[0].curve, ends[1].curve)
    assert [point.step for point in ends[0].curve] == [0, 1, 4, 5, 8, 12, 16, 20, 24]
    assert not (tmp_path / "whole" / "state.pt").exists()


def test_sgd_and_a_run_without_an_average(tmp_path: Path) -> None:
    made = recipe("resnet", optimizer="sgd", learning_rate=0.1, ema_decay=0.0, precision="float32")
    whole = go(made, tmp_path / "whole")
    go(made, tmp_path / "halves", stop_after=9)
    momentum = state(tmp_path / "halves")["optimizer"]["state"][0]["momentum_buffer"]
    assert momentum.abs().max() > 0
    assert go(made, tmp_path / "halves").card.sha256 == whole.card.sha256


def test_a_run_killed_between_states_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    made = recipe(checkpoints=4)
    whole = go(made, tmp_path / "whole")
    go(made, tmp_path / "killed", stop_after=7)

    def kill(line: str) -> None:
        if "epoch 3.00" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(made, tmp_path / "killed", say=kill)
    assert state(tmp_path / "killed")["step"] == 7
    killed = go(made, tmp_path / "killed")
    assert killed.card.sha256 == whole.card.sha256
    assert alike(killed.curve, whole.curve)
    for step in whole.checkpoints:
        name = f"checkpoints/{step}.safetensors"
        assert (killed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_killed_before_its_card_is_finished_without_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(recipe(), tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "write_curve", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go(recipe(), tmp_path / "killed")
    assert state(tmp_path / "killed")["step"] == 24
    after_each(monkeypatch, lambda *_: pytest.fail("a step"))
    assert go(recipe(), tmp_path / "killed").card.sha256 == whole.card.sha256


def test_the_order_of_an_epoch_is_every_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    batch = Trainer._distorted

    def see(self: Trainer, found: Tensor, index: Tensor) -> Tensor:
        if self.model.training and len(index) == 12:
            seen.append(index.tolist())
        return batch(self, found, index)

    monkeypatch.setattr(Trainer, "_distorted", see)
    go(recipe(curve_images=3), tmp_path / "run", stop_after=8)
    epochs = [list(chain.from_iterable(seen[i : i + 4])) for i in (0, 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(48))] * 2
    assert epochs[0] != epochs[1]


# -- refused ---------------------------------------------------------------------------------------

OTHERS = {
    "learning_rate was 0.002 and is 0.001": recipe(learning_rate=1e-3),
    "arguments.patch_size was 4 and is 8": recipe(arguments={"patch_size": 8}),
    "augmentation.erase was 0.25 and is 0.5": recipe(augmentation=Augmentation(erase=0.5)),
    'distortion was None and is "Chain': recipe(distortion=paper_shuffle(4)),
    "seed was 0 and is 1": recipe(seed=1, learning_rate=1e-3),
}


@pytest.mark.parametrize("said", OTHERS)
def test_a_folder_of_another_recipe_is_refused_by_the_first_difference(
    said: str, tmp_path: Path
) -> None:
    for stop in (2, None):
        go(recipe(), tmp_path, stop_after=stop)
        with pytest.raises(TrainingError) as refused:
            go(OTHERS[said], tmp_path)
        assert f"{tmp_path} holds a run with other settings: {said}" in str(refused.value)


def test_other_images_are_refused(tmp_path: Path) -> None:
    go(recipe(), tmp_path, stop_after=1)
    part = TRAIN.subset(torch.arange(24))
    other = TRAIN.subset(torch.arange(24, 48))
    for changed in (replace(TRAIN, fingerprint="9" * 64), part):
        with pytest.raises(TrainingError, match="images was 'train: 48 images, fingerprint 000"):
            go(recipe(), tmp_path, on=changed)
    # Two subsets of one size are not the same images.
    assert len(part) == len(other)
    assert part.fingerprint != other.fingerprint
    with pytest.raises(ImagesError, match="the classes of test are red, green, blue"):
        go(recipe(), tmp_path, on=replace(TRAIN, class_names=("a", "b", "c")))
    with pytest.raises(ImagesError, match="test and train have 16x16 and 8x8 pixels"):
        go(recipe(), tmp_path, on=replace(TRAIN, pixels=TRAIN.pixels[:, :, :8, :8]))


@pytest.mark.parametrize("content", ["garbage", "other", "empty"])
def test_a_state_that_cannot_be_read_is_one_sentence(content: str, tmp_path: Path) -> None:
    go(recipe(), tmp_path, stop_after=1)
    if content == "other":
        torch.save({"step": 3}, tmp_path / "state.pt")
    else:
        (tmp_path / "state.pt").write_bytes(b"nonsense" if content == "garbage" else b"")
    with pytest.raises(StoreError) as error:
        go(recipe(), tmp_path)
    assert "\n" not in str(error.value)
    assert "state.pt cannot be read" in str(error.value)
    assert "remove it" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "7", '{"input_size": [3, 8, 8]}'])
def test_a_card_that_cannot_be_read_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(StoreError, match=r"card\.json cannot be read") as error:
        go(recipe(), tmp_path)
    assert "\n" not in str(error.value)


def test_a_finished_run_is_read_back_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = go(recipe(), tmp_path / "run", command="python again.py")
    monkeypatch.setattr(trainer, "Trainer", lambda *_: pytest.fail("trained again"))
    again = go(recipe(), tmp_path / "run")
    assert again.card == made.card
    assert again.card.command == "python again.py"


def test_networks_that_do_not_suit_the_images_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mixer takes no images of 16x16 pixels") as error:
        go(recipe(arguments={"img_size": 32}), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"gives outputs \[7\] for an image, not a logit"):
        go(recipe(arguments={"num_classes": 7}), tmp_path)


# -- losses that are not finite --------------------------------------------------------------------


@pytest.mark.parametrize("between", [1, 3, 50])
@pytest.mark.parametrize("what", ["loss", "norm of the gradient"])
def test_what_is_not_a_number_stops_with_the_step_and_keeps_the_last_good_state(
    what: str, between: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(recipe(), tmp_path / "whole")
    go(recipe(), tmp_path / "run", stop_after=6)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "STEPS_BETWEEN_READINGS", between)
        patched.setattr(trainer, "SECONDS_BETWEEN_STATES", -1.0)
        bad = torch.tensor([math.nan, 1.0] if what == "loss" else [1.0, math.nan])
        after_each(patched, lambda t, found: found * bad if t.step >= 11 else None)
        with pytest.raises(TrainingError) as error:
            go(recipe(), tmp_path / "run")
    # A state is kept after every reading: after so many steps, and at the end of epochs.
    kept = {1: 10, 3: 8, 50: 8}[between]
    assert f"the {what} of run is nan at step 11 of 24; the state of step {kept}" in str(
        error.value
    )
    assert "lower learning rate" in str(error.value)
    assert state(tmp_path / "run")["step"] == kept
    assert go(recipe(), tmp_path / "run").card.sha256 == whole.card.sha256


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_learning_rate_far_too_high(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe("resnet", optimizer=optimizer, learning_rate=1e30, precision="float32")
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_STATES", -1.0)
    with pytest.raises(TrainingError, match=r"of 24; (no|the) state .*: try a lower learning rate"):
        go(made, tmp_path)
    file = tmp_path / "state.pt"
    if file.exists():
        assert all(value.isfinite().all() for value in state(tmp_path)["model"].values())


def test_weights_that_are_not_finite_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step can spoil the weights after a loss that was still finite."""
    go(recipe(), tmp_path, stop_after=3)

    def spoil(self: Trainer, loss: Tensor) -> None:
        if self.step == 5:
            next(self.model.parameters()).data.fill_(math.inf)

    after_each(monkeypatch, spoil)
    with pytest.raises(TrainingError, match="not finite after step 5 of 24; the state of step 3"):
        go(recipe(), tmp_path, stop_after=5)
    assert state(tmp_path)["step"] == 3


def test_the_curve_has_the_mean_loss_since_the_point_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "STEPS_BETWEEN_READINGS", 3)
    losses: list[float] = []
    after_each(monkeypatch, lambda _, loss: losses.append(loss[0].item()))
    go(recipe(), tmp_path, stop_after=6)
    curve = go(recipe(), tmp_path).curve
    assert math.isnan(curve[0].loss)
    assert [point.step for point in curve] == [0, 4, 8, 12, 16, 20, 24]
    means = np.array(losses).reshape(6, 4).mean(axis=1)
    np.testing.assert_allclose([point.loss for point in curve[1:]], means, rtol=1e-5)


# -- formulas --------------------------------------------------------------------------------------


def test_checkpoints_are_at_equal_ratios(tmp_path: Path) -> None:
    assert checkpoint_steps(1000, 4) == (0, 1, 10, 100, 1000)
    assert checkpoint_steps(2**10, 11) == (0, *(2**k for k in range(11)))
    assert checkpoint_steps(5, 50) == (0, 1, 2, 3, 4, 5)
    assert checkpoint_steps(10, 0) == ()
    assert checkpoint_steps(10, 1) == (0, 1, 10)
    assert checkpoint_steps(1, 3) == (0, 1)
    for steps, n in ((390, 7), (2730, 15)):
        powers = [round(steps ** (k / (n - 1))) for k in range(n)]
        assert checkpoint_steps(steps, n) == tuple(sorted({0, *powers}))
    made = recipe(checkpoints=3, precision="float32")
    run = go(made, tmp_path)
    assert run.checkpoints == (0, 1, 5, 24)
    first, last = run.model(made, 0).module, run.model(made, 24).module
    for name, value in made.build(3).state_dict().items():
        assert torch.equal(first.state_dict()[name], value.half().float())
    assert alike(last.state_dict(), run.model(made).module.state_dict())
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2; stored: 0, 1, 5, 24"):
        run.model(made, 2)
    with pytest.raises(CheckpointError, match=r"another network: arguments\.embed_dim was 16 and"):
        run.model(recipe(arguments={"embed_dim": 8}))
    (tmp_path / "checkpoints" / "5.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"5\.safetensors is no safetensors file"):
        run.model(made, 5)


@pytest.mark.parametrize("arguments", [{}, {"token_groups": 4}], ids=["tied", "untied"])
def test_weights_decay_and_biases_do_not(arguments: dict[str, Any], tmp_path: Path) -> None:
    made = Trainer(recipe(arguments=arguments), TRAIN, TEST, tmp_path, torch.device("cpu"))
    names = {id(value): name for name, value in made.model.named_parameters()}
    decay = {
        names[id(value)]: group["weight_decay"]
        for group in made.optimizer.param_groups
        for value in group["params"]
    }
    assert decay.keys() == set(names.values())
    for name, found in decay.items():
        assert found == (0 if "norm" in name or name.endswith("bias") else 0.05), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_parameters_keep_every_bit(optimizer: str, tmp_path: Path) -> None:
    """Also from weight decay."""
    made = recipe(frozen=["mlp_tokens"], optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    initial = made.build(3).state_dict()
    go(made, tmp_path, stop_after=20)
    found = state(tmp_path)
    for part in ("model", "average"):
        changed = {name for name in initial if not torch.equal(initial[name], found[part][name])}
        assert changed == {name for name in initial if "mlp_tokens" not in name}


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[set[float]] = []
    after_each(monkeypatch, lambda t, _: rates.append({g["lr"] for g in t.optimizer.param_groups}))
    go(recipe(learning_rate=0.01), tmp_path, stop_after=5)
    go(recipe(learning_rate=0.01), tmp_path)
    # Six steps from a sixth of the rate to the rate, then 18 of the cosine, which ends at zero.
    up = 0.01 * np.linspace(1 / 6, 1, 7)[:6]
    down = 0.01 * (1 + np.cos(np.pi * np.arange(18) / 18)) / 2
    assert all(len(found) == 1 for found in rates)
    np.testing.assert_allclose([r for found in rates for r in found], [*up, *down], rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_of_one_or_two_steps(steps: int, tmp_path: Path) -> None:
    run = go(recipe(batch_size=48, epochs=steps), tmp_path)
    assert [point.step for point in run.curve] == list(range(steps + 1))


@pytest.mark.parametrize("network", ["mixer", "resnet"])
def test_the_average_of_weights_is_what_it_says(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decay min(ema_decay, 1 - t^-3/4) at step t, of weights and of BatchNorm's statistics."""
    average: dict[str, Tensor] = {}

    def see(self: Trainer, loss: Tensor) -> None:
        decay = min(0.8, 1 - self.step**-0.75)
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                was = average.get(name, value).double()
                average[name] = decay * was + (1 - decay) * value.double()

    after_each(monkeypatch, see)
    go(recipe(network, ema_decay=0.8), tmp_path, stop_after=20)
    found = state(tmp_path)["average"]
    assert len(average) > 5
    for name, value in average.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)


def test_rounding_to_significant_bits() -> None:
    """Against a grid of numbers with so many bits in each octave."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    for bits in (3, 7):
        octave = 2.0 ** torch.floor(x.abs().log2())
        step = octave / 2 ** (bits - 1)
        expected = torch.round(x / step) * step
        assert torch.equal(rounded(x, bits).float(), expected)
    assert torch.equal(rounded(x, 11), x.half())
    assert not rounded(torch.zeros(3), 7).any()


def test_weights_are_stored_as_float16(tmp_path: Path) -> None:
    made = recipe("resnet", checkpoints=2)
    go(made, tmp_path, stop_after=24)
    run = go(made, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    kinds = {value.dtype for value in stored.values()}
    assert kinds == {torch.float16, torch.int64}
    model = run.model(made).module
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(v.half(), stored[k]) for k, v in model.named_parameters())
    # The untrained baseline is what the training began with.
    untrained, before = run.model(made).untrained(), run.model(made, step=0)
    assert not untrained.weights.trained
    assert not before.weights.trained
    for own, first in zip(untrained.module.parameters(), made.build(3).parameters(), strict=True):
        assert torch.equal(own, first)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="SHA-256"):
        run.model(made)


@pytest.mark.parametrize("network", ["mixer", "vit", "resnet"])
@pytest.mark.parametrize("distortion", [None, paper_shuffle(4)], ids=["plain", "shuffled"])
def test_the_accuracy_of_the_card_is_that_of_the_network(
    network: str, distortion: Distortion | None, tmp_path: Path
) -> None:
    """Against images, transform and accuracy of the package, which know nothing of the training."""
    made = recipe(network, distortion=distortion, epochs=10, learning_rate=0.01)
    run = go(made, tmp_path)
    pixels = TEST.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    test = from_arrays(pixels, TEST.labels.numpy(), class_names=TEST.class_names)
    seen = test if distortion is None else distort(test, distortion)
    found = own_accuracy(run.model(made), seen)
    assert found.n == run.card.test_images == 30
    assert found.right / 30 == run.accuracy
    # Something was learned, so that this says something.
    assert run.accuracy > 0.6
    assert run.curve[-1].accuracy == pytest.approx(run.accuracy, abs=1 / 30)


@pytest.mark.parametrize(
    "distortion", [paper_shuffle(4), PatchShuffle(4, seed=3)], ids=["shared", "own"]
)
def test_a_distortion_in_training_is_one_of_the_images_before(
    distortion: Distortion, tmp_path: Path
) -> None:
    plain = recipe(
        augmentation=Plain(), optimizer="sgd", learning_rate=0.1, precision="float32", checkpoints=3
    )
    inside = go(replace(plain, distortion=distortion), tmp_path / "inside")
    before, test = (replace(part, pixels=distortion(part.pixels)) for part in (TRAIN, TEST))
    outside = train(plain, before, test, tmp_path / "outside")
    assert outside is not None
    assert inside.accuracy == outside.accuracy
    for mine, other in zip(inside.curve, outside.curve, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-4, nan_ok=True)
    weights = [load_file(run.folder / "model.safetensors") for run in (inside, outside)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=2e-3, atol=2e-3)
    assert go(plain, tmp_path / "plain").card.sha256 != outside.card.sha256


def test_progress_has_images_a_second(tmp_path: Path) -> None:
    lines: list[str] = []
    run = go(recipe(), tmp_path / "run", say=lines.append)
    assert len(lines) == 7
    assert all("images/s" in line and "loss" in line for line in lines[:-1])
    assert lines[0].startswith("run: epoch 1.00 of 6, loss ")
    assert lines[-1] == f"run: test accuracy {run.accuracy:.4f} on 30 images"
    assert run.card.seconds > 0


def test_the_card_says_all_that_a_reader_needs(tmp_path: Path) -> None:
    made = recipe(distortion=paper_shuffle(4), checkpoints=2, seed=3)
    card = go(made, tmp_path / "run", on=replace(TRAIN, note="of three colours")).card
    assert (card.name, card.seed, card.epochs, card.data_note) == ("run", 3, 6, "of three colours")
    assert card.recipe == made.settings() | {
        "images": "train: 48 images, fingerprint 0000000000000000",
        "test": "test: 30 images, fingerprint 0000000000000000",
    }
    assert json.loads(card.to_json())["recipe"]["distortion"] == repr(paper_shuffle(4))
    assert card.architecture["arguments"]["num_classes"] == 3
    assert card.architecture["arguments"]["embed_dim"] == 16
    network = made.build(3)
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in network.parameters()))
    assert card.initial_norm == pytest.approx(norm, rel=1e-9)
    assert card.parameters == sum(p.numel() for p in network.parameters())
    assert (card.input_size, card.class_names) == ((3, 16, 16), TEST.class_names)


def test_a_point_of_the_curve_is_of_as_many_images_of_every_class() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    few = replace(TEST, labels=labels, pixels=TEST.pixels[:10])
    assert labels[few.spread(6)].bincount().tolist() == [2, 2, 2]
    assert labels[few.spread(8)].bincount().tolist() == [3, 2, 3]
    assert few.spread(99).tolist() == list(range(10))
    assert CurvePoint(0, 0.0, 0.0).step == 0
