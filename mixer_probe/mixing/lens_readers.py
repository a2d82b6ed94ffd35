"""What reads the class from the residual stream: the network's own last layers (logit lens), the
mean derivative of its logits (Jacobian lens), and ridge probes.

Activations are [image, place, channel]: the places of a layer are its prefix tokens, then its
positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture.hooks import capture
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.hooks import Call, hooked
from mixer_probe.core.memory import LARGE, at_once
from mixer_probe.core.progress import task
from mixer_probe.core.switches import evaluating, frozen, not_in_place
from mixer_probe.images import Images
from mixer_probe.linear import RidgeProbe
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

# A block keeps about so many tensors of the size of its output for the derivatives.
_TENSORS_PER_BLOCK = 24


def places(output: Tensor, layer: Layer) -> Tensor:
    """A raw output as [image, place, channel]."""
    positions, prefix = positions_and_prefix(output, layer)
    return positions if prefix is None else torch.cat([prefix, positions], 1)


def pooled(places: Tensor, prefix: int) -> Tensor:
    """[..., prefix + 1, channel] of [..., place, channel]: prefix tokens, and the mean over
    positions."""
    return torch.cat([places[..., :prefix, :], places[..., prefix:, :].mean(-2, keepdim=True)], -2)


@dataclass(frozen=True)
class JacobianLens:
    """A linear map from activations h of a layer to logits: J (h - `mean`) + `logits`.

    `jacobian` J [class, place, channel] is the mean over images of the derivative of the logits
    with respect to h, `mean` [place, channel] and `logits` [class] are the means of the activations
    and of the logits over the same images. J and logits have the mean over classes 0."""

    jacobian: Tensor
    mean: Tensor
    logits: Tensor
    prefix: int

    def read(self, h: Tensor) -> Tensor:
        """Logits [image, class] of activations [image, place, channel]."""
        away = h.to(self.mean.dtype) - self.mean
        return away.flatten(1) @ self.jacobian.flatten(1).T + self.logits

    @property
    def averaged(self) -> JacobianLens:
        """The same with one J for all positions, its mean over them; each prefix token keeps its
        own."""
        mean = self.jacobian[:, self.prefix :].mean(1, keepdim=True)
        same = mean.expand(-1, self.jacobian.shape[1] - self.prefix, -1)
        return replace(self, jacobian=torch.cat([self.jacobian[:, : self.prefix], same], 1))

    @property
    def cosine(self) -> float:
        """Cosine between J and J averaged over positions, both as vectors over classes, positions
        and channels; NaN where J is exactly zero at all positions."""
        own = self.jacobian[:, self.prefix :]
        energy = float(own.square().sum())
        same = own.shape[1] * float(own.mean(1).square().sum())
        return float(np.sqrt(same / energy)) if energy else np.nan


def jacobian_lenses(
    model: Model, images: Images, layers: Sequence[Layer], classes: Sequence[int]
) -> dict[str, JacobianLens]:
    """The Jacobian lens of every layer by name, for some outputs of the network.

    One forward pass per image, and one backward pass per class, which gives the derivatives at all
    layers. Memory is that of the graph of a few images."""
    wanted, found = {(layer.module, layer.call): layer for layer in layers}, dict[str, Tensor]()
    shapes = {
        layer.name: (layer.prefix_tokens + max(layer.positions, 1), layer.channels)
        for layer in layers
    }
    jacobian = {
        name: torch.zeros(len(classes), *shape, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    mean = {name: torch.zeros(*shape, dtype=torch.float64) for name, shape in shapes.items()}
    logits = torch.zeros(len(classes), dtype=torch.float64)
    bytes_each = sum(p * c for p, c in shapes.values()) * _TENSORS_PER_BLOCK * model.dtype.itemsize

    def record(call: Call) -> Tensor | None:
        layer = wanted.get((call.path, call.number))
        if layer is None:
            return None
        output: Tensor = call.output
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        found[layer.name] = output
        # The network goes on with a copy, which an operation in place may overwrite.
        return output.clone()

    with ExitStack() as stack:
        for context in (
            evaluating(model.module),
            frozen(model.module),
            not_in_place(model.module),
            torch.enable_grad(),
        ):
            stack.enter_context(context)
        passes = stack.enter_context(hooked(model.module, {p for p, _ in wanted}, record))
        advance = stack.enter_context(task(f"{model.name}: Jacobian lens", len(images)))
        for batch in images.batches(transform_of(model), min(32, at_once(bytes_each, 2 * LARGE))):
            found.clear()
            out = passes.run(batch.to(model.device, model.dtype))[:, list(classes)]
            at = [found[layer.name] for layer in layers]
            for k in range(len(classes)):
                slopes = torch.autograd.grad(
                    out[:, k].sum(), at, retain_graph=k + 1 < len(classes), materialize_grads=True
                )
                for layer, slope in zip(layers, slopes, strict=True):
                    jacobian[layer.name][k] += places(slope, layer).sum(0).double().cpu()
            for layer, h in zip(layers, at, strict=True):
                mean[layer.name] += places(h.detach(), layer).sum(0).double().cpu()
            logits += out.detach().sum(0).double().cpu()
            advance(len(batch))
    n = len(images)
    return {
        layer.name: JacobianLens(
            _centred(jacobian.pop(layer.name).div_(n)),
            mean[layer.name] / n,
            _centred(logits / n),
            layer.prefix_tokens,
        )
        for layer in layers
    }


def _centred(values: Tensor) -> Tensor:
    """[class, ...] minus the mean over classes, in place."""
    return values.sub_(values.mean(0))


def unlike_last(layer: Layer, last: Layer) -> str:
    """Why the part of the network after its `last` block cannot read a layer; "" where it can."""
    shapes = []
    for a in (layer, last):
        grid = f"a grid of {a.grid[0]}×{a.grid[1]}" if a.grid else f"{a.positions} positions"
        plural = "" if a.prefix_tokens == 1 else "s"
        shapes.append(f"{a.channels} channels, {grid} and {a.prefix_tokens} prefix token{plural}")
    if shapes[0] != shapes[1]:
        return f"{layer.name} has {shapes[0]}; {last.name} has {shapes[1]}"
    if layer.axes != last.axes:
        return f"{layer.name} has the axes {layer.axes}; {last.name} has {last.axes}"
    return ""


def logit_lens(
    model: Model,
    images: Images,
    layers: Sequence[Layer],
    also: Sequence[Layer] = (),
    batch_size: int = 32,
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Logits [layer, image, output] by the part of the network after the last of `layers`, its last
    block, given the output of each layer instead (the last are the network's own); and the
    activations [image, place, channel] by name of the layers `also`, from the same passes.

    All layers are read in one forward pass: what the last block returns is replaced by the outputs
    of all layers, as a larger batch. For a network whose last part looks back at the batch before,
    so that its own logits would not come out, a pass per layer takes its place. The outputs must
    have the form of that of the last block (`unlike_last`)."""
    wanted = {(layer.module, layer.call): layer for layer in (*also, *layers)}
    names, keep = [layer.name for layer in layers], [layer.name for layer in also]
    found, kept = dict[str, Tensor](), {name: list[Tensor]() for name in keep}

    def replaced(x: Tensor, chosen: Sequence[str]) -> Tensor:
        def put(call: Call) -> Tensor | None:
            layer = wanted.get((call.path, call.number))
            if layer is not None and layer.name in {*chosen, *keep}:
                found[layer.name] = call.output.clone()
            if layer is None or layer.name != names[-1]:
                return None
            return torch.cat([found[name] for name in chosen])

        found.clear()
        with hooked(model.module, {path for path, _ in wanted}, put) as passes:
            logits: Tensor = passes.run(x)
        return logits.double().cpu().reshape(len(chosen), len(x), -1)

    groups, parts = list[list[str]](), list[Tensor]()
    with (
        evaluating(model.module),
        torch.no_grad(),
        task(f"{model.name}: logit lens", len(images)) as advance,
    ):
        for batch in images.batches(transform_of(model), batch_size):
            x = batch.to(model.device, model.dtype)
            if not groups:
                own = model.module(x).double().cpu()
                try:
                    read = replaced(x, names)[-1]
                except RuntimeError:
                    read = torch.full_like(own, torch.nan)
                near = 1e-3 * float(own.abs().max().nan_to_num())
                same = torch.allclose(read, own, rtol=1e-3, atol=near)
                groups = [names] if same else [[name] for name in names]
            parts.append(torch.cat([replaced(x, group) for group in groups]))
            for layer in also:
                kept[layer.name].append(places(found[layer.name], layer).cpu())
            advance(len(batch))
    return torch.cat(parts, 1).numpy(), {name: torch.cat(all_) for name, all_ in kept.items()}


def activations(
    model: Model, images: Images, layers: Sequence[Layer], batch_size: int = 32
) -> dict[str, Tensor]:
    """Activations [image, place, channel] of all images by name of the layer."""

    def copied(_layer: Layer, positions: Tensor, prefix: Tensor | None) -> Tensor:
        return positions.clone() if prefix is None else torch.cat([prefix, positions], 1)

    kept = {layer.name: list[Tensor]() for layer in layers}
    with capture(model, layers, copied) as run:
        for batch in images.batches(transform_of(model), batch_size):
            for name, part in run(batch.to(model.device, model.dtype)).items():
                kept[name].append(part.cpu())
    return {name: torch.cat(parts) for name, parts in kept.items()}


def in_memory(layers: Sequence[Layer], n: int, itemsize: int) -> Iterator[list[Layer]]:
    """The layers in groups whose activations of `n` images are in memory together."""
    group, used = list[Layer](), 0
    for layer in layers:
        size = n * (layer.prefix_tokens + max(layer.positions, 1)) * layer.channels * itemsize
        if group and used + size > 2 * LARGE:
            yield group
            group, used = [], 0
        group.append(layer)
        used += size
    yield group


def probe_predictions(train: Tensor, labels: np.ndarray, test: Tensor, name: str) -> np.ndarray:
    """Classes [image] of activations `test` [image, place, channel] by a ridge probe of all of
    `train`, standardised, with the penalty that has the highest leave-one-out accuracy.

    Raises MeasureError for activations that are NaN or infinite."""
    if not (train.isfinite().all() and test.isfinite().all()):
        raise MeasureError(
            f"the activations after '{name}' are NaN or infinite, so no probe can read them; "
            "check the weights and the images"
        )
    # NumPy has no bfloat16.
    wide = torch.promote_types(train.dtype, torch.float32)
    X, new = (part.flatten(1).to(wide).numpy() for part in (train, test))
    return np.asarray(RidgeProbe(None).fit(X, labels).predict(new))
