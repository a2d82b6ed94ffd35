"""How feature visualizations are shown; the room `channels` makes them of the channels that have a
page."""

from __future__ import annotations

from mixer_probe.core.analysis import Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.visualization import FeatureVisualization
from mixer_probe.visualization.views import visualization_section

ROOM = Room(
    "visualization",
    "feature visualization",
    MeasureError,
    views=(View(FeatureVisualization, visualization_section),),
)
