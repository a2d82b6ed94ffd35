"""Train the bundled networks on CIFAR-10.

    python analyses/train_zoo.py --data CIFAR10 --only mixer-s0 vit-s0 --device cuda

CIFAR10 holds train/<class>/ and test/<class>/ with images of any format; torch/cifar10 downloads
them. Decoded images are kept in DIR/decoded, and each network in DIR/NAME: card.json, curve.csv,
model.safetensors. The state is written every minute: the same command goes on after an interruption
and leaves out what is done. Under torchrun several processes train one network. To compare recipes,
--holdout N trains without N of the training images and tests on them; the test images stay
untouched, and networks go to DIR/holdout.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mixer_probe import zoo
from mixer_probe.core.errors import ImagesError, MixerProbeError
from mixer_probe.core.threads import use_cores
from mixer_probe.parallel import ranks
from mixer_probe.training import Augmentation, Recipe, TrainingImages, train
from mixer_probe.training.arms import study_images
from mixer_probe.training.examples import DOWNLOAD
from mixer_probe.zoo.cards import CHECKPOINTS

# A short training on few processor cores, for one network of each further form of token mixing.
SHORT = Recipe(
    epochs=5,
    batch_size=128,
    ema_decay=0.998,
    significant_bits=7,
    augmentation=Augmentation(trivial=0.0, erase=0.0, mix=0.0),
)
RECIPES = {
    "mixer": Recipe("mixer"),
    "vit": Recipe("vit", epochs=115),
    "resnet": Recipe(
        "resnet",
        optimizer="sgd",
        learning_rate=0.2,
        weight_decay=5e-4,
        epochs=80,
        gradient_norm=5.0,
        augmentation=Augmentation(trivial=0.5, erase=0.25, mix=0.3, mixup_alpha=0.2),
    ),
    **{
        family: replace(SHORT, network=family)
        for family in ("resmlp", "gmlp", "gmixer", "convmixer")
    },
}
SMOKE, SMOKE_IMAGES = {"epochs": 1, "batch_size": 30}, 60


def main() -> None:
    """Train each network asked for that is not done."""
    options = _options()
    try:
        if options.threads:
            use_cores(options.threads)
        data = None if options.smoke else options.data
        images, test = study_images(data, options.out, SMOKE_IMAGES)
        if options.holdout:
            images, test = hold_out(images, options.holdout)
        for name in options.only:
            done = train(
                recipe(name, options),
                replace(images, note=options.data_note),
                test,
                options.out / ("holdout" if options.holdout else "") / name,
                device=options.device,
                compile=options.compile,
                command=command(name, options),
                say=lambda line: print(line, flush=True),
            )
            if done is not None and ranks().first:
                weights, card = (CHECKPOINTS / f"{name}.{end}" for end in ("safetensors", "json"))
                print(
                    f"to bundle it: cp {done.folder}/model.safetensors {weights}; "
                    f"cp {done.folder}/card.json {card}"
                )
    except MixerProbeError as error:
        sys.exit(f"train_zoo: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help=f"folder with train/<class>/, test/<class>/; {DOWNLOAD}")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"), metavar="DIR")
    names = zoo.names()
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores where not given")
    parser.add_argument("--holdout", type=int, default=0, metavar="N", help="compare recipes")
    parser.add_argument("--data-note", default="trained on CIFAR-10", help="for the card")
    parser.add_argument("--smoke", action="store_true", help="one epoch on the bundled images")
    options = parser.parse_args()
    if not (options.data or options.smoke):
        parser.error(f"--data is missing: a folder, or {DOWNLOAD} to download CIFAR-10")
    return options


def recipe(name: str, options: argparse.Namespace) -> Recipe:
    """The recipe of a network's family, with what the command line changes."""
    family, seed = name.split("-s")
    asked = {"epochs": options.epochs, "learning_rate": options.learning_rate}
    changes = {key: value for key, value in asked.items() if value is not None}
    return replace(RECIPES[family], seed=int(seed), **((SMOKE if options.smoke else {}) | changes))


def hold_out(images: TrainingImages, n: int) -> tuple[TrainingImages, TrainingImages]:
    """All but `n` random images, and these, the same ones every time."""
    if not 0 < n < len(images):
        raise ImagesError(f"--holdout is from 1 to {len(images) - 1} images, not {n}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order[n:]), replace(
        images.subset(order[:n]), name=f"held-out {images.name}"
    )


def command(name: str, options: argparse.Namespace) -> str:
    """What makes this network again."""
    kept = ("epochs", "learning_rate", "holdout")
    given = {f"--{key.replace('_', '-')}": getattr(options, key) for key in kept}
    changes = "".join(f" {key} {value}" for key, value in given.items() if value)
    data = " --smoke" if options.smoke else " --data CIFAR10"
    return f"python analyses/train_zoo.py{data} --only {name}{changes}"


if __name__ == "__main__":
    main()
