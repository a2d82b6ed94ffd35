"""Linear solvers that probes and similarity measures share: scaling, ridge and logistic regression,
mergeable moments."""

from mixer_probe.linear.classifier import LinearClassifier, ProbePath, last_best
from mixer_probe.linear.logistic import (
    LogisticPath,
    LogisticProbe,
    default_logistic_l2,
    logistic_path,
    logistic_paths,
)
from mixer_probe.linear.many_targets import RidgeFits, classify
from mixer_probe.linear.moments import RidgeMoments
from mixer_probe.linear.ridge import Ridge, default_l2
from mixer_probe.linear.ridge_path import RidgePath
from mixer_probe.linear.ridge_probe import RidgeProbe, ridge_path
from mixer_probe.linear.scaling import ColumnScaling
from mixer_probe.linear.stratification import few_of_each, left_out_folds, stratified

__all__ = [
    "ColumnScaling",
    "LinearClassifier",
    "LogisticPath",
    "LogisticProbe",
    "ProbePath",
    "Ridge",
    "RidgeFits",
    "RidgeMoments",
    "RidgePath",
    "RidgeProbe",
    "classify",
    "default_l2",
    "default_logistic_l2",
    "few_of_each",
    "last_best",
    "left_out_folds",
    "logistic_path",
    "logistic_paths",
    "ridge_path",
    "stratified",
]
