"""Sentences on spatial frequencies of the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.words import join, name_of, untrained_baseline
from mixer_probe.mixing.findings.attention import at
from mixer_probe.mixing.findings.changes import not_zero
from mixer_probe.mixing.frequency import FrequencyProfile

_NAMES = {
    "spatial": "spatial sublayers",
    "channel": "channel sublayers",
    "block": "blocks",
}


def frequency_sentences(result: FrequencyProfile, results: Sequence[FrequencyProfile]) -> list[str]:
    """What each kind of sublayer does to the highest frequency and to the variance over positions,
    on average and how often, and the same of the untrained baseline."""
    said = []
    signs = not_zero(result.amplitude_change) * np.sign(result.amplitude_change.value)
    for k, part in enumerate(result.parts):
        if not np.isfinite(result.mean_amplitude_change.value[k]):
            continue
        rows = [
            i
            for i, kind in enumerate(result.kinds)
            if kind == part and np.isfinite(result.amplitude_change.value[i])
        ]
        down, up = (int((signs[rows] == sign).sum()) for sign in (-1, 1))
        said.append(
            f"{name_of(result.model)}, {_NAMES[part]}: the relative log amplitude at the highest "
            f"frequency changes by {at(result.mean_amplitude_change, k, 2)} on average, "
            f"significantly down in {down} and up in {up} of {len(rows)} (Bonferroni), and the log "
            f"of the variance over positions by {at(result.mean_variance_change, k, 2)}."
        )
    baseline = untrained_baseline(result, results)
    if baseline and said:
        untrained = [
            f"{at(baseline.mean_amplitude_change, k, 2)} in {_NAMES[part]}"
            for k, part in enumerate(baseline.parts)
            if np.isfinite(baseline.mean_amplitude_change.value[k])
        ]
        if untrained:
            said.append(f"Untrained, these amplitudes change by {join(untrained)}.")
    return said
