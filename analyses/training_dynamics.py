"""When does a Mixer, a ViT and a CNN learn what, and which blocks settle first?

    python analyses/training_dynamics.py
    python analyses/training_dynamics.py --data CIFAR10 --out runs/dynamics --workers 2

At some fifteen steps at equal ratios of the training of three seeds of each: frequency, spread and
opposite-phase units of the token-mixing units of the Mixer, CKA of every block to the same block of
the final network, and what a linear probe reads of the class by block. A block settles where half
of the way to a CKA of 1 with its final state lies behind it.

Without --data the report is written from the results in analyses/results. With --data CIFAR10, a
folder with train/<class>/ and test/<class>/, the networks are trained first, in OUT/runs, as by
permutation_training.py, whose runs --runs takes. OUT gets units.webp, the units of the first block
during training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from permutation_training import arms

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.files import write_bytes
from mixer_probe.core.result import Result
from mixer_probe.core.words import join
from mixer_probe.report import publish
from mixer_probe.training import Arm, RunQuantity, StudyAnswer, UnitHistory
from mixer_probe.training.arms import gather, stored_results, study_parser, train_study
from mixer_probe.training.features import (
    UNIT_QUANTITIES,
    block_representations,
    pairwise_cka,
    probe_accuracy,
    unit_features,
)
from mixer_probe.training.figures import animated_units
from mixer_probe.training.findings import quantity_sentences
from mixer_probe.training.quantities import half_rise
from mixer_probe.training.runs import Run

QUESTION = "When does each network learn what, and which blocks settle first?"
TITLE = "Features during training: Mixer, ViT and CNN"
PROBE, CKA = "linear probe accuracy", "CKA to the final network"
SETTLED = "step at half of the CKA to the final network"
READ = "step at half of the linear probe accuracy"


def main() -> None:
    """Train what is missing, measure, write the report and print its findings."""
    options = _options()
    try:
        results = study(options)
        publish(results, options, TITLE)
        for history in (r for r in results if isinstance(r, UnitHistory)):
            write_bytes(options.out / "units.webp", animated_units(history))
    except MixerProbeError as error:
        sys.exit(f"training_dynamics: {error}")
    except KeyboardInterrupt:
        sys.exit("training_dynamics: stopped; the same command goes on from here")


def _options() -> argparse.Namespace:
    parser = study_parser(Path(__file__), __doc__)
    parser.add_argument("--runs", type=Path, help="folder of the runs (OUT/runs)")
    options = parser.parse_args()
    options.runs = options.runs or options.out / "runs"
    return options


def study(options: argparse.Namespace) -> list[Result]:
    """All results: those that are stored, or those of runs that are trained where they are not."""
    if (stored := stored_results(options)) is not None:
        return stored
    originals = [own[0] for own in arms(options.smoke).values()]
    train_study(originals, options, options.runs)
    results = [result for arm in originals for result in dynamics(arm, options)]
    return [answer(results), *results]


def answer(results: list[Result]) -> StudyAnswer:
    """Where on the way to the final network blocks settle and the class becomes readable, from the
    first to the last block, and when the units of the Mixer get their structure."""
    quantities = [r for r in results if isinstance(r, RunQuantity)]
    sentences = [
        sentence
        for name in (SETTLED, READ)
        for sentence in quantity_sentences([r for r in quantities if r.quantity == name])
    ]
    for r in quantities:
        if r.quantity in UNIT_QUANTITIES:
            halves = half_rise(r.steps, r.values[0].mean(-1))
            steps, seeds = join([f"{2**half:,.0f}" for half in halves]), join(map(str, r.seeds))
            sentences += [
                f"{quantity_sentences([r])[0]} Half of it is reached at steps {steps} (seeds "
                f"{seeds})."
            ]
    return StudyAnswer(QUESTION, tuple(sentences))


def dynamics(arm: Arm, options: argparse.Namespace) -> list[Result]:
    """Every quantity of a family by checkpoint and block, and the steps at half of the way."""
    few = 200 if options.smoke else None
    fit, test = (mp.load_images("demo", split=split, limit=few) for split in ("train", "test"))
    mixes = arm.family == "mixer"
    names = [CKA, PROBE, *(UNIT_QUANTITIES if mixes else ())]
    found: dict[str, dict[tuple[str, int], np.ndarray]] = {name: {} for name in names}
    layers: list[str] = []
    for seed in options.seeds:
        run = Run.read(arm.path(options.runs, seed))
        reps, probes, units = [], [], []
        for step in run.checkpoints:
            model = run.model(arm.seeded(seed), step)
            parts = [block_representations(model, images) for images in (fit, test)]
            layers = [layer.name for layer in parts[1].layers]
            reps.append(parts[1])
            probes.append(probe_accuracy(*parts))
            if mixes:
                units.append(unit_features(model))
        found[CKA][arm.name, seed] = pairwise_cka(reps)[-1]
        found[PROBE][arm.name, seed] = np.array(probes)
        for name in UNIT_QUANTITIES if mixes else ():
            found[name][arm.name, seed] = np.array([step[name] for step in units])
    steps = run.checkpoints
    n = f"{len(test):,} test images"
    about = {CKA: ("", n), PROBE: ("%", n)}
    about |= {name: (unit, "all units of a block") for name, unit in UNIT_QUANTITIES.items()}
    results: list[Result] = [
        gather([arm], options.seeds, values, options.runs, name, *about[name], steps, layers)
        for name, values in found.items()
    ]
    for name, of in ((SETTLED, CKA), (READ, PROBE)):
        halves = {key: half_rise(steps, values.T)[None] for key, values in found[of].items()}
        results.append(
            gather([arm], options.seeds, halves, options.runs, name, "log2", n, steps[-1:], layers)
        )
    if mixes:
        results.append(history(arm, options))
    return results


def history(arm: Arm, options: argparse.Namespace) -> UnitHistory:
    """The units of the first block of the first seed, largest final norm first."""
    run = Run.read(arm.path(options.runs, options.seeds[0]))
    found = [
        mp.token_mixing(run.model(arm.seeded(options.seeds[0]), step), surrogates=1, shuffles=1)
        for step in run.checkpoints
    ]
    order = np.argsort(-found[-1].measures(0).norm)[:24]
    maps = np.stack([units.units(0)[order] for units in found]).astype(np.float32)
    return UnitHistory(run.folder.name, found[0].blocks[0], run.checkpoints, maps)


if __name__ == "__main__":
    main()
