"""Forward passes over images in which calls of modules are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError
from mixer_probe.core.hooks import Call, hooked
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord
from mixer_probe.core.switches import evaluating, frozen, unfused
from mixer_probe.models.model import Model


def forward_passes(
    model: Model,
    images: ImageSource | torch.Tensor,
    paths: Iterable[str],
    after: Callable[[Call], Any],
    before: Callable[[Call], None] | None = None,
    *,
    batch_size: int,
    title: str,
    gradients: bool = False,
) -> Iterator[torch.Tensor]:
    """The network's output of each batch of images, in order.

    `after` and `before` see the calls of the modules at `paths`, with attention maps unfused; what
    `after` returns, unless None, replaces the output. With `gradients` tensors that ask for
    gradients have them; parameters ask for none. Between batches the network is as before. Raises
    ImagesError for images of another size than the network's."""
    source, wanted = as_source(images), list(paths)
    with task(title, len(source)) as advance:
        for batch in source.batches(transform_of(model), batch_size):
            if tuple(batch.shape[1:]) != model.input.size:
                raise ImagesError(
                    f"the images are {tuple(batch.shape[1:])} and {model.name} takes "
                    f"{model.input.size}"
                )
            network = model.module
            with ExitStack() as stack:
                for context in (evaluating, frozen, unfused):
                    stack.enter_context(context(network))
                stack.enter_context(torch.set_grad_enabled(gradients))
                passes = stack.enter_context(hooked(network, wanted, after, before))
                output = passes.run(batch.to(model.device, model.dtype))
            yield output
            advance(len(batch))


def images_record(images: ImageSource | torch.Tensor) -> ImagesRecord:
    """What a result says about its images."""
    return as_source(images).record
