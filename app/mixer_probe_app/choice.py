"""Which networks are chosen, and where they run. The URL says it
(`?model=zoo:mixer-s0&model=resnet18?untrained`), the session remembers it.

A choice is a name of the zoo or of timm, "?untrained" at its end for the untrained baseline;
"checkpoint:LABEL@ARCHITECTURE"; or "run:LABEL" for a stored run, where LABEL is a path below the
folders of the app."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator

import mixer_probe as mp
from mixer_probe.core.words import short_name
from mixer_probe.models.catalogue import CatalogueEntry
from mixer_probe_app import url_state
from mixer_probe_app.local_files import labels, resolve

UNTRAINED = "?untrained"
CHECKPOINT, RUN = "checkpoint:", "run:"
MOST = 3
DEFAULT = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")

_PARAMETER = "model"
_MEMORY = "chosen models"
_LONGEST_NAME = 240
_NAME, _RANDOM = "network {}", "untrained {}"


def chosen() -> tuple[str, ...]:
    """The networks that every page looks at, at most three; untrained baselines are marked by
    "?untrained" at the end.

    A page reached by the menu has a bare URL: what the session remembers is written back into
    it."""
    named = st.query_params.get_all(_PARAMETER)
    names = _tidy(named) if named else st.session_state.get(_MEMORY, DEFAULT)
    choose(names)
    return names


def choose(names: tuple[str, ...]) -> None:
    """Look at these networks from now on."""
    st.session_state[_MEMORY] = names
    if tuple(st.query_params.get_all(_PARAMETER)) != names:
        st.query_params[_PARAMETER] = list(names)


def add(name: str) -> None:
    """Choose one more network, in place of the last where three are chosen."""
    names = chosen()
    choose(
        _tidy(
            [*names[: MOST - 1], name]
            if len(names) == MOST and name not in names
            else [*names, name]
        )
    )


def _tidy(names: Iterable[str]) -> tuple[str, ...]:
    stripped = (name.strip()[:_LONGEST_NAME] for name in names)
    return tuple(dict.fromkeys(name for name in stripped if name.removesuffix(UNTRAINED)))[:MOST]


def chooser(places: Sequence[DeltaGenerator]) -> None:
    """A box per network in each of the three `places`: a name to pick or to type, and the switch
    for its untrained baseline."""
    names = chosen()
    options = [*(entry.name for entry in catalogue()), *(RUN + label for label in labels("run"))]
    for slot, place in enumerate(places):
        name = names[slot] if slot < len(names) else ""
        base = name.removesuffix(UNTRAINED)
        # Set before the widgets are made, so that they follow the URL.
        st.session_state[_NAME.format(slot)] = base or None
        st.session_state[_RANDOM.format(slot)] = name.endswith(UNTRAINED)
        place.selectbox(
            f"Network {slot + 1}",
            options if base in options or not base else (base, *options),
            index=None,
            key=_NAME.format(slot),
            placeholder="select, or type a timm name",
            accept_new_options=True,
            on_change=_read_slots,
            format_func=lambda name: shown(name) if name.startswith((RUN, CHECKPOINT)) else name,
        )
        place.toggle(
            "Untrained baseline",
            key=_RANDOM.format(slot),
            disabled=not name or name.startswith((RUN, CHECKPOINT)),
            on_change=_read_slots,
            help=(
                "Untrained baseline: the same architecture with re-initialised weights. Needs no "
                "download."
            ),
        )


def _read_slots() -> None:
    names = []
    for slot in range(MOST):
        name = st.session_state.get(_NAME.format(slot)) or ""
        names.append(
            name + UNTRAINED if name and st.session_state.get(_RANDOM.format(slot)) else name
        )
    choose(_tidy(names))


def shown(choice: str) -> str:
    """A choice as people read it."""
    if choice.startswith(CHECKPOINT):
        label, _, architecture = choice.removeprefix(CHECKPOINT).rpartition("@")
        return f"{short_name(architecture)} from {short_name(label.rpartition('/')[2])}"
    if choice.startswith(RUN):
        return f"stored run {short_name(choice.removeprefix(RUN).rpartition('/')[2])}"
    return short_name(choice.removesuffix(UNTRAINED)) + (
        " (untrained baseline)" if choice.endswith(UNTRAINED) else ""
    )


def code(choice: str) -> str:
    """The Python expression that loads this choice in a script."""
    if choice.startswith(RUN):
        return f"mp.open_run({str(resolve(choice.removeprefix(RUN), 'run'))!r})"
    if choice.startswith(CHECKPOINT):
        label, _, architecture = choice.removeprefix(CHECKPOINT).rpartition("@")
        return f"mp.load_model({architecture!r}, checkpoint={str(resolve(label, 'checkpoint'))!r})"
    if choice.startswith("zoo:") or not choice.endswith(UNTRAINED):
        return f"mp.load_model({choice!r})"
    return f"mp.load_model({choice.removesuffix(UNTRAINED)!r}, pretrained=False)"


@st.cache_resource(show_spinner="Listing the networks …")
def catalogue() -> tuple[CatalogueEntry, ...]:
    """The bundled networks, then timm's of the three families."""
    return mp.list_models()


@st.cache_resource(show_spinner=False)
def devices() -> tuple[str, ...]:
    """Where networks can run, the best first."""
    cuda = (
        [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return (*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu")


def device() -> str:
    """Where the networks run: what the URL says, or the best there is."""
    said = url_state.get("device")
    return said if said in devices() else devices()[0]


def device_chooser(place: DeltaGenerator) -> None:
    """A box for the device, where there are several."""
    if len(devices()) > 1:
        url_state.choose(
            place.selectbox, "Device", "device", devices(), help="Device on which the networks run."
        )
