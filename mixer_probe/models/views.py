"""The networks of a report, and their accuracy on its images."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mixer_probe.core.section import Section, Table
from mixer_probe.core.words import percent, untrained_warning
from mixer_probe.models import ModelCard


def models_section(cards: Sequence[ModelCard]) -> list[Section]:
    """Which networks, with which weights."""
    frame = pd.DataFrame(
        {
            "model": [c.model.name for c in cards],
            "family": [c.model.family for c in cards],
            "class": [c.architecture for c in cards],
            "parameters": [f"{c.model.parameters:,}" for c in cards],
            "GMACs": [c.macs / 1e9 for c in cards],
            "input": ["×".join(map(str, c.input_size)) for c in cards],
            **(
                {"accuracy": [c.own.text if c.own else "-" for c in cards]}
                if any(c.own for c in cards)
                else {}
            ),
            "weights": [c.model.weights for c in cards],
            "fingerprint": [c.model.fingerprint[:12] for c in cards],
        }
    )
    notes = tuple(
        f"{c.model.name}: {c.model.note}" for c in cards if c.model.note and c.model.trained
    )
    missing = tuple(
        f"{c.model.name} has no classification accuracy here: {c.own.reason}"
        for c in cards
        if c.own and c.own.why
    )
    caption = "Networks. GMACs: billions of multiply-accumulates per image."
    if any(c.own for c in cards):
        caption += (
            " Accuracy: of the network's own classifier on the images of this report, with a 95 % "
            "interval, chance (always predicting the majority class), and the accuracy that its "
            "model card states."
        )
    tables = [Table(caption, frame, {"GMACs": "{:.4g}"})]
    tables += [
        Table(f"Layers of {c.model.name} in execution order.", c.to_frame(), folded=True)
        for c in cards
    ]
    warned = [*untrained_warning(c.model for c in cards)]
    for c in cards:
        own = c.own
        if own is not None and c.model.trained and (own.at_chance or own.below_card):
            expected = (
                f"below the {percent(own.stated)} that its model card states for {own.stated_on}"
            )
            if own.at_chance:
                expected = f"not above chance ({percent(own.chance)})"
            warned.append(
                f"{c.model.name} classifies {percent(own.value)} [{percent(own.low)}, "
                f"{percent(own.high)}] of {own.n} images correctly, {expected}: check its input "
                "(mean, std, size, crop), its weights, and whether its classes match those of the "
                "images before interpreting other results."
            )
    return [Section("models", "Networks", (*notes, *missing), tuple(tables), tuple(warned))]
