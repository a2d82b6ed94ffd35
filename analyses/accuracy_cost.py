"""How does accuracy relate to cost, and how does cost scale with resolution?

    python analyses/accuracy_cost.py --out runs/accuracy_cost

The three measures of Tolstikhin et al. 2021, for any list of networks: downstream accuracy - probes
on the features that the classifier reads, on a few images per class (big_vision's protocol, five
shots) and on all training images; cost - parameters, multiply-accumulates, peak memory of
activations; throughput - images per second after warm-up, the median of passes, with the device.
Which networks are on the frontier of accuracy and cost. How multiply-accumulates (counted), time
and memory (measured) grow with the number of tokens: linear for a Mixer, whose token MLPs keep
their D_S hidden units, quadratic for a ViT. And Table 1 of the paper, counted on timm's networks
from S/32 to L/16 without their weights.

Runs on the six bundled networks and CIFAR-10 by default. Others, and costs alone (no images, no
weights needed):

    python analyses/accuracy_cost.py --models mixer_b16_224 vit_base_patch16_224.augreg_in1k \\
        resnet50.a1_in1k --data my_photos
    python analyses/accuracy_cost.py --models mixer_s32_224 mixer_s16_224 mixer_b16_224 \\
        --untrained --no-probes

DIR gets report.html, the pictures as SVG and PNG, results.json and CSV tables. The same command
gives the same accuracies and counts; times are those of the machine, best taken while it does
nothing else; in turns, so that ratios hold in any case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.skipped import Skipped
from mixer_probe.cost import (
    AccuracyCost,
    ModelCost,
    accuracy_cost,
    cost_growth,
    device_name,
    feature_layer,
    mixer_scales,
    model_costs,
)
from mixer_probe.probing import FewShotResult, ProbeResult, few_shot_probe
from mixer_probe.report import publish, script_parser
from mixer_probe.study import ResultCache

ZOO = tuple(
    f"zoo:{family}-{seed}" for family in ("mixer", "vit", "resnet") for seed in ("s0", "s1")
)
SMOKE_MODELS, SMOKE_IMAGES = ("zoo:mixer-s0", "zoo:resnet-s0"), 60
SHOTS = (1, 5, 10, 25)
TITLE = "Accuracy against cost"


def main() -> None:
    """Measure every network, set accuracy against cost, write the report and print its findings."""
    options = _options()
    try:
        results = study(options.models, options)
        publish(results, options, TITLE, silent=("probes", "few-shot"))
    except MixerProbeError as error:
        sys.exit(f"accuracy_cost: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser("accuracy_cost", __doc__, smoke="two networks, few images and passes")
    parser.add_argument("--data", default="demo", help="labelled images, as load_images takes them")
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="random weights, as timm draws them; needs no network",
    )
    parser.add_argument(
        "--splits",
        nargs=2,
        default=("train", "test"),
        metavar=("TRAIN", "TEST"),
        help="splits of the data set",
    )
    parser.add_argument("--limit", type=int, help="at most so many images of each split")
    parser.add_argument("--no-probes", action="store_true", help="costs alone")
    parser.add_argument(
        "--batch", type=int, default=32, help="images in a batch whose time is measured"
    )
    options = parser.parse_args()
    options.models = options.models or (SMOKE_MODELS if options.smoke else ZOO)
    options.limit = options.limit or (SMOKE_IMAGES if options.smoke else None)
    return options


def study(names: Sequence[str], options: argparse.Namespace) -> list[Result]:
    """All results. A network that cannot be had or measured is left out with its reason; the others
    go on.

    All are in memory together, since times are taken in turns: only so can they be compared. What
    is finished is kept in DIR/parts, a step for each question: a second start goes on from
    there."""
    splits = () if options.no_probes else options.splits
    images = tuple(
        mp.load_images(options.data, split=split, limit=options.limit) for split in splits
    )
    models, skipped = loaded(names, options)
    if not models:
        raise MixerProbeError(
            f"no network could be measured; the first reason: {skipped[0].reason}"
        )
    steps, runs = ResultCache(options.out / "parts"), 3 if options.smoke else 15
    settings = {
        "models": models,
        "on": device_name(models[0].device),
        "batch": options.batch,
        "runs": runs,
    }
    results = [mixer_scales(), *skipped]
    results += attempt(
        steps, "costs", settings, lambda: model_costs(models, batch_size=options.batch, runs=runs)
    )
    for model in models:
        results += of_one(model, images, options, steps)
    return [*results, *compared(results)]


def loaded(
    names: Sequence[str], options: argparse.Namespace
) -> tuple[list[mp.Model], list[Skipped]]:
    """The networks that there are, and those that there are not."""
    models, skipped = [], []
    for name in names:
        try:
            model = mp.load_model(name, pretrained=not options.untrained, device=options.device)
            # A network that does not run, or pools nowhere, is found out here.
            feature_layer(model)
            models.append(model)
        except MixerProbeError as error:
            skipped.append(Skipped.because(f"all of {name}", error))
    return models, skipped


def attempt(
    steps: ResultCache, name: str, settings: Mapping[str, Any], compute: Callable[[], list[Any]]
) -> list[Result]:
    """The results of a step, or why there are none."""
    try:
        return steps.get(name, settings, compute)
    except MixerProbeError as error:
        return [Skipped.because(name, error)]


def of_one(
    model: mp.Model, images: tuple[mp.Images, ...], options: argparse.Namespace, steps: ResultCache
) -> list[Result]:
    """Growth and probes of one network."""
    sizes = [model.input.size[1] * k for k in ((1, 2) if options.smoke else (1, 2, 3, 4))]
    # Of the largest images multiply-accumulates are counted alone: a ViT takes seconds for each.
    how: Any = {
        "timed": min(3, len(sizes)),
        "runs": 3 if options.smoke else 9,
        "batch_size": min(4, options.batch),
    }
    settings = {"model": model, "on": device_name(model.device), "sizes": sizes, **how}
    results = attempt(
        steps, f"growth of {model.name}", settings, lambda: [cost_growth(model, sizes, **how)]
    )
    if images:
        settings = {"model": model, "images": images}
        results += attempt(
            steps, f"probes of {model.name}", settings, lambda: probes(model, *images)
        )
    return results


def probes(model: mp.Model, train: mp.Images, test: mp.Images) -> list[Result]:
    """Few-shot and full probes of the features that the classifier reads."""
    layer = feature_layer(model).name
    fitted, tested = (
        mp.extract(model, part, layers=layer, reduce="mean") for part in (train, test)
    )
    rarest = np.unique(fitted.labels, return_counts=True)[1].min()
    return [
        few_shot_probe(fitted, tested, [s for s in SHOTS if s <= rarest]),
        mp.linear_probe(fitted, tested),
    ]


def compared(results: Sequence[Result]) -> list[Result]:
    """Accuracy against cost, of the networks that have both."""
    costs, full, few = (
        [r for r in results if isinstance(r, kind)]
        for kind in (ModelCost, ProbeResult, FewShotResult)
    )
    if not full:
        return []
    try:
        found: AccuracyCost = accuracy_cost(costs, full, few)
    except MixerProbeError as error:
        return [Skipped.because("accuracy against cost", error)]
    return [found]


if __name__ == "__main__":
    main()
