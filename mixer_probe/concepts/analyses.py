"""The analyses of features that networks share, and how their results are shown."""

from __future__ import annotations

from mixer_probe.concepts.sharing import ConceptSharing
from mixer_probe.concepts.views.sharing import sharing_sections
from mixer_probe.core.analysis import Room, View
from mixer_probe.core.errors import MeasureError

ROOM = Room(
    "concepts",
    "analysis of shared features",
    MeasureError,
    (),
    (View(ConceptSharing, sharing_sections),),
)
