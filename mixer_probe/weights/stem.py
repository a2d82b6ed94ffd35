"""Stem filters: the first convolution or patch embedding of a network as colour pictures
(Tolstikhin et al. 2021, Fig. 7) and their principal components (Dosovitskiy et al. 2021, Fig. 7,
left)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from torch import nn

from mixer_probe.core.errors import MeasureError, ModelError
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.model import Model
from mixer_probe.stats import ratio
from mixer_probe.weights.operators import applied_weight, tracy_widom_edge
from mixer_probe.weights.spectrum import colour_centroid
from mixer_probe.weights.units import defined_mean

Order = Literal["frequency", "norm", "luminance"]
ORDERS = ("frequency", "norm", "luminance")

# Orthonormal axes of colour: grey, red against green, blue against yellow.
_OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [-1, -1, 2]]) / np.sqrt([[3], [2], [6]])


@dataclass(frozen=True)
class StemFilters(Result):
    """`filters` [unit, channel, h, w] of the layer `layer`, with stride in pixels. Behaves like
    that array.

    Channels are those of the network's input: 3 for colour. `frequency` [unit] is the power
    centroid in cycles per pixel, power added over channels; NaN for constant filters. Weights are
    as the network applies them to normalised pixels."""

    title: ClassVar[str] = "Stem filters"
    frame = Frame(
        "unit",
        """model=model.name layer unit norm frequency_cycles_per_pixel=frequency
        luminance_fraction=luminance""",
    )

    model: ModelRecord
    layer: str
    filters: Annotated[np.ndarray, "unit", "channel", "height", "width"]
    stride: tuple[int, int]
    frequency: Annotated[np.ndarray, "unit"]

    @property
    def norm(self) -> Annotated[np.ndarray, "unit"]:
        """Euclidean norm [unit]."""
        norms: np.ndarray = np.sqrt((self.filters**2).sum((1, 2, 3)))
        return norms

    @property
    def luminance(self) -> Annotated[np.ndarray, "unit"]:
        """Fraction [unit] of the energy of a filter on the grey direction; the rest is chrominance.
        NaN for a filter of zeros.

        See `luminance_fraction`. A filter with no preference (iid weights) has 1/3 of three
        channels."""
        return luminance_fraction(self.filters)

    @property
    def mean_frequency(self) -> float:
        """Mean power centroid in cycles per pixel; constant filters have none."""
        return defined_mean(self.frequency)

    @property
    def mean_luminance(self) -> float:
        """Fraction of the energy of all filters together on the grey direction; NaN for filters of
        zeros."""
        energy = self.norm.astype(np.float64) ** 2
        return (
            float(np.nansum(self.luminance * energy) / energy.sum())
            if energy.sum() > 0
            else math.nan
        )

    @property
    def order(self) -> np.ndarray:
        """Units [unit] from low to high frequency; constant filters last."""
        return self.order_by("frequency")

    @checked(MeasureError)
    def order_by(self, by: Order = "frequency") -> np.ndarray:
        """Units [unit] by "frequency" (low first), "norm" (large first) or "luminance" (grey
        first); NaN last.

        Raises MeasureError for another word."""
        keys = {
            "frequency": lambda: self.frequency,
            "norm": lambda: -self.norm,
            "luminance": lambda: -self.luminance,
        }
        return np.argsort(keys[by](), kind="stable")

    @property
    def shape(self) -> tuple[int, ...]:
        """(units, channels, h, w)."""
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
        """One row per unit: norm, frequency, and the fractions of its energy on the axes of
        colour."""
        frame = super().to_frame()
        if self.shape[1] == 3:
            names = ["red_green_fraction", "blue_yellow_fraction"]
            frame[names] = colour_fractions(self.filters)[:, 1:]
        return frame


def stem_filters(model: Model) -> StemFilters:
    """The filters of the first convolution that reads the image, as it applies them.

    Raises ModelError if the network has none (a custom embedding without a convolution)."""
    for name, layer in model.module.named_modules():
        # With an input of one channel every depthwise convolution has kernels of one channel.
        if (
            isinstance(layer, nn.Conv2d)
            and layer.groups == 1
            and layer.in_channels == model.input.size[0]
        ):
            filters = applied_weight(layer).float().cpu().numpy().copy()
            stride = (int(layer.stride[0]), int(layer.stride[1]))
            return StemFilters(model.record, name, filters, stride, colour_centroid(filters))
    raise ModelError(
        f"{model.name} has no convolution that reads the image, so it has no stem filters"
    )


def luminance_fraction(filters: np.ndarray) -> np.ndarray:
    """Fraction [unit] of the energy of filters [unit, channel, h, w] on the grey direction (1, ...,
    1) / sqrt(channels).

    sum over pixels of (sum_c w_c)^2 / channels, divided by the sum of w^2: 1 for a filter that
    responds to brightness alone, 0 to colour alone. NaN for a filter of zeros."""
    weights = np.asarray(filters, dtype=np.float64)
    grey = (weights.sum(1) ** 2).sum((1, 2)) / weights.shape[1]
    return ratio(grey, (weights**2).sum((1, 2, 3)))


def colour_fractions(filters: np.ndarray) -> np.ndarray:
    """Fractions [unit, 3] of the energy of filters [unit, 3, h, w] on grey, red against green, and
    blue against yellow.

    The axes (1, 1, 1), (1, -1, 0), (-1, -1, 2), each of length one, are orthogonal, so the
    fractions add to 1. NaN for a filter of zeros."""
    weights = np.asarray(filters, dtype=np.float64)
    energy = (np.einsum("ac,uchw->uahw", _OPPONENT, weights) ** 2).sum((2, 3))
    return ratio(energy, (weights**2).sum((1, 2, 3))[:, None])


@dataclass(frozen=True)
class StemComponents(Result):
    """Principal components of the stem filters: `components` [k, channel, h, w] of unit norm, most
    energy first.

    `fractions` [min(units, channels h w)] are the fractions of the energy (variance, if `centred`)
    of all components. `frequency` and `luminance` [k] are those of the components. Uncentred
    components are the right singular vectors of the embedding, and their fractions those of its
    response to white noise. `scores` [unit, k] are the coordinates of the filters."""

    title: ClassVar[str] = "Principal components of stem filters"

    model: ModelRecord
    layer: str
    components: Annotated[np.ndarray, "component", "channel", "height", "width"]
    fractions: Annotated[np.ndarray, "energy"]
    scores: Annotated[np.ndarray, "unit", "component"]
    frequency: Annotated[np.ndarray, "component"]
    luminance: Annotated[np.ndarray, "component"]
    units: int
    centred: bool

    @property
    def null_fraction(self) -> float:
        """The fraction that the first component of iid filters of this shape exceeds in 5 % of
        cases (Tracy-Widom edge)."""
        rows = self.units - self.centred
        return tracy_widom_edge(rows, math.prod(self.components.shape[1:])) ** 2

    @checked(MeasureError)
    def needed(self, fraction: float) -> int:
        """How many components explain this fraction of the energy. Raises MeasureError unless 0 <
        fraction <= 1."""
        if not 0 < fraction <= 1:
            raise MeasureError(f"fraction must be above 0 and at most 1, not {fraction}")
        return int(np.searchsorted(np.cumsum(self.fractions), fraction * (1 - 1e-12)) + 1)

    def to_frame(self) -> pd.DataFrame:
        """One row per component: its fraction of the energy, cumulated too, frequency and
        luminance."""
        k = len(self.components)
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": self.layer,
                "component": np.arange(k),
                "fraction": self.fractions[:k],
                "cumulative_fraction": np.cumsum(self.fractions)[:k],
                "null_fraction": self.null_fraction,
                "frequency_cycles_per_pixel": self.frequency,
                "luminance_fraction": self.luminance,
            }
        )


@checked(MeasureError)
def stem_components(stem: StemFilters, k: int = 28, *, centred: bool = False) -> StemComponents:
    """The first `k` principal components of the filters (Dosovitskiy et al. 2021 show 28), by SVD
    of [unit, channel h w] in float64.

    `centred` removes the mean filter first. A component's sign is free; here the entry of largest
    magnitude (the first of those that are equal to six digits) is positive. Raises MeasureError for
    k < 1 or filters that are all alike: zero, or constant if centred."""
    rows = np.asarray(stem.filters, dtype=np.float64).reshape(len(stem), -1)
    rows = rows - rows.mean(0) if centred else rows
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    if not values[0] > 1e-12 * np.abs(stem.filters).max():
        raise MeasureError(
            f"the stem filters of {stem.model.name} are all {'equal' if centred else 'zero'}, so "
            "no component is defined"
        )
    # Rounding does not decide between entries of equal magnitude.
    size = np.abs(right[:k])
    first = (size >= (1 - 1e-6) * size.max(1, keepdims=True)).argmax(1)
    signs = np.where(right[np.arange(len(size)), first] < 0, -1.0, 1.0)
    components = (right[:k] * signs[:, None]).reshape(-1, *stem.shape[1:])
    return StemComponents(
        model=stem.model,
        layer=stem.layer,
        components=components,
        fractions=values**2 / (values**2).sum(),
        scores=left[:, :k] * values[:k] * signs,
        frequency=colour_centroid(components),
        luminance=luminance_fraction(components),
        units=len(stem),
        centred=centred,
    )
