"""The report's section on token-mixing units: read and write weights, their change with depth, and
nulls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import (
    join,
    name_of,
    percent,
    primary,
    untrained_baseline,
    untrained_warning,
)
from mixer_probe.stats.claims import LEVEL, beyond_baseline
from mixer_probe.weights import TokenMixing
from mixer_probe.weights.figures import token_mixing_depth, token_mixing_scatter, token_mixing_units
from mixer_probe.weights.token_units import SIDES, Side, most_oriented_block, related_blocks

# The matrix of each side, by form.
_MATRICES: dict[tuple[str, Side], str] = {
    ("Mixer", "read"): "rows of mlp_tokens.fc1",
    ("Mixer", "write"): "columns of mlp_tokens.fc2",
    ("gMixer", "read"): "rows of the value half of mlp_tokens.fc1",
    ("gMixer", "gate"): "rows of the activated half of mlp_tokens.fc1",
    ("gMixer", "write"): "columns of mlp_tokens.fc2",
    ("ResMLP", "read"): "rows of linear_tokens times the root mean square of ls1",
    ("gMLP", "read"): "rows of mlp_channels.gate.proj",
}
_SIDES: dict[Side, str] = {"read": "Read weights", "gate": "Gate weights", "write": "Write weights"}


def token_mixing_section(results: Sequence[TokenMixing]) -> list[Section]:
    """The read and write weights of token-mixing units, their measures by depth, and the nulls of
    these."""
    shown = primary(results)
    content: list[Picture | Table] = []
    for r in shown:
        # As in the paper's Fig. 5 the first three blocks; untrained weights look the same
        # everywhere.
        last = len(r.blocks) - 1
        content += [
            _units_picture(r, block, "read")
            for block in range(min(3, last + 1) if r.model.trained else 1)
        ]
        content += [
            _units_picture(r, last, side) for side in r.sides if side != "read" and r.model.trained
        ]
    content += [
        Picture(
            partial(token_mixing_scatter, r),
            f"Token-mixing units of {name_of(r.model)} by the frequency and the spatial spread of "
            "their read weights.",
            "Smooth, local units are at the lower left. The cross is the mean of units whose "
            "weights were shuffled over positions: units near it have no spatial structure. "
            "Brighter units have a more negative cosine with their opposite-phase unit.",
            f"Scatter plots of unit spread against frequency in blocks of {name_of(r.model)}",
            name=f"units-scatter-{name_of(r.model)}",
        )
        for r in shown
        if r.model.trained
    ]
    content += _depth_pictures(results)
    for r in results:
        frame = pd.concat([r.summary(side) for side in r.sides], ignore_index=True)
        numbers = map(str, frame.select_dtypes("float").columns)
        digits = {
            name: "{:.1f}" if name.endswith(("_px", "rank", "ratio")) else "{:.3f}"
            for name in numbers
        }
        content.append(
            Table(
                f"Units of {name_of(r.model)} by block, each quantity followed by its mean under "
                "the shuffled null; null mean and null q05 refer to the cosine with the "
                "opposite-phase unit under random phases. Spread of a unit with uniform weights: "
                f"{r.uniform_spread:.1f} px.",
                frame.drop(columns=["model", "depth"]),
                digits,
                folded=True,
            )
        )
    sentences = [
        text
        for r in shown
        for text in (read_sentence(r, untrained_baseline(r, results)), *write_sentences(r))
    ]
    warning = untrained_warning(r.model for r in results)
    return [
        Section("token-mixing", "Token-mixing units", tuple(sentences), tuple(content), warning)
    ]


def _units_picture(result: TokenMixing, block: int, side: Side) -> Picture:
    name, at_tokens = name_of(result.model), result.form in ("ResMLP", "gMLP")
    order = (
        "Each unit is an output token, drawn at the position of that token in the image; a square "
        "marks the token in its map."
        if at_tokens
        else "Units are arranged in opposite-phase pairs, from low to high frequency."
    )
    matrix = _MATRICES.get((result.form, side), f"the {side} side of {result.layer}")
    paper = ", as in Figs. 5 and 6 of the MLP-Mixer paper" if side == "read" else ""
    return Picture(
        partial(
            token_mixing_units,
            result,
            block,
            side=side,
            arrange="place" if at_tokens else "pairs",
            limit=None,
        ),
        f"{_SIDES[side]} of the token-mixing units of {result.blocks[block]} of {name}: {matrix}, "
        f"drawn over the {result.grid[0]}×{result.grid[1]} patch grid{paper}.",
        f"Red is positive weight, blue negative, white zero; each unit has its own scale. {order}",
        f"Grid of token-mixing weight maps ({side}) of {result.blocks[block]} of {name}",
        name=f"units-{side}-{name}-{result.blocks[block]}",
        vector=False,
    )


def _depth_pictures(results: Sequence[TokenMixing]) -> list[Picture]:
    first = results[0]
    chance = f"{first.surrogates} surrogates are too few to test this"
    if first.chance > 0:
        chance = f"{percent(first.chance)} are paired by chance"
    measures = (
        "Frequency is the power centroid of the mean-removed map. Localisation is the spread of "
        "squared weight around its centre of mass. Coherence is 1 for a single orientation. "
        "Effective rank is exp(entropy) of the singular values (Roy and Vetterli 2007). The "
        "opposite-phase unit of a unit is the one with the most negative cosine."
    )
    reading = (
        "Dotted lines with open markers are untrained baselines, thin dashed lines the null of "
        "each trained network. The null shuffles the weights of each unit over its positions "
        f"({first.shuffles} times); for opposite-phase units it keeps the amplitude spectrum of "
        f"each unit and randomises its phases ({first.surrogates} surrogates), because smooth "
        "units have opposites by chance. A unit is paired if its cosine with its opposite-phase "
        f"unit is more negative than in 95 % of its own surrogates; {chance}."
    )
    pictures: list[Picture] = []
    for side in (side for side in SIDES if any(side in r.sides for r in results)):
        pictures.append(
            Picture(
                partial(token_mixing_depth, results, side=side),
                f"{_SIDES[side]} of units by depth. {'' if pictures else measures}".strip(),
                "Lines and nulls are as in the figure of read weights." if pictures else reading,
                "Line plots of frequency, localisation, coherence, rank and opposite-phase pairing "
                f"of units ({side}) against relative depth",
                name=f"units-{side}-depth",
            )
        )
    return pictures


def read_sentence(result: TokenMixing, baseline: TokenMixing | None) -> str:
    """Frequency, spread, orientation, rank and pairs of the read weights in the first and the last
    block, each with its null."""
    table = result.summary()
    ends = table.iloc[[0, -1]] if len(table) > 1 else table

    def at_ends(column: str, digits: str) -> str:
        return join(
            f"{value:{digits}} in {block}" for value, block in zip(ends[column], ends["block"])
        )

    beside = (
        f"; untrained baseline: {baseline.summary()['mean_frequency'].mean():.3f}"
        if baseline
        else ""
    )
    full = min(len(result.units(0)), result.grid[0] * result.grid[1])
    if np.isnan(result.chance):
        pairs = (
            f"{result.surrogates} surrogates are too few to test for opposite-phase pairs; at "
            "least 19 are required."
        )
    else:
        pairs = (
            "The fraction of units with a significant opposite-phase unit is "
            f"{at_ends('fraction_paired', '.1%').replace('%', ' %')} ({percent(result.chance)} "
            f"expected by chance, {result.surrogates} surrogates)."
        )
    return (
        f"{name_of(result.model)}: {table['units'].iloc[0]} units per block. Mean frequency in "
        f"cycles/token is {at_ends('mean_frequency', '.3f')} (shuffled positions: "
        f"{table['shuffled_mean_frequency'].mean():.3f}{beside}). Mean spread around the centre of "
        f"mass in px is {at_ends('mean_spread_px', '.1f')} (shuffled: "
        f"{table['shuffled_mean_spread_px'].mean():.1f}). "
        f"{orientation_sentence(result, table, baseline)} The effective rank (at most {full}) is "
        f"{at_ends('effective_rank', '.0f')} (shuffled: "
        f"{at_ends('shuffled_effective_rank', '.0f')}). {pairs}"
    )


def orientation_sentence(
    result: TokenMixing, table: pd.DataFrame, baseline: TokenMixing | None
) -> str:
    """The block of the largest mean coherence, where it is beyond that of shuffled units and of the
    untrained baseline."""
    most, p = most_oriented_block(result)
    if most < 0:
        return "No unit has a defined orientation."
    if not p <= LEVEL:
        return (
            f"In no block are units significantly more oriented than shuffled units (p = {p:.2g}, "
            f"corrected for {len(table)} blocks)."
        )
    coherence, beside = table["mean_coherence"].to_numpy(dtype=float), ""
    if baseline is not None:
        untrained = baseline.summary()["mean_coherence"].to_numpy(dtype=float)
        if not beyond_baseline(coherence, untrained)[most]:
            return "Its units are no more oriented than those of its untrained baseline."
        beside = f", untrained at most {np.nanmax(untrained):.2f}"
    return (
        f"Orientation is clearest in {table['block'].iloc[most]}, with a mean coherence of "
        f"{coherence[most]:.2f} (shuffled: "
        f"{table['shuffled_mean_coherence'].iloc[most]:.2f}{beside}; p = {p:.2g}, corrected for "
        f"{len(table)} blocks)."
    )


def write_sentences(result: TokenMixing) -> list[str]:
    """In how many blocks read and write weights of a unit are related, and how closely; none for
    forms without write weights."""
    if "write" not in result.sides:
        return []
    name, blocks, related = (
        name_of(result.model),
        len(result.summary("write")),
        related_blocks(result),
    )
    if related.empty:
        return [
            f"{name}: in no block are the read and write weights of a unit more related than those "
            "of two randomly matched units."
        ]
    ends = related.iloc[[0, -1]] if len(related) > 1 else related
    found = [
        f"{r.cosine_with_read:+.2f} in {r.block} (random matching: {r.null_cosine_with_read:+.3f})"
        for r in ends.itertuples()
    ]
    sign = (
        " Below zero, an active unit subtracts from the patches that it reads; above zero, it adds "
        "to them."
    )
    return [
        f"{name}: the mean cosine between the read and write weights of a unit is {join(found)}; "
        f"in {len(related)} of {blocks} blocks it differs significantly from that of randomly "
        f"matched units.{sign if result.form == 'Mixer' else ''}"
    ]
