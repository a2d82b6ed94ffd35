"""`train`: from a recipe and images to a network, its curve and its checkpoints.

Everything random is a function of the recipe's seed and the step, so that a run that was stopped
after any step goes on as if it had not been, to the last bit on a CPU. Under torchrun every process
augments the whole batch and takes its own part of it: the batches do not depend on the number of
processes, gradients differ by rounding (and BatchNorm takes statistics over the part of a process).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mixer_probe.core.errors import ImagesError, MixerProbeError, StoreError
from mixer_probe.core.files import write_text
from mixer_probe.parallel.ranks import ranks
from mixer_probe.training.examples import TrainingImages
from mixer_probe.training.recipe import Recipe, checkpoint_steps, first_difference
from mixer_probe.training.runs import (
    CurvePoint,
    Run,
    initial_norm,
    machine,
    qualified_name,
    write_curve,
    write_weights,
)
from mixer_probe.zoo.cards import MEAN, STD, Card
from mixer_probe.zoo.networks import load_weights, read_checkpoint

SECONDS_BETWEEN_STATES = 60.0
# Losses are read from the device, and checked, after so many steps.
STEPS_BETWEEN_READINGS = 50
_SEEDS = 1_000_003


class TrainingError(MixerProbeError, RuntimeError):
    """A training run that diverged, or whose state belongs to another recipe."""


def train(
    recipe: Recipe,
    images: TrainingImages,
    test: TrainingImages,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    compile: bool = False,  # noqa: A002
    stop_after: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run | None:
    """The finished run in `folder`, trained as far as it is not yet; None where it was stopped
    after `stop_after` steps.

    `folder` gets the state (every minute, so that the same call goes on from there), checkpoints,
    the curve, and at the end the weights and the card. A finished run is read back. `say` gets a
    line for every point of the curve, with images per second. Raises TrainingError for a folder of
    another recipe or other images, naming the first setting that differs, and for a loss that is
    not finite, naming the step: the last good state stays. Raises ImagesError for test images of
    other classes."""
    if test.class_names != images.class_names:
        raise ImagesError(
            f"the classes of {test.name} are {', '.join(test.class_names)}, those of {images.name} "
            f"{', '.join(images.class_names)}: train and test images need the same"
        )
    settings = recipe.settings() | {"images": images.description, "test": test.description}
    if (run := Run.find(folder)) is not None:
        _same_settings(dict(run.card.recipe), settings, folder)
        return run
    trainer = Trainer(recipe, images, test, folder, torch.device(device), compile)
    trainer.resume(settings)
    last = trainer.steps if stop_after is None else min(stop_after, trainer.steps)
    trainer.run_until(last, settings, say)
    if trainer.step < trainer.steps:
        return None
    run = trainer.finish(settings)
    say(f"{folder.name}: test accuracy {run.accuracy:.4f} on {len(test):,} images")
    return run


def _same_settings(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if difference := first_difference(before, now):
        raise TrainingError(
            f"{folder} holds a run with other settings: {difference}; use another folder, or "
            "remove this one to train again"
        )


class Trainer:
    """A network in training: model, average of its weights, optimizer, number of steps done, and
    the curve so far."""

    def __init__(
        self,
        recipe: Recipe,
        images: TrainingImages,
        test: TrainingImages,
        folder: Path,
        device: torch.device,
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        self.images, self.test = images.to(device), test.to(device)
        self.few = self.test.subset(test.spread(recipe.curve_images))
        self.batch_size = min(recipe.batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        self.marks = checkpoint_steps(self.steps, recipe.checkpoints)
        self.mean, self.std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1)
        self.model = recipe.build(len(images.class_names)).train().to(device)
        if any(
            isinstance(m, nn.Conv2d) and m.kernel_size != m.stride for m in self.model.modules()
        ):
            # Convolutions are faster so.
            self.model = self.model.to(memory_format=torch.channels_last)
        for module in self.model.modules():
            if device.type == "cpu" and hasattr(module, "fused_attn"):
                # Of few tokens the fused attention takes more than twice the time on a CPU.
                setattr(module, "fused_attn", False)  # noqa: B010
        self.average = ModelEmaV3(
            self.model, decay=recipe.ema_decay, use_warmup=True, warmup_power=0.75
        )
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        warmup = max(1, round(recipe.warmup * self.steps))
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=self.steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=recipe.learning_rate / warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.step, self.seconds, self.curve = 0, 0.0, list[CurvePoint]()
        self.here = ranks()
        if self.batch_size % self.here.world:
            raise TrainingError(
                f"batches of {self.batch_size} images cannot be divided evenly among "
                f"{self.here.world} processes; choose a batch size that can"
            )
        self.network: nn.Module = self.model
        if self.here.world > 1:
            if not dist.is_initialized():
                dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            self.network = nn.parallel.DistributedDataParallel(self.model)
        if compile:
            self.network.compile()

    # -- steps -------------------------------------------------------------------------------------

    def run_until(self, last: int, settings: dict[str, Any], say: Callable[[str], None]) -> None:
        """The steps left until `last`."""
        losses: list[Tensor] = []
        saved = began = time.monotonic()
        since = self.step
        if self.step == 0:
            self._mark(float("nan"), 0.0, say)
        while self.step < last:
            losses.append(self._one_step())
            marked = self.step in self.marks or self.step % self.steps_per_epoch == 0
            if marked or len(losses) == STEPS_BETWEEN_READINGS or self.step == last:
                loss = self._read(losses)
                losses = []
                now = time.monotonic()
                self.seconds += now - began
                speed = (self.step - since) * self.batch_size / (now - began)
                if marked:
                    self._mark(loss, speed, say)
                    since = self.step
                    began = time.monotonic()
                else:
                    began, since = now, self.step
                if time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                    self.save(settings)
                    saved = time.monotonic()
        self.save(settings)

    def _read(self, losses: list[Tensor]) -> float:
        """The mean of the losses of the last steps, over all processes. Raises TrainingError if one
        is not finite."""
        found = torch.stack(losses)
        if self.here.world > 1:
            dist.all_reduce(found)
            found /= self.here.world
        values = found.tolist()
        for i, loss in enumerate(values):
            if not math.isfinite(loss):
                step = self.step - len(values) + i + 1
                raise TrainingError(
                    f"the loss of {self.folder.name} is {loss} at step {step} of {self.steps}; the "
                    f"last good state is kept in {self.folder}: try a lower learning rate, or "
                    "precision='float32'"
                )
        return float(sum(values) / len(values))

    def _one_step(self) -> Tensor:
        """One update of the weights and of their average; returns the loss, on the device."""
        self.schedule.step_update(self.step)
        pixels, targets = self._batch()
        with self._seeded(2), self._autocast():
            logits = self.network(pixels)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.model, step=self.step)
        return loss.detach()

    @torch.no_grad()
    def _batch(self) -> tuple[Tensor, Tensor]:
        """This process's part of the batch of the present step: images and class probabilities."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(_SEEDS * self.recipe.seed + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        index = order[place * self.batch_size : (place + 1) * self.batch_size]
        on = self.images.pixels.device
        pixels = self.images.pixels[index.to(on)].to(self.device, non_blocking=True)
        labels = self.images.labels[index.to(self.device)]
        targets = F.one_hot(labels, len(self.images.class_names)).float()
        augmentation = self.recipe.augmentation
        with self._seeded(1):
            found = augmentation.distort(pixels.float() / 255, self.mean, self.std)
            if epoch < self.recipe.epochs * (1 - self.recipe.unmixed):
                found, targets = augmentation.combine(found, targets)
        found = self._distorted(found, index)
        own = slice(self.here.rank, None, self.here.world)
        return found[own], targets[own]

    def _distorted(self, images: Tensor, index: Tensor) -> Tensor:
        """Normalised images with the recipe's distortion, which is of pixels."""
        if self.recipe.distortion is None:
            return images
        pixels: Tensor = self.recipe.distortion(images * self.std + self.mean, index.tolist())
        found: Tensor = (pixels - self.mean) / self.std
        return found

    @contextmanager
    def _seeded(self, purpose: int) -> Iterator[None]:
        """Inside, random numbers are those of this step and purpose, in every process."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((_SEEDS * self.recipe.seed + self.step) * 4 + purpose)
            yield

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    # -- tests, checkpoints, states ----------------------------------------------------------------

    @property
    def tested(self) -> nn.Module:
        """The network that is tested and stored: the averaged weights, or the weights."""
        return self.average.module if self.recipe.ema_decay else self.model

    @torch.no_grad()
    def accuracy(self, images: TrainingImages, model: nn.Module | None = None) -> float:
        """Fraction of the images whose largest logit is that of their label, in float32."""
        network = (self.tested if model is None else model).eval()
        right = 0
        for start in range(0, len(images), 500):
            index = torch.arange(start, min(start + 500, len(images)))
            pixels = images.pixels[start : start + 500].to(self.device).float() / 255
            found = self._distorted((pixels - self.mean) / self.std, index)
            right += int((network(found).argmax(1) == images.labels[start : start + 500]).sum())
        self.model.train()
        return right / len(images)

    def _mark(self, loss: float, speed: float, say: Callable[[str], None]) -> None:
        """A point of the curve, and a checkpoint where one is due."""
        if not self.here.first:
            return
        accuracy = self.accuracy(self.few)
        self.curve.append(CurvePoint(self.step, loss, accuracy))
        if self.step in self.marks:
            write_weights(self.tested, self.folder / "checkpoints" / f"{self.step}.safetensors")
        if speed:
            epoch = self.step / self.steps_per_epoch
            say(
                f"{self.folder.name}: epoch {epoch:.2f} of {self.recipe.epochs}, loss {loss:.4f}, "
                f"accuracy {accuracy:.3f}, {speed:,.0f} images/s"
            )

    def save(self, settings: dict[str, Any]) -> None:
        """Write the state, or leave the former one as it was."""
        if not self.here.first:
            return
        parts = {key: part.state_dict() for key, part in self._parts().items()}
        facts = {"step": self.step, "seconds": self.seconds, "settings": settings}
        curve = [(p.step, p.loss, p.accuracy) for p in self.curve]
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "state.partial"
        torch.save(parts | facts | {"curve": curve}, partial)
        partial.replace(self.folder / "state.pt")

    def resume(self, settings: dict[str, Any]) -> None:
        """Go on from the state in the folder, if there is one. Raises TrainingError for one of
        other settings and StoreError for one that cannot be read."""
        file = self.folder / "state.pt"
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except Exception as error:
            raise StoreError(f"the state {file} cannot be read: {error}") from error
        _same_settings(state["settings"], settings, self.folder)
        for key, part in self._parts().items():
            part.load_state_dict(state[key])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = [CurvePoint(*point) for point in state["curve"]]

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average.module, "optimizer": self.optimizer}

    def finish(self, settings: dict[str, Any]) -> Run:
        """Write weights and card, and remove the state."""
        if self.here.first:
            self._write(settings)
            (self.folder / "state.pt").unlink(missing_ok=True)
        if self.here.world > 1:
            dist.barrier()
        run = Run.find(self.folder)
        assert run is not None
        return run

    def _write(self, settings: dict[str, Any]) -> None:
        """Write the weights as float16, read them back and test those; the card last."""
        file = self.folder / "model.safetensors"
        sha256 = write_weights(self.tested, file)
        stored = self.recipe.build(len(self.images.class_names))
        norm = initial_norm(stored)
        load_weights(stored, read_checkpoint(file, sha256))
        write_curve(self.curve, self.folder / "curve.csv")
        card = Card(
            name=self.folder.name,
            architecture={
                "class": qualified_name(stored),
                "network": self.recipe.network,
                "arguments": dict(self.recipe.arguments),
            },
            parameters=sum(p.numel() for p in stored.parameters()),
            data=self.images.description,
            data_note=self.images.note,
            recipe=settings,
            seed=self.recipe.seed,
            epochs=self.recipe.epochs,
            initial_norm=norm,
            test_accuracy=self.accuracy(self.test, stored.to(self.device)),
            test_images=len(self.test),
            test_note=self.test.description,
            sha256=sha256,
            seconds=round(self.seconds, 1),
            machine=machine(self.device),
            torch_version=str(torch.__version__),
            timm_version=timm.__version__,
            command="",
            input_size=(3, *self.images.pixels.shape[2:]),
            class_names=self.images.class_names,
        )
        write_text(self.folder / "card.json", card.to_json())
