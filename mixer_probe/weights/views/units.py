"""The report on token-mixing units: what they read and write, how that changes with depth, and beyond which nulls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import join, name_of, percent, studied, untrained_warning
from mixer_probe.stats.claims import LEVEL, beyond_baseline
from mixer_probe.weights import TokenMixing
from mixer_probe.weights.figures import token_mixing_depth, token_mixing_scatter, token_mixing_units
from mixer_probe.weights.token_units import SIDES, Side

# What the maps of a side are, in each form.
_MATRICES: dict[tuple[str, Side], str] = {
    ("Mixer", "read"): "rows of mlp_tokens.fc1",
    ("Mixer", "write"): "columns of mlp_tokens.fc2",
    ("gMixer", "read"): "rows of the value half of mlp_tokens.fc1",
    ("gMixer", "gate"): "rows of the activated half of mlp_tokens.fc1",
    ("gMixer", "write"): "columns of mlp_tokens.fc2",
    ("ResMLP", "read"): "rows of linear_tokens times the root mean square of ls1",
    ("gMLP", "read"): "rows of mlp_channels.gate.proj",
}
_DOES: dict[Side, str] = {"read": "Read weights", "gate": "Gate weights", "write": "Write weights"}


def token_mixing_section(results: Sequence[TokenMixing]) -> list[Section]:
    """What the token-mixing units read, and where they write to."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    content: list[Picture | Table] = [_units_picture(r, block, side) for r in shown for block, side in _to_show(r)]
    content += [_scatter_picture(r) for r in shown if r.model.trained]
    content += _depth_pictures(results)
    content += [_table(r) for r in results]
    sentences = tuple(text for r in shown for text in _sentences(r, results))
    warning = untrained_warning(r.model for r in results)
    return [Section("token-mixing", "Token-mixing units", sentences, tuple(content), warning)]


def _to_show(result: TokenMixing) -> list[tuple[int, Side]]:
    """Blocks and sides that get a picture: the first three blocks, as in the paper's Fig. 5, and the last block's other sides.

    Random weights look the same everywhere."""
    if not result.model.trained:
        return [(0, "read")]
    last = len(result.blocks) - 1
    return [(block, "read") for block in range(min(3, last + 1))] + [(last, side) for side in result.sides if side != "read"]


def _has_places(result: TokenMixing) -> bool:
    return result.form in ("ResMLP", "gMLP")


def _units_picture(result: TokenMixing, block: int, side: Side) -> Picture:
    name, place = name_of(result.model), _has_places(result)
    figure = token_mixing_units(result, block, side=side, arrange="place" if place else "pairs", limit=None)
    order = (
        "Each unit is an output token, drawn at the position of that token in the image; a square marks the token in its map."
        if place
        else "Units are arranged in opposite-phase pairs, from low to high frequency."
    )
    return Picture(
        figure,
        f"{_DOES[side]} of the token-mixing units of {result.blocks[block]} of {name}: {_matrix(result, side)}, drawn over the "
        f"{result.grid[0]}×{result.grid[1]} patch grid{_FIG5 if side == 'read' else ''}.",
        f"Red is positive weight, blue negative, white zero; each unit has its own scale. {order}",
        f"Grid of token-mixing weight maps ({side}) of {result.blocks[block]} of {name}",
        name=f"units-{side}-{name}-{result.blocks[block]}",
        vector=False,
    )


_FIG5 = ", as in Figs. 5 and 6 of the MLP-Mixer paper"


def _matrix(result: TokenMixing, side: Side) -> str:
    return _MATRICES.get((result.form, side), f"the {side} side of {result.layer}")


def _scatter_picture(result: TokenMixing) -> Picture:
    return Picture(
        token_mixing_scatter(result),
        f"Token-mixing units of {name_of(result.model)} by the frequency and the spatial spread of their read weights.",
        "Smooth, local units are at the lower left. The cross is the mean of units whose weights were shuffled over positions: "
        "units near it have no spatial structure. Brighter units have a more negative cosine with their opposite-phase unit.",
        f"Scatter plots of unit spread against frequency in blocks of {name_of(result.model)}",
        name=f"units-scatter-{name_of(result.model)}",
    )


def _depth_pictures(results: Sequence[TokenMixing]) -> list[Picture]:
    sides = [side for side in SIDES if any(side in r.sides for r in results)]
    first = results[0]
    shows = (
        "Frequency is the power centroid of the mean-removed map. Localisation is the spread of squared weight around its "
        "centre of mass. Coherence is 1 for a single orientation. Effective rank is exp(entropy) of the singular values (Roy "
        "and Vetterli 2007). The opposite-phase unit of a unit is the one with the most negative cosine."
    )
    reading = (
        "Dotted lines with open markers are untrained baselines, thin dashed lines the null of each trained network. The null "
        f"shuffles the weights of each unit over its positions ({first.shuffles} times); for opposite-phase units it keeps the "
        f"amplitude spectrum of each unit and randomises its phases ({first.surrogates} surrogates), because smooth units have "
        "opposites by chance. A unit is paired if its cosine with its opposite-phase unit is more negative than in 95 % of its "
        f"own surrogates; {_chance_text(first)}."
    )
    return [
        Picture(
            token_mixing_depth(results, side=side),
            f"{_DOES[side]} of units by depth. {shows if side == sides[0] else ''}".strip(),
            reading if side == sides[0] else "Lines and nulls are as in the figure of read weights.",
            f"Line plots of frequency, localisation, coherence, rank and opposite-phase pairing of units ({side}) against "
            "relative depth",
            name=f"units-{side}-depth",
        )
        for side in sides
    ]


def _chance_text(result: TokenMixing) -> str:
    return (
        f"{percent(result.chance)} are paired by chance"
        if result.chance > 0
        else f"{result.surrogates} surrogates are too few to test this"
    )


def _table(result: TokenMixing) -> Table:
    frame = pd.concat([result.summary(side) for side in result.sides], ignore_index=True)
    return Table(
        f"Units of {name_of(result.model)} by block, each quantity followed by its mean under the shuffled null; null mean and "
        "null q05 refer to the cosine with the opposite-phase unit under random phases. Spread of a unit with uniform weights: "
        f"{result.uniform_spread:.1f} px.",
        frame.drop(columns=["model", "depth"]),
        {name: _digits(name) for name in frame.select_dtypes("float").columns},
        folded=True,
    )


def _digits(column: str) -> str:
    return "{:.1f}" if column.endswith(("_px", "rank", "ratio")) else "{:.3f}"


def _sentences(result: TokenMixing, results: Sequence[TokenMixing]) -> list[str]:
    twin = next((r for r in results if r.model.name == result.model.name + "?untrained"), None)
    texts = (_plane_text(result, twin), _rank_text(result), _pairs_text(result))
    return [" ".join(texts), *_write_text(result)]


def _course(table: pd.DataFrame, column: str, digits: str) -> str:
    """The number in the first and in the last block."""
    ends = table.iloc[[0, -1]] if len(table) > 1 else table.iloc[[0]]
    return join(f"{value:{digits}} in {block}" for value, block in zip(ends[column], ends["block"]))


def _plane_text(result: TokenMixing, twin: TokenMixing | None) -> str:
    own = result.summary()
    beside = f"; untrained baseline: {twin.summary()['mean_frequency'].mean():.3f}" if twin else ""
    return (
        f"{name_of(result.model)}: {own['units'].iloc[0]} units per block. Mean frequency in cycles/token is "
        f"{_course(own, 'mean_frequency', '.3f')} (shuffled positions: {own['shuffled_mean_frequency'].mean():.3f}{beside}). "
        f"Mean spread around the centre of mass in px is {_course(own, 'mean_spread_px', '.1f')} (shuffled: "
        f"{own['shuffled_mean_spread_px'].mean():.1f}). {_orientation_text(result, own, twin)}"
    )


def _orientation_text(result: TokenMixing, own: pd.DataFrame, twin: TokenMixing | None) -> str:
    """The block of the largest mean coherence, where it is beyond that of shuffled units and of the untrained baseline."""
    coherence = own["mean_coherence"].to_numpy(dtype=float)
    if not np.isfinite(coherence).any():
        return "No unit has a defined orientation."
    most = int(np.nanargmax(coherence))
    p = min(1.0, len(own) * result.read[most].coherence_p)
    baseline = None if twin is None else twin.summary()["mean_coherence"].to_numpy(dtype=float)
    if not p <= LEVEL:
        return (
            f"In no block are units significantly more oriented than shuffled units (p = {p:.2g}, corrected for {len(own)} "
            "blocks)."
        )
    if baseline is not None and not beyond_baseline(coherence, baseline)[most]:
        return "Its units are no more oriented than those of its untrained baseline."
    beside = "" if baseline is None else f", untrained at most {np.nanmax(baseline):.2f}"
    return (
        f"Orientation is clearest in {own['block'].iloc[most]}, with a mean coherence of {coherence[most]:.2f} (shuffled: "
        f"{own['shuffled_mean_coherence'].iloc[most]:.2f}{beside}; p = {p:.2g}, corrected for {len(own)} blocks)."
    )


def _rank_text(result: TokenMixing) -> str:
    own = result.summary()
    full = min(len(result.units(0)), result.grid[0] * result.grid[1])
    return (
        f"The effective rank (at most {full}) is {_course(own, 'effective_rank', '.0f')} (shuffled: "
        f"{_course(own, 'shuffled_effective_rank', '.0f')})."
    )


def _pairs_text(result: TokenMixing) -> str:
    if np.isnan(result.chance):
        return f"{result.surrogates} surrogates are too few to test for opposite-phase pairs; at least 19 are required."
    shares = _course(result.summary(), "share_paired", ".1%").replace("%", " %")
    return (
        f"The fraction of units with a significant opposite-phase unit is {shares} ({percent(result.chance)} expected by "
        f"chance, {result.surrogates} surrogates)."
    )


def _write_text(result: TokenMixing) -> list[str]:
    if "write" not in result.sides:
        return []
    table, name = result.summary("write"), name_of(result.model)
    table = table.assign(z=(table["cosine_with_read"] - table["null_cosine_with_read"]) / table["null_cosine_with_read_sd"])
    # At 5 % over all blocks and both sides (Bonferroni).
    clear = table[table["z"].abs() > norm.isf(LEVEL / 2 / len(table))].sort_values("cosine_with_read")
    if clear.empty:
        return [
            f"{name}: in no block are the read and write weights of a unit more related than those of two randomly matched units."
        ]
    ends = clear.iloc[[0, -1]] if len(clear) > 1 else clear
    found = [
        f"{r.cosine_with_read:+.2f} in {r.block} (random matching: {r.null_cosine_with_read:+.3f})" for r in ends.itertuples()
    ]
    sign = " Below zero, an active unit subtracts from the patches that it reads; above zero, it adds to them."
    return [
        f"{name}: the mean cosine between the read and write weights of a unit is {join(found)}; in {len(clear)} of "
        f"{len(table)} blocks it differs significantly from that of randomly matched "
        f"units.{sign if result.form == 'Mixer' else ''}"
    ]
