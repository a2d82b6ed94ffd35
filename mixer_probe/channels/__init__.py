"""Channels: what single channels do over many images."""

from mixer_probe.channels.statistics import ChannelMoments, ChannelStatistics, channel_moments, channel_statistics

__all__ = ["ChannelMoments", "ChannelStatistics", "channel_moments", "channel_statistics"]
