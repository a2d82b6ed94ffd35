"""Results and controls of the page Channels: which list of channels is asked for, which channel is
open, and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from mixer_probe.capture import Representations
from mixer_probe.channels import ChannelPage, ChannelPartners, ChannelStatistics, ClassSelectivity
from mixer_probe.channels.listing import TITLES, search_channels, sortable
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import whole_number
from mixer_probe.images import Images
from mixer_probe.models import Layer, Model
from mixer_probe_app import calls, url_state
from mixer_probe_app.calls import BATCH, LAYERS, representations, stored_run
from mixer_probe_app.choice import RUN, shown
from mixer_probe_app.history import Given, result_of
from mixer_probe_app.messages import plain
from mixer_probe_app.store import model

PAGE = "Channels"
PERMUTATIONS = 999
# Images at an end of a page, and pixels of their larger side.
EXHIBITS, PIXELS = 8, 112
_FIRST_KINDS = ("stem", "block", "head")
# A class of one image has an AUROC, but nothing to tell it from an accident.
_LEAST_OF_A_CLASS = 2
_LABELS = (
    f"Selectivity needs two classes with at least {_LEAST_OF_A_CLASS} images each (about 20 per "
    "class are better). Select the bundled CIFAR-10 sample, or a folder with one subfolder per "
    "class. Statistics, top images and best matches need no classes."
)
Layers = str | tuple[str, ...]


@dataclass(frozen=True)
class ChannelRef:
    """A channel: of which network (a choice), which layer, which number."""

    network: str
    layer: str
    channel: int


@dataclass(frozen=True)
class ChannelQuery:
    """The list of channels that a person wants. `class_name` is "" for any class, `layer` is "" for
    all blocks."""

    network: str
    layer: str
    class_name: str
    sort: str
    reverse: bool
    text: str

    @property
    def layers(self) -> Layers:
        """The layers whose statistics are computed."""
        return (self.layer,) if self.layer else LAYERS


# -- layers ----------------------------------------------------------------------------------------


def block_names(network: Model) -> list[str]:
    """The blocks."""
    return [layer.name for layer in network.select(LAYERS)]


def usual_layer(network: Model) -> str:
    """The last block but one: late enough for classes, before the last one mixes them all."""
    blocks = block_names(network)
    return blocks[-2] if len(blocks) > 1 else blocks[0]


def _layers_of(choice: str, layer: str | None) -> Layers:
    """All blocks, or `layer` where it is none: what is extracted for a layer."""
    if layer is None or choice.startswith(RUN) or layer in block_names(model(choice)):
        return LAYERS
    return (layer,)


def run_of(choice: str, images: Images, layer: str | None = None) -> Representations:
    """Means over positions of all blocks, or of `layer` where it is none."""
    return representations(choice, images, _layers_of(choice, layer))


def missing_labels(images: Images) -> str:
    """What selectivity lacks in these images, as a sentence; "" where they have what it needs."""
    if images.labels is None:
        return f"These images have no labels. {_LABELS}"
    counts = np.unique(images.labels, return_counts=True)[1]
    if len(counts) < 2:
        return f"All images belong to one class. {_LABELS}"
    few = (counts >= _LEAST_OF_A_CLASS).sum() < 2
    return (
        f"These images have {len(counts)} classes, most with a single image. {_LABELS}"
        if few
        else ""
    )


# -- results ---------------------------------------------------------------------------------------


def _name(choice: str, layers: Layers) -> str:
    return (
        f"all blocks of {shown(choice)}" if layers == LAYERS else f"{layers[0]} of {shown(choice)}"
    )


def statistics(choice: str, images: Images, layers: Layers) -> ChannelStatistics:
    """Statistics of every channel of a layer, or of all blocks."""
    wanted = layers if isinstance(layers, str) else list(layers)
    label = f"statistics of {_name(choice, layers)}, {len(images)} images"
    given = calls.network(choice), calls.shown_images(images), wanted
    found: ChannelStatistics = result_of(
        PAGE, label, "channel statistics", "channel_statistics", *given, batch_size=BATCH
    )
    return found


def selectivity(
    choice: str, images: Images, layer: str | None = None, untrained: bool = False
) -> ClassSelectivity:
    """Selectivity of every channel of all blocks (or of `layer` where it is none) for each class;
    of the untrained baseline with `untrained`."""
    layers = _layers_of(choice, layer)
    baseline = " (untrained baseline)" if untrained else ""
    label = f"selectivity of {_name(choice, layers)}{baseline}, {len(images)} images"
    run = calls.run_of(choice, images, layers, untrained)
    found: ClassSelectivity = result_of(
        PAGE, label, "channel selectivity", "class_selectivity", run, permutations=PERMUTATIONS
    )
    return found


def page_of(
    ref: ChannelRef,
    images: Images,
    by: str,
    found: ChannelStatistics,
    selectivity: ClassSelectivity | None,
) -> ChannelPage:
    """The page of a channel with its images at both ends, ranked by "mean" or "peak"."""
    one, run = (
        calls.network(ref.network),
        calls.run_of(ref.network, images, _layers_of(ref.network, ref.layer)),
    )
    # The cluster and the largest ratio do not depend on how many layers were measured beside it.
    code = f"mp.channel_statistics({one.code}, images, [{ref.layer!r}])"
    given: dict[str, Any] = {"statistics": Given(lambda: found, found.n, code)}
    if selectivity is not None:
        code = f"mp.class_selectivity({run.code}, permutations={PERMUTATIONS})"
        given["selectivity"] = Given(lambda: selectivity, PERMUTATIONS, code)
    pages: list[ChannelPage] = result_of(
        PAGE,
        f"channel {ref.channel} of {ref.layer} of {shown(ref.network)} by {by}, {len(images)} "
        "images",
        "channel pages",
        "channels.channel_pages",
        one,
        calls.shown_images(images),
        {ref.layer: ref.channel},
        k=EXHIBITS,
        by=by,
        pixels=PIXELS,
        reps=run,
        batch_size=BATCH,
        **given,
    )
    return pages[0]


def matches(ref: ChannelRef, images: Images, other: str, layer: str) -> ChannelPartners:
    """For every channel of the layer of `ref` its best match: the channel of `layer` of another
    network whose means over the same images correlate most."""
    a, b = (
        calls.run_of(name, images, _layers_of(name, of))
        for name, of in ((ref.network, ref.layer), (other, layer))
    )
    label = (
        f"best matches of {ref.layer} of {shown(ref.network)} in {layer} of {shown(other)}, "
        f"{len(images)} images"
    )
    found: ChannelPartners = result_of(
        PAGE,
        label,
        "channel partners",
        "channel_partners",
        a,
        b,
        ref.layer,
        layer,
        permutations=PERMUTATIONS,
    )
    return found


# -- controls --------------------------------------------------------------------------------------

NETWORK, SCOPE, LAYER, CLASS = "ch-network", "ch-scope", "ch-layer", "ch-class"
AT, CHANNEL, PARTNER, PARTNER_LAYER = "ch-at", "ch-channel", "ch-partner", "ch-partner-layer"
_ALL = "blocks"
_SCOPES = {"layer": "One layer", _ALL: "All blocks"}
_QUERY = "channel query"
_SEARCH = (
    "Comma-separated conditions on any of the columns: `AUROC > 0.9`, `dead = yes`, `corrected p "
    "<= 0.05`, `layer = blocks.6`. A number selects a channel, a word matches part of a class or "
    "layer name."
)


def choose_layer(names: Sequence[str]) -> tuple[str, str]:
    """The boxes for network and layer; "" for all blocks. Stem, blocks and head come first, then
    parts of blocks and norms."""
    left, middle, right = st.columns([3, 2, 3], vertical_alignment="bottom")
    network = url_state.choose(left.selectbox, "Network", NETWORK, names, format_func=shown)
    found = model(network)
    scope = url_state.choose(middle.segmented_control, "Scope", SCOPE, _SCOPES)
    layers = [
        layer.name
        for layer in sorted(found.layers, key=lambda layer: layer.kind not in _FIRST_KINDS)
    ]
    more = {"disabled": scope == _ALL, "help": "Blocks first, then parts of blocks and norms."}
    layer = url_state.choose(right.selectbox, "Layer", LAYER, layers, usual_layer(found), **more)
    return network, "" if scope == _ALL else layer


def choose_list(network: str, layer: str, found: ClassSelectivity | None) -> ChannelQuery:
    """The boxes for class, order and search. Another list opens on its first channel, and not on
    the one that was open before."""
    left, middle, right, last = st.columns([3, 3, 3, 2], vertical_alignment="bottom")
    classes = ["", *(found.class_names if found is not None else ())]
    more = {
        "disabled": found is None,
        "help": "Sorts by selectivity for this class against all others.",
    }
    names = lambda name: name or "any class"  # noqa: E731
    class_name = url_state.choose(
        left.selectbox, "Most selective for class", CLASS, classes, "", format_func=names, **more
    )
    columns = sortable(found is not None)
    sort = url_state.choose(
        middle.selectbox, "Sort by", "ch-sort", columns, format_func=TITLES.__getitem__
    )
    text = url_state.text(
        right, "Search", "ch-search", placeholder="class = frog, kurtosis > 3", help=_SEARCH
    )
    reverse = url_state.toggle(last, "Reverse", "ch-turned", help="Reverses the order.")
    query = ChannelQuery(network, layer, class_name, sort, reverse, text)
    before = st.session_state.get(_QUERY)
    st.session_state[_QUERY] = query
    if before is not None and before != query:
        url_state.put(CHANNEL, None)
        url_state.put(AT, None)
    return query


def searched(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows that `text` asks for; all of them, and a message, where it cannot be read."""
    try:
        return search_channels(frame, text)
    except MeasureError as error:
        st.warning(f"{plain(error)}. All channels are listed.", icon=":material/search_off:")
        return frame


def opened(query: ChannelQuery, frame: pd.DataFrame) -> tuple[ChannelRef, ChannelRef]:
    """The channel that is open, and the first of the list: the one in the URL, or that first
    one."""
    network = model(query.network)
    first = ChannelRef(query.network, query.layer or usual_layer(network), 0)
    if not frame.empty:
        first = ChannelRef(
            query.network, str(frame["layer"].iloc[0]), int(frame["channel"].iloc[0])
        )
    said = url_state.get(AT)
    layer = query.layer or (
        said if said in block_names(network) and said is not None else first.layer
    )
    number = whole_number(url_state.get(CHANNEL) or "")
    if number is None or number >= network.layer(layer).channels:
        number = first.channel if layer == first.layer else 0
    return ChannelRef(query.network, layer, number), first


def choose_channel(query: ChannelQuery, frame: pd.DataFrame) -> str:
    """The boxes that say which channel is open, and how its images are ranked, "mean" or "peak"."""
    now, first = opened(query, frame)
    network = model(query.network)
    left, middle, right = st.columns([2, 2, 4], vertical_alignment="bottom")
    if not query.layer:
        url_state.choose(
            middle.selectbox, "Block of the channel", AT, block_names(network), first.layer
        )
    most = network.layer(now.layer).channels - 1
    default = first.channel if now.layer == first.layer else 0
    url_state.number(left, f"Channel, 0 to {most}", CHANNEL, 0, most, default)
    widget = (middle if query.layer else right).segmented_control
    about = "By the mean or the maximum over positions."
    return url_state.choose(widget, "Rank images by", "ch-by", ("mean", "peak"), help=about)


def match_layers(ref: ChannelRef, other: str, images: Images) -> tuple[list[str], str]:
    """The blocks of another network, or the layers of a run, and that of the most similar relative
    depth."""
    layers: Sequence[Layer] = (
        stored_run(other, images).layers if other.startswith(RUN) else model(other).select(LAYERS)
    )
    depth = model(ref.network).layer(ref.layer).depth
    return [layer.name for layer in layers], min(
        layers, key=lambda layer: abs(layer.depth - depth)
    ).name


def open_channel(layer: str, channel: int) -> None:
    """Open a channel of the list's network, for callbacks."""
    url_state.put(AT, layer if url_state.get(SCOPE) == _ALL else None)
    url_state.put(CHANNEL, str(channel))


def open_match(there: ChannelRef, back: ChannelRef) -> None:
    """Open a channel of another network, with the one it came from as its best match, for
    callbacks."""
    values = {
        NETWORK: there.network,
        SCOPE: None,
        AT: None,
        LAYER: there.layer,
        CHANNEL: str(there.channel),
    }
    for name, value in (values | {PARTNER: back.network, PARTNER_LAYER: back.layer}).items():
        url_state.put(name, value)
    # The list is another one, and still this channel is wanted.
    st.session_state.pop(_QUERY, None)
