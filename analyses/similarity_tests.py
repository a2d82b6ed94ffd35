"""Which similarity measures tell apart networks that were trained differently?

    python analyses/similarity_tests.py
    python analyses/similarity_tests.py --data CIFAR10 --out runs/similarity_tests --workers 2

Grounded tests of the package's own measures, after ReSi (Klabunde et al. 2024). Small Mixers are
trained in three groups for each of three tests: with 0, 50 and 100 % random labels; with a coloured
square in a corner that tells the class in 0, 50 and 100 % of the training images; and with three
strengths of augmentation. A measure should find two networks of one group, with different seeds,
more similar than two of different groups. Within every network layers near in depth should be more
similar than layers far apart, and networks whose predictions agree more than others.

Groups are exchanged within seeds: with four seeds 216 ways, so that no p-value is below 0.005, with
three 36 and 0.028. p-values are corrected over measures (max-T).

Without --data the report is written from the results in analyses/results. With --data CIFAR10, a
folder with train/<class>/ and test/<class>/, the networks are trained first (32 runs of 2,000
images; half an hour on one core), in OUT/runs; the same command goes on where it was stopped.
--write-docs writes the table of the stored results into docs/similarity.md.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from permutation_training import FINAL, WHOLE

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.files import write_text
from mixer_probe.core.result import Result
from mixer_probe.images import from_arrays
from mixer_probe.invariance import predictions
from mixer_probe.report import publish
from mixer_probe.similarity import MEASURES, GroundedTests
from mixer_probe.similarity.findings import grounded_sentences
from mixer_probe.similarity.grounding import (
    Outcome,
    grounded_tests,
    group_tests,
    layer_order_test,
    output_test,
)
from mixer_probe.similarity.views import grounded_table
from mixer_probe.training import (
    Arm,
    Augmentation,
    Recipe,
    RunQuantity,
    StudyAnswer,
    TrainingImages,
    train_arms,
)
from mixer_probe.training.arms import gather, stored_results, study_images, study_parser
from mixer_probe.training.findings import shown
from mixer_probe.training.runs import Run

QUESTION = "Which similarity measures pass which grounded tests?"
TITLE = "Grounded tests of similarity measures"
FITTED = "accuracy on training images and their labels"
SIZE = {"patch_size": 8, "num_blocks": 4, "embed_dim": 64}
SMOKE = {"patch_size": 8, "num_blocks": 2, "embed_dim": 16}
# Flips alone: the trainer always flips half of the images.
PLAIN = Augmentation(padding=0, trivial=0.0, erase=0.0, mix=0.0)
PROTOCOL = Recipe(epochs=60, batch_size=64, ema_decay=0.99, label_smoothing=0.0, augmentation=PLAIN)
AUGMENTATIONS = {
    "flips and shifts": replace(PLAIN, padding=4),
    "strong augmentation": Augmentation(),
}
REFERENCE = "flips alone"
LABELS = {"50 % random labels": 0.5, "100 % random labels": 1.0}
SQUARES = {f"square tells {p} %": p / 100 for p in (0, 50, 100)}
GROUPS = {
    "label randomisation": (REFERENCE, *LABELS),
    "shortcuts": tuple(SQUARES),
    "augmentation": (REFERENCE, *AUGMENTATIONS),
}
# Pairs of networks have no order: the two directions of predictivity are one measure.
USED = tuple(name for name in MEASURES if name != "predictivity_reverse")
DOCS = Path(__file__).parents[1] / "docs" / "similarity.md"
MARKS = "<!-- table of similarity_tests.py -->\n", "<!-- end of the table -->"
NOT_RUN = "The study was not run yet; its results will be here.\n"


def main() -> None:
    """Train what is missing, measure, write the report and print its findings."""
    options = _options()
    try:
        publish(study(options), options, TITLE)
        if options.write_docs:
            write_docs(mp.load_results(options.results))
    except MixerProbeError as error:
        sys.exit(f"similarity_tests: {error}")
    except KeyboardInterrupt:
        sys.exit("similarity_tests: stopped; the same command goes on from here")


def _options() -> argparse.Namespace:
    parser = study_parser(Path(__file__), __doc__, seeds=(0, 1, 2, 3))
    parser.add_argument(
        "--write-docs", action="store_true", help="write the table of the stored results into docs"
    )
    return parser.parse_args()


def arms(smoke: bool) -> list[Arm]:
    """The arms: the reference first."""
    few = {"epochs": 1, "batch_size": 30} if smoke else {}
    recipe = replace(PROTOCOL, arguments=SMOKE if smoke else SIZE, **few)
    names = (REFERENCE, *LABELS, *SQUARES, *AUGMENTATIONS)
    return [
        Arm(
            "mixer",
            name,
            f"mixer-{name.replace(' %', '').replace(' ', '-')}",
            replace(recipe, augmentation=AUGMENTATIONS.get(name, PLAIN)),
        )
        for name in names
    ]


def random_labels(images: TrainingImages, fraction: float) -> TrainingImages:
    """The images with the labels of this fraction of them, in a random order, replaced by random
    ones; a larger fraction replaces those of a smaller one, and the same way."""
    random = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(images), generator=random)[: round(fraction * len(images))]
    drawn = torch.randint(len(images.class_names), (len(images),), generator=random)
    labels = images.labels.clone()
    labels[chosen] = drawn[chosen]
    return _changed(images, f"{fraction:.0%} random labels", labels=labels)


def squares(images: TrainingImages, fraction: float, size: int = 4) -> TrainingImages:
    """The images with a square of `size` px in the upper left corner, whose colour is that of the
    class for this fraction of them, in a random order, and of a random class for the rest."""
    random = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(images), generator=random)[: round(fraction * len(images))]
    told = torch.randint(len(images.class_names), (len(images),), generator=random)
    told[chosen] = images.labels[chosen]
    colours = torch.from_numpy((255 * np.array(colormaps["tab10"].colors)).astype(np.uint8))
    pixels = images.pixels.clone()
    pixels[:, :, :size, :size] = colours[told][:, :, None, None]
    return _changed(images, f"square tells {fraction:.0%}", pixels=pixels)


def _changed(images: TrainingImages, how: str, **fields: torch.Tensor) -> TrainingImages:
    fingerprint = hashlib.sha256(f"{images.fingerprint} {how}".encode()).hexdigest()
    return replace(images, name=f"{images.name}, {how}", fingerprint=fingerprint, **fields)


def images_of(
    name: str, images: TrainingImages, test: TrainingImages
) -> tuple[TrainingImages, TrainingImages]:
    """What networks of an arm are trained and tested on: squares of test images tell nothing."""
    if name in SQUARES:
        return squares(images, SQUARES[name]), squares(test, 0.0)
    return (random_labels(images, LABELS[name]) if name in LABELS else images), test


def as_images(images: TrainingImages) -> mp.Images:
    """The same as labelled images."""
    pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return from_arrays(pixels, images.labels.numpy(), class_names=images.class_names)


def study(options: argparse.Namespace) -> list[Result]:
    """All results: those that are stored, or those of runs that are trained where they are not."""
    if (stored := stored_results(options)) is not None:
        return stored
    runs, own = options.out / "runs", arms(options.smoke)
    images, test = study_images(options.data, options.out)
    images = images.subset(images.spread(60 if options.smoke else 2000))
    how = {name: getattr(options, name) for name in ("device", "compile", "workers")}
    accuracies: dict[str, dict[tuple[str, int], np.ndarray]] = {FINAL: {}, FITTED: {}}
    found: dict[tuple[str, int], tuple[mp.Representations, np.ndarray]] = {}
    few = [part.spread(60 if options.smoke else 500) for part in (images, test)]
    for arm in own:
        fit, seen = images_of(arm.name, images, test)
        train_arms([arm], options.seeds, fit, seen, runs, **how)
        fitted, tested = (as_images(p.subset(i)) for p, i in zip((fit, seen), few, strict=True))
        for seed in options.seeds:
            run = Run.read(arm.path(runs, seed))
            model = run.model(arm.seeded(seed))
            right = predictions(model, fitted)[0][0] == fitted.labels
            accuracies[FITTED][arm.name, seed] = np.array([[right.mean()]])
            accuracies[FINAL][arm.name, seed] = np.array([[run.accuracy]])
            reps = mp.extract(model, tested, layers=["stem", "blocks"])
            found[arm.name, seed] = reps, predictions(model, tested)[0][0]
    results: list[Result] = [grounded_tests(USED, outcomes(found), f"{len(few[1]):,} test images")]
    step, n = run.curve[-1].step, (f"{len(test):,} test", f"{len(few[0]):,} training")
    for (name, values), count in zip(accuracies.items(), n, strict=True):
        about = name, "%", f"{count} images", [step], WHOLE
        results.append(gather(own, options.seeds, values, runs, *about))
    return [answer(results), *results]


def similarities(features: Sequence[np.ndarray]) -> np.ndarray:
    """Similarities [measure, k, k] of k representations, larger the more alike they are."""
    return np.array([MEASURES[m].direction * MEASURES[m].all_pairs(features) for m in USED])


def outcomes(
    found: Mapping[tuple[str, int], tuple[mp.Representations, np.ndarray]],
) -> list[Outcome]:
    """Of all tests, from representations and predictions by arm and seed. Groups are compared in
    blocks alone: the stem is a linear map of the mean patch."""
    results: list[Outcome] = []
    layers = next(iter(found.values()))[0].names()
    for test, groups in GROUPS.items():
        keys = [key for key in found if key[0] in groups]
        values = [similarities([found[key][0][layer] for key in keys]) for layer in layers[1:]]
        names, seeds = map(np.array, zip(*keys, strict=True))
        results += group_tests(test, np.stack(values, axis=1), names, seeds)
    within = [similarities([reps[layer] for layer in layers]) for reps, _ in found.values()]
    # Networks that saw the same test images.
    same = [one for (arm, _), one in found.items() if arm not in SQUARES]
    predicted = np.array([classes for _, classes in same])
    return [
        *results,
        layer_order_test(np.stack(within, axis=1)),
        output_test(
            similarities([reps[layers[-1]] for reps, _ in same]),
            (predicted[:, None] == predicted).mean(-1),
        ),
    ]


def answer(results: Iterable[Result]) -> StudyAnswer:
    """How many tests each measure passes, and whether the groups are what they should be."""
    (tests,) = (r for r in results if isinstance(r, GroundedTests))
    counts, total = tests.passed.sum(1), len(tests.tests)
    by_count = {
        count: [tests.labels[i] for i in np.flatnonzero(counts == count)]
        for count in sorted(set(counts), reverse=True)
    }
    sentences = [
        "Numbers of tests passed, both statistics of the tests of groups counted: "
        + "; ".join(f"{count} of {total}: {', '.join(names)}" for count, names in by_count.items())
        + "."
    ]
    for r in results:
        if isinstance(r, RunQuantity):
            parts = "; ".join(f"{arm} {shown(r, r.mean(arm))}" for arm in r.arms)
            name = r.quantity[0].upper() + r.quantity[1:]
            sentences.append(f"{name} (n = {len(r.seeds)} seeds each): {parts}.")
    return StudyAnswer(QUESTION, tuple(sentences))


def documented(results: Iterable[Result]) -> str:
    """The table of all measures and tests, and the answer, in Markdown."""
    lines = []
    for r in results:
        if isinstance(r, GroundedTests):
            table = grounded_table(r)
            rows = [[*table], ["---"] * table.shape[1], *table.to_numpy().tolist()]
            lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
            lines += [f"- {sentence}" for sentence in grounded_sentences(r)]
    lines += [f"- {s}" for r in results if isinstance(r, StudyAnswer) for s in r.sentences]
    return "\n".join(lines) + "\n"


def write_docs(results: Iterable[Result], file: Path = DOCS) -> None:
    """Put what `documented` says between the two marks of the file."""
    before, _, rest = file.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    write_text(file, f"{before}{MARKS[0]}{documented(results)}{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
