"""Figures of results of this room, one function a figure. Nothing is shown or saved here."""

from mixer_probe.mixing.figures.components import component_curves, component_maps
from mixer_probe.mixing.figures.receptive_field import (
    receptive_field_curves,
    receptive_field_maps,
)

__all__ = ["component_curves", "component_maps", "receptive_field_curves", "receptive_field_maps"]
