"""Settings in the URL: each widget has a query parameter, and the session remembers its value
between pages.

The URL decides, then the session, then the default; only values other than the default are written
into the URL. Streamlit's `bind="query-params"` would write the label of an option in place of its
value, so that a link would break with every new wording, and knows no default that depends on other
settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

T = TypeVar("T")
Place = DeltaGenerator | Any


def get(name: str) -> str | None:
    """The value of a parameter in the URL, or else in the session."""
    return st.query_params.get(name, st.session_state.get(f"setting {name}"))


def put(name: str, text: str | None) -> None:
    """Write a parameter into the URL and the session; None removes it."""
    if text is None:
        st.session_state.pop(f"setting {name}", None)
        st.query_params.pop(name, None)
        return
    st.session_state[f"setting {name}"] = text
    if st.query_params.get(name) != text:
        st.query_params[name] = text


def _bound(name: str, value: Any, default: Any) -> dict[str, Any]:
    """Key and callback of a widget that shows `value` and writes what it is changed to into the
    URL."""
    key = f"widget {name}"

    def write(value: Any) -> None:
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        put(name, None if value is None or value == default else text)

    write(value)
    st.session_state[key] = value
    return {"key": key, "on_change": lambda: write(st.session_state[key])}


def choose(
    widget: Callable[..., Any],
    label: str,
    name: str,
    options: Sequence[T] | Mapping[T, Any],
    default: T | None = None,
    **options_of_widget: Any,
) -> T:
    """One of `options`, by default the first, chosen in a Streamlit widget such as
    `place.selectbox` or `place.select_slider`.

    A mapping gives the options and what they are called: a text, or a tuple that begins with it. A
    value in the URL that is no option gives way to the default. A slider over one option is not
    shown."""
    if isinstance(options, Mapping):
        titles = {
            option: text if isinstance(text, str) else text[0] for option, text in options.items()
        }
        options_of_widget = {"format_func": titles.__getitem__} | options_of_widget
    options = list(options)
    first = options[0] if default is None else default
    value = next((option for option in options if str(option) == get(name)), first)
    bound = _bound(name, value, first) | options_of_widget
    if widget.__name__ == "segmented_control":
        bound = {"required": True} | bound
    if widget.__name__ == "select_slider" and len(options) < 2:
        return value
    found: T | None = widget(label, options, **bound)
    return value if found is None else found


def toggle(place: Place, label: str, name: str, default: bool = False, **options: Any) -> bool:
    """A switch, written as yes or no."""
    said = get(name)
    return bool(
        place.toggle(
            label, **_bound(name, default if said is None else said == "yes", default), **options
        )
    )


def number(
    place: Place, label: str, name: str, low: int, high: int, default: int = 0, **options: Any
) -> int:
    """A whole number from `low` to `high`; anything else in the URL gives way to the default."""
    try:
        said = int(get(name) or "")
    except ValueError:
        said = default
    value = said if low <= said <= high else default
    return int(
        place.number_input(label, low, high, step=1, **_bound(name, value, default), **options)
    )


def text(place: Place, label: str, name: str, **options: Any) -> str:
    """A line of text of at most 200 characters, by default empty."""
    value = get(name) or ""
    return str(place.text_input(label, max_chars=200, **_bound(name, value[:200], ""), **options))
