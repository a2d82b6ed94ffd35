"""`describe`: what there is to know about a model before looking inside, as a result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd

from mixer_probe.core.result import ModelRecord, Result, storable
from mixer_probe.core.words import percent
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@storable
@dataclass(frozen=True)
class OwnAccuracy:
    """How many of `n` images a network's own classifier has `right`, with Wilson's interval `low`
    to `high` at 95 %.

    `chance` is the fraction of images of the most frequent class, the best that a constant answer
    reaches. `stated` is the accuracy that the network's card has for `stated_on`; NaN where none is
    known. Where nothing could be counted `n` is 0, accuracies are NaN, `why` says so in a few words
    and `reason` in a sentence."""

    right: int
    n: int
    low: float
    high: float
    chance: float
    stated: float
    stated_on: str
    why: str = ""
    reason: str = ""

    @property
    def value(self) -> float:
        """The fraction that is right."""
        return self.right / self.n if self.n else math.nan

    @property
    def text(self) -> str:
        """The accuracy with its interval, chance and what the card states, or why there is none."""
        if not self.n:
            return self.why
        card = "" if math.isnan(self.stated) else f"; card {percent(self.stated)}"
        between = f"[{percent(self.low)}, {percent(self.high)}]"
        return f"{percent(self.value)} {between}, n = {self.n}; chance {percent(self.chance)}{card}"

    @property
    def at_chance(self) -> bool:
        """Whether chance is in the interval, or above it."""
        return self.n > 0 and self.low <= self.chance

    @property
    def below_card(self) -> bool:
        """Whether the interval ends below what the card states."""
        return self.n > 0 and self.high < self.stated


@dataclass(frozen=True)
class ModelCard(Result):
    """A model's record, its layer table, multiply-accumulates of one image, and the input it takes.

    `own` is its accuracy on the images of a study, None outside of one."""

    title: ClassVar[str] = "Models"

    model: ModelRecord
    architecture: str
    layers: Annotated[tuple[Layer, ...], "layer"]
    macs: int
    input_size: tuple[int, int, int]
    mean: Annotated[tuple[float, ...], "colour"]
    std: Annotated[tuple[float, ...], "colour"]
    own: OwnAccuracy | None = None

    def to_frame(self) -> pd.DataFrame:
        """The layer table: one row per layer in execution order."""
        return pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "kind": [layer.kind for layer in self.layers],
                "depth": [round(layer.depth, 3) for layer in self.layers],
                "grid": [
                    "×".join(map(str, layer.grid)) if layer.grid else "-" for layer in self.layers
                ],
                "channels": [layer.channels for layer in self.layers],
                "prefix_tokens": [layer.prefix_tokens for layer in self.layers],
            }
        )


def describe(model: Model) -> ModelCard:
    """The card of a model; counts multiply-accumulates by one forward pass of a blank image."""
    spec = model.input
    architecture = type(model.module).__name__
    return ModelCard(
        model.record, architecture, model.layers, model.macs, spec.size, spec.mean, spec.std
    )
