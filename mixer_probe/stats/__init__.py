"""Intervals, nulls and p-values: each once, for all measures.

Intervals are 95 % unless another level is asked for, deterministic, and NaN where the data cannot
hold one. Which level they keep at which number of images is simulated in
`tests/stats/test_coverage.py`."""

from mixer_probe.stats.auroc import auroc_interval
from mixer_probe.stats.intervals import (
    FEWEST,
    crossed_interval,
    delta_interval,
    mean_interval,
    median_interval,
)
from mixer_probe.stats.jackknife import jackknife_variance, training_interval
from mixer_probe.stats.nulls import (
    check_permutations,
    max_null,
    max_p,
    permutation_p,
    prediction_limit,
    upper_quantile,
)
from mixer_probe.stats.proportions import (
    difference_interval,
    mcnemar,
    paired_counts,
    ratio,
    wilson_interval,
)
from mixer_probe.stats.ranks import rank_correlation, rank_interval, rank_null

__all__ = [
    "FEWEST",
    "auroc_interval",
    "check_permutations",
    "crossed_interval",
    "delta_interval",
    "difference_interval",
    "jackknife_variance",
    "max_null",
    "max_p",
    "mcnemar",
    "mean_interval",
    "median_interval",
    "paired_counts",
    "permutation_p",
    "prediction_limit",
    "rank_correlation",
    "rank_interval",
    "rank_null",
    "ratio",
    "training_interval",
    "upper_quantile",
    "wilson_interval",
]
