"""Sentences on principal components of positions: how much of the variance three of them hold, and
what training changed."""

from __future__ import annotations

import numpy as np

from mixer_probe.core.finding import Number, as_percent
from mixer_probe.core.words import join, name_of, percent, points
from mixer_probe.mixing.components import TokenComponents
from mixer_probe.mixing.findings.changes import in_both, significant_changes
from mixer_probe.models.layer import spread


def _places(r: TokenComponents) -> list[int]:
    """Three layers spread over depth that are not constant."""
    known = [k for k in range(len(r.layers)) if np.isfinite(r.together[k])]
    return [known[k] for k in spread([r.layers[k] for k in known], 3)]


def _numbers(r: TokenComponents, places: list[int]) -> np.ndarray:
    """Value and bounds [3, place] of the fraction of three components."""
    return np.stack([table[places] for table in (r.together, r.together_low, r.together_high)])


def component_sentence(r: TokenComponents) -> str:
    """The fraction of the variance in three components, beside that of independent channels; and
    constant layers."""
    name, places = name_of(r.model), _places(r)
    constant = [layer.name for k, layer in enumerate(r.layers) if not np.isfinite(r.together[k])]
    nothing = (
        f"{name}: the activations of {join(constant)} are the same at all positions of all images."
        if constant
        else ""
    )
    if not places:
        return nothing
    values = [
        f"{as_percent(Number('', value, low, high))} after {r.layers[k].name} "
        f"({percent(float(r.expected[k].sum()))})"
        for k, (value, low, high) in zip(places, _numbers(r, places).T.tolist(), strict=True)
    ]
    text = (
        f"{name}: three principal components hold {join(values)} of the variance of all positions "
        f"(n = {r.n} images; in parentheses: independent channels with the same variances)."
    )
    return f"{text} {nothing}".strip()


def component_training_sentence(r: TokenComponents, baseline: TokenComponents) -> str:
    """Where the fraction of three components differs from that of the untrained baseline, of three
    layers."""
    own, other = in_both(
        r.layers, _places(r), baseline.layers, lambda k: bool(np.isfinite(baseline.together[k]))
    )
    if not own:
        return ""
    at = [r.layers[k].name for k in own]
    changes = significant_changes(at, _numbers(r, own), _numbers(baseline, other))
    name = name_of(r.model)
    if not changes:
        return (
            f"{name}: the fraction of variance in three components after {join(at)} is not "
            "significantly different from that of the untrained baseline."
        )
    said = [f"{points(*change)} after {layer}" for layer, *change in changes]
    return (
        f"{name}: training changes the fraction of variance in three components by {join(said)} "
        f"(Bonferroni over {len(at)} layers)."
    )
