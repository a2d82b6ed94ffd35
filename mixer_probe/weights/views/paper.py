"""The report's section on the Mixer paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from mixer_probe.core.finding import Number
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import join, name_of, percent, studied, untrained_warning
from mixer_probe.stats import mean_interval
from mixer_probe.stats.claims import LEVEL, leader
from mixer_probe.weights import PaperFigures
from mixer_probe.weights.figures.paper import paper_figure_5, paper_figure_6, paper_figure_7

TAGS = (
    "Provenance of timm's checkpoints: despite their names, mixer_b16_224.goog_in21k_ft_in1k and "
    "mixer_l16_224.goog_in21k_ft_in1k are the paper's Mixers trained from scratch on ImageNet-1k (top-1 accuracies of 76.6 % "
    "and 72.1 % match the paper's ImageNet rows); the goog_in21k checkpoints are those trained on ImageNet-21k. The JFT-300M "
    "weights of the paper's Figs. 5 and 7 were never released."
)


def paper_section(results: Sequence[PaperFigures]) -> list[Section]:
    """The paper's figures of these networks, and whether what the paper says of them holds."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    content: list[Picture | Table] = [picture for r in shown for picture in _unit_pages(r)]
    content += [_training_page(part) for part in _alike(results, 3)]
    content += [_stem_page(part) for part in _parts(shown, 2)]
    content.append(_table(results))
    sentences = tuple(text for r in shown for text in paper_sentences(r))
    notes = tuple(f"{name_of(r.model)}: {r.model.note}" for r in shown if r.model.note and r.model.trained)
    warning = untrained_warning(r.model for r in results)
    return [Section("paper-figures", "Figures 5 to 7 of the Mixer paper", (*sentences, *notes, TAGS), tuple(content), warning)]


def _unit_pages(r: PaperFigures) -> list[Picture]:
    name, total = name_of(r.model), len(r.units.blocks)
    pages = [_page(r, range(min(3, total)), f"Fig. 5: token-mixing units of the first blocks of {name}", f"figure-5-{name}")]
    if total > 3:
        last = range(max(3, total - 3), total)
        pages.append(
            _page(r, last, f"In addition to Fig. 5: token-mixing units of the last blocks of {name}", f"figure-5-last-{name}")
        )
    return pages


def _page(r: PaperFigures, blocks: Sequence[int], shows: str, name: str) -> Picture:
    return Picture(
        paper_figure_5(r, blocks),
        f"{shows}.",
        "Each tile shows the weights of one hidden unit over the patches. Smooth tiles next to their opposite are pairs of "
        "feature detectors of opposite phase. The page carries its own caption.",
        f"Page with the {shows[shows.index('token') :]}",
        name=name,
        vector=False,
    )


def _alike(results: Sequence[PaperFigures], most: int) -> list[list[PaperFigures]]:
    """Networks of one patch grid, at most so many together: their maps can be compared."""
    by_grid = groupby(sorted(results, key=lambda r: r.units.grid), key=lambda r: r.units.grid)
    return [part for _, same in by_grid for part in _parts(list(same), most)]


def _parts(results: Sequence[PaperFigures], most: int) -> list[list[PaperFigures]]:
    return [list(results[i : i + most]) for i in range(0, len(results), most)]


def _training_page(results: Sequence[PaperFigures]) -> Picture:
    names = [name_of(r.model) for r in results]
    return Picture(
        paper_figure_6(results),
        f"Fig. 6: all token-mixing units of the first two blocks of {join(names)}.",
        "Similar columns have learned similar kernels; an untrained column shows the structure present before training.",
        f"Page with the token-mixing units of the first two blocks of {join(names)}",
        name=f"figure-6-{names[0]}",
        vector=False,
    )


def _stem_page(results: Sequence[PaperFigures]) -> Picture:
    names = [name_of(r.model) for r in results]
    return Picture(
        paper_figure_7(results),
        f"Fig. 7: linear units of the patch embedding of {join(names)}.",
        "Smooth colours and edges are low frequencies; noise-like units have no dominant frequency.",
        f"Page with the patch embedding of {join(names)}",
        name=f"figure-7-{names[0]}",
        vector=False,
    )


def _table(results: Sequence[PaperFigures]) -> Table:
    frame = pd.concat([r.to_frame() for r in results], ignore_index=True)
    columns = [
        "model",
        "block",
        "units",
        "mean_frequency",
        "shuffled_mean_frequency",
        "mean_coherence",
        "shuffled_mean_coherence",
    ]
    columns += ["mean_partner_cosine", "null_mean", "share_paired"]
    return Table(
        "Units by block, each quantity with its null.", frame[columns], dict.fromkeys(columns[3:], "{:.3f}"), folded=True
    )


def paper_sentences(r: PaperFigures) -> list[str]:
    """Whether opposite pairs, structure in the first blocks, and its loss in deeper ones, are there; and of the embedding."""
    return [_pairs_text(r), _depth_text(r), _stem_text(r)]


def _pairs_text(r: PaperFigures) -> str:
    table = r.units.summary().iloc[:3]
    rows = [
        f"{row.mean_partner_cosine:.2f} in {row.block} (random phases: {row.null_mean:.2f}; {_paired(row.share_paired)})"
        for row in table.itertuples()
    ]
    return (
        f"{name_of(r.model)}, opposite-phase pairs (n = {int(table['units'].iloc[0])} units per block): the mean cosine between "
        f"a unit and its opposite-phase unit is {join(rows)}."
    )


def _paired(share: Any) -> str:
    return "too few surrogates to test pairs" if np.isnan(share) else f"{percent(share)} of units are paired"


def structured_blocks(r: PaperFigures) -> np.ndarray:
    """Whether the mean frequency of a block's units is below that of every shuffle of their positions [block]."""
    sets = r.units.read
    return np.array([s.statistics.frequency < np.min(s.shuffled.frequency) for s in sets])


def _depth_text(r: PaperFigures) -> str:
    table, structured = r.units.summary(), structured_blocks(r)
    ratio = (table["mean_frequency"] / table["shuffled_mean_frequency"]).to_numpy()
    early, late = ratio[: min(3, len(ratio))].mean(), ratio[-min(3, len(ratio)) :].mean()
    count, chance = int(structured.sum()), 1 / (1 + r.units.shuffles)
    told = float(binom.sf(count - 1, len(structured), chance)) <= LEVEL
    least = _lowest(r) if told else None
    where = f"; lowest in {table['block'].iloc[least]}, {ratio[least]:.2f} times" if least is not None else ""
    return (
        f"{name_of(r.model)}, depth: the mean frequency of units is below that of all {r.units.shuffles} position shuffles in "
        f"{count} of {len(structured)} blocks, {'more' if told else 'no more'} than expected by chance ({percent(chance)}). It "
        f"is {early:.2f} times that of shuffled units in the first three blocks and {late:.2f} times in the last three (1: no "
        f"spatial structure){where}."
    )


def _lowest(r: PaperFigures) -> int | None:
    """The block whose units have the lowest frequency over that of their shuffles, where it differs from every other block."""
    ratios = [s.frequency / float(np.mean(s.shuffled.frequency)) for s in r.units.read]
    return leader([Number("", *row) for row in np.array([mean_interval(x) for x in ratios]).tolist()], lowest=True)


def _stem_text(r: PaperFigures) -> str:
    low, high = r.stem_shuffled.min(), r.stem_shuffled.max()
    return (
        f"{name_of(r.model)}, patch embedding: the mean frequency of its n = {len(r.stem)} units is {r.stem_frequency:.3f} "
        f"cycles/px; for {len(r.stem_shuffled)} shuffles of their pixels it is {low:.3f} to {high:.3f}."
    )
