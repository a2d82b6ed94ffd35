"""The real images that an optimised one is shown beside: how strongly each drives the units, and the strongest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture import ImageSource, TensorImages, stream
from mixer_probe.images import load_images, model_transform
from mixer_probe.models.model import Model
from mixer_probe.visualization.objectives import Objective

# Larger inputs would see CIFAR's 32 px as a blur.
_LARGEST_FOR_DEMO = 64


def default_images(model: Model) -> ImageSource:
    """The bundled images nearest in size to what the network takes: "demo" (32 px) or "photos" (299 px)."""
    return load_images("demo" if max(model.input.size[1:]) <= _LARGEST_FOR_DEMO else "photos")


def pixels(model: Model, source: ImageSource, batch_size: int) -> Iterator[Tensor]:
    """The images as the network sees them, before its normalisation: RGB [n, 3, h, w] in 0..1."""
    spec = model.input
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    finished = isinstance(source, TensorImages)
    transform = model_transform(spec.size, (0.0,) * 3, (1.0,) * 3, spec.interpolation, spec.crop_pct)
    for batch in source.batches(transform, batch_size):
        # Tensors are finished inputs, to which no transform is applied.
        yield (batch.cpu() * std.to(batch.dtype) + mean.to(batch.dtype)).clamp(0, 1) if finished else batch


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
