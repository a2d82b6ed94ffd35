"""How results on cost are shown; scripts compute them, not studies."""

from __future__ import annotations

from mixer_probe.core.analysis import Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.cost import AccuracyCost, CostGrowth, MixerScales, ModelCost
from mixer_probe.cost.views import (
    accuracy_cost_section,
    cost_section,
    growth_section,
    scales_section,
)

ROOM = Room(
    "cost",
    "analysis of cost",
    MeasureError,
    views=(
        View(MixerScales, scales_section),
        View(ModelCost, cost_section),
        View(AccuracyCost, accuracy_cost_section),
        View(CostGrowth, growth_section),
    ),
)
