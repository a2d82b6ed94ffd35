"""Train the bundled reference networks on CIFAR-10, from `mixer_probe.zoo.build` to checkpoint and
card.

    python analyses/train_zoo.py --data CIFAR10 --out runs/zoo [--only mixer-s0 vit-s0] \\
        [--device cuda]

CIFAR10 holds train/<class>/ and test/<class>/ with 32x32 images of any format. They are decoded
once, kept in --out as .npy, and held on the device as one uint8 tensor; the augmentations run
there, too. The state is written every half minute: the same command goes on after an interruption.
A network that is done is skipped. Runs on one machine repeat each other up to rounding in the order
of additions; initial weights, order of images and augmentations are seeded. To bundle new networks,
copy --out's .safetensors and .json files to mixer_probe/zoo/checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import save
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mixer_probe import zoo
from mixer_probe.training.augmentation import Augmentation
from mixer_probe.zoo.architectures import ARCHITECTURES
from mixer_probe.zoo.cards import CLASS_NAMES, MEAN, STD, Card
from mixer_probe.zoo.networks import load_weights, read_checkpoint

SECONDS_BETWEEN_STATES = 30.0
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the learning rate warms up linearly, then falls to zero along a
    half cosine.

    warmup is the fraction of all steps that it warms up for; unmixed, the fraction of the epochs at
    the end without mixup and CutMix; ema_decay, that of the average of weights (and BatchNorm
    statistics) which is what is stored.
    """

    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    epochs: int = 130
    batch_size: int = 512
    warmup: float = 0.05
    unmixed: float = 0.1
    label_smoothing: float = 0.1
    gradient_norm: float = 1.0
    ema_decay: float = 0.999
    augmentation: Augmentation = field(default_factory=Augmentation)


RECIPES = {
    "mixer": Recipe(),
    "vit": Recipe(epochs=115),
    "resnet": Recipe(
        optimizer="sgd",
        learning_rate=0.2,
        weight_decay=5e-4,
        epochs=80,
        gradient_norm=5.0,
        augmentation=Augmentation(trivial=0.5, erase=0.25, mix=0.3, mixup_alpha=0.2),
    ),
}


@dataclass(frozen=True)
class Images:
    """Images, uint8 [n, 3, 32, 32], and their labels, int64 [n], both on the training device."""

    pixels: Tensor
    labels: Tensor
    note: str

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices`."""
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])


def main(arguments: list[str] | None = None) -> None:
    """Train each network asked for and not yet done."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = choose_device(options.device)
    train, test = (
        read_images(options.data / split, options.out, device) for split in ("train", "test")
    )
    if options.holdout:
        train, test = hold_out(train, options.holdout)
    for name in options.only:
        if (options.out / f"{name}.json").exists():
            console.print(f"{name} is done: {options.out / name}.json")
        else:
            run(name, recipe_for(name, options), train, test, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/<class>/ and test/<class>/"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/zoo"),
        help="folder for decoded images, states, results",
    )
    parser.add_argument(
        "--only", nargs="+", default=zoo.names(), choices=zoo.names(), metavar="NAME"
    )
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--stop-after", type=int, metavar="N", help="finish after N epochs of the schedule"
    )
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--holdout",
        type=int,
        default=0,
        metavar="N",
        help=(
            "to compare recipes: train without N of the training images, print the accuracy on "
            "them, write no checkpoint; the test stays untouched"
        ),
    )
    parser.add_argument(
        "--compile",
        default="reduce-overhead",
        choices=("off", "default", "reduce-overhead"),
        help="how torch.compile is used on CUDA",
    )
    parser.add_argument(
        "--data-note", default="trained on CIFAR-10", help="how the card speaks of the data"
    )
    return parser


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def recipe_for(name: str, options: argparse.Namespace) -> Recipe:
    """The recipe of a network's family, with what the command line changes."""
    asked = {"epochs": options.epochs, "learning_rate": options.learning_rate}
    return replace(
        RECIPES[name.split("-")[0]],
        **{key: value for key, value in asked.items() if value is not None},
    )


# Images


def read_images(folder: Path, decoded: Path, device: torch.device) -> Images:
    """The images below folder/<class>/, sorted by path, decoded once into the folder `decoded`."""
    paths = sorted(
        path for name in CLASS_NAMES for path in (folder / name).glob("*") if path.is_file()
    )
    if not paths:
        raise SystemExit(f"no images in {folder}/<class>/ for the classes {', '.join(CLASS_NAMES)}")
    listing = "\n".join(path.relative_to(folder).as_posix() for path in paths)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    pixels = decode_once(paths, decoded / f"{folder.name}-{digest[:16]}.npy")
    labels = torch.tensor([CLASS_NAMES.index(path.parent.name) for path in paths])
    counts = labels.bincount(minlength=len(CLASS_NAMES))
    note = f"at least {counts.min()} images a class; SHA-256 of the sorted relative paths {digest}"
    return Images(torch.from_numpy(pixels).to(device), labels.to(device), note)


def decode_once(paths: list[Path], cached: Path) -> NDArray[np.uint8]:
    """uint8 [n, 3, 32, 32], from `cached` where it exists, else from the files in a pool of
    processes."""
    if not cached.exists():
        with ProcessPoolExecutor() as pool:
            pixels = np.stack(list(pool.map(decode, paths, chunksize=500)))
        partial = cached.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, pixels)
        partial.replace(cached)
    decoded: NDArray[np.uint8] = np.load(cached)
    return decoded


def decode(path: Path) -> NDArray[np.uint8]:
    """One image as uint8 [3, 32, 32]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels, not 32x32")
    return pixels.transpose(2, 0, 1)


def hold_out(images: Images, count: int) -> tuple[Images, Images]:
    """Split off `count` random images, the same ones every time."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0)).to(
        images.labels.device
    )
    return images.subset(order[count:]), images.subset(order[:count])


# Training


class Training:
    """A network on its way: model, average of its weights, optimizer, and the number of epochs
    done."""

    def __init__(
        self, name: str, recipe: Recipe, images: Images, compile_mode: str = "off"
    ) -> None:
        self.name, self.recipe, self.images = name, recipe, images
        self.device = images.pixels.device
        self.model = prepare(zoo.build(name), self.device).train()
        self.average = ModelEmaV3(
            self.model, decay=recipe.ema_decay, use_warmup=True, warmup_power=0.75
        )
        self.optimizer = make_optimizer(self.model, recipe, self.device)
        self.epoch = 0
        self.made_with = made_with(self.device)
        self.batch_size = min(recipe.batch_size, len(images.labels))
        self.steps_per_epoch = len(images.labels) // self.batch_size
        if compile_mode != "off":
            self.model.compile(mode=compile_mode)

    def train_epoch(self) -> float:
        """One pass over the images in random order, seeded by network and epoch; returns the mean
        loss."""
        torch.manual_seed(1_000_000 * (1 + int(self.name[-1])) + self.epoch)
        losses = [self.step(step, batch) for step, batch in enumerate(self.batches())]
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def batches(self) -> Iterator[Tensor]:
        """The indices of each batch, in random order; images that do not fill a batch sit this
        epoch out."""
        order = torch.randperm(len(self.images.labels), device=self.device)
        yield from order[: self.steps_per_epoch * self.batch_size].split(self.batch_size)

    def step(self, step: int, batch: Tensor) -> Tensor:
        """One update of the weights and of their average; returns the loss, on the device."""
        done = self.epoch * self.steps_per_epoch + step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                done, self.steps_per_epoch * self.recipe.epochs, self.recipe
            )
        with torch.no_grad():
            images, targets = self.augmented(batch)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, step=done + 1)
        return loss.detach()

    def augmented(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Images [batch, 3, 32, 32] and their class probabilities [batch, 10]."""
        pixels = self.images.pixels[batch].float() / 255
        images = self.recipe.augmentation.distort(pixels, *channel_statistics(self.device))
        targets = F.one_hot(self.images.labels[batch], len(CLASS_NAMES)).float()
        if self.epoch < self.recipe.epochs * (1 - self.recipe.unmixed):
            images, targets = self.recipe.augmentation.combine(images, targets)
        return as_the_device_likes(images), targets

    def save(self, path: Path) -> None:
        """Write the state, or leave the former one as it was."""
        state: dict[str, Any] = {key: part.state_dict() for key, part in self.parts().items()}
        state |= {"epoch": self.epoch, "recipe": asdict(self.recipe), "made_with": self.made_with}
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a state that `save` wrote under the same recipe, if there is one."""
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(
                f"{path} was written under another recipe; delete it or ask for the same"
            )
        for key, part in self.parts().items():
            part.load_state_dict(state[key])
        self.epoch, self.made_with = state["epoch"], state["made_with"]

    def parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        return {"model": self.model, "average": self.average.module, "optimizer": self.optimizer}


def run(
    name: str, recipe: Recipe, train: Images, test: Images, options: argparse.Namespace
) -> None:
    """Train one network to its end and write its checkpoint and its card."""
    torch.set_float32_matmul_precision("high")
    training = Training(name, recipe, train, options.compile if train.pixels.is_cuda else "off")
    state = options.out / f"{name}.state"
    if not options.holdout:
        training.resume(state)
    train_until(options.stop_after or recipe.epochs, training, state, keep=not options.holdout)
    if options.holdout:
        console.print(f"{name} held-out accuracy {accuracy(training.average.module, test):.4f}")
    else:
        finish(training, test, options.out, options.data_note)
        state.unlink(missing_ok=True)


def train_until(epoch: int, training: Training, state: Path, keep: bool) -> None:
    """The epochs left until `epoch`, with a line each; the state now and then where `keep` asks for
    it."""
    saved = time.monotonic()
    while training.epoch < epoch:
        began = time.monotonic()
        loss = training.train_epoch()
        speed = training.steps_per_epoch * training.batch_size / (time.monotonic() - began)
        console.print(
            f"{training.name} epoch {training.epoch}/{training.recipe.epochs} loss {loss:.4f} "
            f"{speed:,.0f} images/s"
        )
        if keep and time.monotonic() - saved > SECONDS_BETWEEN_STATES:
            training.save(state)
            saved = time.monotonic()
    if keep:
        training.save(state)


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device; convolutions on CUDA are faster in channels_last."""
    if device.type == "cuda":
        return model.to(device, memory_format=torch.channels_last)
    return model.to(device)


def as_the_device_likes(images: Tensor) -> Tensor:
    """Images in the memory format that `prepare` gave the network."""
    return images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum 0.9; norms, biases and position embeddings do not
    decay."""
    groups = param_groups_weight_decay(
        model, recipe.weight_decay, no_weight_decay_list=["pos_embed"]
    )
    fused = device.type == "cuda"
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=fused
        )
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then a half cosine to zero."""
    warmup = max(1, round(recipe.warmup * steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@cache
def channel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of CIFAR-10's channels, each [3, 1, 1]."""
    mean, std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1)
    return mean, std


# Results


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images) -> float:
    """Share of the images whose largest logit is that of their label, in float32."""
    mean, std = channel_statistics(images.pixels.device)
    model.eval()
    right = 0
    for pixels, labels in zip(images.pixels.split(1000), images.labels.split(1000), strict=True):
        right += int((model((pixels.float() / 255 - mean) / std).argmax(dim=1) == labels).sum())
    return right / len(images.labels)


def finish(training: Training, test: Images, out: Path, data_note: str) -> None:
    """Write the averaged weights as float16, read them back, test those, and write the card
    last."""
    path = out / f"{training.name}.safetensors"
    save_weights(training.average.module, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model = zoo.build(training.name)
    load_weights(model, read_checkpoint(path, sha256))
    # TF32 off: the card promises float32.
    torch.set_float32_matmul_precision("highest")
    measured = accuracy(model.to(training.device), test)
    text = make_card(training, measured, test, sha256, data_note).to_json()
    write_atomically(path.with_suffix(".json"), text.encode())
    console.print(f"{training.name} test accuracy {measured:.4f} on {len(test.labels):,} images")


def save_weights(model: nn.Module, path: Path) -> None:
    """The state dict as safetensors, floating point rounded to float16."""
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    rounded = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    write_atomically(path, save(rounded, metadata={"format": "pt"}))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def make_card(
    training: Training, measured: float, test: Images, sha256: str, data_note: str
) -> Card:
    """The card of a network that is done."""
    name, recipe = training.name, training.recipe
    untrained = zoo.build(name)
    return Card(
        name=name,
        architecture=ARCHITECTURES[name.split("-")[0]],
        parameters=sum(parameter.numel() for parameter in untrained.parameters()),
        data=(
            f"CIFAR-10 (Krizhevsky 2009), {len(training.images.labels):,} images; "
            f"{training.images.note}"
        ),
        data_note=data_note,
        recipe=asdict(recipe),
        seed=int(name[-1]),
        epochs=training.epoch,
        initial_norm=float(
            nn.utils.parameters_to_vector(untrained.parameters()).detach().double().norm()
        ),
        test_accuracy=measured,
        test_images=len(test.labels),
        test_note=test.note,
        sha256=sha256,
        **training.made_with,
        command=command(training),
    )


def command(training: Training) -> str:
    """What makes this network again."""
    stop = f" --stop-after {training.epoch}" if training.epoch < training.recipe.epochs else ""
    return (
        f"python analyses/train_zoo.py --data CIFAR10 --only {training.name} --epochs "
        f"{training.recipe.epochs}{stop}"
    )


def made_with(device: torch.device) -> dict[str, str]:
    """The accelerator's name, or the processor's kind, and the versions that a card names."""
    machine = f"{os.cpu_count()} {platform.machine()} CPU cores"
    if device.type == "cuda":
        machine = f"one {torch.cuda.get_device_name(device)}"
    return {
        "machine": machine,
        "torch_version": str(torch.__version__),
        "timm_version": timm.__version__,
    }


if __name__ == "__main__":
    main()
