"""The section of a report on which modules mix locations, which channels, and how large they
are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.words import name_of, percent, untrained_warning
from mixer_probe.weights.figures.anatomy import anatomy_bars
from mixer_probe.weights.module_anatomy import Anatomy

_PERCENTAGES = {"% of parameters": "{:.2f}", "% of MACs": "{:.2f}"}


def anatomy_section(results: Sequence[Anatomy]) -> list[Section]:
    """Which modules mix locations and which channels."""
    picture = Picture(
        partial(anatomy_bars, results),
        "Fraction of each network's parameters and multiply-accumulates in modules that mix "
        "features across locations, within a location (across its channels), both or neither, in "
        "the terms of Section 2 of the MLP-Mixer paper.",
        "What a module mixes is measured rather than inferred from its class: one position or "
        "channel of its input is perturbed in float64, and the outputs that change are counted. "
        "Attention and squeeze-and-excitation count as one unit each; layer norms mix the channels "
        "of a location through their statistics. Multiply-accumulates are counted per image in "
        "matrix products and convolutions, so norms and pooling have none.",
        "Stacked bars of parameters and multiply-accumulates by type of mixing",
        name="anatomy",
    )
    rows = pd.concat(
        [r.summary().assign(model=name_of(r.model)) for r in results], ignore_index=True
    )
    tables = [
        Table(
            "Parameters and multiply-accumulates by type of mixing. Units are modules that "
            "together make up the network.",
            _readable(rows[rows["parameters"] + rows["macs"] > 0]),
            _PERCENTAGES,
        )
    ]
    tables += [
        Table(
            f"Modules of {name_of(r.model)} in execution order. Units and the rest together make "
            "up the network; 'inside' marks a module within the next unit, 'part' a standard "
            "component made of units.",
            _readable(r.to_frame().drop(columns="model")),
            _PERCENTAGES,
            folded=True,
        )
        for r in results
    ]
    sentences = []
    for r in results:
        table = r.summary().set_index("mixes").to_dict("index")
        across, within, both = (
            f"{percent(table[mixes]['parameter_fraction'])} and "
            f"{percent(table[mixes]['mac_fraction'])}"
            for mixes in ("across", "within", "both")
        )
        sentences.append(
            f"{name_of(r.model)}: of its {r.parameters:,} parameters and {r.macs / 1e9:.3g} GMACs, "
            f"{across} mix across locations only, {within} within a location only, and {both} "
            "both, respectively."
        )
    warning = untrained_warning(r.model for r in results)
    return [
        Section(
            "anatomy",
            "Spatial and channel mixing by module",
            tuple(sentences),
            (picture, *tables),
            warning,
        )
    ]


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    counts = {column: frame[column].map("{:,}".format) for column in ("parameters", "macs")}
    percentages = {column: 100 * frame[column] for column in ("parameter_fraction", "mac_fraction")}
    names = {"macs": "MACs", "parameter_fraction": "% of parameters", "mac_fraction": "% of MACs"}
    return frame.assign(**counts, **percentages).rename(columns=names)
