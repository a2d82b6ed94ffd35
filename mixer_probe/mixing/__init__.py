"""Spatial mixing: from where each layer of a Mixer, ViT or CNN reads, what its blocks do to the
residual stream, and what depends on them."""

from mixer_probe.mixing.settings import MixingSettings

__all__ = ["MixingSettings"]
