"""Figures of results of this room, one function a figure. Nothing is shown or saved here."""

from mixer_probe.channels.figures.dissection import (
    dissected_channel_pictures,
    dissection_concepts,
    dissection_depth,
)
from mixer_probe.channels.figures.page import channel_catalogue, channel_page
from mixer_probe.channels.figures.partners import partner_depth, partner_strength
from mixer_probe.channels.figures.selectivity import (
    channels_needed_curves,
    selectivity_depth,
    selectivity_distributions,
)
from mixer_probe.channels.figures.statistics import channel_depth

__all__ = [
    "channel_catalogue",
    "channel_depth",
    "channel_page",
    "channels_needed_curves",
    "dissected_channel_pictures",
    "dissection_concepts",
    "dissection_depth",
    "partner_depth",
    "partner_strength",
    "selectivity_depth",
    "selectivity_distributions",
]
