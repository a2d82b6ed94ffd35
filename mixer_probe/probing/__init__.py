"""What a linear map can read from a representation: scikit-learn estimators, and probes of every
layer."""

from __future__ import annotations

from mixer_probe.linear.classifier import ProbePath
from mixer_probe.linear.logistic import (
    LogisticPath,
    LogisticProbe,
    default_logistic_l2,
    logistic_path,
    logistic_paths,
)
from mixer_probe.linear.moments import RidgeMoments
from mixer_probe.linear.ridge import default_l2
from mixer_probe.linear.ridge_path import RidgePath
from mixer_probe.linear.ridge_probe import RidgeProbe, ridge_path
from mixer_probe.linear.stratification import stratified
from mixer_probe.probing.attentive import AttentiveProbe, AttentiveResult, attentive_probe
from mixer_probe.probing.baselines import pixel_baseline, raw_pixels
from mixer_probe.probing.centroid import CentroidPath, CentroidProbe, centroid_path
from mixer_probe.probing.controls import ControlTask, RandomLabels, control_task, random_label_probe
from mixer_probe.probing.fewshot import FewShotResult, big_vision_probe, few_shot_probe
from mixer_probe.probing.knn import KNNPath, KNNProbe, knn_path
from mixer_probe.probing.layer_probes import ProbeResult, linear_probe
from mixer_probe.probing.mdl import ControlCode, OnlineCode, code_sample, control_code, online_code
from mixer_probe.probing.methods import FITTERS
from mixer_probe.probing.patch_position import PatchPosition, patch_position_probe
from mixer_probe.probing.positionwise import PositionProbe, position_probe
from mixer_probe.probing.predictions import (
    Calibration,
    ConfusionMatrix,
    calibration,
    confusion_matrix,
)
from mixer_probe.probing.scores import (
    balanced_interval,
    combined_interval,
    images_interval,
    paired_interval,
    seeds_interval,
)
from mixer_probe.probing.streaming import stream_probe
from mixer_probe.probing.target_probe import TargetProbe, target_probe
from mixer_probe.probing.targets import (
    Target,
    binned,
    image_targets,
    planted_images,
    shifted_images,
    targets_from_csv,
)
from mixer_probe.probing.transfer import matched, transfer_probe
from mixer_probe.stats import wilson_interval

__all__ = [
    "FITTERS",
    "AttentiveProbe",
    "AttentiveResult",
    "Calibration",
    "CentroidPath",
    "CentroidProbe",
    "ConfusionMatrix",
    "ControlCode",
    "ControlTask",
    "FewShotResult",
    "KNNPath",
    "KNNProbe",
    "LogisticPath",
    "LogisticProbe",
    "OnlineCode",
    "PatchPosition",
    "PositionProbe",
    "ProbePath",
    "ProbeResult",
    "RandomLabels",
    "RidgeMoments",
    "RidgePath",
    "RidgeProbe",
    "Target",
    "TargetProbe",
    "attentive_probe",
    "balanced_interval",
    "big_vision_probe",
    "binned",
    "calibration",
    "centroid_path",
    "code_sample",
    "combined_interval",
    "confusion_matrix",
    "control_code",
    "control_task",
    "default_l2",
    "default_logistic_l2",
    "few_shot_probe",
    "image_targets",
    "images_interval",
    "knn_path",
    "linear_probe",
    "logistic_path",
    "logistic_paths",
    "matched",
    "online_code",
    "paired_interval",
    "patch_position_probe",
    "pixel_baseline",
    "planted_images",
    "position_probe",
    "random_label_probe",
    "raw_pixels",
    "ridge_path",
    "seeds_interval",
    "shifted_images",
    "stratified",
    "stream_probe",
    "target_probe",
    "targets_from_csv",
    "transfer_probe",
    "wilson_interval",
]
