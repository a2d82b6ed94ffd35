"""Token mixing: what the hidden units of a Mixer's token MLPs read from the image plane."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import pandas as pd
import streamlit as st
from mixer_probe_app import (
    begin,
    bullets,
    figure,
    findings,
    folded_table,
    guarded,
    join,
    plain,
    shown,
    token_mixing,
    twin_token_mixing,
)
from mixer_probe_app.store import model

from mixer_probe.figures import token_mixing_depth, token_mixing_units
from mixer_probe.weights import TokenMixing

QUESTION = (
    "Which patches does each token-mixing unit read, and how does that change with depth? "
    "A unit is a row of the first token-mixing layer of a block, drawn over the grid of patches."
)
MANY = 128


def main() -> None:
    mixers, others = _by_family(begin("Token mixing", QUESTION))
    if mixers:
        _units(mixers)
        _depth(mixers)
    if others:
        _say_who_is_no_mixer(others)


def _say_who_is_no_mixer(others: list[str]) -> None:
    names = join(plain(shown(name)) for name in others)
    text = "has no token-mixing weights: it mixes" if len(others) == 1 else "have no token-mixing weights: they mix"
    st.info(
        f"{names} {text} positions by attention or convolution. To see units, choose a Mixer, gMixer, ResMLP or gMLP "
        "at the side, for instance `zoo:mixer-s0` or `resmlp_12_224`.",
        icon=":material/info:",
    )


def _by_family(names: tuple[str, ...]) -> tuple[dict[str, TokenMixing], list[str]]:
    mixers, others = {}, []
    for name in names:
        with guarded():
            if model(name).family == "mixer":
                mixers[name] = token_mixing(name)
            else:
                others.append(name)
    return mixers, others


def _units(mixers: dict[str, TokenMixing]) -> None:
    st.header("Units of one block")
    left, middle, right = st.columns([2, 3, 2], vertical_alignment="bottom")
    name = left.selectbox("Network", list(mixers), format_func=shown)
    found = mixers[name]
    # A slider needs two ends.
    several = len(found.blocks) > 1
    block = middle.slider("Block", 1, len(found.blocks), 1, help="1 is the first block after the stem.") - 1 if several else 0
    shared = right.toggle("One scale for all", help="Off: every unit has its own colour scale, so faint ones show too.")
    every = right.toggle("All units", disabled=len(found.units(block)) <= MANY, help=f"Off: at most {MANY} units.")
    limit = None if every else MANY
    figure(
        lambda: token_mixing_units(found, block, shared_scale=shared, limit=limit),
        ("units", found.model.name, found.model.sha256, block, shared, limit),
        f"units {name} {found.blocks[block]}",
        "Red reads a patch with positive weight, blue with negative weight, white not at all. Units stand in pairs: each is "
        "followed by the free unit most opposite to it, from low to high frequency.",
        found.to_frame(),
    )


def _depth(mixers: dict[str, TokenMixing]) -> None:
    st.header("Change with depth")
    results = []
    for name, found in mixers.items():
        results += [found, twin] if (twin := twin_token_mixing(name)) else [found]
    key = tuple((r.model.name, r.model.sha256) for r in results)
    table = pd.concat([r.summary() for r in results], ignore_index=True)
    figure(
        lambda: token_mixing_depth(results),
        ("depth", key),
        f"token mixing by depth {' '.join(mixers)}",
        "Dotted lines with open markers are random weights, dashed lines chance. The null draws the phases of every unit at "
        f"random and keeps its amplitude spectrum ({results[0].surrogates} surrogates a block).",
        table,
    )
    bullets(findings(results, ("token mixing", key)))
    folded_table("The numbers by block", table)


main()
