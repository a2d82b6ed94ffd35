"""What do Figs. 5, 6 and 7 of the MLP-Mixer paper look like for this Mixer?

    python analyses/mixer_paper_figures.py --out runs/mixer_paper_figures

Tolstikhin et al. 2021 draw the hidden units of the first token-mixing MLPs (Fig. 5), all units of
the first two for three training sets (Fig. 6), and the linear units of the patch embedding (Fig.
7). Here are the same pages for any Mixer, gMixer, ResMLP or gMLP, on A4, ready to print; with one
more, of the last blocks, of which the paper says that they have no clearly identifiable structure.
Units are paired and sorted as in the paper, which gives no formula: by cosine similarity and power
centroid. Every number on a page stands beside its null.

Which weights are which: timm's mixer_{b,l}16_224.goog_in21k_ft_in1k hold the paper's Mixers trained
on ImageNet-1k from scratch, in spite of their name; goog_in21k hold those trained on ImageNet-21k.
The paper's Figs. 5 and 7 are of JFT-300M weights, which were never released. Runs on the bundled
Mixers by default; other weights:

    python analyses/mixer_paper_figures.py --models mixer_b16_224.goog_in21k_ft_in1k \\
        mixer_b16_224.goog_in21k
    python analyses/mixer_paper_figures.py --models mixer_b16_224 --checkpoint my_mixer.safetensors
    python analyses/mixer_paper_figures.py --models mixer_b16_224 mixer_l16_224 --untrained

DIR gets report.html, pages.pdf, every page as SVG and PNG, results.json and a CSV table. The same
command gives the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.result import Result
from mixer_probe.core.section import Picture
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import publish, save_pages, script_parser
from mixer_probe.study import ResultCache
from mixer_probe.weights import paper_figures

ZOO = ("zoo:mixer-s0", "zoo:mixer-s1", "zoo:mixer-s0?untrained")
TITLE = "Figures 5, 6 and 7 of the MLP-Mixer paper"


def main() -> None:
    """Measure every network, write its pages and the report, and print what they show."""
    options = _options()
    try:
        results = study(options.models, options)
        sections = publish(results, options, TITLE)
        pages = [
            part for section in sections for part in section.content if isinstance(part, Picture)
        ]
        save_pages([page.figure for page in pages], options.out / "pages.pdf")
    except MixerProbeError as error:
        sys.exit(f"mixer_paper_figures: {error}")


def _options() -> argparse.Namespace:
    parser = script_parser(
        "mixer_paper_figures", __doc__, models="Mixers", smoke="one network, few surrogates"
    )
    # Networks are loaded there; nothing runs on it.
    parser.set_defaults(device="cpu")
    parser.add_argument("--checkpoint", type=Path, help="file of weights, for a single model")
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="random weights, as timm draws them; needs no network",
    )
    parser.add_argument(
        "--surrogates",
        type=int,
        help="phase-randomised copies in the null of pairs; 999 by default",
    )
    options = parser.parse_args()
    if options.checkpoint and len(options.models or ()) != 1:
        parser.error("--checkpoint needs --models with the one network that it is of")
    options.models = options.models or (ZOO[:1] if options.smoke else ZOO)
    options.surrogates = options.surrogates or (3 if options.smoke else 999)
    return options


def study(names: Sequence[str], options: argparse.Namespace) -> list[Result]:
    """The figures of every network. One that cannot be had, or is no Mixer, is left out with its
    reason; the others go on.

    Finished networks are kept in DIR/parts: a second start goes on from there."""
    steps, found, skipped = ResultCache(options.out / "parts"), [], []
    for name in names:
        try:
            model = mp.load_model(
                name,
                pretrained=not options.untrained,
                checkpoint=options.checkpoint,
                device=options.device,
            )
            settings = {"model": model, "surrogates": options.surrogates}
            # Bound now: a name in a lambda is looked up when it is called.
            made = steps.get(
                f"figures of {name}",
                settings,
                lambda m=model: [paper_figures(m, surrogates=options.surrogates)],
            )
        except MixerProbeError as error:
            skipped.append(Skipped.because(f"figures of {name}", error))
            continue
        found += made
    if not found:
        raise MixerProbeError(f"there is no figure to draw; the first reason: {skipped[0].reason}")
    return [*found, *skipped]


if __name__ == "__main__":
    main()
