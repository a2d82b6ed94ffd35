"""The class that a network sees in each image, plain and under distortions, with every image decoded once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture.heap import kept_heap
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, MeasureError, NonFiniteWarning
from mixer_probe.core.progress import task
from mixer_probe.core.switches import evaluating
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import DistortedImages, Distortion, image_numbers
from mixer_probe.images.labelled import Images
from mixer_probe.images.transforms import split_transform
from mixer_probe.models.model import Model

Source = Images | DistortedImages


@checked(MeasureError)
def predictions(
    model: Model, images: Source, distortions: Sequence[Distortion] = (), batch_size: int = 64
) -> tuple[np.ndarray, int]:
    """Predicted classes [1 + distortion, image], row 0 of the plain images, and how many classes the network tells apart.

    Logits that are NaN or infinite give the class -1, with a NonFiniteWarning. Raises MeasureError for a network that returns
    anything but one number a class, and for a distortion given twice; ImagesError for one that does not fit the images."""
    if len(set(distortions)) < len(distortions):
        twice = next(d for i, d in enumerate(distortions) if d in distortions[:i])
        raise MeasureError(f"'{twice.label}' is among the distortions twice")
    found = np.empty((1 + len(distortions), len(images)), dtype=np.int64)
    classes, bad, start = 0, 0, 0
    on_cpu = model.device.type == "cpu"
    with (
        task(f"{model.name}: distortions", found.size) as advance,
        kept_heap if on_cpu else nullcontext(),
        evaluating(model.module),
        torch.no_grad(),
    ):
        for variants in _variants(model, images, distortions, batch_size):
            for row, x in enumerate(variants):
                logits = _logits(model, x)
                finite = logits.isfinite().all(1)
                found[row, start : start + len(x)] = torch.where(finite, logits.argmax(1), -1).cpu().numpy()
                classes, bad = logits.shape[1], bad + int((~finite).sum())
                advance(len(x))
            start += len(x)
    if bad:
        warnings.warn(
            f"{bad} predictions of {model.name} are undefined, because its logits are NaN or infinite",
            NonFiniteWarning,
            stacklevel=5,
        )
    return found, classes


def _variants(model: Model, images: Source, distortions: Sequence[Distortion], batch_size: int) -> Iterator[Iterator[Tensor]]:
    """For each batch of images its inputs, plain and then under each distortion."""
    if not isinstance(images, (Images, DistortedImages)):
        raise ImagesError(f"distortions need images from load_images, not a {type(images).__name__}")
    to_pixels, normalise = split_transform(transform_of(model))
    numbers, start = image_numbers(images.ids), 0
    for batch in images.batches(to_pixels, batch_size):
        index = numbers[start : start + len(batch)]
        start += len(batch)
        yield (normalise(x) for x in _each(batch, index, distortions))


def _each(batch: Tensor, index: Sequence[int], distortions: Sequence[Distortion]) -> Iterator[Tensor]:
    yield batch
    for distortion in distortions:
        yield distortion(batch, index)


def _logits(model: Model, x: Tensor) -> Tensor:
    """[B, K]. Raises MeasureError for anything else."""
    logits = model.module(x.to(model.device, model.dtype, non_blocking=True))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or getattr(model.module, "num_classes", None) == 0:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MeasureError(
            f"{model.name} returns {shape} and has no classifier, so it predicts no class: load it with its head, "
            "or compare its representations (representation_shift)"
        )
    return logits
