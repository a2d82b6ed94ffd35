"""A network seen from its input: the activations of a layer as a differentiable function of an
image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import LayerError, MeasureError, ModelError
from mixer_probe.core.hooks import Call, Stop, hooked
from mixer_probe.core.switches import evaluating, frozen
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

Read = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@contextmanager
def reading(model: Model, layer: Layer) -> Iterator[Read]:
    """A function from RGB images [B, 3, h, w] in 0..1 to the layer's (positions [B, position,
    channel], prefix tokens or None), as parts of the graph. The forward pass ends there.

    The network is in eval mode inside and its parameters ask for no gradients; all is as it was
    outside, whatever happened."""
    found: list[Tensor] = []

    def see(call: Call) -> None:
        if call.number == layer.call:
            # Nothing runs after this, so nothing overwrites the tensor in place.
            found.append(call.output)
            raise Stop

    mean, std = (
        torch.tensor(v, device=model.device)[:, None, None]
        for v in (model.input.mean, model.input.std)
    )
    with (
        evaluating(model.module),
        frozen(model.module),
        torch.enable_grad(),
        hooked(model.module, [layer.module], see) as passes,
    ):

        def read(images: Tensor) -> tuple[Tensor, Tensor | None]:
            passes.run(((images - mean.to(images)) / std.to(images)).to(model.dtype))
            if not found:
                raise LayerError(
                    f"'{layer.name}' did not run in this forward pass, though it did for a blank "
                    "image"
                )
            return positions_and_prefix(found.pop(), layer)

        yield read


def for_pictures(model: Model, size: int | tuple[int, int] | None) -> Model:
    """The model for RGB images of `size` (a side, or height and width; None for its own), with the
    layers that it then has.

    Raises MeasureError for a size that the network does not take and a network of other inputs than
    RGB images."""
    if model.input.size[0] != 3 or len(model.input.mean) != 3:
        raise MeasureError(
            f"feature visualization makes RGB images, and {model.name} takes {model.input.size[0]} "
            "channels"
        )
    sides = (size, size) if isinstance(size, int) else size
    if sides is None or (3, *sides) == model.input.size:
        return model
    if len(sides) != 2 or min(sides) < 1:
        raise MeasureError(f"size is a side or (height, width) in pixels, not {size}")
    resized = replace(model, input=replace(model.input, size=(3, *sides)))
    try:
        resized.structure  # noqa: B018 - traced on first use
    except ModelError as error:
        own = "×".join(map(str, model.input.size[1:]))
        raise MeasureError(
            f"{model.name} does not take images of {sides[0]}×{sides[1]} px; leave size out for "
            f"its own {own} px"
        ) from error
    return resized


def one_layer(model: Model, name: str) -> Layer:
    """The layer of that name, or the only one of that kind ("head", "stem"). Raises LayerError for
    none and for several."""
    found = model.select(name)
    if len(found) != 1:
        raise LayerError(
            f"'{name}' stands for {len(found)} layers; give one, such as "
            f"'{found[len(found) // 2].name}'"
        )
    return found[0]
