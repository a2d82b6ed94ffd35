"""Single channels over many images: statistics, top images, class selectivity, dissection, and best
matches elsewhere."""

from mixer_probe.channels.dissected import DissectedChannel, dissected_channel
from mixer_probe.channels.dissection import Dissection, dissect
from mixer_probe.channels.needed import ChannelsNeeded, channels_needed
from mixer_probe.channels.page import ChannelPage, Exhibit, channel_pages, with_partners
from mixer_probe.channels.partners import ChannelPartners, channel_partners
from mixer_probe.channels.selectivity import (
    ClassSelectivity,
    auroc_of,
    class_selectivity,
    dprime_of,
    morcos_index,
)
from mixer_probe.channels.statistics import (
    ChannelMoments,
    ChannelStatistics,
    channel_moments,
    channel_statistics,
)
from mixer_probe.channels.top import (
    Extremes,
    RunningTop,
    TopImages,
    activation_maps,
    extremes,
    top_and_lowest,
    top_images,
    top_means,
)
from mixer_probe.channels.unit_images import (
    UnitActivations,
    UnitImages,
    top_unit_images,
    unit_activations,
    unit_layers,
)

__all__ = [
    "ChannelMoments",
    "ChannelPage",
    "ChannelPartners",
    "ChannelStatistics",
    "ChannelsNeeded",
    "ClassSelectivity",
    "DissectedChannel",
    "Dissection",
    "Exhibit",
    "Extremes",
    "RunningTop",
    "TopImages",
    "UnitActivations",
    "UnitImages",
    "activation_maps",
    "auroc_of",
    "channel_moments",
    "channel_pages",
    "channel_partners",
    "channel_statistics",
    "channels_needed",
    "class_selectivity",
    "dissect",
    "dissected_channel",
    "dprime_of",
    "extremes",
    "morcos_index",
    "top_and_lowest",
    "top_images",
    "top_means",
    "top_unit_images",
    "unit_activations",
    "unit_layers",
    "with_partners",
]
