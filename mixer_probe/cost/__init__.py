"""What a network costs: parameters, multiply-accumulates, memory and time; over resolution, and
against accuracy."""

from mixer_probe.cost.counting import MacParts, count_parts, head_parameters
from mixer_probe.cost.frontier import AccuracyCost, accuracy_cost, feature_layer, on_frontier
from mixer_probe.cost.memory import LiveBytes, peak_activation_bytes
from mixer_probe.cost.model_cost import ModelCost, model_cost, model_costs
from mixer_probe.cost.resolution import CostGrowth, at_resolution, cost_growth
from mixer_probe.cost.scales import TABLE1, MixerScale, MixerScales, mixer_scales
from mixer_probe.cost.timing import device_name, time_forward, time_together

__all__ = [
    "TABLE1",
    "AccuracyCost",
    "CostGrowth",
    "LiveBytes",
    "MacParts",
    "MixerScale",
    "MixerScales",
    "ModelCost",
    "accuracy_cost",
    "at_resolution",
    "cost_growth",
    "count_parts",
    "device_name",
    "feature_layer",
    "head_parameters",
    "mixer_scales",
    "model_cost",
    "model_costs",
    "on_frontier",
    "peak_activation_bytes",
    "time_forward",
    "time_together",
]
