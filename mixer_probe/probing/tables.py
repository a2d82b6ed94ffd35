"""What tables of probes begin with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.core.result import ModelRecord
from mixer_probe.models.layer import Layer


def layer_columns(model: ModelRecord, layers: Sequence[Layer], repeat: int = 1) -> dict[str, object]:
    """The columns that every table of layers begins with, each layer `repeat` times."""
    return {
        "model": model.name,
        "trained": model.trained,
        "layer": np.repeat([layer.name for layer in layers], repeat),
        "kind": np.repeat([layer.kind for layer in layers], repeat),
        "depth": np.repeat([layer.depth for layer in layers], repeat),
    }
