"""How results of invariance are shown; they are made by scripts, not by a report."""

from __future__ import annotations

from mixer_probe.core.analysis import Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.invariance import (
    ArchitectureComparison,
    DistortionAccuracy,
    DistortionExamples,
    ErrorConsistency,
    RepresentationShift,
)
from mixer_probe.invariance.views import (
    architecture_section,
    consistency_section,
    distortion_section,
    examples_section,
    shift_section,
)

ROOM = Room(
    "invariance",
    "analysis of invariance",
    MeasureError,
    views=(
        View(DistortionExamples, examples_section),
        View(DistortionAccuracy, distortion_section),
        View(ArchitectureComparison, architecture_section),
        View(ErrorConsistency, consistency_section),
        View(RepresentationShift, shift_section),
    ),
)
