"""Channels: what single channels answer to, found by class or by any statistic."""

from __future__ import annotations

import sys
from pathlib import Path

if (_app := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_app)

import pandas as pd
import streamlit as st
from mixer_probe_app import channel_parts as parts
from mixer_probe_app import channel_views as views
from mixer_probe_app import data
from mixer_probe_app.channel_controls import Asked, channel_boxes, list_asked, networks_of, opened, searched, where_asked
from mixer_probe_app.channel_table import listing, ordered
from mixer_probe_app.choice import shown
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.page import begin

from mixer_probe.channels import ChannelStatistics, ClassSelectivity
from mixer_probe.images import Images

QUESTION = (
    "What does a single channel respond to? Select a class to find the channel most selective for it, or sort and filter by any "
    "statistic. Open a channel to see its top images, its activation maps, and its best-matching channel in another network."
)
ONLY_RUNS = (
    "A stored run contains channel means, but no network to compute activation maps. Select its network in the sidebar as well; "
    "the run can be compared with it, and its depth curve is shown below."
)


def main() -> None:
    names = begin("Channels", QUESTION)
    if not names:
        return
    images = data.images()
    lacking = views.needs_labels(images)
    networks, runs = networks_of(names)
    if networks:
        with guarded():
            _network(networks, [*networks, *runs], images, lacking)
    elif runs:
        st.info(ONLY_RUNS, icon=":material/arrow_back:")
    with guarded():
        if not lacking and (networks or runs):
            parts.depth([*networks, *runs], images, _class_wanted())
    st.caption(plain(images.credit))


def _network(networks: list[str], names: list[str], images: Images, lacking: str) -> None:
    network, layer = where_asked(networks)
    told = None if lacking else views.selectivity(network, images, layer or None)
    asked = list_asked(network, layer, told)
    if lacking:
        st.info(plain(lacking), icon=":material/label_off:")
    found = views.statistics(network, images, asked.layers)
    every = ordered(listing(found, told, asked.wanted), asked.sort, asked.turned)
    if told is not None:
        with guarded():
            parts.say_best(asked, every, told)
    frame = searched(every, asked.text)
    if frame.empty:
        st.info(f"No channel of {len(every):,} fits the search. Change it, or empty the box.", icon=":material/search_off:")
    else:
        with guarded():
            parts.gallery(asked, frame, images)
        with guarded():
            parts.everything(asked, frame, told is not None)
    _one(asked, frame, names, images, found, told)


def _one(
    asked: Asked,
    frame: pd.DataFrame,
    names: list[str],
    images: Images,
    found: ChannelStatistics,
    told: ClassSelectivity | None,
) -> None:
    now = opened(asked, frame)
    st.header(plain(f"Channel {now.channel} of {now.layer} of {shown(now.network)}"), divider="grey", anchor="channel")
    by = channel_boxes(asked, frame)
    similar = parts.similar_to(now, names, images)
    with guarded():
        parts.channel(now, by, images, found, told, similar)
    measured = None
    with guarded():
        measured = parts.partner(now, names, images, asked.wanted)
    if similar is None and measured is not None and parts.similar_to(now, names, images) is not None:
        # The label of the channel was drawn before its partner was known.
        st.rerun()


def _class_wanted() -> str:
    return str(st.session_state.get("widget ch-class") or "")


with guarded():
    main()
