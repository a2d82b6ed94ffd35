"""Does a Mixer lose anything by having one token MLP for all channels?

    python analyses/parameter_tying.py
    python analyses/parameter_tying.py --data CIFAR10 --out runs/tying --workers 2

Tolstikhin et al. 2021 (appendix A.1) give every channel its own token MLP and find no gain,
"surprisingly", and do not say why. Here Mixers are trained by one protocol with one token MLP for
all channels ("tied"), one per group of channels ("8 groups"), one per channel ("per channel"), and
with token MLPs that keep their random initial weights, tied and per channel ("frozen"; arXiv
2503.16760 finds random spatial mixing nearly as good in other networks), three seeds
each. Measured are the accuracy, how many shared kernels explain the spatial kernels of all
channels, the ranks of the token-mixing matrices, and from how far a block reads.

Without --data the report is written from the results in analyses/results. With --data CIFAR10, a
folder with train/<class>/ and test/<class>/, the networks are trained first (15 runs; one hour on
two cores), in OUT/runs; the same command goes on where it was stopped. Features are measured on the
bundled CIFAR-10 images.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from permutation_training import FINAL, NETWORKS, SMOKE, curves, protocol_of

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.words import join
from mixer_probe.models import Model
from mixer_probe.report import publish
from mixer_probe.training import Arm, RunQuantity, StudyAnswer
from mixer_probe.training.arms import gather, stored_results, study_parser, train_study
from mixer_probe.training.features import block_representations, probe_accuracy
from mixer_probe.training.findings import change, shown, significant
from mixer_probe.training.runs import Run

QUESTION = "Is one token MLP for all channels enough?"
TITLE = "Is a shared token MLP enough? Tied, untied and frozen Mixers"
FROZEN = ("mlp_tokens",)
GROUPS = 8
KERNELS, SHARING = "shared kernels for 90 % of the energy", "fraction of possible kernels"
RANK = "effective rank of token-mixing matrices, relative to iid weights"
DISTANCE, PROBE = "mixing distance of the spatial branch", "linear probe accuracy"
ABOUT = {KERNELS: "", SHARING: "%", RANK: "", DISTANCE: "", PROBE: "%"}


def main() -> None:
    """Train what is missing, measure, write the report and print its findings."""
    options = _options()
    try:
        publish(study(options), options, TITLE)
    except MixerProbeError as error:
        sys.exit(f"parameter_tying: {error}")
    except KeyboardInterrupt:
        sys.exit("parameter_tying: stopped; the same command goes on from here")


def _options() -> argparse.Namespace:
    return study_parser(Path(__file__), __doc__).parse_args()


def arms(smoke: bool) -> list[Arm]:
    """The arms: tied first, the reference of all differences."""
    network, size = NETWORKS["mixer"]
    size = {**size, **(SMOKE["mixer"] if smoke else {})}
    width = size["embed_dim"]
    forms = {
        "tied": ({}, ()),
        f"{GROUPS} groups": ({"token_groups": GROUPS}, ()),
        "per channel": ({"token_groups": width}, ()),
        "tied, frozen": ({}, FROZEN),
        "per channel, frozen": ({"token_groups": width}, FROZEN),
    }
    return [
        Arm(
            "mixer",
            name,
            f"mixer-{name.replace(', ', '-').replace(' ', '-')}",
            replace(protocol_of(smoke), network=network, arguments={**size, **more}, frozen=frozen),
        )
        for name, (more, frozen) in forms.items()
    ]


def study(options: argparse.Namespace) -> list[Result]:
    """All results: those that are stored, or those of runs that are trained where they are not."""
    if (stored := stored_results(options)) is not None:
        return stored
    runs, own = options.out / "runs", arms(options.smoke)
    train_study(own, options, runs)
    few = 200 if options.smoke else None
    fit, seen = (mp.load_images("demo", split=split, limit=few) for split in ("train", "test"))
    found: dict[str, dict[tuple[str, int], np.ndarray]] = {name: {} for name in ABOUT}
    layers: list[str] = []
    for arm in own:
        for seed in options.seeds:
            model = Run.read(arm.path(runs, seed)).model(arm.seeded(seed))
            parts = [block_representations(model, part) for part in (fit, seen)]
            layers = [layer.name for layer in parts[1].layers]
            values = mixing_features(model, seen, fewer=options.smoke)
            values[PROBE] = probe_accuracy(*parts)
            for name, value in values.items():
                found[name][arm.name, seed] = value[None]
    steps = [Run.read(own[0].path(runs, options.seeds[0])).curve[-1].step]
    n = f"{len(seen):,} test images"
    results: list[Result] = [
        *curves(own, options.seeds, runs),
        *(
            gather(own, options.seeds, values, runs, name, ABOUT[name], n, steps, layers)
            for name, values in found.items()
        ),
    ]
    return [answer(results), *results]


def answer(results: list[Result]) -> StudyAnswer:
    """What untying and freezing do to the accuracy, and what untied token MLPs use their freedom
    for."""
    of = {r.quantity: r for r in results if isinstance(r, RunQuantity)}
    sentences = []
    for name in (FINAL, RANK, DISTANCE, PROBE):
        r = of[name]
        parts = [f"{shown(r, r.mean(r.arms[0]))} ({r.arms[0]})"]
        parts += [f"{shown(r, r.mean(a))} ({a}), {change(r, r.difference(a))}" for a in r.arms[1:]]
        sentences.append(f"{name[0].upper()}{name[1:]}: {'; '.join(parts)}.")
    return StudyAnswer(QUESTION, (_accuracy(of[FINAL]), _freedom(of), *sentences))


def _accuracy(r: RunQuantity) -> str:
    """Which arms are more accurate than the tied Mixers, and which less."""
    verdicts: dict[str, list[str]] = {}
    for arm in r.arms[1:]:
        d = r.difference(arm)
        verdict = "not significantly different" if not significant(d) else "more accurate"
        verdict = "less accurate" if significant(d) and d.value < 0 else verdict
        verdicts.setdefault(verdict, []).append(f"{arm} ({shown(r, d, sign=True)[3:]})")
    parts = [f"{verdict}: {join(arms)}" for verdict, arms in verdicts.items()]
    return f"Compared with one token MLP for all channels, {'; '.join(parts)}."


def _freedom(of: dict[str, RunQuantity]) -> str:
    """Whether channels with token MLPs of their own have kernels of their own."""
    r, accuracy = of[KERNELS], of[FINAL].difference("per channel")
    more = r.difference("per channel")
    if not significant(more) or more.value < 0:
        return "Channels with token MLPs of their own do not have significantly more kernels."
    gain = "with" if significant(accuracy) and accuracy.value > 0 else "without significantly"
    return (
        "Channels with token MLPs of their own have spatial kernels of their own: "
        f"{r.mean('per channel').value:.1f} shared kernels hold 90 % of their energy, against "
        f"{r.mean(r.arms[0]).value:.1f} of tied Mixers and "
        f"{r.mean('per channel, frozen').value:.1f} of random ones, {gain} more accuracy."
    )


def mixing_features(model: Model, images: mp.Images, fewer: bool) -> dict[str, np.ndarray]:
    """By block [block]: how many shared kernels explain 90 % of the energy of those of all
    channels, and which fraction of what the form allows; the effective rank of the token-mixing
    matrices relative to iid weights; and the mean mixing distance of the spatial branch relative to
    uniform mixing (12 images)."""
    tying = mp.kernel_tying(model, images.sample(50 if fewer else 200, 0))
    counts = tying.counts(0.9)
    spectra = mp.weight_spectra(model)
    ranks = [
        np.mean([e.effective_rank / e.null_effective_rank for e in of_block])
        for block in spectra.blocks
        if (of_block := spectra.select(kind="spatial", block=block, main=True))
    ]
    mixing = mp.spatial_mixing(model, images.sample(2 if fewer else 12, 0), views=["branch"])
    return {
        KERNELS: counts,
        SHARING: counts / np.array([layer.possible for layer in tying.layers]),
        RANK: np.array(ranks),
        DISTANCE: mixing.curve("branch", "relative_distance")[0],
    }


if __name__ == "__main__":
    main()
