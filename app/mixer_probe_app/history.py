"""The results that a session has looked at, for the page Report, and the Python script that
computes them again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import streamlit as st

import mixer_probe as mp
from mixer_probe_app import choice, store

T = TypeVar("T")
_MOST = 60


@dataclass(frozen=True)
class Entry:
    """A result of a page, cached under (`kind`, `key`). `code` is a Python expression that gives it
    (or a list of results), with `models["NAME"]` for networks and `images`, `train` and `test` as
    `setup` makes them."""

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


@dataclass(frozen=True)
class Given:
    """An argument of a call: `value` gives it on the page, and `then` goes on with it beside the
    page; `key` decides it. `code` is the Python that makes it in a script, after the lines `setup`
    and with the networks `models`."""

    value: Callable[[], Any]
    key: Hashable
    code: str
    models: tuple[str, ...] = ()
    setup: str = ""
    then: Callable[[Any], Any] = lambda value: value


def result_of(page: str, label: str, kind: str, function: str, *given: Any, **options: Any) -> Any:
    """The result of a function of mixer_probe by its name below `mp`, cached under `kind` and
    recorded as seen on a `page`.

    Its arguments are plain values, `Given`s, or tuples of these: key and code follow from them. No
    `Given` is made where the result is known."""
    arguments: dict[Any, Any] = dict(enumerate(given)) | options
    key = tuple(
        (name, _each(lambda part: part.key if isinstance(part, Given) else repr(part), argument))
        for name, argument in arguments.items()
    )
    codes = [
        _code(value) if isinstance(name, int) else f"{name}={_code(value)}"
        for name, value in arguments.items()
    ]
    parts: list[Given] = []
    for value in arguments.values():
        parts += [
            part
            for part in (value if isinstance(value, tuple) else (value,))
            if isinstance(part, Given)
        ]
    ready = (
        {}
        if store.lookup(kind, key)
        else {name: _each(_prepared, value) for name, value in arguments.items()}
    )

    def compute() -> Any:
        values = {name: _each(lambda make: make(), value) for name, value in ready.items()}
        positional = [values[i] for i in range(len(given))]
        return attrgetter(function)(mp)(*positional, **{name: values[name] for name in options})

    models = dict.fromkeys(name for part in parts for name in part.models)
    setup = "\n".join(dict.fromkeys(part.setup for part in parts if part.setup))
    return computed(
        page, label, kind, key, compute, f"mp.{function}({', '.join(codes)})", [*models], setup
    )


def _each(do: Callable[[Any], Any], value: Any) -> Any:
    """What `do` makes of an argument, or of every part of a tuple."""
    return tuple(_each(do, part) for part in value) if isinstance(value, tuple) else do(value)


def _prepared(part: Any) -> Callable[[], Any]:
    """The rest of the work on an argument, to be done beside the page."""
    return partial(part.then, part.value()) if isinstance(part, Given) else lambda: part


def _code(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_code, value))},)"
    return value.code if isinstance(value, Given) else repr(value)


def computed(
    page: str,
    label: str,
    kind: str,
    key: Hashable,
    compute: Callable[[], T],
    code: str,
    models: Sequence[str],
    setup: str = "",
) -> T:
    """The result cached under (`kind`, `key`), or a new one, recorded as seen on a `page`; see
    `store.cached` and `Entry`."""
    found = store.cached(kind, key, label[0].upper() + label[1:], compute)
    record(page, label, kind, key, code, models, setup)
    return found


def record(
    page: str,
    label: str,
    kind: str,
    key: Hashable,
    code: str,
    models: Sequence[str],
    setup: str = "",
) -> None:
    """Remember that this session has looked at a result; the oldest entries leave."""
    entries: dict[str, Entry] = st.session_state.setdefault("history", {})
    name = f"{page}: {label}"
    entries.pop(name, None)
    entries[name] = Entry(
        page, label, kind, key, code, tuple((m, choice.code(m)) for m in models), setup
    )
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
    lines = [
        '"""Computes results of the app of mixer_probe again."""',
        "",
        "import mixer_probe as mp",
        "",
    ]
    lines += [
        "models = {",
        *(f"    {name!r}: {code}," for name, code in models.items()),
        "}",
        "results = []",
        "",
    ]
    setup = ""
    for entry in chosen:
        if entry.setup and entry.setup != setup:
            lines += [entry.setup]
            setup = entry.setup
        lines += [f"# {' '.join(entry.label.split())}", f"found = {entry.code}"]
        lines += ["results += found if isinstance(found, (list, tuple)) else [found]", ""]
    lines += [
        'mp.write_report(results, "report.html")',
        'mp.save_results(results, "results.json")',
        "",
    ]
    return "\n".join(lines)
