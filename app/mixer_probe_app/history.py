"""The results that a session has looked at, for the page Report, and the Python script that computes them again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

from mixer_probe_app import choice, store

T = TypeVar("T")
_MOST = 60


@dataclass(frozen=True)
class Entry:
    """A result of a page, cached under (`kind`, `key`). `code` is a Python expression that gives it (or a list of results), with
    `models["NAME"]` for networks and `images`, `train` and `test` as `setup` makes them."""

    page: str
    label: str
    kind: str
    key: Hashable
    code: str
    models: tuple[tuple[str, str], ...]
    setup: str

    def results(self) -> tuple[Any, ...] | None:
        """The results, or None where they are no longer cached."""
        found = store.lookup(self.kind, self.key)
        if found is None or found.value is None:
            return None
        return tuple(found.value) if isinstance(found.value, (tuple, list)) else (found.value,)


def computed(
    page: str,
    label: str,
    kind: str,
    key: Hashable,
    compute: Callable[[], T],
    code: str | Callable[[T], str],
    models: Sequence[str],
    setup: str = "",
) -> T:
    """The result cached under (`kind`, `key`), or a new one, recorded as seen on a `page`; see `store.cached` and `Entry`."""
    found = store.cached(kind, key, label[0].upper() + label[1:], compute)
    record(page, label, kind, key, code if isinstance(code, str) else code(found), models, setup)
    return found


def record(page: str, label: str, kind: str, key: Hashable, code: str, models: Sequence[str], setup: str = "") -> None:
    """Remember that this session has looked at a result; the oldest entries leave."""
    entries: dict[str, Entry] = st.session_state.setdefault("history", {})
    name = f"{page}: {label}"
    entries.pop(name, None)
    entries[name] = Entry(page, label, kind, key, code, tuple((m, choice.code(m)) for m in models), setup)
    while len(entries) > _MOST:
        del entries[next(iter(entries))]


def entries() -> dict[str, Entry]:
    """What the session has looked at by name, oldest first."""
    return dict(st.session_state.get("history", {}))


def clear() -> None:
    """Forget all entries."""
    st.session_state.pop("history", None)


def script(chosen: Sequence[Entry]) -> str:
    """A Python script that computes these results again and writes the report and the numbers."""
    models = dict(pair for entry in chosen for pair in entry.models)
    lines = ['"""Computes results of the app of mixer_probe again."""', "", "import mixer_probe as mp", ""]
    lines += ["models = {", *(f"    {name!r}: {code}," for name, code in models.items()), "}", "results = []", ""]
    setup = ""
    for entry in chosen:
        if entry.setup and entry.setup != setup:
            lines += [entry.setup]
            setup = entry.setup
        lines += [f"# {' '.join(entry.label.split())}", f"found = {entry.code}"]
        lines += ["results += found if isinstance(found, (list, tuple)) else [found]", ""]
    lines += ['mp.write_report(results, "report.html")', 'mp.save_results(results, "results.json")', ""]
    return "\n".join(lines)
