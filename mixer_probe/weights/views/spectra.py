"""The report's section on spectra: ranks and norms of the mixing matrices by depth, beside iid
weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import join, name_of, percent, primary, untrained_warning
from mixer_probe.stats.claims import LEVEL
from mixer_probe.weights import WeightSpectra
from mixer_probe.weights.figures import singular_values, spectra_depth
from mixer_probe.weights.spectra import outlier_matrices

_KINDS = {"spatial": "spatial mixing", "channel": "channel mixing", "both": "k×k convolutions"}


def spectra_section(results: Sequence[WeightSpectra]) -> list[Section]:
    """Ranks and norms of the mixing matrices of each network by depth, beside iid weights."""
    shown = primary(results)
    depth = Picture(
        partial(spectra_depth, results),
        "Stable rank (squared Frobenius over squared spectral norm) and effective rank (exp of the "
        "entropy of the singular values) as fractions of full rank, the largest singular value "
        "relative to that of iid weights, and the root mean square of the singular values, for the "
        "matrices that mix positions, channels, or both.",
        "Dashed lines are iid weights of the same shapes and norms, dotted lines with open markers "
        "untrained baselines. A rank below the dashed line means that few directions dominate the "
        "matrix. Queries and keys count as spatial mixing, values and output projections as "
        "channel mixing; shortcuts and gates are excluded. Norms, layer scales and biases around a "
        "matrix are not included.",
        "Stable rank, effective rank and norms of the mixing matrices against relative depth",
        name="spectra-depth",
    )
    values = []
    for r in (r for r in shown if r.model.trained):
        name, operator = name_of(r.model), ""
        if any(e.operator == "convolution" for e in r.entries):
            limit = (
                f", on grids of at most {r.largest_grid} positions per side"
                if r.largest_grid
                else ""
            )
            boundary = f"with circular boundary{limit}"
            operator = (
                f"A convolution is treated as an operator on its input grid {boundary}: one value "
                "per frequency."
            )
        values.append(
            Picture(
                partial(singular_values, r),
                "Singular values of the mixing matrices of the first, a middle and the last block "
                f"of {name}, divided by their root mean square.",
                "Dashed lines are iid weights of the same shape. Values above the left end of the "
                f"dashed line are directions absent from iid weights. {operator}",
                f"Singular values of the mixing matrices of {name}",
                name=f"spectra-{name}",
            )
        )
    columns = {
        "stable_rank_fraction": "stable rank fraction",
        "null_stable_rank_fraction": "iid",
        "effective_rank_fraction": "effective rank fraction",
        "outlier_energy": "energy beyond iid",
        "norm_over_null": "norm over iid",
        "rms": "rms",
    }
    blocks = pd.concat(
        [r.by_depth().assign(model=name_of(r.model)) for r in results], ignore_index=True
    )
    summary = Table(
        "Means over blocks of the mixing matrices. Ranks are fractions of full rank.",
        blocks.groupby(["model", "kind"], sort=False)[list(columns)]
        .mean()
        .reset_index()
        .rename(columns=columns),
        dict.fromkeys(columns.values(), "{:.3f}"),
    )
    entries = pd.concat(
        [r.to_frame().assign(model=name_of(r.model)) for r in results], ignore_index=True
    )
    shape = [
        "model",
        "layer",
        "role",
        "kind",
        "shape",
        "grid",
        "spectral_norm",
        "frobenius_norm",
        "stable_rank",
        "full_rank",
    ]
    formats = dict.fromkeys(("spectral_norm", "frobenius_norm", "stable_rank"), "{:.3g}")
    full = Table(
        "All mixing matrices.",
        entries.loc[entries["operator"] != "product", shape],
        formats,
        folded=True,
    )
    sentences = tuple(text for r in shown for text in spectra_sentences(r))
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "spectra",
            "Spectra of the mixing matrices",
            sentences,
            (depth, *values, summary, full),
            warning,
        )
    ]


def spectra_sentences(result: WeightSpectra) -> list[str]:
    """Ranks and outliers by kind of mixing, and how many weights are excluded."""
    table, name, sentences = result.by_depth(), name_of(result.model), []
    kinds = {kind: table[table["kind"] == kind] for kind in result.kinds}
    texts = [rank_text(result, own, kind) for kind, own in kinds.items() if len(own)]
    if texts:
        sentences.append(f"{name}: {'; '.join(texts)}.")
    if result.left_out:
        reasons = Counter(reason for _path, reason in result.left_out)
        counts = join(f"{count} because each {reason}" for reason, count in reasons.items())
        sentences.append(
            f"{name}: {len(result.left_out)} other weights in the blocks are excluded, {counts}."
        )
    return sentences


def rank_text(result: WeightSpectra, table: pd.DataFrame, kind: str) -> str:
    """The stable rank of the matrices of one kind, from their `table` by depth, and their singular
    values above iid weights."""
    first, last = table["stable_rank_fraction"].iloc[[0, -1]]
    above, matrices, p = outlier_matrices(result, kind)
    outliers = (
        f"{percent(table['outlier_energy'].mean())} of the energy lies in singular values above "
        "those of iid weights"
        if p <= LEVEL
        else (
            "no more matrices have singular values above those of iid weights than expected by "
            "chance"
        )
    )
    return (
        f"the stable rank of {_KINDS[kind]} is {percent(table['stable_rank_fraction'].mean())} of "
        "the full rank on average (iid weights: "
        f"{percent(table['null_stable_rank_fraction'].mean())}), {percent(first)} in "
        f"{table['block'].iloc[0]} and {percent(last)} in {table['block'].iloc[-1]}, and "
        f"{outliers} ({above} of {matrices} matrices; 5 % expected)"
    )
