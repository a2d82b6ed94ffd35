"""`train`: from a recipe and images to a network, its curve and its checkpoints.

Everything random is a function of the recipe's seed and the step, so that a run that was stopped
after any step goes on as if it had not been, to the last bit on a CPU. Under torchrun every process
augments the whole batch and takes its own part of it: the batches do not depend on the number of
processes, gradients differ by rounding (and BatchNorm takes statistics over the part of a process).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mixer_probe.core.errors import ImagesError, MixerProbeError, ModelError, StoreError
from mixer_probe.core.files import write_bytes, write_text
from mixer_probe.core.memory import slices
from mixer_probe.core.switches import evaluating, seeded
from mixer_probe.models.load import resolve_device
from mixer_probe.parallel.ranks import agree, gather, ranks
from mixer_probe.training.examples import TrainingImages
from mixer_probe.training.recipe import Recipe, checkpoint_steps, first_difference, first_line
from mixer_probe.training.runs import (
    CurvePoint,
    Run,
    initial_norm,
    machine,
    write_curve,
    write_weights,
)
from mixer_probe.zoo.cards import MEAN, STD, Card
from mixer_probe.zoo.networks import load_weights, read_checkpoint

SECONDS_BETWEEN_STATES = 60.0
# Losses are read from the device, and checked, after so many steps.
STEPS_BETWEEN_READINGS = 50
_SEEDS = 1_000_003
_RANKS = 2**40
_CPU = torch.device("cpu")


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
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Run | None:
    """The finished run in `folder`, trained as far as it is not yet; None where it was stopped
    after `stop_after` steps. `command` is what the card says makes it again.

    `folder` gets the state (every minute, so that the same call goes on from there), checkpoints,
    the curve, and at the end the weights and the card. A finished run is read back. `say` gets a
    line for every point of the curve, with images per second. Raises TrainingError for a folder of
    another recipe or other images, naming the first setting that differs, and for a loss that is
    not finite, naming the step: the last good state stays. Raises ImagesError for test images of
    other classes or another size, ModelError for a network that cannot be built or takes no images
    of this size, StoreError for a state or a card that cannot be read."""
    if test.class_names != images.class_names:
        raise ImagesError(
            f"the classes of {test.name} are {', '.join(test.class_names)}, those of {images.name} "
            f"{', '.join(images.class_names)}: train and test images need the same"
        )
    if test.pixels.shape[1:] != images.pixels.shape[1:]:
        sizes = ("x".join(map(str, found.pixels.shape[2:])) for found in (test, images))
        raise ImagesError(
            f"the images of {test.name} and {images.name} have {' and '.join(sizes)} pixels: train "
            "and test images need the same"
        )
    settings = recipe.settings() | {"images": images.description, "test": test.description}
    if (run := Run.find(folder)) is not None:
        _same_settings(dict(run.card.recipe), settings, folder)
        return run
    trainer = Trainer(recipe, images, test, folder, resolve_device(device), compile)
    trainer.resume(settings)
    # No process goes on, and replaces the state, before all have read it.
    gather(trainer.step)
    last = trainer.steps if stop_after is None else min(stop_after, trainer.steps)
    trainer.run_until(last, settings, say)
    if trainer.step < trainer.steps:
        return None
    run = trainer.finish(settings, command)
    if trainer.here.first:
        say(f"{folder.name}: test accuracy {run.accuracy:.4f} on {len(test):,} images")
    return run


def _same_settings(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if difference := first_difference(before, now):
        raise TrainingError(
            f"{folder} holds a run with other settings: {difference}; use another folder, or "
            "remove this one to train again"
        )


def undecayed(model: nn.Module) -> set[str]:
    """The parameters without weight decay, next to those of one dimension: what the network says,
    and biases, of which an untied token MLP has a row for each group of channels."""
    said: set[str] = getattr(model, "no_weight_decay", set)()
    return {*said, *(name for name, _ in model.named_parameters() if name.endswith("bias"))}


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
        self.recipe, self.folder = recipe, folder
        self.images, self.test = images.to(device), test.to(device)
        self.device = self.images.labels.device
        self.few = self.test.subset(test.spread(recipe.curve_images))
        self.batch_size = min(recipe.batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        self.marks = checkpoint_steps(self.steps, recipe.checkpoints)
        self.mean, self.std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1)
        self.model = recipe.build(len(images.class_names)).train().to(device)
        self._check_network()
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
            param_group_fn=lambda model: param_groups_weight_decay(
                model, recipe.weight_decay, no_weight_decay_list=undecayed(model)
            ),
        )
        warmup = max(1, round(recipe.warmup * self.steps))
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(1, self.steps - warmup),
            warmup_t=warmup,
            warmup_lr_init=recipe.learning_rate / warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.step, self.seconds, self.curve = 0, 0.0, list[CurvePoint]()
        # The losses since the last point of the curve, and the step of the state in the folder.
        self.losses, self.kept = list[float](), -1
        self.epoch, self.orders = -1, dict[torch.device, Tensor]()
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

    def _check_network(self) -> None:
        """Raise ModelError for a network that gives images of this size no logits of their
        classes."""
        size = tuple(self.images.pixels.shape[1:])
        classes = len(self.images.class_names)
        try:
            with evaluating(self.model), torch.no_grad():
                found = tuple(self.model(torch.zeros(2, *size, device=self.device)).shape)
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            raise ModelError(
                f"{self.recipe.network} takes no images of {size[1]}x{size[2]} pixels "
                f"({first_line(error)}); give arguments that suit them, such as img_size"
            ) from error
        if found != (2, classes):
            raise ModelError(
                f"{self.recipe.network} gives outputs {list(found[1:])} for an image, not a logit "
                f"for each of {classes} classes"
            )

    # -- steps -------------------------------------------------------------------------------------

    def run_until(self, last: int, settings: dict[str, Any], say: Callable[[str], None]) -> None:
        """The steps left until `last`."""
        losses: list[Tensor] = []
        saved = began = time.monotonic()
        since = self.step
        if self.step == 0:
            self._mark(0.0, say)
        while self.step < last:
            losses.append(self._one_step())
            marked = self.step in self.marks or self.step % self.steps_per_epoch == 0
            if marked or len(losses) == STEPS_BETWEEN_READINGS or self.step == last:
                self._read(losses)
                losses = []
                now = time.monotonic()
                self.seconds += now - began
                speed = (self.step - since) * self.batch_size / (now - began)
                if marked:
                    self._mark(speed, say)
                if now - saved > SECONDS_BETWEEN_STATES:
                    self.save(settings)
                    saved = now
                # Tests and states are no part of the time of training.
                since, began = self.step, time.monotonic()
        self.save(settings)

    def _read(self, losses: list[Tensor]) -> None:
        """Note the losses of the last steps, [loss, norm of the gradient] each, means over all
        processes. Raises TrainingError, in each of them, for one that is not finite: the weights do
        not change where the norm is infinite."""
        found = torch.stack(losses)
        if self.here.world > 1:
            dist.all_reduce(found)
            found /= self.here.world
        for i, values in enumerate(found.tolist()):
            for what, value in zip(("loss", "norm of the gradient"), values, strict=True):
                if not math.isfinite(value):
                    step = self.step - len(found) + i + 1
                    raise self._diverged(
                        f"the {what} of {self.folder.name} is {value} at step {step}"
                    )
            self.losses.append(values[0])

    def _diverged(self, what: str) -> TrainingError:
        kept = f"the state of step {self.kept} is kept" if self.kept >= 0 else "no state was kept"
        return TrainingError(
            f"{what} of {self.steps}; {kept} in {self.folder}: try a lower learning rate, or "
            "precision='float32'"
        )

    def _one_step(self) -> Tensor:
        """One update of the weights and of their average; returns loss and norm of the gradient, on
        the device."""
        self.schedule.step_update(self.step)
        pixels, targets = self._batch()
        # Every process drops other units; the first those of a single one.
        with self._seeded(2 + self.here.rank * _RANKS), self._autocast():
            logits = self.network(pixels)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.model, step=self.step)
        return torch.stack([loss.detach(), norm])

    @torch.no_grad()
    def _batch(self) -> tuple[Tensor, Tensor]:
        """This process's part of the batch of the present step: images and class probabilities."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        orders = self._orders(epoch)
        part = slice(place * self.batch_size, (place + 1) * self.batch_size)
        chosen = self.images.pixels[orders[self.images.pixels.device][part]]
        pixels = chosen.to(self.device, non_blocking=True)
        labels = self.images.labels[orders[self.device][part]]
        targets = F.one_hot(labels, len(self.images.class_names)).float()
        augmentation = self.recipe.augmentation
        with self._seeded(1):
            found = augmentation.distort(pixels.float() / 255, self.mean, self.std)
            if epoch < self.recipe.epochs * (1 - self.recipe.unmixed):
                found, targets = augmentation.combine(found, targets)
        found = self._distorted(found, orders[_CPU][part])
        own = slice(self.here.rank, None, self.here.world)
        return found[own], targets[own]

    def _orders(self, epoch: int) -> dict[torch.device, Tensor]:
        """The order of all images in an epoch, on the CPU and on the device, so that no step waits
        for a copy."""
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(_SEEDS * self.recipe.seed + epoch)
            order = torch.randperm(len(self.images), generator=generator)
            self.epoch, self.orders = epoch, {_CPU: order, self.device: order.to(self.device)}
        return self.orders

    def _distorted(self, images: Tensor, index: Tensor) -> Tensor:
        """Normalised images with the recipe's distortion, which is of pixels."""
        if self.recipe.distortion is None:
            return images
        pixels: Tensor = self.recipe.distortion(images * self.std + self.mean, index.tolist())
        found: Tensor = (pixels - self.mean) / self.std
        return found

    def _seeded(self, purpose: int) -> AbstractContextManager[None]:
        """Inside, random numbers are those of this step and purpose."""
        return seeded((_SEEDS * self.recipe.seed + self.step) * 4 + purpose, self.device)

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
        network = self.tested if model is None else model
        right = 0
        with evaluating(network):
            for part in slices(len(images), 500):
                pixels = images.pixels[part].to(self.device).float() / 255
                index = torch.arange(part.start, part.stop)
                found = self._distorted((pixels - self.mean) / self.std, index)
                right += int((network(found).argmax(1) == images.labels[part]).sum())
        return right / len(images)

    def _mark(self, speed: float, say: Callable[[str], None]) -> None:
        """A point of the curve, and a checkpoint where one is due."""
        loss = math.fsum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses = []
        if not self.here.first:
            return
        accuracy = self.accuracy(self.few)
        self.curve.append(CurvePoint(self.step, loss, accuracy))
        if self.step in self.marks:
            file = self.folder / "checkpoints" / f"{self.step}.safetensors"
            write_weights(self.tested, file, self.recipe.significant_bits)
        if speed:
            epoch = self.step / self.steps_per_epoch
            say(
                f"{self.folder.name}: epoch {epoch:.2f} of {self.recipe.epochs}, loss {loss:.4f}, "
                f"accuracy {accuracy:.3f}, {speed:,.0f} images/s"
            )

    def save(self, settings: dict[str, Any]) -> None:
        """Write the state, or leave the former one as it was. Raises TrainingError, in every
        process, for weights that are not finite."""
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise self._diverged(
                f"{self.folder.name} has weights not finite after step {self.step}"
            )
        if self.here.first:
            state = {key: part.state_dict() for key, part in self._parts().items()}
            state |= {"step": self.step, "seconds": self.seconds, "losses": self.losses}
            state |= {"settings": settings, "curve": [tuple(point) for point in self.curve]}
            content = io.BytesIO()
            torch.save(state, content)
            write_bytes(self.folder / "state.pt", content.getvalue())
        self.kept = self.step

    def resume(self, settings: dict[str, Any]) -> None:
        """Go on from the state in the folder, if there is one. Raises TrainingError for one of
        other settings and StoreError for one that cannot be read."""
        file = self.folder / "state.pt"
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            _same_settings(state["settings"], settings, self.folder)
            for key, part in self._parts().items():
                part.load_state_dict(state[key])
            self.step, self.seconds = state["step"], state["seconds"]
            self.curve = [CurvePoint(*point) for point in state["curve"]]
            self.losses = list(state.get("losses", ()))
        except TrainingError:
            raise
        except Exception as error:
            raise StoreError(
                f"the state {file} cannot be read ({first_line(error)}); remove it to train from "
                "the beginning"
            ) from error
        self.kept = self.step

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average.module, "optimizer": self.optimizer}

    def finish(self, settings: dict[str, Any], command: str = "") -> Run:
        """Write weights and card, and remove the state."""
        agree(lambda: self._write(settings, command))
        run = Run.find(self.folder)
        assert run is not None
        return run

    def _write(self, settings: dict[str, Any], command: str) -> None:
        """Write the weights, read them back and test those; the card last."""
        file = self.folder / "model.safetensors"
        sha256 = write_weights(self.tested, file, self.recipe.significant_bits)
        stored = self.recipe.build(len(self.images.class_names))
        norm = initial_norm(stored)
        load_weights(stored, read_checkpoint(file, sha256))
        write_curve(self.curve, self.folder / "curve.csv")
        card = Card(
            name=self.folder.name,
            architecture=self.recipe.architecture(stored, len(self.images.class_names)),
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
            command=command,
            input_size=(3, *self.images.pixels.shape[2:]),
            class_names=self.images.class_names,
        )
        write_text(self.folder / "card.json", card.to_json())
        (self.folder / "state.pt").unlink(missing_ok=True)
