"""Figures of results of this room, one function a figure. Nothing is shown or saved here."""

from mixer_probe.probing.figures.controls import (
    code_curves,
    control_code_curves,
    control_curves,
    random_label_curves,
)
from mixer_probe.probing.figures.positions import (
    attention_maps,
    patch_position_curves,
    position_maps,
)
from mixer_probe.probing.figures.predictions import (
    class_accuracy,
    confusion_heatmaps,
    reliability_diagrams,
)
from mixer_probe.probing.figures.probes import few_shot_curves, probe_curves, probe_paths
from mixer_probe.probing.figures.targets import target_curves

__all__ = [
    "attention_maps",
    "class_accuracy",
    "code_curves",
    "confusion_heatmaps",
    "control_code_curves",
    "control_curves",
    "few_shot_curves",
    "patch_position_curves",
    "position_maps",
    "probe_curves",
    "probe_paths",
    "random_label_curves",
    "reliability_diagrams",
    "target_curves",
]
