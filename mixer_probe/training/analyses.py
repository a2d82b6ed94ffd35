"""How results on training runs are shown; scripts compute them, not studies."""

from __future__ import annotations

from mixer_probe.core.analysis import Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.training.quantities import (
    RunQuantity,
    RunSimilarity,
    StudyAnswer,
    UnitHistory,
)
from mixer_probe.training.views import (
    answer_sections,
    history_sections,
    quantity_sections,
    similarity_sections,
)

ROOM = Room(
    "training",
    "analysis of training",
    MeasureError,
    views=(
        View(StudyAnswer, answer_sections),
        View(RunQuantity, quantity_sections),
        View(RunSimilarity, similarity_sections),
        View(UnitHistory, history_sections),
    ),
)
