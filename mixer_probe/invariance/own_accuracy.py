"""Accuracy of a network's own classifier on the images of a study, the context of every other
number."""

from __future__ import annotations

import math

import numpy as np
import torch

from mixer_probe import zoo
from mixer_probe.capture import Representations
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.switches import evaluating
from mixer_probe.invariance.predictions import Source, predictions
from mixer_probe.models.card import OwnAccuracy
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.model import Model
from mixer_probe.stats import wilson_interval

_BUNDLED = "bundled checkpoint "


def own_accuracy(
    model: Model, images: Source, reps: Representations | None = None, batch_size: int = 64
) -> OwnAccuracy:
    """The accuracy of the network on labelled images, whose classes are found among its outputs by
    name (`labels_as_outputs`).

    `reps` are its representations of these images; where they hold the head that gives the logits,
    no image is passed again. Images without labels, classes that are no outputs and networks
    without a classifier give an accuracy that is NaN, with the reason. Raises ImagesError for an
    image that cannot be decoded."""
    # What the card of a bundled network states, and on which images.
    stated, stated_on, source = math.nan, "", model.weights.source
    if source.startswith(_BUNDLED):
        card = zoo.card(source.removeprefix(_BUNDLED))
        stated, stated_on = card.test_accuracy, f"{card.test_images:,} CIFAR-10 test images"
    try:
        labels = labels_as_outputs(model, images, "the accuracy of a network")
    except (ImagesError, MeasureError) as error:
        why = "no labels" if images.labels is None else "classes not matched"
        return OwnAccuracy(0, 0, math.nan, math.nan, math.nan, stated, stated_on, why, str(error))
    logits = None if reps is None else _logits(model, images, reps)
    predicted = (
        predictions(model, images, batch_size=batch_size)[0][0]
        if logits is None
        else logits.argmax(axis=1)
    )
    right, n = int((predicted == labels).sum()), len(labels)
    low, high = wilson_interval(right, n)
    return OwnAccuracy(
        right,
        n,
        low,
        high,
        float(np.unique(labels, return_counts=True)[1].max() / n),
        stated,
        stated_on,
    )


def _logits(model: Model, images: Source, reps: Representations) -> np.ndarray | None:
    """Logits [image, class] among the representations of these images: those of a head that are the
    network's outputs for the first of them."""
    heads = [layer.name for layer in reps.layers if layer.kind == "head"]
    if not heads or keys_of(reps) != images.keys:
        return None
    first = next(iter(images.batches(transform_of(model), 2)))
    with evaluating(model.module), torch.no_grad():
        outputs = model.module(first.to(model.device, model.dtype)).double().cpu().numpy()
    found = reps[heads[-1]]
    if (
        found.ndim != 2
        or not np.isfinite(found).all()
        or found[: len(outputs)].shape != outputs.shape
    ):
        return None
    return (
        found
        if np.allclose(
            found[: len(outputs)], outputs, rtol=1e-3, atol=1e-3 * float(np.abs(outputs).max())
        )
        else None
    )
