"""What a person has looked at, for the page Report: results by where they are kept, and the Python that makes them again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from mixer_probe_app import choice, data
from mixer_probe_app.store import find

_MEMORY = "seen"
_MOST = 60
_HEAD = '"""Made by the app of mixer_probe: computes again what was shown there."""'


@dataclass(frozen=True)
class Seen:
    """Something looked at. `code` is a Python expression that gives the result or a list of them, with `models["NAME"]` for
    networks and `images`, `train` and `test` for images as `setup` says."""

    page: str
    label: str
    kind: str
    key: Hashable
    code: str
    models: tuple[tuple[str, str], ...]
    setup: str

    def results(self) -> tuple[Any, ...] | None:
        """The results, or None where they are no longer kept."""
        kept = find(self.kind, self.key)
        if kept is None or kept.value is None:
            return None
        return tuple(kept.value) if isinstance(kept.value, (tuple, list)) else (kept.value,)


def saw(page: str, label: str, kind: str, key: Hashable, code: str, models: Sequence[str], setup: str = "") -> None:
    """Remember that this session looked at a result kept as (kind, key)."""
    found: dict[str, Seen] = st.session_state.setdefault(_MEMORY, {})
    name = f"{page}: {label}"
    found.pop(name, None)
    found[name] = Seen(page, label, kind, key, code, tuple((m, choice.code(m)) for m in models), setup)
    while len(found) > _MOST:
        del found[next(iter(found))]


def everything() -> dict[str, Seen]:
    """What was seen, the first first, by name."""
    return dict(st.session_state.get(_MEMORY, {}))


def forget() -> None:
    """Begin anew."""
    st.session_state.pop(_MEMORY, None)


def images_setup(limit: int | None = None) -> str:
    """The line that makes `images`."""
    return f"images = {data.code(limit)}"


def sides_setup(limit: int | None = None) -> str:
    """The lines that make `train` and `test`."""
    return data.sides_code(limit)


def script(chosen: Sequence[Seen]) -> str:
    """A Python script that makes these results again, with the report and the numbers."""
    models = dict(pair for seen in chosen for pair in seen.models)
    lines = [_HEAD, "", "import mixer_probe as mp", ""]
    lines += ["models = {", *(f"    {name!r}: {code}," for name, code in models.items()), "}", "results = []", ""]
    setup = ""
    for seen in chosen:
        if seen.setup and seen.setup != setup:
            lines += [seen.setup]
            setup = seen.setup
        lines += [f"# {' '.join(seen.label.split())}", f"found = {seen.code}"]
        lines += ["results += found if isinstance(found, (list, tuple)) else [found]", ""]
    lines += ['mp.write_report(results, "report.html")', 'mp.save_results(results, "results.json")', ""]
    return "\n".join(lines)
