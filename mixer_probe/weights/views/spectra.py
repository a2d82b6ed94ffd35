"""The report on spectra: ranks and norms of the mixing matrices by depth, spatial against channel mixing, beside iid "
"weights."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy.stats import binom

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import join, name_of, percent, studied, untrained_warning
from mixer_probe.weights import WeightSpectra
from mixer_probe.weights.figures import singular_values, spectra_depth

_KINDS = {"spatial": "spatial mixing", "channel": "channel mixing", "both": "k×k convolutions"}


def spectra_section(results: Sequence[WeightSpectra]) -> list[Section]:
    """How much structure the mixing matrices of each network have, by depth."""
    own = studied(r.model for r in results)
    shown = [r for r in results if r.model in own]
    content: list[Picture | Table] = [_depth_picture(results)]
    content += [_values_picture(r) for r in shown if r.model.trained]
    content += [_summary_table(results), _full_table(results)]
    sentences = tuple(text for r in shown for text in (_rank_sentence(r), _left_out_sentence(r)) if text)
    warning = untrained_warning(r.model for r in results)
    return [Section("spectra", "Spectra of the mixing matrices", sentences, tuple(content), warning)]


def _depth_picture(results: Sequence[WeightSpectra]) -> Picture:
    return Picture(
        spectra_depth(results),
        "Stable rank (squared Frobenius over squared spectral norm) and effective rank (exp of the entropy of the singular "
        "values) as fractions of full rank, the largest singular value relative to that of iid weights, and the root mean "
        "square of the singular values, for the matrices that mix positions, channels, or both.",
        "Dashed lines are iid weights of the same shapes and norms, dotted lines with open markers untrained baselines. A rank "
        "below the dashed line means that few directions dominate the matrix. Queries and keys count as spatial mixing, values "
        "and output projections as channel mixing; shortcuts and gates are excluded. Norms, layer scales and biases around a "
        "matrix are not included.",
        "Stable rank, effective rank and norms of the mixing matrices against relative depth",
        name="spectra-depth",
    )


def _values_picture(result: WeightSpectra) -> Picture:
    return Picture(
        singular_values(result),
        f"Singular values of the mixing matrices of the first, a middle and the last block of {name_of(result.model)}, "
        "divided by their root mean square.",
        "Dashed lines are iid weights of the same shape. Values above the left end of the dashed line are directions absent "
        f"from random weights. {_convolutions(result)}",
        f"Singular values of the mixing matrices of {name_of(result.model)}",
        name=f"spectra-{name_of(result.model)}",
    )


def _convolutions(result: WeightSpectra) -> str:
    if not any(e.operator == "convolution" for e in result.entries):
        return ""
    limit = f", on grids of at most {result.largest_grid} positions per side" if result.largest_grid else ""
    return f"A convolution is treated as an operator on its input grid with circular boundary{limit}: one value per frequency."


def _rank_sentence(result: WeightSpectra) -> str:
    table = result.by_depth()
    said = [_kind_text(result, table[table["kind"] == kind], kind) for kind in result.kinds if (table["kind"] == kind).any()]
    return f"{name_of(result.model)}: " + "; ".join(said) + "." if said else ""


def _kind_text(result: WeightSpectra, table: pd.DataFrame, kind: str) -> str:
    first, last = table["stable_rank_share"].iloc[[0, -1]]
    main = [e for e in result.entries if e.main and e.kind == kind and e.spectral_norm > 0]
    above = sum(e.outliers > 0 for e in main)
    # Each matrix of iid weights has such a value in 5 % of cases.
    told = float(binom.sf(above - 1, len(main), 0.05)) <= 0.05
    outliers = (
        f"{percent(table['outlier_energy'].mean())} of the energy lies in singular values above those of iid weights"
        if told
        else "no more matrices have singular values above those of iid weights than expected by chance"
    )
    return (
        f"the stable rank of {_KINDS[kind]} is {percent(table['stable_rank_share'].mean())} of the full rank on average (iid "
        f"weights: {percent(table['null_stable_rank_share'].mean())}), {percent(first)} in {table['block'].iloc[0]} and "
        f"{percent(last)} in {table['block'].iloc[-1]}, and {outliers} ({above} of {len(main)} matrices; 5 % expected)"
    )


def _left_out_sentence(result: WeightSpectra) -> str:
    if not result.left_out:
        return ""
    reasons = dict.fromkeys(reason for _path, reason in result.left_out)
    counts = [f"{sum(r == reason for _p, r in result.left_out)} because each {reason}" for reason in reasons]
    return f"{name_of(result.model)}: {len(result.left_out)} other weights in the blocks are excluded, {join(counts)}."


def _summary_table(results: Sequence[WeightSpectra]) -> Table:
    table = pd.concat([r.by_depth().assign(model=name_of(r.model)) for r in results], ignore_index=True)
    columns = {
        "stable_rank_share": "stable rank share",
        "null_stable_rank_share": "iid",
        "effective_rank_share": "effective rank share",
        "outlier_energy": "energy beyond iid",
        "norm_over_null": "norm over iid",
        "rms": "rms",
    }
    means = table.groupby(["model", "kind"], sort=False)[list(columns)].mean().reset_index().rename(columns=columns)
    caption = "Means over blocks of the mixing matrices. Ranks are fractions of full rank."
    return Table(caption, means, dict.fromkeys(columns.values(), "{:.3f}"))


def _full_table(results: Sequence[WeightSpectra]) -> Table:
    table = pd.concat([r.to_frame().assign(model=name_of(r.model)) for r in results], ignore_index=True)
    own = table[table["operator"] != "product"]
    columns = ["model", "layer", "role", "kind", "shape", "grid", "spectral_norm", "frobenius_norm", "stable_rank", "full_rank"]
    formats = dict.fromkeys(("spectral_norm", "frobenius_norm", "stable_rank"), "{:.3g}")
    return Table("All mixing matrices.", own[columns], formats, folded=True)
