"""Studies of training: runs of several arms and seeds, trained where they are not yet, and
quantities gathered from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

from mixer_probe.core.errors import ModelError, StoreError
from mixer_probe.core.result import Result, load_results
from mixer_probe.core.threads import available_cores
from mixer_probe.core.validate import checked
from mixer_probe.parallel.ranks import ranks
from mixer_probe.training.examples import DOWNLOAD, TrainingImages, cifar10
from mixer_probe.training.quantities import RunQuantity
from mixer_probe.training.recipe import Recipe
from mixer_probe.training.runs import Run
from mixer_probe.training.trainer import train


@dataclass(frozen=True)
class Arm:
    """One arm of a study: networks of one `family` ("mixer", "vit", "cnn") trained by `recipe` with
    several seeds. `folder` begins the names of the folders of its runs."""

    family: str
    name: str
    folder: str
    recipe: Recipe

    @checked(ModelError)
    def seeded(self, seed: int) -> Recipe:
        """The recipe with this seed."""
        return replace(self.recipe, seed=seed)

    @checked(ModelError)
    def path(self, runs: Path, seed: int) -> Path:
        """The folder of the run with this seed."""
        return runs / f"{self.folder}-s{seed}"


def train_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    images: TrainingImages,
    test: TrainingImages,
    runs: Path,
    *,
    device: torch.device | str = "cpu",
    compile: bool = False,  # noqa: A002
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Train every arm with every seed, first all arms with the first seed; finished runs stay as
    they are. `workers` processes train a run each and divide the cores; 0: in this one, as on an
    accelerator and under torchrun.

    Raises what `train` raises, once the other runs under way are finished."""
    every = [(arm, seed) for seed in seeds for arm in arms]
    parallel = workers > 0 and ranks().world == 1
    # A finished run is read back, and refused if it is of another recipe.
    here = [(arm, s) for arm, s in every if not parallel or Run.find(arm.path(runs, s))]
    for arm, seed in here:
        folder = arm.path(runs, seed)
        train(arm.seeded(seed), images, test, folder, device=device, compile=compile, say=say)
    todo = [one for one in every if one not in here]
    if not todo:
        return
    for part in (images.pixels, images.labels, test.pixels, test.labels):
        part.share_memory_()  # type: ignore[no-untyped-call]
    threads = max(1, available_cores() // workers)
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        jobs = [
            pool.submit(
                _train_one, arm.seeded(s), images, test, arm.path(runs, s), device, compile, threads
            )
            for arm, s in todo
        ]
        for job in jobs:
            job.result()


def _train_one(
    recipe: Recipe,
    images: TrainingImages,
    test: TrainingImages,
    folder: Path,
    device: torch.device | str,
    compile: bool,  # noqa: A002
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    train(recipe, images, test, folder, device=device, compile=compile, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)


def gather(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    measured: Mapping[tuple[str, int], np.ndarray],
    runs: Path,
    quantity: str,
    unit: str,
    n: str,
    steps: Sequence[int],
    layers: Sequence[str],
) -> RunQuantity:
    """A quantity of runs of one family from its values [step, layer] by name of arm, in their
    order, and seed; the rest is as for `RunQuantity`. Depths of layers are their ranks."""
    first = Run.read(arms[0].path(runs, seeds[0]))
    names = tuple(dict.fromkeys(arm for arm, _ in measured))
    return RunQuantity(
        quantity=quantity,
        unit=unit,
        family=arms[0].family,
        arms=names,
        seeds=tuple(seeds),
        steps=tuple(steps),
        layers=tuple(layers),
        depths=np.arange(1, len(layers) + 1) / len(layers),
        values=np.array([[measured[arm, seed] for seed in seeds] for arm in names]),
        n=n,
        protocol=protocol(arms[0].recipe, first),
        machine=first.card.machine,
    )


def protocol(recipe: Recipe, run: Run) -> str:
    """What all arms of a family have in common, in words."""
    seconds = f", {run.card.seconds:,.0f} s per run" if run.card.seconds else ""
    augmentation = recipe.augmentation
    mixed = f", {augmentation.mix:.0%} mixed" if augmentation.mix else ""
    return (
        f"{run.card.parameters:,} parameters; {recipe.epochs} epochs of {run.card.data}, batches "
        f"of {recipe.batch_size}, {recipe.optimizer} with a learning rate of "
        f"{recipe.learning_rate:g} (warm-up, half cosine), weight decay {recipe.weight_decay:g}, "
        f"label smoothing {recipe.label_smoothing:g}, flips and shifts of up to "
        f"{augmentation.padding} px{mixed}; average of weights with decay "
        f"{recipe.ema_decay:g} tested on {run.card.test_note}; {recipe.precision}{seconds}"
    )


# -- options of scripts ----------------------------------------------------------------------------


def study_parser(
    script: Path, description: str | None, seeds: Sequence[int] = (0, 1, 2)
) -> argparse.ArgumentParser:
    """The options of every study of training, with its results stored beside the `script`; `seeds`
    are its default."""
    name = script.stem
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stored = script.parent / "results" / f"{name}.json"
    parser.add_argument("--data", help=f"folder with train/<class>/, test/<class>/; {DOWNLOAD}")
    parser.add_argument("--results", type=Path, default=stored, help="stored results")
    shown = f"({' '.join(map(str, seeds))})"
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help=shown)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument(
        "--workers", type=int, default=0, help="runs trained in parallel processes (0: in this one)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / name, help="folder for the report and the runs"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny networks and few bundled images: does it run?"
    )
    return parser


def stored_results(options: argparse.Namespace) -> list[Result] | None:
    """The results that a study has stored, or None where the options ask for its own. Raises
    StoreError, with what to do, where there are none."""
    if options.data is not None or options.smoke:
        return None
    if not options.results.exists():
        raise StoreError(
            f"no stored results in {options.results}: give --data, a folder with the images of "
            "CIFAR-10, to train the networks"
        )
    return list(load_results(options.results))


def study_images(
    data: str | None, out: Path, limit: int = 200
) -> tuple[TrainingImages, TrainingImages]:
    """The images to train and to test on: CIFAR-10 as `cifar10` reads it from `data`, or without
    `data` at most `limit` bundled images each."""
    train, test = (cifar10(data, split, out, limit) for split in ("train", "test"))
    return train, test


def train_study(arms: Sequence[Arm], options: argparse.Namespace, runs: Path) -> None:
    """`train_arms` as the options of `study_parser` say. Raises as `study_images` does too."""
    images, test = study_images(options.data, options.out)
    how = {name: getattr(options, name) for name in ("device", "compile", "workers")}
    train_arms(arms, options.seeds, images, test, runs, **how)
