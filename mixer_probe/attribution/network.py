"""A network seen from its logits: outputs, targets, gradients at any module, attention made visible."""

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


# What captum says about its own doings.
_CAPTUM_SAYS = (
    ".*did not already require gradients.*",
    ".*required_grads has been set.*",
    r"(?s)\s*Setting forward, backward.*",
)


@contextmanager
def explaining(model: Model) -> Iterator[None]:
    """Eval mode, gradients for inputs and none for parameters inside; everything as it was outside."""
    with ExitStack() as stack:
        for context in (evaluating(model.module), frozen(model.module), torch.enable_grad(), warnings.catch_warnings()):
            stack.enter_context(context)
        for message in _CAPTUM_SAYS:
            warnings.filterwarnings("ignore", message=message)
        yield


def logits_of(model: Model, x: Tensor) -> Tensor:
    """[B, K] from images [B, 3, H, W]. Raises MeasureError for a network that returns anything else."""
    if tuple(x.shape[1:]) != model.input.size:
        raise ImagesError(f"the images are {tuple(x.shape[1:])} and {model.name} takes {model.input.size}")
    logits = model.module(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MeasureError(
            f"attribution needs one output per class and image, and {model.name} returns {shape}, not [image, class]"
        )
    return logits


def chosen(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of every image's target [B]."""
    return logits.gather(1, targets[:, None])[:, 0]


def target_logits(model: Model, x: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """[B] in float64, without gradients, at most `chunk` images a pass."""
    with torch.no_grad():
        parts = zip(torch.split(x, chunk), torch.split(targets, chunk), strict=True)
        return torch.cat([chosen(logits_of(model, a), t).double() for a, t in parts])


class Targets:
    """Which class is explained of each image: one for all, one an image, the "labels" (by the names of their classes, as
    `labels_as_outputs` finds them), or (None) the predicted class.

    Raises MeasureError for a class that the network does not have, a number of targets other than the number of images, and
    None for a network without a head; and what `labels_as_outputs` raises for "labels"."""

    def __init__(self, model: Model, source: ImageSource, target: Target) -> None:
        blank = torch.zeros(2, *model.input.size, device=model.device, dtype=model.dtype)
        with explaining(model), torch.no_grad():
            self.outputs = logits_of(model, blank).shape[1]
        self._given = self._resolve(model, source, target)
        if self._given is None and not _has_head(model):
            raise MeasureError(
                f"{model.name} has no classifier, so no class is predicted: give target= the output (0 to "
                f"{self.outputs - 1}) to attribute, or load the network with its head"
            )

    def _resolve(self, model: Model, source: ImageSource, target: Target) -> np.ndarray | None:
        if target is None:
            return None
        if isinstance(target, str):
            values = self._labels(model, source, target)
        else:
            raw = target.detach().cpu().numpy() if isinstance(target, Tensor) else np.asarray(target)
            values = np.broadcast_to(raw, len(source)) if raw.ndim == 0 else raw
        if values.shape != (len(source),) or values.dtype.kind not in "iu":
            raise MeasureError(f"target is one class index or one for each of the {len(source)} images, not {np.shape(values)}")
        wrong = [int(v) for v in values if not 0 <= v < self.outputs]
        if wrong:
            raise MeasureError(f"{model.name} has no class {wrong[0]}: its {self.outputs} classes are 0 to {self.outputs - 1}")
        return values.astype(np.int64)

    @staticmethod
    def _labels(model: Model, source: ImageSource, word: str) -> np.ndarray:
        if word != "labels":
            raise MeasureError(f"target is a class index, one per image, 'labels' or None (the predicted class), not '{word}'")
        return labels_as_outputs(model, source, "target='labels'")

    def of(self, logits: Tensor, start: int) -> Tensor:
        """Targets [B] of the images from `start` on, whose logits are [B, K]."""
        if self._given is None:
            return logits.argmax(1)
        return torch.from_numpy(self._given[start : start + len(logits)]).to(logits.device)


def _has_head(model: Model) -> bool:
    return getattr(model.module, "num_classes", None) != 0 and any(layer.kind == "head" for layer in model.layers)


@contextmanager
def tapped(network: nn.Module, places: Sequence[tuple[str, int]]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """What the modules (path, call) return in the next forward pass, as parts of its graph.

    The network goes on with a copy, so that an in-place ReLU after the module does not overwrite what was caught."""
    caught: dict[tuple[str, int], Tensor] = {}
    wanted = set(places)

    def see(call: Call) -> Tensor | None:
        if (call.path, call.number) not in wanted:
            return None
        output: Tensor = call.output
        caught[call.path, call.number] = output
        return output.clone()

    with hooked(network, (path for path, _ in places), see):
        yield caught


def values_and_gradients(
    model: Model, places: Sequence[tuple[str, int]], x: Tensor, score: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """What each module returned and the gradient of score(logits) by it, raw layouts."""
    x = x.detach().clone().requires_grad_()
    with tapped(model.module, places) as caught:
        total = score(logits_of(model, x))
    values = [caught[place] for place in places]
    gradients = torch.autograd.grad(total, values, allow_unused=True)
    return [(v.detach(), torch.zeros_like(v) if g is None else g) for v, g in zip(values, gradients, strict=True)]


def tokens_read(model: Model, layer: Layer) -> tuple[bool, np.ndarray]:
    """Whether any position of the layer's output moves a logit, and which tokens do: [prefix + positions] booleans.

    Found by a gradient on two images of noise, so that it holds for class tokens, averages and attention pooling alike."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, *model.input.size)
    x = torch.randn(shape, generator=generator).to(model.device, model.dtype)

    def mixed(logits: Tensor) -> Tensor:
        return (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum()

    with explaining(model):
        _, gradient = values_and_gradients(model, [(layer.module, layer.call)], x, mixed)[0]
    positions, prefix = positions_and_prefix(gradient, layer)
    everything = positions if prefix is None else torch.cat([prefix, positions], 1)
    read = (everything != 0).any(-1).any(0).cpu().numpy()
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
