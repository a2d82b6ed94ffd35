"""A network as a function of its logits: targets, gradients at any module, and the patches that it
sees."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mixer_probe.capture import ImageSource
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.hooks import Call, hooked
from mixer_probe.core.switches import evaluating, frozen
from mixer_probe.models.classes import labels_as_outputs
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

Target = int | str | Sequence[int] | np.ndarray | Tensor | None
# A module's path, and which of its calls in a forward pass.
Place = tuple[str, int]
# Warnings in which captum reports what it does.
_CAPTUM_WARNINGS = (
    ".*did not already require gradients.*",
    ".*required_grads has been set.*",
    r"(?s)\s*Setting forward, backward.*",
)


@contextmanager
def attribution_mode(model: Model) -> Iterator[None]:
    """Eval mode, gradients for inputs and none for parameters inside; everything as it was
    outside."""
    with ExitStack() as stack:
        for context in (
            evaluating(model.module),
            frozen(model.module),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            stack.enter_context(context)
        for message in _CAPTUM_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def logits_of(model: Model, x: Tensor) -> Tensor:
    """Logits [B, K] of images [B, 3, H, W]. Raises MeasureError for a network that returns anything
    else."""
    if tuple(x.shape[1:]) != model.input.size:
        raise ImagesError(
            f"the images are {tuple(x.shape[1:])} and {model.name} takes {model.input.size}"
        )
    logits = model.module(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MeasureError(
            f"attribution needs one output per class and image, and {model.name} returns {shape}, "
            "not [image, class]"
        )
    return logits


def gather_target_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of every image's target [B], from logits [B, K]."""
    return logits.gather(1, targets[:, None])[:, 0]


def target_sum(targets: Tensor) -> Callable[[Tensor], Tensor]:
    """The sum over images of their targets' logits, as a function of logits [B, K]."""
    return lambda logits: gather_target_logits(logits, targets).sum()


def target_logits(model: Model, x: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Logits of the targets [B] in float64, without gradients, from at most `chunk` images per
    pass."""
    with torch.no_grad():
        parts = zip(torch.split(x, chunk), torch.split(targets, chunk), strict=True)
        return torch.cat([gather_target_logits(logits_of(model, a), t).double() for a, t in parts])


class Targets:
    """The target class of each image: one index for all, one per image, "labels" (by the names of
    their classes, as `labels_as_outputs` finds them), or (None) the predicted class.

    Raises MeasureError for a class that the network does not have, a number of targets other than
    the number of images, and None for a network without a head; and what `labels_as_outputs` raises
    for "labels"."""

    def __init__(self, model: Model, source: ImageSource, target: Target) -> None:
        blank = torch.zeros(2, *model.input.size, device=model.device, dtype=model.dtype)
        with attribution_mode(model), torch.no_grad():
            count = logits_of(model, blank).shape[1]
        self._given: np.ndarray | None = None
        if target is None:
            if getattr(model.module, "num_classes", None) == 0 or all(
                layer.kind != "head" for layer in model.layers
            ):
                raise MeasureError(
                    f"{model.name} has no classifier, so no class is predicted: give target= the "
                    f"output (0 to {count - 1}) to attribute, or load the network with its head"
                )
            return
        if isinstance(target, str):
            if target != "labels":
                raise MeasureError(
                    "target is a class index, one per image, 'labels' or None (the predicted "
                    f"class), not '{target}'"
                )
            values = labels_as_outputs(model, source, "target='labels'")
        else:
            values = (
                target.detach().cpu().numpy() if isinstance(target, Tensor) else np.asarray(target)
            )
            values = np.broadcast_to(values, len(source)) if values.ndim == 0 else values
        if values.shape != (len(source),) or values.dtype.kind not in "iu":
            raise MeasureError(
                f"target is one class index or one for each of the {len(source)} images, not "
                f"{np.shape(values)}"
            )
        wrong = values[(values < 0) | (values >= count)]
        if len(wrong):
            raise MeasureError(
                f"{model.name} has no class {wrong[0]}: its {count} classes are 0 to {count - 1}"
            )
        self._given = values.astype(np.int64)

    def of(self, logits: Tensor, start: int) -> Tensor:
        """Targets [B] of the images from `start` on, whose logits are [B, K]."""
        if self._given is None:
            return logits.argmax(1)
        return torch.from_numpy(self._given[start : start + len(logits)]).to(logits.device)


@contextmanager
def record_outputs(network: nn.Module, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """What the modules (path, call) return in the next forward pass, as parts of its graph.

    The network continues with a copy, so that an in-place ReLU after the module does not overwrite
    what was recorded."""
    outputs: dict[Place, Tensor] = {}
    wanted = set(places)

    def record(call: Call) -> Tensor | None:
        if (call.path, call.number) not in wanted:
            return None
        output: Tensor = call.output
        outputs[call.path, call.number] = output
        return output.clone()

    with hooked(network, (path for path, _ in places), record):
        yield outputs


def values_and_gradients(
    model: Model,
    places: Sequence[Place],
    x: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    pixels: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """What each module returned and the gradient of score(logits) by it, in raw layouts; those of
    the `pixels` first if asked."""
    x = x.detach().clone().requires_grad_()
    with record_outputs(model.module, places) as outputs:
        total = score(logits_of(model, x))
    values = [*([x] if pixels else []), *(outputs[place] for place in places)]
    gradients = torch.autograd.grad(total, values, allow_unused=True)
    return [
        (v.detach(), torch.zeros_like(v) if g is None else g)
        for v, g in zip(values, gradients, strict=True)
    ]


def tokens_read(model: Model, layer: Layer) -> tuple[bool, np.ndarray]:
    """Whether any position of the layer's output moves a logit, and which tokens do: [prefix +
    positions] booleans.

    Found by a gradient on two images of noise, so that it holds for class tokens, averages and
    attention pooling alike."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, *model.input.size)
    x = torch.randn(shape, generator=generator).to(model.device, model.dtype)

    def mixed(logits: Tensor) -> Tensor:
        return (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum()

    with attribution_mode(model):
        _, gradient = values_and_gradients(model, [(layer.module, layer.call)], x, mixed)[0]
    positions, prefix = positions_and_prefix(gradient, layer)
    tokens = positions if prefix is None else torch.cat([prefix, positions], 1)
    read = (tokens != 0).any(-1).any(0).cpu().numpy()
    return bool((positions != 0).any()), read


def last_block(model: Model) -> Layer:
    """The last block as a layer; its last call, where it runs several times."""
    return model.layer(model.structure.runs[-1].name)


def patch_grid(model: Model) -> tuple[int, int]:
    """(rows, columns) of the patches that the network sees at its last block.

    Raises MeasureError for a network whose last block has no grid."""
    layer = last_block(model)
    if layer.grid is None:
        raise MeasureError(f"the tokens of {model.name} form no known grid, so it has no patches")
    return layer.grid
