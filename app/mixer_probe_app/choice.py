"""Which networks are chosen. The URL says it (`?model=zoo:mixer-s0&model=resnet18?untrained`), the session remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import mixer_probe as mp
from mixer_probe.figures.style import short_name

UNTRAINED = "?untrained"
MOST = 3
DEFAULT = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")

_PARAMETER = "model"
_MEMORY = "chosen models"
_LONGEST_NAME = 120


def chosen() -> tuple[str, ...]:
    """The networks that every page looks at, at most three; random weights are marked by "?untrained" at the end.

    A page reached by the menu has a bare URL: what the session remembers is written back into it."""
    named = st.query_params.get_all(_PARAMETER)
    names = _tidy(named) if named else st.session_state.get(_MEMORY, DEFAULT)
    _choose(names)
    return names


def _choose(names: tuple[str, ...]) -> None:
    st.session_state[_MEMORY] = names
    if tuple(st.query_params.get_all(_PARAMETER)) != names:
        st.query_params[_PARAMETER] = list(names)


def _tidy(names: Iterable[str]) -> tuple[str, ...]:
    stripped = (name.strip()[:_LONGEST_NAME] for name in names)
    return tuple(dict.fromkeys(name for name in stripped if name.removesuffix(UNTRAINED)))[:MOST]


def chooser(places: Sequence[DeltaGenerator]) -> None:
    """One box a network in each of the three `places`: a name to pick or to type, and the switch for random weights."""
    names = chosen()
    options = loadable()
    for slot, place in enumerate(places):
        _show_slot(place, slot, names[slot] if slot < len(names) else "", options)


def _show_slot(place: DeltaGenerator, slot: int, name: str, options: Sequence[str]) -> None:
    # Set before the widgets are made, so that they follow the URL.
    base = name.removesuffix(UNTRAINED)
    st.session_state[_name_key(slot)] = base or None
    st.session_state[_random_key(slot)] = name.endswith(UNTRAINED)
    place.selectbox(
        f"Network {slot + 1}",
        options if base in options or not base else (base, *options),
        index=None,
        key=_name_key(slot),
        placeholder="pick, or type a timm name",
        accept_new_options=True,
        on_change=_read_slots,
    )
    place.toggle(
        "Random weights",
        key=_random_key(slot),
        disabled=not name,
        on_change=_read_slots,
        help="The same architecture before training: what is seen there was not learned. Needs no download.",
    )


def _read_slots() -> None:
    names = []
    for slot in range(MOST):
        name = st.session_state.get(_name_key(slot)) or ""
        names.append(name + UNTRAINED if st.session_state.get(_random_key(slot)) else name)
    _choose(_tidy(names))


def shown(choice: str) -> str:
    """A choice as people read it."""
    return short_name(choice.removesuffix(UNTRAINED)) + (" (random weights)" if choice.endswith(UNTRAINED) else "")


def _name_key(slot: int) -> str:
    return f"network {slot}"


def _random_key(slot: int) -> str:
    return f"random weights {slot}"


@st.cache_resource(show_spinner="Listing the networks …")
def loadable() -> tuple[str, ...]:
    """The bundled networks, then timm's of the three families."""
    return tuple(entry.name for entry in mp.list_models())
