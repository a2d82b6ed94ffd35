"""How do the features of a Mixer, a ViT and a CNN differ?

    python analyses/learned_features.py --out runs/learned_features

Tolstikhin et al. 2021 leave it open which features a Mixer learns and how they differ from those of
CNNs and Transformers. Here networks of the three architectures see the same images, and findings in
six parts are computed from the results: representational similarity by depth (CKA), linear probe
accuracy by layer, token-mixing units and mixing distances (weights), class-selective channels and
best-matching channels in other networks, agreement and faithfulness of attributions, and untrained
baselines. Every sentence states its number, interval and null, and says where there is no
significant difference.

Runs on the six bundled networks and CIFAR-10 images by default; probes are fitted on separate
images. Other networks need images that suit them; a folder is split into halves for the probes:

    python analyses/learned_features.py --models mixer_b16_224 vit_base_patch16_224.augreg_in1k \\
        resnet50.a1_in1k --data photos

DIR gets report.html, the pictures as SVG and PNG, results.json and a CSV table for each kind of
result; findings.csv has every number behind a sentence. Finished steps are stored in DIR/parts, and
the same command resumes from there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError, MixerProbeWarning
from mixer_probe.core.result import Result
from mixer_probe.core.skipped import Skipped
from mixer_probe.models import ModelCard
from mixer_probe.report import narrate, publish, script_parser
from mixer_probe.study import ResultCache, StudySettings, run_study

ZOO = tuple(
    f"zoo:{family}-{seed}" for family in ("mixer", "vit", "resnet") for seed in ("s0", "s1")
)
SMOKE_MODELS, SMOKE_IMAGES = ("zoo:mixer-s0", "zoo:resnet-s0"), 60
TITLE = "How do the features of a Mixer, a ViT and a CNN differ?"
# So many draws that p-values hold when the layer is picked too.
FULL = StudySettings(
    measures=("cka",),
    analyses={
        "weights": ("units", "kernels"),
        "probing": ("accuracy",),
        "channels": ("selectivity", "partners"),
        "attribution": ("overlays", "curves", "agreement"),
    },
    permutations=300,
)
# Attributions are most of the work.
SMOKE = replace(FULL, analyses={**FULL.analyses, "attribution": (), "mixing": ()})


def main() -> None:
    """Study the networks, write the report and print its findings."""
    options = _options()
    # What cannot be measured of a network is said in the report, beside its number.
    warnings.simplefilter("ignore", MixerProbeWarning)
    try:
        results = study(
            options.models,
            *load(options),
            options.device,
            options.out,
            SMOKE if options.smoke else FULL,
        )
        publish(
            [narrate(results), *results],
            options,
            TITLE,
            silent=lambda s: not s.anchor.startswith(("finding-", "skipped")),
        )
    except MixerProbeError as error:
        sys.exit(f"learned_features: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser(
        "learned_features", __doc__, smoke="two networks, few images", data="labelled images"
    )
    parser.add_argument(
        "--train",
        help="split to fit probes on; by default that of the demo, else a half of the images",
    )
    options = parser.parse_args()
    options.models = options.models or (SMOKE_MODELS if options.smoke else ZOO)
    options.limit = options.limit or (SMOKE_IMAGES if options.smoke else None)
    options.train = options.train or ("train" if options.data == "demo" else None)
    return options


def load(options: argparse.Namespace) -> tuple[mp.Images, mp.Images | None]:
    """The images to measure on, and those to fit probes on (None: a half of the former)."""
    images = mp.load_images(options.data, split=options.split, limit=options.limit)
    train = (
        mp.load_images(options.data, split=options.train, limit=options.limit)
        if options.train
        else None
    )
    return images, train


def study(
    names: Sequence[str],
    images: mp.Images,
    train: mp.Images | None,
    device: str,
    out: Path,
    settings: StudySettings = FULL,
) -> list[Result]:
    """All results but the narrative. A network that cannot be had is left out with its reason; the
    others go on."""
    steps = ResultCache(out / "parts")
    # Bound now: a name in a lambda is looked up when it is called.
    loaders = [lambda name=name: mp.load_model(name, device=device) for name in names]
    results = run_study(loaders, images, train, settings, steps=steps)
    cards = [r for r in results if isinstance(r, ModelCard) and r.model.trained]
    results += [
        r for a, b in first_pairs(cards) for r in of_twins(a, b, images, device, steps, settings)
    ]
    return results


def first_pairs(cards: Sequence[ModelCard]) -> Iterator[tuple[str, str]]:
    """The first two networks of every two architectures, by name; also of one architecture that has
    two."""
    seen: set[frozenset[str]] = set()
    for a, b in itertools.combinations(cards, 2):
        pair = frozenset((a.model.family, b.model.family))
        if pair not in seen:
            seen.add(pair)
            yield a.model.name, b.model.name


def of_twins(
    a: str, b: str, images: mp.Images, device: str, steps: ResultCache, settings: StudySettings
) -> list[Result]:
    """CKA of the untrained baselines of two networks: what the architectures share before they
    learn."""
    step = f"similarity of the untrained baselines of {a} and {b}"
    try:
        baselines = [mp.load_model(name, device=device).untrained() for name in (a, b)]

        def compared() -> list[Result]:
            left, right = (
                mp.extract(baseline, images, settings.layers, batch_size=settings.batch_size)
                for baseline in baselines
            )
            draws = {
                "permutations": settings.permutations,
                "resamples": settings.resamples,
                "seed": settings.seed,
            }
            return [mp.compare(left, right, **draws)]  # type: ignore[arg-type]

        return steps.get(
            step, {"baselines": baselines, "images": images, "settings": settings}, compared
        )
    except MixerProbeError as error:
        return [Skipped.because(step, error)]


if __name__ == "__main__":
    main()
