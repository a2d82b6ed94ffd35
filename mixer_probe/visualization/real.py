"""The real images that an optimised one is shown beside: how strongly each drives the units, and the strongest."""

from __future__ import annotations

import numpy as np

from mixer_probe.capture import ImageSource, stream
from mixer_probe.images import load_images
from mixer_probe.models.model import Model
from mixer_probe.visualization.objectives import Objective

# Larger inputs would see CIFAR's 32 px as a blur.
_LARGEST_FOR_DEMO = 64


def default_images(model: Model) -> ImageSource:
    """The bundled images nearest in size to what the network takes: "demo" (32 px) or "photos" (299 px)."""
    return load_images("demo" if max(model.input.size[1:]) <= _LARGEST_FOR_DEMO else "photos")


def real_values(model: Model, source: ImageSource, objective: Objective, batch_size: int) -> np.ndarray:
    """The objective of every unit for every image: [image, unit] in float64."""
    title = f"{model.name}: real images"
    pieces = stream(model, source, [objective.layer], objective.of_all, batch_size=batch_size, title=title)
    return np.concatenate([piece.found[objective.layer.name].cpu().numpy() for piece in pieces])


def strongest(values: np.ndarray, k: int) -> np.ndarray:
    """Indices [unit, k] of the images with the largest values [image, unit], of equals the first; NaN comes last."""
    known = np.where(np.isnan(values), -np.inf, values)
    return np.argsort(-known, axis=0, kind="stable")[:k].T


def percentiles(reached: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Percentage of the values [image] below each of `reached`, equal ones counted half; NaN where that is NaN."""
    known = np.sort(values[np.isfinite(values)])
    if not len(known):
        return np.full(reached.shape, np.nan)
    rank = (np.searchsorted(known, reached, "left") + np.searchsorted(known, reached, "right")) / 2
    return np.where(np.isnan(reached), np.nan, 100 * rank / len(known))
