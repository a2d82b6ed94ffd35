"""The report's section on the Mixer paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import numpy as np

from mixer_probe.core.section import Picture, Section, Table, chunks, table_of
from mixer_probe.core.words import join, name_of, percent, primary, untrained_warning
from mixer_probe.stats.claims import LEVEL
from mixer_probe.weights.figures.paper import paper_figure_5, paper_figure_6, paper_figure_7
from mixer_probe.weights.paper import PaperFigures, smoothest_block, structured_blocks

TAGS = (
    "Provenance of timm's checkpoints: despite their names, mixer_b16_224.goog_in21k_ft_in1k and "
    "mixer_l16_224.goog_in21k_ft_in1k are the paper's Mixers trained from scratch on ImageNet-1k "
    "(top-1 accuracies of 76.6 % and 72.1 % match the paper's ImageNet rows); the goog_in21k "
    "checkpoints are those trained on ImageNet-21k. The JFT-300M weights of the paper's Figs. 5 "
    "and 7 were never released."
)


def paper_section(results: Sequence[PaperFigures]) -> list[Section]:
    """The figures of the Mixer paper for these networks, and whether its statements hold for
    them."""
    shown = primary(results)
    content: list[Picture | Table] = []
    for r in shown:
        name, total = name_of(r.model), len(r.units.blocks)
        content.append(
            _unit_page(
                r,
                range(min(3, total)),
                "Fig. 5: token-mixing units of the first blocks",
                f"figure-5-{name}",
            )
        )
        if total > 3:
            shows = "In addition to Fig. 5: token-mixing units of the last blocks"
            content.append(
                _unit_page(r, range(max(3, total - 3), total), shows, f"figure-5-last-{name}")
            )
    # Maps over one patch grid can be compared.
    for _, alike in groupby(
        sorted(results, key=lambda r: r.units.grid), key=lambda r: r.units.grid
    ):
        for part in chunks(list(alike), 3):
            names = [name_of(r.model) for r in part]
            content.append(
                Picture(
                    partial(paper_figure_6, part),
                    f"Fig. 6: all token-mixing units of the first two blocks of {join(names)}.",
                    "Similar columns have learned similar kernels; an untrained column shows the "
                    "structure present before training.",
                    f"Page with the token-mixing units of the first two blocks of {join(names)}",
                    name=f"figure-6-{names[0]}",
                    vector=False,
                )
            )
    for part in chunks(shown, 2):
        names = [name_of(r.model) for r in part]
        content.append(
            Picture(
                partial(paper_figure_7, part),
                f"Fig. 7: linear units of the patch embedding of {join(names)}.",
                "Smooth colours and edges are low frequencies; noise-like units have no dominant "
                "frequency.",
                f"Page with the patch embedding of {join(names)}",
                name=f"figure-7-{names[0]}",
                vector=False,
            )
        )
    numbers = [
        "mean_frequency",
        "shuffled_mean_frequency",
        "mean_coherence",
        "shuffled_mean_coherence",
    ]
    numbers += ["mean_partner_cosine", "null_mean", "fraction_paired"]
    frame = table_of(results)[["model", "block", "units", *numbers]]
    content.append(
        Table(
            "Units by block, each quantity with its null.",
            frame,
            dict.fromkeys(numbers, "{:.3f}"),
            folded=True,
        )
    )
    sentences = tuple(text for r in shown for text in paper_sentences(r))
    notes = tuple(
        f"{name_of(r.model)}: {r.model.note}" for r in shown if r.model.note and r.model.trained
    )
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "paper-figures",
            "Figures 5 to 7 of the Mixer paper",
            (*sentences, *notes, TAGS),
            tuple(content),
            warning,
        )
    ]


def _unit_page(r: PaperFigures, blocks: Sequence[int], shows: str, name: str) -> Picture:
    return Picture(
        partial(paper_figure_5, r, blocks),
        f"{shows} of {name_of(r.model)}.",
        "Each tile shows the weights of one hidden unit over the patches. Smooth tiles next to "
        "their opposite are pairs of feature detectors of opposite phase. The page carries its own "
        "caption.",
        f"Page with the {shows[shows.index('token') :]} of {name_of(r.model)}",
        name=name,
        vector=False,
    )


def paper_sentences(r: PaperFigures) -> list[str]:
    """Opposite-phase pairs, structure by depth, and the frequencies of the patch embedding, each
    with its null."""
    table = r.units.summary().iloc[:3]
    cosines = []
    for row in table.to_dict("records"):
        paired = f"{percent(row['fraction_paired'])} of units are paired"
        if np.isnan(row["fraction_paired"]):
            paired = "too few surrogates to test pairs"
        cosines.append(
            f"{row['mean_partner_cosine']:.2f} in {row['block']} (random phases: "
            f"{row['null_mean']:.2f}; {paired})"
        )
    name, low, high = name_of(r.model), r.stem_shuffled.min(), r.stem_shuffled.max()
    return [
        f"{name}, opposite-phase pairs (n = {int(table['units'].iloc[0])} units per block): the "
        f"mean cosine between a unit and its opposite-phase unit is {join(cosines)}.",
        depth_sentence(r),
        f"{name}, patch embedding: the mean frequency of its n = {len(r.stem)} units is "
        f"{r.stem_frequency:.3f} cycles/px; for {len(r.stem_shuffled)} shuffles of their pixels it "
        f"is {low:.3f} to {high:.3f}.",
    ]


def depth_sentence(r: PaperFigures) -> str:
    """In how many blocks units have less frequency than shuffled ones, early and late, and where
    least."""
    table = r.units.summary()
    structured, p = structured_blocks(r)
    ratio = (table["mean_frequency"] / table["shuffled_mean_frequency"]).to_numpy()
    early, late = ratio[: min(3, len(ratio))].mean(), ratio[-min(3, len(ratio)) :].mean()
    more = p <= LEVEL
    least = smoothest_block(r) if more else None
    where = (
        f"; lowest in {table['block'].iloc[least]}, {ratio[least]:.2f} times"
        if least is not None
        else ""
    )
    return (
        f"{name_of(r.model)}, depth: the mean frequency of units is below that of all "
        f"{r.units.shuffles} position shuffles in {int(structured.sum())} of {len(structured)} "
        f"blocks, {'more' if more else 'no more'} than expected by chance "
        f"({percent(1 / (1 + r.units.shuffles))}). It is {early:.2f} times that of shuffled units "
        f"in the first three blocks and {late:.2f} times in the last three (1: no spatial "
        f"structure){where}."
    )
