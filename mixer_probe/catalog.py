"""Every analysis of every room, in the order in which a report tells them. `mixer-probe analyses`
prints the list."""

from __future__ import annotations

from collections.abc import Iterator

from mixer_probe.attribution.analyses import ROOM as ATTRIBUTION
from mixer_probe.channels.analyses import ROOM as CHANNELS
from mixer_probe.concepts.analyses import ROOM as CONCEPTS
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError, closest
from mixer_probe.cost.analyses import ROOM as COST
from mixer_probe.invariance.analyses import ROOM as INVARIANCE
from mixer_probe.mixing.analyses import ROOM as MIXING
from mixer_probe.probing.analyses import ROOM as PROBING
from mixer_probe.similarity.analyses import ROOM as SIMILARITY
from mixer_probe.training.analyses import ROOM as TRAINING
from mixer_probe.visualization.analyses import ROOM as VISUALIZATION
from mixer_probe.weights.analyses import ROOM as WEIGHTS

ROOMS: list[Room] = [
    TRAINING,
    WEIGHTS,
    MIXING,
    COST,
    SIMILARITY,
    CONCEPTS,
    PROBING,
    CHANNELS,
    VISUALIZATION,
    INVARIANCE,
    ATTRIBUTION,
]


def room(name: str) -> Room:
    """The room of that name. Raises MeasureError, which lists close names, if there is none."""
    for room in ROOMS:
        if room.name == name:
            return room
    raise MeasureError(f"there is no room '{name}'; {closest(name, [room.name for room in ROOMS])}")


def analyses() -> Iterator[tuple[Room, Analysis]]:
    """All analyses, with their rooms."""
    return ((room, analysis) for room in ROOMS for analysis in room.analyses)


def views() -> Iterator[View]:
    """The views of all rooms."""
    return (view for room in ROOMS for view in room.views)


def listed() -> list[tuple[str, str, str, str, str]]:
    """A row an analysis: room, name, question, what it needs, the types of its results."""
    return [
        (
            room.name,
            a.name,
            a.question,
            a.needs + (", labels" if a.labelled else ""),
            ", ".join(r.__name__ for r in a.results),
        )
        for room, a in analyses()
    ]
