"""Predicted classes of undistorted and distorted images, with every image decoded once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
    """Predicted classes [1 + distortion, image], row 0 of the undistorted images, and the number of
    classes.

    Logits that are NaN or infinite give the class -1, with a NonFiniteWarning. Raises MeasureError
    for a network that returns anything but one number per class, and for a distortion given twice;
    ImagesError for one that does not fit the images."""
    if len(set(distortions)) < len(distortions):
        twice = next(d for i, d in enumerate(distortions) if d in distortions[:i])
        raise MeasureError(f"'{twice.label}' is among the distortions twice")
    if not isinstance(images, (Images, DistortedImages)):
        raise ImagesError(
            f"distortions need images from load_images, not a {type(images).__name__}"
        )
    found = np.empty((1 + len(distortions), len(images)), dtype=np.int64)
    to_pixels, normalise = split_transform(transform_of(model))
    numbers, classes, bad, start = image_numbers(images.ids), 0, 0, 0
    with (
        task(f"{model.name}: distortions", found.size) as advance,
        kept_heap if model.device.type == "cpu" else nullcontext(),
        evaluating(model.module),
        torch.no_grad(),
    ):
        for batch in images.batches(to_pixels, batch_size):
            rows = slice(start, start + len(batch))
            for row in range(len(found)):
                x = normalise(distortions[row - 1](batch, numbers[rows]) if row else batch)
                logits = model.module(x.to(model.device, model.dtype, non_blocking=True))
                if (
                    not isinstance(logits, Tensor)
                    or logits.ndim != 2
                    or getattr(model.module, "num_classes", None) == 0
                ):
                    shape = (
                        tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                    )
                    raise MeasureError(
                        f"{model.name} returns {shape} and has no classifier, so it predicts no "
                        "class: load it with its head, or compare its representations "
                        "(representation_shift)"
                    )
                finite = logits.isfinite().all(1)
                found[row, rows] = torch.where(finite, logits.argmax(1), -1).cpu().numpy()
                classes, bad = logits.shape[1], bad + int((~finite).sum())
                advance(len(x))
            start += len(batch)
    if bad:
        warnings.warn(
            f"{bad} predictions of {model.name} are undefined, because its logits are NaN or "
            "infinite",
            NonFiniteWarning,
            stacklevel=5,
        )
    return found, classes


def disagreements(
    wrong: np.ndarray, right: np.ndarray | None = None, *, both_undistorted: bool = True
) -> np.ndarray:
    """Indices of the images that one network gets wrong when distorted and another, if given, still
    gets right.

    `wrong` and `right` [2, image] say for each whether it is right on the undistorted (row 0) and
    the distorted image (row 1). With `both_undistorted` only images that they get right undistorted
    count: errors are then due to the distortion."""
    chosen, given = ~wrong[1], [wrong] if right is None else [wrong, right]
    if right is not None:
        chosen = chosen & right[1]
    for answers in given if both_undistorted else []:
        chosen = chosen & answers[0]
    return np.flatnonzero(chosen)
