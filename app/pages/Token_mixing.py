"""Token mixing: what the hidden units of a Mixer's token MLPs read from the image plane."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import pandas as pd
import streamlit as st
from mixer_probe_app import held, mixing, mixing_block, mixing_charts, mixing_unit, show
from mixer_probe_app.analyses import findings
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, join, plain
from mixer_probe_app.mixing_block import UNIT
from mixer_probe_app.page import begin
from mixer_probe_app.store import model

from mixer_probe.weights import TokenMixing

QUESTION = (
    "Which patches does each token-mixing unit read, and how does this change with depth? A unit is a row of the first "
    "token-mixing layer of a block, drawn over the patch grid. Click a unit to open its page."
)


def main() -> None:
    mixers, others = _by_family(begin("Token mixing", QUESTION))
    if mixers:
        with guarded():
            _explore(mixers)
    if others:
        _say_who_is_no_mixer(others)


def _by_family(names: tuple[str, ...]) -> tuple[dict[str, TokenMixing], list[str]]:
    mixers, others = {}, []
    for name in names:
        with guarded():
            if model(name).family == "mixer":
                mixers[name] = mixing.token_mixing(name)
            else:
                others.append(name)
    return mixers, others


def _say_who_is_no_mixer(others: list[str]) -> None:
    names = join(plain(shown(name)) for name in others)
    text = "has no token-mixing weights: it mixes" if len(others) == 1 else "have no token-mixing weights: they mix"
    st.info(
        f"{names} {text} positions by attention or convolution. To see units, select a Mixer, gMixer, ResMLP or gMLP in the "
        "sidebar, for instance `zoo:mixer-s0` or `resmlp_12_224`.",
        icon=":material/info:",
    )


def _explore(mixers: dict[str, TokenMixing]) -> None:
    """The units of a block, the page of one of them, and all blocks by depth. What takes long comes last, wherever it stands."""
    left, right = st.columns([2, 3])
    name = held.select(left, "Network", "tm-network", list(mixers), format_func=shown)
    found = mixers[name]
    blocks = range(1, len(found.blocks) + 1)
    block = held.steps(right, "Block", "tm-block", blocks, help="1 is the first block after the stem.") - 1
    units, page, depth = st.container(), st.container(), st.container()
    unit = _unit(page, name, found, block)
    with units, guarded():
        mixing_block.units(name, found, block, unit)
    with page, guarded():
        mixing_unit.maps_and_numbers(name, found, block, unit)
        images = st.container()
    with depth, guarded():
        results = _depth(mixers)
        texts = st.container()
    with images, guarded():
        st.subheader("Images that activate the unit most")
        mixing_unit.fires(name, found, block, unit)
    with texts, guarded():
        show.bullets(findings(results, ("token mixing", tuple((r.model.name, r.model.fingerprint) for r in results))))
        show.folded_table("Values by block", pd.concat([r.summary() for r in results], ignore_index=True))


def _unit(place: st.delta_generator.DeltaGenerator, name: str, found: TokenMixing, block: int) -> int:
    """The unit chosen: that of the URL, by a click or by its number; at first the one of lowest frequency."""
    where = (name, found.model.fingerprint, block)
    if st.session_state.setdefault("tm-unit is of", where) != where:
        # Unit 5 of another block has nothing to do with unit 5 of this one.
        st.session_state["tm-unit is of"] = where
        held.hold(UNIT, None)
    title = place.container()
    left, right = place.columns([1, 3], vertical_alignment="bottom")
    count = len(found.units(block))
    unit = held.number(left, "Unit", UNIT, 0, count - 1, mixing.smoothest(found, block))
    partner = int(found.partner(block)[unit])
    right.button(
        f"Go to opposite-phase unit {partner}", on_click=held.hold, args=(UNIT, str(partner)), icon=":material/contrast:"
    )
    title.header(mixing_unit.title(name, found, block, unit))
    return unit


def _depth(mixers: dict[str, TokenMixing]) -> list[TokenMixing]:
    st.header("Depth curves")
    results = []
    for name, found in mixers.items():
        results += [found, twin] if (twin := mixing.twin_token_mixing(name)) else [found]
    titles = {measure: texts[0] for measure, texts in mixing_charts.DEPTHS.items()}
    measure = held.segments(st, "Measure", "tm-measure", list(titles), format_func=titles.__getitem__)
    frame = mixing_charts.depth_frame(results, measure)
    show.chart(mixing_charts.depth_curves(frame, measure), f"units by depth {measure} {' '.join(mixers)}", frame)
    st.caption(plain(_nulls(results[0], measure)))
    return results


def _nulls(first: TokenMixing, measure: str) -> str:
    if measure in ("pairing", "cosine"):
        null = f"each unit keeps its amplitude spectrum and gets random phases ({first.surrogates} times per block)"
    else:
        null = f"the weights of each unit are shuffled over the patches ({first.shuffles} times per block)"
    return f"Dashed lines are untrained baselines, dotted lines the null: {null}. Hover over a block for its values."


with guarded():
    main()
