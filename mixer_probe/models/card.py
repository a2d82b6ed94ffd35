"""`describe`: what there is to know about a model before looking inside, as a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.results import ModelRecord, Result


@dataclass(frozen=True)
class ModelCard(Result):
    """A model's record, its layer table, multiply-accumulates of one image, and the input it takes."""

    title: ClassVar[str] = "Models"

    model: ModelRecord
    architecture: str
    layers: tuple[Layer, ...]
    macs: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_frame(self) -> pd.DataFrame:
        """The layer table: one row a layer in execution order."""
        return pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "kind": [layer.kind for layer in self.layers],
                "depth": [round(layer.depth, 3) for layer in self.layers],
                "grid": ["×".join(map(str, layer.grid)) if layer.grid else "-" for layer in self.layers],
                "channels": [layer.channels for layer in self.layers],
                "prefix_tokens": [layer.prefix_tokens for layer in self.layers],
            }
        )


def describe(model: Model) -> ModelCard:
    """The card of a model; counts multiply-accumulates by one forward pass of a blank image."""
    spec = model.input
    architecture = type(model.module).__name__
    return ModelCard(model.record, architecture, model.layers, model.macs, spec.size, spec.mean, spec.std)
