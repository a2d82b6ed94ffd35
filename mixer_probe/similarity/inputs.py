"""What similarity and probing take: representations by layer, and feature matrices in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from mixer_probe.errors import MeasureError
from mixer_probe.models.layer import Layer
from mixer_probe.results import ImagesRecord, ModelRecord

Features = np.ndarray | Tensor

# A spread below this share of the magnitude is rounding: float32 features cannot vary by so little.
CONSTANT = 1e-12


class RepresentationsLike(Protocol):
    """Representations of the same images in the layers of one network."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In execution order."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class index of each image, None without labels."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One name an image."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by index."""

    @property
    def model(self) -> ModelRecord:
        """The network."""

    @property
    def images(self) -> ImagesRecord:
        """The images."""

    @property
    def reduce(self) -> str:
        """How positions were reduced: "mean", "prefix" or "none"."""

    def __getitem__(self, name: str, /) -> np.ndarray:
        """Features of a layer: [image, channel], or [image, position, channel] where `reduce` is "none"."""


def as_matrix(X: Any, what: str) -> Tensor:
    """`X` as a float64 tensor [image, feature], on its own device where that has float64.

    Raises MeasureError for anything but two axes."""
    shape = tuple(np.shape(X))
    if len(shape) != 2 or shape[1] == 0:
        raise MeasureError(
            f"{what} has shape {shape}, but a matrix [image, feature] is needed: flatten it with "
            "X.reshape(len(X), -1) or reduce it over positions (reduce='mean') first"
        )
    if isinstance(X, Tensor):
        tensor = X.detach()
        return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)
    # A copy, because torch warns about memory that it may not write to.
    return torch.from_numpy(np.array(X, dtype=np.float64))


def centred(X: Tensor) -> Tensor:
    """`X` [n, p] minus its column means, divided by its root mean square; all NaN if `X` is constant or not
    finite.

    One scale for the whole matrix keeps fourth powers in range and changes no similarity that is
    scale-invariant."""
    X = X / X.abs().max()
    deviation = X - X.mean(0)
    power = deviation.square().mean()
    if not power > CONSTANT**2 * X.square().mean():
        return torch.full_like(X, torch.nan)
    return deviation / power.sqrt()


class LayerFeatures(Sequence[Tensor]):
    """The layers of `reps` as a sequence of `centred` float64 matrices [image, channel], read when asked for.

    `channels` are those that the layers state, `widths` those of the layers read so far, and `undefined` the
    names among them that are constant or not finite. Raises MeasureError where a layer is no such matrix."""

    def __init__(self, reps: RepresentationsLike) -> None:
        self.reps = reps
        self.channels = tuple(layer.channels for layer in reps.layers)
        self.widths: dict[str, int] = {}
        self.undefined: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.reps.layers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = self.reps.layers[index].name
        features = centred(as_matrix(layer_matrix(self.reps, name), f"layer '{name}'"))
        self.widths[name] = features.shape[1]
        if torch.isnan(features[0, 0]):
            self.undefined[name] = None
        return features


def layer_matrix(reps: RepresentationsLike, name: str) -> np.ndarray:
    """Features [image, channel] of a layer.

    Raises MeasureError if it has positions, or not one row per image."""
    features = np.asarray(reps[name])
    if features.ndim != 2:
        raise MeasureError(
            f"layer '{name}' of {reps.model.name} has shape {features.shape}, but [image, channel] "
            "is needed: extract with reduce='mean' or reduce='prefix'"
        )
    if len(features) != len(reps.ids):
        raise MeasureError(f"layer '{name}' has {len(features)} rows for {len(reps.ids)} images")
    return features
