"""Sentences on effective receptive fields: how much of the image they cover at which depth, and
what training changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mixer_probe.core.finding import Number, shown
from mixer_probe.core.words import first_and_more, join, name_of, number
from mixer_probe.mixing.findings.changes import in_both, significant_changes
from mixer_probe.mixing.receptive_field import EffectiveReceptiveField
from mixer_probe.models.layer import spread


def _places(r: EffectiveReceptiveField) -> list[int]:
    """Three blocks, or layers where none is a block, spread over depth, whose gradient is not
    zero."""
    known = [k for k in range(len(r.layers)) if r.energy[k] > 0]
    blocks = [k for k in known if r.layers[k].kind == "block"] or known
    return [blocks[k] for k in spread([r.layers[k] for k in blocks], 3)]


def _sides(r: EffectiveReceptiveField, places: Sequence[int]) -> np.ndarray:
    """Value and bounds [3, place] of the side in pixels of a square that is as large as the area of
    half of the energy."""
    areas = np.stack([table[list(places), 0] for table in (r.area, r.area_low, r.area_high)])
    sides: np.ndarray = np.sqrt(areas * math.prod(r.size))
    return sides


def receptive_sentence(r: EffectiveReceptiveField) -> str:
    """The area of half of the energy after the first, middle and last block, with the theoretical
    field after the last; and layers without any gradient."""
    name, places = name_of(r.model), _places(r)
    zero = [layer.name for layer, energy in zip(r.layers, r.energy, strict=True) if energy == 0]
    which = join(zero) if 0 < len(zero) < 4 else first_and_more(zero, 3)
    nothing = f"The gradient of {which} of {name} by the input is exactly zero." if zero else ""
    if not places:
        return nothing
    sides = _sides(r, places)
    squares = [
        f"{shown(Number('', value, low, high), 1)} after {r.layers[k].name}"
        for k, (value, low, high) in zip(places, sides.T.tolist(), strict=True)
    ]
    last = places[-1]
    side = r.theoretical[last]
    field = (
        ""
        if math.isnan(side)
        else "; its theoretical field is the whole image"
        if math.isinf(side)
        else f"; its theoretical field is {side:.0f} px wide"
    )
    text = (
        f"{name}: half of the input-gradient energy of one position lies in an area as large as a "
        f"square with a side in px of {join(squares)} (n = {r.n} images of "
        f"{r.size[0]}×{r.size[1]} px){field}."
    )
    return f"{text} {nothing}".strip()


def training_sentence(r: EffectiveReceptiveField, baseline: EffectiveReceptiveField) -> str:
    """Where the area of half of the energy differs from that of the untrained baseline, of three
    blocks."""
    own, other = in_both(
        r.layers, _places(r), baseline.layers, lambda k: bool(baseline.energy[k] > 0)
    )
    if not own:
        return ""
    names_of = [r.layers[k].name for k in own]
    changes = significant_changes(names_of, _sides(r, own), _sides(baseline, other))
    said = []
    for verb, sign in (("narrows", -1), ("widens", 1)):
        texts = [
            f"{at} ({number(v, low, high, 1)} px)" for at, v, low, high in changes if v * sign > 0
        ]
        if texts:
            said.append(f"{verb} the field after {join(texts)}")
    name = name_of(r.model)
    if not said:
        return (
            f"{name}: the area of half of the energy after {join(names_of)} "
            "is not significantly different from that of the untrained baseline."
        )
    return (
        f"{name}: training {join(said)}, by the side of the square (Bonferroni over {len(own)} "
        "layers)."
    )
