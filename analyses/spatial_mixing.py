"""Who reads from where: Mixer, ViT and CNN.

    python analyses/spatial_mixing.py --out runs/spatial_mixing

The Jacobian between positions says from where each block of any network reads, whether it mixes
positions by token MLPs, attention or convolutions. Here its mean distance, relative to that of
uniform mixing, stands on one axis for all architectures: the branch that mixes positions alone,
the block with its skip connection, and everything from the image on. Each number has its interval,
and that of the untrained baseline: what training changed, and what the architecture gives. Then
attention distances, effective receptive fields, spatial frequencies, and the residual stream.

Runs on the six bundled networks and CIFAR-10 test images by default. `--what all` adds
principal components of positions, the class as read from the residual stream, and lesions, which
take longer. Other networks:

    python analyses/spatial_mixing.py --models mixer_b16_224 vit_base_patch16_224.augreg_in1k \\
        resnet50.a1_in1k --data photos --images 8

DIR gets report.html, the pictures as SVG and PNG, results.json and a CSV table for each kind of
result. Finished steps are stored in DIR/parts, and the same command resumes from there.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError, MixerProbeWarning
from mixer_probe.core.result import Result
from mixer_probe.core.skipped import Skipped
from mixer_probe.mixing import MixingSettings
from mixer_probe.mixing.analyses import ROOM
from mixer_probe.report import publish, script_parser
from mixer_probe.study import ResultCache, Study, StudySettings, fill_steps

ZOO = tuple(
    f"zoo:{family}-{seed}" for family in ("mixer", "vit", "resnet") for seed in ("s0", "s1")
)
SMOKE_MODELS, SMOKE_IMAGES = ("zoo:mixer-s0", "zoo:resnet-s0"), 4
WHAT = "jacobian,attention,erf,fourier,residual"
SMOKE_WHAT = "jacobian,erf"
TITLE = "Who reads from where: Mixer, ViT and CNN"


def main() -> None:
    """Analyse every network, write the report and print its findings."""
    options = _options()
    # What cannot be measured of a network is said in the report, beside its number.
    warnings.simplefilter("ignore", MixerProbeWarning)
    try:
        publish(study(options.models, *load(options), options), options, TITLE)
    except MixerProbeError as error:
        sys.exit(f"spatial_mixing: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser(
        "spatial_mixing", __doc__, smoke="two networks, four images", data="images"
    )
    parser.add_argument(
        "--what", help=f"analyses, with commas, or all: {', '.join(ROOM.names)}; by default {WHAT}"
    )
    parser.add_argument("--images", type=int, help="images whose derivatives are taken (12)")
    parser.add_argument(
        "--reading-images", type=int, help="images of which forward passes suffice (32)"
    )
    parser.add_argument(
        "--no-baselines", action="store_true", help="without the untrained baselines"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="networks analysed in parallel processes"
    )
    options = parser.parse_args()
    options.models = options.models or (SMOKE_MODELS if options.smoke else ZOO)
    options.what = options.what or (SMOKE_WHAT if options.smoke else WHAT)
    options.images = options.images or (SMOKE_IMAGES if options.smoke else 12)
    options.reading_images = options.reading_images or (SMOKE_IMAGES if options.smoke else 32)
    return options


def load(options: argparse.Namespace) -> tuple[mp.Images, mp.Images | None]:
    """The images to measure on, and those to fit a reading of the class on (None: a half of the
    former)."""
    images = mp.load_images(options.data, split=options.split, limit=options.limit)
    apart = options.data == "demo" and images.split == "test"
    train = mp.load_images("demo", split="train", limit=options.limit) if apart else None
    return images, train


def study(
    names: Sequence[str],
    images: mp.Images,
    train: mp.Images | None,
    options: argparse.Namespace,
) -> list[Result]:
    """All results. A network that cannot be had is left out with its reason; the others go on."""
    what = {"mixing": ROOM.names if options.what == "all" else ROOM.check(options.what.split(","))}
    settings = StudySettings(baselines=not options.no_baselines, analyses=what)
    shared = {
        "mixing": MixingSettings(images=options.images, reading_images=options.reading_images)
    }
    loaders = [partial(mp.load_model, name, device=options.device) for name in names]
    steps = ResultCache(options.out / "parts")
    if options.workers > 1:
        fill_steps(loaders, images, train, settings, None, steps, options.workers, what, shared)
    found = Study(images, train, settings, steps=steps, names=what, shared=shared)
    skipped: list[Skipped] = []
    for name, load_it in zip(names, loaders, strict=True):
        try:
            found.add(load_it())
        except MixerProbeError as error:
            skipped.append(Skipped.because(f"mixing of {name}", error))
    if not found.networks:
        raise MixerProbeError(
            f"no network could be measured; the first reason: {skipped[0].reason}"
        )
    return [*found.finish(), *skipped]


if __name__ == "__main__":
    main()
