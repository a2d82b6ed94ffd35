"""Is a Mixer a CNN?

    python analyses/mixer_as_cnn.py --out runs/mixer_as_cnn

Tolstikhin et al. 2021 (Section 2) call it "a very special CNN, which uses 1x1 convolutions for
channel mixing, and single-channel depth-wise convolutions of a full receptive field and parameter
sharing for token mixing", and add that "the converse is not true". Here a Mixer, gMixer, ResMLP or
gMLP is written as that CNN, in two forms - one kernel that sees every channel by itself ("tied"),
and a grouped convolution with the kernel repeated ("grouped") - and both networks see the same
images: how far their logits are apart in float64 and float32, beside what rounding does to the
Mixer alone; how many parameters and convolutions there are, and whether a linear layer is left. A
picture shows one kernel at work. A network that is no Mixer is left out, with the reason why.

Runs on the bundled Mixers and 64 CIFAR-10 images by default. Grouped convolutions are slow on a
CPU, so for large networks:

    python analyses/mixer_as_cnn.py --models mixer_b16_224 resmlp_12_224 --untrained \\
        --data photos --limit 4 --forms tied

DIR gets report.html, the pictures as SVG and PNG, results.json and a CSV table. The same command
gives the same numbers on the same machine: differences at the size of rounding depend on the order
in which a device adds up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import publish, script_parser
from mixer_probe.study import ResultCache
from mixer_probe.weights import convolution_equivalence

ZOO = ("zoo:mixer-s0", "zoo:mixer-s1")
LIMIT, SMOKE_LIMIT = 64, 8
TITLE = "Is a Mixer a CNN?"


def main() -> None:
    """Compare every Mixer with itself as a CNN, write the report and print its findings."""
    options = _options()
    try:
        images = mp.load_images(options.data, split=options.split, limit=options.limit)
        results = study(options.models, images, options)
        publish(results, options, TITLE)
    except MixerProbeError as error:
        sys.exit(f"mixer_as_cnn: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser(
        "mixer_as_cnn", __doc__, models="Mixers", smoke="one network, few images", data="images"
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="random weights, as timm draws them; needs no network",
    )
    parser.add_argument(
        "--forms", nargs="+", choices=("tied", "grouped"), default=("tied", "grouped")
    )
    options = parser.parse_args()
    options.models = options.models or (ZOO[:1] if options.smoke else ZOO)
    options.limit = options.limit or (SMOKE_LIMIT if options.smoke else LIMIT)
    return options


def study(names: Sequence[str], images: mp.Images, options: argparse.Namespace) -> list[Result]:
    """The comparison for every network. One that cannot be had, or is no Mixer, is left out with
    its reason; the others go on.

    Finished networks are kept in DIR/parts: a second start goes on from there."""
    steps, found, skipped = ResultCache(options.out / "parts"), [], []
    forms = tuple(options.forms)
    for name in names:
        try:
            model = mp.load_model(name, pretrained=not options.untrained, device=options.device)
            settings = {"model": model, "images": images, "forms": forms}
            # Bound now: a name in a lambda is looked up when it is called.
            made = steps.get(
                f"{name} as a CNN",
                settings,
                lambda m=model: [convolution_equivalence(m, images, forms=forms)],
            )
        except MixerProbeError as error:
            skipped.append(Skipped.because(f"{name} as a CNN", error))
            continue
        found += made
    if not found:
        raise MixerProbeError(
            f"no network could be written as a CNN; the first reason: {skipped[0].reason}"
        )
    return [*found, *skipped]


if __name__ == "__main__":
    main()
