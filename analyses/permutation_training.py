"""Does it matter to a Mixer, a ViT and a CNN in which order they are given the pixels, if they are
trained on it?

    python analyses/permutation_training.py
    python analyses/permutation_training.py --data CIFAR10 --out runs/permutation --workers 2

Tolstikhin et al. 2021 (Fig. 4) train on images whose patches, and the pixels inside patches, are in
one fixed order, the same for all images ("patches"), and on images whose pixels all are in one
fixed order ("global"). A Mixer cannot tell the first from the original but by its initial weights;
a CNN can. Here Mixer, ViT and ResNet of a similar size are trained by one protocol on each of the
three, with three seeds: training curves, final accuracy, and features: the token-mixing units of a
Mixer after its patches are put back in order, CKA between runs, and linear probes.

Without --data the report is written from the results in analyses/results. With --data CIFAR10, a
folder with train/<class>/ and test/<class>/, the networks are trained first (27 runs; two hours on
two cores), in OUT/runs; the same command goes on where it was stopped. Features are measured on the
bundled CIFAR-10 images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.words import FAMILIES
from mixer_probe.images.distortions import distort, paper_shuffle
from mixer_probe.invariance import absorb_distortion
from mixer_probe.report import publish
from mixer_probe.training import (
    Arm,
    Augmentation,
    Recipe,
    RunQuantity,
    RunSimilarity,
    StudyAnswer,
)
from mixer_probe.training.arms import (
    gather,
    protocol,
    stored_results,
    study_parser,
    train_study,
)
from mixer_probe.training.features import (
    UNIT_QUANTITIES,
    block_representations,
    pairwise_cka,
    probe_accuracy,
    unit_features,
)
from mixer_probe.training.findings import change, shown, similarity_sentences
from mixer_probe.training.runs import Run

QUESTION = "Does a fixed order of patches and pixels matter in training?"
TITLE = "Training on permuted images: Mixer, ViT and CNN"
# Patches of 4 px of images of 32 px.
GRID = 8
DISTORTIONS = {"original": None, "patches": paper_shuffle(GRID), "global": paper_shuffle(1)}
NETWORKS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "mixer": (
        "mixer",
        {"patch_size": 4, "num_blocks": 6, "embed_dim": 96, "mlp_ratio": [2 / 3, 2.0]},
    ),
    "vit": ("vit", {"patch_size": 4, "depth": 6, "embed_dim": 96, "num_heads": 3}),
    "cnn": ("resnet", {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}),
}
SMOKE: Mapping[str, Mapping[str, object]] = {
    "mixer": {"num_blocks": 2, "embed_dim": 32},
    "vit": {"depth": 2, "embed_dim": 32, "num_heads": 1},
    "cnn": {"channels": [8, 8, 16, 16]},
}
DURING, FINAL, WHOLE = "test accuracy during training", "test accuracy", ["network"]
PROTOCOL = Recipe(
    epochs=7,
    batch_size=128,
    ema_decay=0.998,
    checkpoints=15,
    augmentation=Augmentation(padding=4, trivial=0.0, erase=0.0, mix=0.0),
)


def main() -> None:
    """Train what is missing, measure, write the report and print its findings."""
    options = _options()
    try:
        publish(study(options), options, TITLE)
    except MixerProbeError as error:
        sys.exit(f"permutation_training: {error}")
    except KeyboardInterrupt:
        sys.exit("permutation_training: stopped; the same command goes on from here")


def _options() -> argparse.Namespace:
    return study_parser(Path(__file__), __doc__).parse_args()


def protocol_of(smoke: bool) -> Recipe:
    """What all arms have in common."""
    return replace(PROTOCOL, epochs=2, batch_size=50, checkpoints=3) if smoke else PROTOCOL


def arms(smoke: bool) -> dict[str, list[Arm]]:
    """The arms of every family: one protocol, three orders of pixels."""
    found = {}
    for family, (network, size) in NETWORKS.items():
        arguments = {**size, **(SMOKE[family] if smoke else {})}
        found[family] = [
            Arm(
                family,
                name,
                f"{network}-{name}",
                replace(
                    protocol_of(smoke), network=network, arguments=arguments, distortion=distortion
                ),
            )
            for name, distortion in DISTORTIONS.items()
        ]
    return found


def study(options: argparse.Namespace) -> list[Result]:
    """All results: those that are stored, or those of runs that are trained where they are not."""
    if (stored := stored_results(options)) is not None:
        return stored
    runs = options.out / "runs"
    families = arms(options.smoke)
    everything = [arm for own in families.values() for arm in own]
    train_study(everything, options, runs)
    results: list[Result] = []
    for own in families.values():
        results += curves(own, options.seeds, runs)
    for own in families.values():
        results += features(own, options, runs)
    return [answer(results), *results]


def answer(results: list[Result]) -> StudyAnswer:
    """What each order of pixels does to the accuracy of each family, and whether a Mixer trained on
    permuted patches has the units and representations of one trained on original images."""
    quantities = [r for r in results if isinstance(r, RunQuantity)]
    final = [r for r in quantities if r.quantity == FINAL]
    sentences = [
        f"Trained on images with {what}: "
        + "; ".join(
            f"{FAMILIES[r.family]} {shown(r, r.mean(arm))}, {change(r, r.difference(arm))} from "
            f"{shown(r, r.mean(r.arms[0]))} on original images"
            for r in final
        )
        + f" (test accuracy, n = {len(final[0].seeds)} seeds each)."
        for arm, what in (
            ("patches", "patches, and pixels inside patches, in one fixed order"),
            ("global", "all pixels in one fixed order"),
        )
    ]
    units = [r for r in quantities if r.quantity in UNIT_QUANTITIES]
    sentences.append(
        "Token-mixing units of the Mixers trained on permuted patches, with the patches put back "
        "in order, against those trained on original images: "
        + "; ".join(f"{r.quantity}, {change(r, r.difference(r.arms[-1]))}" for r in units)
        + "."
    )
    for r in results:
        if isinstance(r, RunSimilarity):
            sentences += similarity_sentences(r)
    return StudyAnswer(QUESTION, tuple(sentences))


def curves(own: list[Arm], seeds: list[int], runs: Path) -> list[Result]:
    """The training curves of a family, and the accuracies of its finished networks."""
    found = {(arm.name, seed): Run.read(arm.path(runs, seed)) for arm in own for seed in seeds}
    first = found[own[0].name, seeds[0]]
    steps = [point.step for point in first.curve]
    during = {key: np.array([[p.accuracy] for p in run.curve]) for key, run in found.items()}
    final = {key: np.array([[run.accuracy]]) for key, run in found.items()}
    few = f"{own[0].recipe.curve_images:,} test images"
    n = f"{first.card.test_images:,} test images"
    return [
        gather(own, seeds, during, runs, DURING, "%", few, steps, WHOLE),
        gather(own, seeds, final, runs, FINAL, "%", n, steps[-1:], WHOLE),
    ]


def features(own: list[Arm], options: argparse.Namespace, runs: Path) -> list[Result]:
    """Units of Mixers, linear probes, and CKA between runs, each network on images as it was
    trained on."""
    few = 200 if options.smoke else None
    fit, test = (mp.load_images("demo", split=split, limit=few) for split in ("train", "test"))
    units: dict[str, dict[tuple[str, int], np.ndarray]] = {name: {} for name in UNIT_QUANTITIES}
    probes, representations, layers = {}, [], ()
    for arm in own:
        for seed in options.seeds:
            run = Run.read(arm.path(runs, seed))
            model = run.model(arm.seeded(seed))
            order = arm.recipe.distortion
            seen = [images if order is None else distort(images, order) for images in (fit, test)]
            reps = [block_representations(model, images) for images in seen]
            layers = [layer.name for layer in reps[1].layers]
            probes[arm.name, seed] = probe_accuracy(*reps)[None]
            representations.append(reps[1])
            if arm.family == "mixer" and arm.name != "global":
                for name, values in unit_features(model).items():
                    units[name][arm.name, seed] = values[None]
                if order is not None:
                    for name, values in unit_features(absorb_distortion(model, order)).items():
                        units[name][f"{arm.name}, put back in order", seed] = values[None]
    steps = [Run.read(own[0].path(runs, options.seeds[0])).curve[-1].step]
    n = f"{len(test):,} test images"
    results: list[Result] = []
    for name, values in units.items():
        if values:
            results.append(
                gather(
                    own,
                    options.seeds,
                    values,
                    runs,
                    name,
                    UNIT_QUANTITIES[name],
                    "all units of a block",
                    steps,
                    layers,
                )
            )
    results.append(
        gather(own, options.seeds, probes, runs, "linear probe accuracy", "%", n, steps, layers)
    )
    names = [(arm, seed) for arm in own for seed in options.seeds]
    first = Run.read(own[0].path(runs, options.seeds[0]))
    results.append(
        RunSimilarity(
            measure="CKA",
            family=own[0].family,
            arms=tuple(arm.name for arm, _ in names),
            seeds=tuple(seed for _, seed in names),
            layers=tuple(layers),
            depths=np.arange(1, len(layers) + 1) / len(layers),
            values=pairwise_cka(representations),
            n=n,
            protocol=protocol(own[0].recipe, first),
            machine=first.card.machine,
        )
    )
    return results


if __name__ == "__main__":
    main()
