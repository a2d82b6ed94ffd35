"""Accuracy of a network's own classifier on the images of a study, the context of every other
number."""

from __future__ import annotations

import math

import numpy as np
import torch

from mixer_probe import zoo
from mixer_probe.capture import Representations
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.fingerprint import keys_of
from mixer_probe.core.hooks import Call, hooked
from mixer_probe.core.memory import at_once, slices
from mixer_probe.core.switches import evaluating
from mixer_probe.invariance.predictions import Source, predictions
from mixer_probe.models.card import OwnAccuracy
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.layer import Layer
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
    predicted = None if reps is None else _classes(model, images, reps)
    if predicted is None:
        predicted = predictions(model, images, batch_size=batch_size)[0][0]
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


def _classes(model: Model, images: Source, reps: Representations) -> np.ndarray | None:
    """Predicted classes [image] by the representations of these images: by the last head, if what
    it returns are the logits, and they are finite."""
    heads = [layer for layer in reps.layers if layer.kind == "head"]
    if (
        not heads
        or reps.model.fingerprint != model.fingerprint
        or keys_of(reps) != images.keys
        or reps.non_finite.get(heads[-1].name)
        or not _gives_logits(model, heads[-1])
    ):
        return None
    name, size = heads[-1].name, at_once(4 * heads[-1].channels)
    parts = (reps.rows(name, part).argmax(axis=1) for part in slices(len(reps.ids), size))
    return np.concatenate(list(parts))


def _gives_logits(model: Model, head: Layer) -> bool:
    """Whether a layer returns what the network returns, for inputs of noise."""
    noise = torch.randn(2, *model.input.size, generator=torch.Generator().manual_seed(0))
    found: list[torch.Tensor] = []

    def see(call: Call) -> None:
        if call.number == head.call:
            found.append(call.output.clone())

    with evaluating(model.module), torch.no_grad(), hooked(model.module, [head.module], see) as run:
        output = run.run(noise.to(model.device, model.dtype))
    return (
        isinstance(output, torch.Tensor)
        and output.ndim == 2
        and found[0].shape == output.shape
        and torch.allclose(
            found[0].double(), output.double(), rtol=1e-3, atol=1e-3 * float(output.abs().max())
        )
    )
