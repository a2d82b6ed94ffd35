"""What a linear map can read from a representation: scikit-learn estimators, and probes of every layer."""

from __future__ import annotations

from mixer_probe.probing.linear_probe import ProbeResult, linear_probe, wilson_interval
from mixer_probe.probing.ridge import RidgePath, RidgeProbe, default_l2, ridge_path

__all__ = [
    "ProbeResult",
    "RidgePath",
    "RidgeProbe",
    "default_l2",
    "linear_probe",
    "ridge_path",
    "wilson_interval",
]
