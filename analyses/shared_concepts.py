"""Which features do a Mixer, a ViT and a CNN share?

    python analyses/shared_concepts.py --out runs/shared_concepts

A dictionary with one code for the same image positions of all networks is learned at some depths
(`mixer_probe.concepts`), on the training images, and measured on the test images: how much of one
network the code of another explains, how far the same atoms are active, and how the energy of atoms
is divided among networks; each next to the same of shuffled images, of untrained networks, and of
two seeds of each architecture. Concepts by non-negative matrix factorisation are matched between
networks and with the atoms of the dictionary. The bundled networks take about a quarter of an hour
on two idle cores.
"""

from __future__ import annotations

import argparse
import sys

import mixer_probe as mp
from mixer_probe.concepts import DictionaryRecipe, layer_at, shared_concepts
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.models.load import resolve_device
from mixer_probe.report import publish, script_parser

TITLE = "Which features do a Mixer, a ViT and a CNN share?"
MODELS = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")
OTHERS = ("zoo:mixer-s1", "zoo:vit-s1", "zoo:resnet-s1")
SMOKE = DictionaryRecipe(atoms=16, active=4, epochs=2, batch_size=256)


def main() -> None:
    """Learn the dictionaries, write the report and print its findings."""
    options = _options()
    try:
        publish(study(options), options, TITLE)
    except MixerProbeError as error:
        sys.exit(f"shared_concepts: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser(
        "shared_concepts",
        __doc__,
        smoke="16 atoms, the last depth and 40 images",
        data="an image set with the splits train and test",
    )
    parser.add_argument(
        "--others",
        nargs="+",
        metavar="MODEL",
        help="a network trained with another seed for each of --models",
    )
    parser.add_argument("--depths", nargs="+", type=float, default=[0.5, 1.0], help="(0.5 1)")
    parser.add_argument("--atoms", type=int, default=128, help="(128)")
    parser.add_argument("--active", type=int, default=8, help="in a code (8)")
    parser.add_argument("--epochs", type=int, default=10, help="(10)")
    parser.add_argument("--seeds", type=int, default=2, help="dictionaries (2)")
    return parser.parse_args()


def study(options: argparse.Namespace) -> list[Result]:
    """`shared_concepts` at every depth."""
    device = str(resolve_device(options.device))
    models = [mp.load_model(name, device=device) for name in options.models or MODELS]
    others = options.others or ([] if options.models else OTHERS)
    limit = 40 if options.smoke else options.limit
    fit, test = (
        mp.load_images(options.data, split=split, limit=limit) for split in ("train", "test")
    )
    recipe = DictionaryRecipe(options.atoms, options.active, options.epochs)
    return [
        result
        for depth in options.depths[-1 if options.smoke else 0 :]
        for result in shared_concepts(
            models,
            fit,
            test,
            [layer_at(model, depth) for model in models],
            SMOKE if options.smoke else recipe,
            others=[mp.load_model(name, device=device) for name in others],
            factors=4 if options.smoke else 32,
            profiled=2 if options.smoke else 24,
            seeds=1 if options.smoke else options.seeds,
            device=device,
        )
    ]


if __name__ == "__main__":
    main()
