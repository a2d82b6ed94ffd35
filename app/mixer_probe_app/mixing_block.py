"""All token-mixing units of a block, to click."""

from __future__ import annotations

from functools import partial

import numpy as np
import streamlit as st

from mixer_probe.weights import TokenMixing
from mixer_probe_app import held, mixing, mixing_charts, show
from mixer_probe_app.messages import plain
from mixer_probe_app.store import made

UNIT = "tm-unit"
MANY = 128


def units(name: str, found: TokenMixing, block: int, unit: int) -> None:
    """The units as small maps and as points; a click on either chooses one."""
    st.header(f"Units of {plain(found.blocks[block])}")
    maps = found.units(block)
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    by = held.segments(row, "Sorted by", "tm-sort", list(mixing.SORTS), format_func=mixing.SORTS.__getitem__)
    shared = held.toggle(row, "Shared colour scale", "tm-scale", help="Off: each unit has its own colour scale.")
    every = held.toggle(row, "All units", "tm-all", disabled=len(maps) <= MANY, help=f"Off: the first {MANY} in this order.")
    order = mixing.ordered(found, block, by)[: None if every else MANY]
    frame = mixing_charts.unit_frame(found, block)
    label = f"{found.blocks[block]} {name}"
    drawn = mixing_charts.tiles(frame, order, _pictures(found, block, order, shared, unit), by == "pairs")
    show.chart(drawn, f"units {label}", frame.iloc[order], **_clicks(f"tiles {label}", unit, len(maps)))
    st.caption(_how_to_read(by, len(order), len(maps)))
    drawn = mixing_charts.scatter(found, block, frame, unit)
    show.chart(drawn, f"frequency and spread {label}", frame, **_clicks(f"scatter {label}", unit, len(maps)))
    st.caption(
        "Each point is a unit: click one to open its page, drag and scroll to zoom. Smooth units are at the left, local ones at "
        "the bottom; brighter ones have a more negative cosine with their opposite-phase unit. Units near the cross have no "
        "spatial structure."
    )


def _pictures(found: TokenMixing, block: int, order: np.ndarray, shared: bool, unit: int) -> list[str]:
    """The small maps in this order, the chosen unit and its partner in a frame."""
    maps, partner = found.units(block), int(found.partner(block)[unit])
    scale = float(np.abs(maps).max()) if shared else None
    key = ("tiles", found.model.name, found.model.fingerprint, block, shared)
    plain_ones = made("pictures", key, "Drawing", lambda: mixing_charts.urls(maps, scale), lane="draw", keep=False)
    framed = {
        one: mixing_charts.urls(maps[[one]], scale, mixing_charts.FRAMES[role])[0]
        for one, role in ((partner, "partner"), (unit, "chosen"))
    }
    return [framed.get(int(i), plain_ones[int(i)]) for i in order]


def _clicks(key: str, unit: int, count: int) -> dict[str, object]:
    # A chart of its own for every unit chosen: the same unit can then be clicked again after another was chosen by its number.
    key = f"{key} {unit}"
    return {"key": key, "selection_mode": mixing_charts.CLICK, "on_select": partial(_take_click, key, count)}


def _take_click(key: str, count: int) -> None:
    picked = st.session_state[key]["selection"].get(mixing_charts.CLICK, [])
    if picked and 0 <= int(picked[0]["unit"]) < count:
        held.hold(UNIT, str(int(picked[0]["unit"])))


def _how_to_read(by: str, shown_ones: int, count: int) -> str:
    orders = {
        "pairs": "Opposite-phase pairs are adjacent: each unit is next to the most opposite unpaired one, smooth pairs first",
        "frequency": "Smooth units come first",
        "localisation": "Local units come first",
        "norm": "Units with a large norm come first",
    }
    which = f"The first {shown_ones} of {count} units" if shown_ones < count else f"All {count} units"
    return plain(
        f"{which}. Red is positive weight, blue negative, white zero. {orders[by]}, row by row. The orange frame marks the unit "
        "shown below, the green one its opposite-phase unit. Hover over a unit for its values, click it for details."
    )
