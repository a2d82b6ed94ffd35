"""How robust are frozen networks of each architecture to shuffled, dropped, shifted and filtered
images?

    python analyses/frozen_shuffles.py --out runs/frozen_shuffles

Tolstikhin et al. 2021 (Fig. 4) train a Mixer on images whose patches stand in another order, and it
learns as well. A trained Mixer is different: its token-mixing weights depend on the order. Here
frozen networks see images with patches shuffled on grids from 2×2 to the network's own, pixels
shuffled inside cells, the paper's one order for all images, patches dropped, shifts, low- and
high-pass. Accuracy under each, paired with the undistorted images; retained accuracy of each
family; error consistency between networks, with the largest value that the accuracies allow;
representation shift per block.

Runs on the six bundled networks and 1,000 CIFAR-10 test images by default. Other networks need
images of their own classes:

    python analyses/frozen_shuffles.py --models mixer_b16_224 vit_base_patch16_224.augreg_in1k \\
        resnet50.a1_in1k --data photos

DIR gets report.html, the pictures as SVG and PNG, results.json and a CSV table for each kind of
result. The same command gives the same numbers.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError, UndefinedInvarianceWarning
from mixer_probe.core.result import Result
from mixer_probe.core.skipped import Skipped
from mixer_probe.images import Distortion
from mixer_probe.invariance import (
    DistortionAccuracy,
    RepresentationShift,
    compare_architectures,
    distortion_accuracy,
    distortion_examples,
    error_consistency,
    representation_shift,
    standard_distortions,
)
from mixer_probe.models import describe
from mixer_probe.report import publish, script_parser
from mixer_probe.study import ResultCache

ZOO = tuple(
    f"zoo:{family}-{seed}" for family in ("mixer", "vit", "resnet") for seed in ("s0", "s1")
)
SMOKE_MODELS, SMOKE_IMAGES = ("zoo:mixer-s0", "zoo:resnet-s0"), 40
SHIFT_KINDS = (
    "patches shuffled",
    "pixels shuffled inside cells",
    "patches dropped",
    "cyclic shift",
    "low-pass",
    "high-pass",
)
# Similarities of layers settle with fewer images than accuracies do.
SHIFT_IMAGES = 300
TITLE = "Robustness by architecture to shuffled, dropped, shifted and filtered images"


def main() -> None:
    """Measure every network, compare them, write the report and print its findings."""
    options = _options()
    # What cannot be measured of a network is said in the report, beside its number.
    warnings.simplefilter("ignore", UndefinedInvarianceWarning)
    try:
        images = mp.load_images(options.data, split=options.split, limit=options.limit)
        results = study(
            options.models,
            images,
            options.device,
            ResultCache(options.out / "parts"),
            options.smoke,
        )
        publish(results, options, TITLE, silent=("models", "distortion-examples"))
    except MixerProbeError as error:
        sys.exit(f"frozen_shuffles: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser(
        "frozen_shuffles", __doc__, smoke="two networks, few images", data="labelled images"
    )
    options = parser.parse_args()
    options.models = options.models or (SMOKE_MODELS if options.smoke else ZOO)
    options.limit = options.limit or (SMOKE_IMAGES if options.smoke else None)
    return options


def study(
    names: Sequence[str], images: mp.Images, device: str, steps: ResultCache, smoke: bool = False
) -> list[Result]:
    """All results. A network that cannot be had or measured is left out with its reason; the others
    go on.

    All see the same distortions: those that suit the first network, so name first the one whose
    patches count. Finished networks are kept in DIR/parts: a second start goes on from there."""
    results: list[Result] = []
    found: list[DistortionAccuracy] = []
    shifts: list[RepresentationShift] = []
    distortions: tuple[Distortion, ...] = ()
    for name in names:
        try:
            model = mp.load_model(name, device=device)
            distortions = distortions or chosen(model, smoke)
            middle = [d for d in middling(distortions) if d.kind in SHIFT_KINDS][
                : 1 if smoke else None
            ]
            given = {"model": model, "images": images, "distortions": distortions, "middle": middle}
            accuracy, shift = steps.get(f"distortions of {name}", given, partial(measured, **given))
        except MixerProbeError as error:
            results.append(Skipped.because(f"distortions of {name}", error))
            continue
        if not found:
            results.append(distortion_examples(model, images, distortions))
        results.append(describe(model))
        found.append(accuracy)
        shifts.append(shift)
    if not found:
        raise MixerProbeError(
            f"no network could be measured; the first reason: {results[0].to_frame()['reason'][0]}"
        )
    return [*results, *found, *shifts, *compared(found)]


def measured(
    model: mp.Model,
    images: mp.Images,
    distortions: Sequence[Distortion],
    middle: Sequence[Distortion],
) -> tuple[DistortionAccuracy, RepresentationShift]:
    """What distortions cost a network, and how far some of them move its representations of some of
    the images."""
    few = images.sample(min(SHIFT_IMAGES, len(images)))
    return distortion_accuracy(model, images, distortions), representation_shift(model, few, middle)


def compared(found: Sequence[DistortionAccuracy]) -> list[Result]:
    """What is said of several networks; nothing of a single one."""
    results: list[Result] = []
    if len(found) < 2:
        return results
    for step, measure in (
        ("families", compare_architectures),
        ("error consistency", error_consistency),
    ):
        try:
            results.append(measure(found))
        except MixerProbeError as error:
            results.append(Skipped.because(step, error))
    return results


def chosen(model: mp.Model, smoke: bool) -> tuple[Distortion, ...]:
    """The distortions: all strengths, or one of each kind to see whether it runs."""
    found = standard_distortions(model)
    return tuple(middling(found)) if smoke else found


def middling(distortions: Sequence[Distortion]) -> list[Distortion]:
    """Of each kind the one in the middle of its strengths."""
    kinds = dict.fromkeys(d.kind for d in distortions)
    by_kind = [[d for d in distortions if d.kind == kind] for kind in kinds]
    return [
        sorted(part, key=lambda d: d.severity_sign * d.strength)[len(part) // 2] for part in by_kind
    ]


if __name__ == "__main__":
    main()
