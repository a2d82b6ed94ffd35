"""Results with one array per layer: construction, look-up by layer, tables, and warnings that count
channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_origin

import numpy as np
import pandas as pd

from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import UndefinedChannelsWarning, layer_index
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ModelRecord
from mixer_probe.core.typed import field_types
from mixer_probe.models.layer import Layer

# The first columns of the `Frame` of a result over layers.
LAYER = "model=model.name layer=layers.name layers.kind layers.depth"


class Layerwise:
    """Mixin of results of one network whose fields hold one entry per layer of `layers`."""

    frame: ClassVar[Frame]
    model: ModelRecord
    layers: tuple[Layer, ...]

    @classmethod
    def of_layers(cls, parts: Sequence[Mapping[str, Any]], **common: Any) -> Self:
        """The result with the `common` fields and those of `parts` [layer]: as a tuple over layers
        where it is declared as one, else as an array [layer, ...]."""
        build: Any = cls
        declared = field_types(build)
        columns = {name: tuple(part[name] for part in parts) for name in parts[0]}
        fields = {
            name: column if get_origin(declared[name]) is tuple else np.array(column)
            for name, column in columns.items()
        }
        result: Self = build(**common, **fields)
        return result

    def index(self, layer: str) -> int:
        """The index of a layer. Raises LayerError that lists close names."""
        paths = [(known.name,) for known in self.layers]
        return layer_index(layer, paths, f"these results of {self.model.name}", "layer")

    def __contains__(self, layer: str) -> bool:
        return layer in {known.name for known in self.layers}

    def layer_columns(self, i: int) -> dict[str, Any]:
        """The columns of a table that say which layer it is."""
        layer = self.layers[i]
        return {
            "model": self.model.name,
            "layer": layer.name,
            "kind": layer.kind,
            "depth": layer.depth,
        }

    def layer_frame(self, i: int) -> pd.DataFrame:
        """The rows of `to_frame` of layer `i`."""
        return self.frame.of(select(self, "layer", [i]))

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and channel, or whatever else `layer_frame` lists of a layer."""
        return pd.concat([self.layer_frame(i) for i in range(len(self.layers))], ignore_index=True)


def finite_median(values: np.ndarray) -> float:
    """The median of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def warn_undefined(
    model: ModelRecord, layers: Sequence[Layer], undefined: Sequence[int], consequence: str
) -> None:
    """Warn with UndefinedChannelsWarning about the number of `undefined` channels [layer], and what
    follows for them."""
    bad = [f"{n} of '{layer.name}'" for layer, n in zip(layers, undefined, strict=True) if n]
    if bad:
        listed = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        warnings.warn(
            f"channels of {model.name} that are constant or not finite {consequence} (NaN): "
            f"{listed}",
            UndefinedChannelsWarning,
            stacklevel=4,
        )
