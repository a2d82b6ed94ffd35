"""Stem filters: the first convolution or patch embedding of a network as colour pictures (Tolstikhin et al. 2021, Fig. 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import nn

from mixer_probe.errors import ModelError
from mixer_probe.models.model import Model
from mixer_probe.results import ModelRecord, Result
from mixer_probe.weights.spectrum import colour_centroid


@dataclass(frozen=True)
class StemFilters(Result):
    """`filters` [unit, 3, h, w] of the layer `layer`, with stride in pixels. Behaves like that array.

    `frequency` [unit] is the power centroid in cycles per pixel, power added over colours."""

    title: ClassVar[str] = "Stem filters"

    model: ModelRecord
    layer: str
    filters: np.ndarray
    stride: tuple[int, int]
    frequency: np.ndarray

    @property
    def norm(self) -> np.ndarray:
        """Euclidean norm [unit]."""
        norms: np.ndarray = np.sqrt((self.filters**2).sum((1, 2, 3)))
        return norms

    @property
    def order(self) -> np.ndarray:
        """Units [unit] from low to high frequency; constant filters last."""
        return np.argsort(self.frequency, kind="stable")

    @property
    def shape(self) -> tuple[int, ...]:
        """(units, 3, h, w)."""
        return self.filters.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.filters, dtype=dtype) if copy or dtype else self.filters

    def __getitem__(self, index: Any) -> Any:
        return self.filters[index]

    def __len__(self) -> int:
        return len(self.filters)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.filters)

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: norm and frequency."""
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": self.layer,
                "unit": np.arange(len(self)),
                "norm": self.norm,
                "frequency_cycles_per_pixel": self.frequency,
            }
        )


def stem_filters(model: Model) -> StemFilters:
    """The filters of the first convolution that reads the image.

    Raises ModelError if the network has none (a person's own embedding without a convolution)."""
    name, layer = _first_convolution(model)
    filters = layer.weight.detach().float().cpu().numpy().copy()
    stride = (int(layer.stride[0]), int(layer.stride[1]))
    return StemFilters(model.record, name, filters, stride, colour_centroid(filters))


def _first_convolution(model: Model) -> tuple[str, nn.Conv2d]:
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == model.input.size[0]:
            return name, module
    raise ModelError(f"{model.name} has no convolution that reads the image, so it has no stem filters")
