"""Where the activations that are stitched into a network come from: another network, or noise that
knows as much of the class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture.extraction import extract
from mixer_probe.capture.hooks import capture
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import MeasureError
from mixer_probe.images import Images
from mixer_probe.linear import RidgeProbe
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

Rows = Sequence[np.ndarray]
# Noise of standard deviations between these, of class means whose channels have deviation 1, is
# read perfectly and not at all; so many halvings of the logarithm between them.
_SCALES, _HALVINGS = (1e-2, 1e3), 14


class Donor(Protocol):
    """Activations of images at several `layers`, which may be the same more than once."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Where they are taken, with the grid that they have."""

    def batches(self, images: Images, rows: Rows, fitting: bool) -> Iterator[dict[str, Tensor]]:
        """[image, position, channel] by name of the layer, for the images at each of `rows`, which
        are those to fit on or those to test on."""


@dataclass(frozen=True)
class NetworkDonor:
    """Activations of a network without its prefix tokens. In fitting, image i is given those of
    image `order[i]`, where there is an order."""

    model: Model
    layers: tuple[Layer, ...]
    order: np.ndarray | None = None

    def batches(self, images: Images, rows: Rows, fitting: bool) -> Iterator[dict[str, Tensor]]:
        """As `Donor.batches`."""
        if fitting and self.order is not None:
            rows = [self.order[index] for index in rows]

        def copied(_layer: Layer, positions: Tensor, _prefix: Tensor | None) -> Tensor:
            return positions.clone()

        layers = list({layer.name: layer for layer in self.layers}.values())
        transform = transform_of(self.model)
        for batch in images.batches(transform, [index.tolist() for index in rows]):
            # One batch at a time, for the network may be the receiver itself.
            with capture(self.model, layers, copied) as run:
                found = run(batch.to(self.model.device, self.model.dtype))
            yield found


@dataclass(frozen=True)
class NoiseDonor:
    """`values` of images to fit and to test on, [image, channel] each, by name of the layer: the
    same at all positions."""

    layers: tuple[Layer, ...]
    values: dict[str, tuple[Tensor, Tensor]]

    def batches(self, images: Images, rows: Rows, fitting: bool) -> Iterator[dict[str, Tensor]]:
        """As `Donor.batches`."""
        for index in rows:
            yield {
                layer.name: self.values[layer.name][0 if fitting else 1][index][:, None].expand(
                    -1, layer.positions, -1
                )
                for layer in self.layers
            }


def class_noise(
    model: Model,
    layers: Sequence[Layer],
    parts: tuple[Images, Images],
    labels: tuple[np.ndarray, np.ndarray],
    batch_size: int,
    seed: int,
) -> NoiseDonor:
    """Noise that tells as much of the class as the average over positions of each layer: the mean
    of the image's class, drawn from a normal distribution for each class and channel, plus normal
    noise that is independent per image and channel.

    The standard deviation of the noise is the largest at which a linear probe (`RidgeProbe`,
    fitted on the first of `parts` with its `labels`, tested on the second) is right as often as for
    the averaged activations of the layer, found by bisection with the same draws. Raises
    MeasureError for activations that are NaN or infinite."""
    names = [layer.name for layer in layers]
    runs = [extract(model, part, names, batch_size=batch_size) for part in parts]
    values = {}
    for k, layer in enumerate(layers):
        features = [np.asarray(run[layer.name]) for run in runs]
        if not all(np.isfinite(part).all() for part in features):
            raise MeasureError(
                f"the activations of {model.name} after '{layer.name}' are NaN or infinite; check "
                "the weights and the images"
            )
        rng = np.random.default_rng((seed, k))
        means = rng.standard_normal((1 + max(map(np.max, labels)), layer.channels))
        noise = [rng.standard_normal((len(y), layer.channels)) for y in labels]

        def drawn(scale: float, means: np.ndarray = means, noise: Sequence[np.ndarray] = noise):  # type: ignore[no-untyped-def]
            return [
                (means[y] + scale * e).astype(np.float32)
                for y, e in zip(labels, noise, strict=True)
            ]

        wanted = _right(features, labels)
        low, high = np.log(_SCALES)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            more = _right(drawn(np.exp(middle)), labels) >= wanted
            low, high = (middle, high) if more else (low, middle)
        fit, test = map(torch.from_numpy, drawn(np.exp((low + high) / 2)))
        values[layer.name] = fit, test
    return NoiseDonor(tuple(layers), values)


def _right(features: Sequence[np.ndarray], labels: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy of a ridge probe on the second part, fitted on the first."""
    probe = RidgeProbe(None).fit(features[0], labels[0])
    return float(np.mean(probe.predict(features[1]) == labels[1]))
