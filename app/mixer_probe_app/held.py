"""Settings that a link carries: each widget has a query parameter, and the session remembers it between pages.

The URL decides, then what the session remembers, then the default. Only what differs from its default is written into the URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixer_probe.core.validate import whole_number

T = TypeVar("T")
Place = DeltaGenerator | Any

_ON, _OFF = "yes", "no"


def recall(name: str) -> str | None:
    """What the URL says of `name`, or else what the session remembers."""
    return st.query_params.get(name, st.session_state.get(f"held {name}"))


def hold(name: str, text: str | None) -> None:
    """Write `name` into the URL and remember it; None forgets it."""
    if text is None:
        st.session_state.pop(f"held {name}", None)
        st.query_params.pop(name, None)
        return
    st.session_state[f"held {name}"] = text
    if st.query_params.get(name) != text:
        st.query_params[name] = text


def _begin(name: str, options: Sequence[T], default: T) -> T:
    """The option that counts now; something that is no option (of another network, say) gives way to the default."""
    said = recall(name)
    value = next((option for option in options if str(option) == said), default)
    hold(name, None if value == default else str(value))
    st.session_state[f"widget {name}"] = value
    return value


def _changed(name: str, default: Any) -> None:
    value = st.session_state[f"widget {name}"]
    hold(name, None if value is None or value == default else str(value))


def _bound(name: str, default: Any) -> dict[str, Any]:
    return {"key": f"widget {name}", "on_change": _changed, "args": (name, default)}


def select(place: Place, label: str, name: str, options: Sequence[T], default: T | None = None, **look: Any) -> T:
    """A box with one of `options`, held as the query parameter `name`; `look` goes to st.selectbox (format_func, help)."""
    first = options[0] if default is None else default
    _begin(name, options, first)
    found: T = place.selectbox(label, options, **_bound(name, first), **look)
    return found


def radio(place: Place, label: str, name: str, options: Sequence[T], default: T | None = None, **look: Any) -> T:
    """A list of `options`, one of them chosen, held as `name`; `look` goes to st.radio (format_func, captions)."""
    first = options[0] if default is None else default
    value = _begin(name, options, first)
    found: T | None = place.radio(label, options, **_bound(name, first), **look)
    return value if found is None else found


def segments(place: Place, label: str, name: str, options: Sequence[T], default: T | None = None, **look: Any) -> T:
    """A row of few `options`, one of them chosen, held as `name`; `look` goes to st.segmented_control."""
    first = options[0] if default is None else default
    value = _begin(name, options, first)
    found: T | None = place.segmented_control(label, options, **_bound(name, first), **{"required": True, **look})
    return value if found is None else found


def steps(place: Place, label: str, name: str, options: Sequence[T], default: T | None = None, **look: Any) -> T:
    """A slider over `options` in order, held as `name`; one option alone is no slider."""
    first = options[0] if default is None else default
    value = _begin(name, options, first)
    if len(options) < 2:
        return value
    found: T = place.select_slider(label, options, **_bound(name, first), **look)
    return found


def toggle(place: Place, label: str, name: str, default: bool = False, **look: Any) -> bool:
    """A switch, held as `name`."""
    said = recall(name)
    value = default if said is None else said == _ON
    _remember_switch(name, value, default)
    st.session_state[f"widget {name}"] = value
    flip: Callable[..., None] = _flipped
    return bool(place.toggle(label, key=f"widget {name}", on_change=flip, args=(name, default), **look))


def _flipped(name: str, default: bool) -> None:
    _remember_switch(name, bool(st.session_state[f"widget {name}"]), default)


def _remember_switch(name: str, value: bool, default: bool) -> None:
    hold(name, None if value == default else (_ON if value else _OFF))


def number(place: Place, label: str, name: str, low: int, high: int, default: int = 0, **look: Any) -> int:
    """A box for a whole number from `low` to `high`, held as `name`."""
    said = recall(name) or ""
    given = whole_number(said.removeprefix("-"))
    value = default if given is None else -given if said.startswith("-") else given
    value = value if low <= value <= high else default
    hold(name, None if value == default else str(value))
    st.session_state[f"widget {name}"] = value
    return int(place.number_input(label, low, high, step=1, **_bound(name, default), **look))
