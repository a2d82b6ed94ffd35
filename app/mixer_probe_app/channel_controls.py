"""What a person asks of the page Channels, and which channel is open: all of it in the URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from mixer_probe.channels import ClassSelectivity
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import whole_number
from mixer_probe.images import Images
from mixer_probe.models import Layer
from mixer_probe_app import held
from mixer_probe_app.channel_table import TITLES, search, sortable
from mixer_probe_app.channel_views import LAYERS, Layers, Place, block_names, blocks_of, layers_of, like_depth, usual_layer
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.store import model

NETWORK, SCOPE, LAYER, CLASS, SORT, TURNED, SEARCH = (
    "ch-network",
    "ch-scope",
    "ch-layer",
    "ch-class",
    "ch-sort",
    "ch-turned",
    "ch-search",
)
AT, CHANNEL, RANKED_BY, PARTNER, PARTNER_LAYER = "ch-at", "ch-channel", "ch-by", "ch-partner", "ch-partner-layer"
ONE, ALL = "layer", "blocks"
_SCOPES = {ONE: "One layer", ALL: "All blocks"}
_ASKED = "channels asked"


@dataclass(frozen=True)
class Asked:
    """The list that a person wants. `wanted` is a class, "" for any; `layer` is "" for all blocks."""

    network: str
    layer: str
    wanted: str
    sort: str
    turned: bool
    text: str

    @property
    def layers(self) -> Layers:
        """What statistics are measured of."""
        return (self.layer,) if self.layer else LAYERS

    @property
    def of(self) -> str:
        """The layers as a sentence calls them."""
        return self.layer or "all blocks"


def networks_of(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of the choices are networks that can be looked into, and which are runs, which have means alone; of the others
    there is a message."""
    found = []
    runs = [name for name in names if name.startswith(RUN)]
    for name in names:
        with guarded():
            if name not in runs and model(name):
                found.append(name)
    return found, runs


def where_asked(names: Sequence[str]) -> tuple[str, str]:
    """The boxes for network and layer; "" for all blocks."""
    left, middle, right = st.columns([3, 2, 3], vertical_alignment="bottom")
    network = held.select(left, "Network", NETWORK, names, format_func=shown)
    found = model(network)
    every = held.segments(middle, "Scope", SCOPE, list(_SCOPES), format_func=_SCOPES.__getitem__) == ALL
    help_text = "Blocks first, then parts of blocks and norms."
    layer = held.select(right, "Layer", LAYER, layers_of(found), usual_layer(found), disabled=every, help=help_text)
    return network, "" if every else layer


def list_asked(network: str, layer: str, told: ClassSelectivity | None) -> Asked:
    """The boxes for class, order and search."""
    left, middle, right, last = st.columns([3, 3, 3, 2], vertical_alignment="bottom")
    classes = ["", *(told.class_names if told is not None else ())]
    wanted = held.select(
        left,
        "Most selective for class",
        CLASS,
        classes,
        "",
        format_func=lambda name: name or "any class",
        disabled=told is None,
        help="Sorts by selectivity for this class against all others.",
    )
    sort = held.select(middle, "Sort by", SORT, sortable(told is not None), format_func=TITLES.__getitem__)
    text = search_box(right)
    turned = held.toggle(last, "Reverse", TURNED, help="Reverses the order.")
    asked = Asked(network, layer, wanted, sort, turned, text)
    _forget_channel_of_another_list(asked)
    return asked


def search_box(place: held.Place) -> str:
    """A line to search by, held as the others."""
    text = held.recall(SEARCH) or ""
    held.hold(SEARCH, text or None)
    key = f"widget {SEARCH}"
    st.session_state[key] = text
    place.text_input(
        "Search",
        key=key,
        on_change=lambda: held.hold(SEARCH, st.session_state[key].strip()[:200] or None),
        placeholder="class = frog, kurtosis > 3",
        help="Comma-separated conditions on any of the columns: `AUROC > 0.9`, `dead = yes`, `corrected p <= 0.05`, "
        "`layer = blocks.6`. A number selects a channel, a word matches part of a class or layer name.",
    )
    return text


def searched(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows that `text` asks for; all of them, and a message, where it cannot be read."""
    try:
        return search(frame, text)
    except MeasureError as error:
        st.warning(f"{plain(error)}. All channels are listed.", icon=":material/search_off:")
        return frame


def _forget_channel_of_another_list(asked: Asked) -> None:
    """Another list opens on its first channel, and not on the one that was open before."""
    before = st.session_state.get(_ASKED)
    st.session_state[_ASKED] = asked
    if before is not None and before != asked:
        held.hold(CHANNEL, None)
        held.hold(AT, None)


def opened(asked: Asked, frame: pd.DataFrame) -> Place:
    """The channel that is open: the one said, or the first of the list."""
    first = _first(asked, frame)
    layer = asked.layer or _said_layer(asked.network, first.layer)
    said = held.recall(CHANNEL) or ""
    most = model(asked.network).layer(layer).channels
    if (number := whole_number(said)) is not None and number < most:
        return Place(asked.network, layer, number)
    return first if layer == first.layer else Place(asked.network, layer, 0)


def _first(asked: Asked, frame: pd.DataFrame) -> Place:
    if frame.empty:
        return Place(asked.network, asked.layer or usual_layer(model(asked.network)), 0)
    return Place(asked.network, str(frame["layer"].iloc[0]), int(frame["channel"].iloc[0]))


def _said_layer(network: str, first: str) -> str:
    said = held.recall(AT)
    return said if said in block_names(model(network)) else first


def channel_boxes(asked: Asked, frame: pd.DataFrame) -> str:
    """The boxes that say which channel is open, and how its images are ranked, "mean" or "peak"."""
    now, first = opened(asked, frame), _first(asked, frame)
    left, middle, right = st.columns([2, 2, 4], vertical_alignment="bottom")
    if not asked.layer:
        held.select(middle, "Block of the channel", AT, block_names(model(asked.network)), first.layer)
    most = model(asked.network).layer(now.layer).channels - 1
    default = first.channel if now.layer == first.layer else 0
    held.number(left, f"Channel, 0 to {most}", CHANNEL, 0, most, default)
    place = middle if asked.layer else right
    help_text = "By the mean or the maximum over positions."
    return held.segments(place, "Rank images by", RANKED_BY, ("mean", "peak"), help=help_text)


def partner_boxes(place: Place, names: Sequence[str], images: Images) -> tuple[str, str]:
    """The boxes for another network and its layer."""
    left, right = st.columns(2)
    other = held.select(left, "Best match in", PARTNER, _others(place, names), format_func=shown)
    layers, usual = _partner_layers(place, other, images)
    help_text = "Default: the block of the most similar relative depth."
    layer = held.select(right, "Layer", PARTNER_LAYER, [layer.name for layer in layers], usual, help=help_text)
    return other, layer


def partner_said(place: Place, names: Sequence[str], images: Images) -> tuple[str, str]:
    """What these boxes will say; "" where there is no other network."""
    others = _others(place, names)
    if not others:
        return "", ""
    said, other = held.recall(PARTNER_LAYER), held.recall(PARTNER)
    other = other if other in others else others[0]
    layers, usual = _partner_layers(place, other, images)
    return other, said if said in [layer.name for layer in layers] and said is not None else usual


def _others(place: Place, names: Sequence[str]) -> list[str]:
    return [name for name in names if name != place.network]


def _partner_layers(place: Place, other: str, images: Images) -> tuple[tuple[Layer, ...], str]:
    layers = blocks_of(other, images)
    return layers, like_depth(layers, model(place.network).layer(place.layer).depth)


def open_channel(layer: str, channel: int) -> None:
    """Open a channel of the list's network, for callbacks."""
    held.hold(AT, layer if held.recall(SCOPE) == ALL else None)
    held.hold(CHANNEL, str(channel))


def open_elsewhere(place: Place, back: Place) -> None:
    """Open a channel of another network, with the one it came from as its partner, for callbacks."""
    held.hold(NETWORK, place.network)
    held.hold(SCOPE, None)
    held.hold(AT, None)
    held.hold(LAYER, place.layer)
    held.hold(CHANNEL, str(place.channel))
    held.hold(PARTNER, back.network)
    held.hold(PARTNER_LAYER, back.layer)
    # The list is another one, and still this channel is wanted.
    st.session_state.pop(_ASKED, None)
