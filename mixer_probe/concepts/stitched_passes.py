"""Passes of a network with a layer replaced by a map of a donor's activations, and fits of these
maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixer_probe.capture.interventions import reference_means
from mixer_probe.capture.positions import positions_and_prefix, raw
from mixer_probe.capture.resumed import finished_before, recorded_blocks
from mixer_probe.capture.stream import transform_of
from mixer_probe.concepts.channel_maps import ChannelMap, MapMoments, on_grid, ridge_maps
from mixer_probe.concepts.donors import Donor, Rows
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.hooks import Call, hooked, returned
from mixer_probe.core.memory import check_fits
from mixer_probe.core.switches import evaluating, frozen, not_in_place
from mixer_probe.images import Images
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model

# One of so many images to fit on is held out to choose the penalty.
HELD_OUT = 5
# Maps [donor layer][receiver layer].
Maps = list[list[ChannelMap]]


@dataclass(frozen=True)
class Pass:
    """One pass of a batch `x` through the intact network: its `logits`, the `values` [image,
    position, channel] of layers, and the outputs of `blocks` by path."""

    x: Tensor
    logits: Tensor
    values: dict[str, Tensor]
    blocks: dict[str, Tensor]


class Receiver:
    """A network, a layer of which is replaced. Its prefix tokens are then the means of its own over
    the images `train`."""

    def __init__(
        self, model: Model, layers: tuple[Layer, ...], train: Images, batch_size: int
    ) -> None:
        self.model, self.layers = model, layers
        tokens = [layer for layer in layers if layer.prefix_tokens]
        means = reference_means(model, tokens, train, batch_size) if tokens else {}
        self._prefix = {
            layer.name: torch.from_numpy(means[layer.name][: layer.prefix_tokens]).to(
                model.device, model.dtype
            )
            for layer in tokens
        }

    @contextmanager
    def _ready(self, gradients: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for context in (evaluating, frozen, not_in_place):
                stack.enter_context(context(self.model.module))
            stack.enter_context(torch.set_grad_enabled(gradients))
            yield

    def passes(self, images: Images, rows: Rows) -> Iterator[Pass]:
        """The intact passes of the images at each of `rows`."""
        wanted = {(layer.module, layer.call): layer for layer in self.layers}
        values: dict[str, Tensor] = {}

        def see(call: Call) -> None:
            layer = wanted.get((call.path, call.number))
            if layer is not None:
                values[layer.name] = positions_and_prefix(call.output, layer)[0].clone()

        model, transform = self.model, transform_of(self.model)
        for batch in images.batches(transform, [index.tolist() for index in rows]):
            x = batch.to(model.device, model.dtype)
            values.clear()
            with (
                self._ready(False),
                recorded_blocks(model) as blocks,
                hooked(model.module, [path for path, _ in wanted], see) as run,
            ):
                logits: Tensor = run.run(x)
            yield Pass(x, logits, dict(values), blocks)

    def rest(self, own: Pass, layer: Layer, values: Tensor, gradients: bool = False) -> Tensor:
        """Logits with `values` [image, position, channel] in place of the layer's positions."""
        prefix = self._prefix.get(layer.name)

        def put(call: Call) -> Tensor | None:
            if call.number != layer.call:
                return None
            whole = values
            if prefix is not None:
                whole = torch.cat([prefix.expand(len(values), -1, -1), values], 1)
            return raw(whole, layer, call.output.shape)

        module = self.model.module
        with (
            self._ready(gradients),
            returned(module, finished_before(self.model, layer, own.blocks)),
            hooked(module, [layer.module], put) as passes,
        ):
            logits: Tensor = passes.run(own.x)
        return logits


def together(
    receiver: Receiver, donor: Donor, images: Images, rows: Rows, fitting: bool
) -> Iterator[tuple[np.ndarray, Pass, dict[str, Tensor]]]:
    """For each of `rows` the intact pass of the receiver and the donor's activations."""
    own, given = receiver.passes(images, rows), donor.batches(images, rows, fitting)
    yield from zip(rows, own, given, strict=True)


def fit_ridge(
    receiver: Receiver, donor: Donor, images: Images, rows: Rows, held: np.ndarray
) -> Maps:
    """Ridge maps from every layer of the donor to every layer of the receiver, in one pass over the
    images; those where `held` [image] is true choose the penalty.

    Raises MeasureError for layers that are constant or not finite, and for moments that do not fit
    into memory."""
    grids: dict[tuple[int, int], list[Layer]] = {}
    for layer in receiver.layers:
        assert layer.grid is not None
        grids.setdefault(layer.grid, []).append(layer)
    widths = sum(layer.channels for layer in receiver.layers)
    numbers = sum(a.channels * (len(grids) * a.channels + widths) for a in donor.layers)
    check_fits(4 * 8 * numbers, "moments of all pairs of layers", "give fewer layers", MeasureError)
    moments: dict[tuple[int, tuple[int, int]], list[MapMoments]] = {}
    for index, own, given in together(receiver, donor, images, rows, True):
        for i, source in enumerate(donor.layers):
            for grid, layers in grids.items():
                X = _wide(on_grid(given[source.name], source, grid))
                Y = torch.cat([_wide(own.values[b.name]) for b in layers], -1)
                X = X.to(Y.device)
                found = moments.setdefault(
                    (i, grid), [MapMoments.about(X.mean((0, 1)), Y.mean((0, 1))) for _ in range(2)]
                )
                for part, chosen in zip(found, (~held[index], held[index]), strict=True):
                    mask = torch.from_numpy(chosen).to(X.device)
                    part.add(X[mask].flatten(0, 1), Y[mask].flatten(0, 1))
    maps: Maps = []
    for i, source in enumerate(donor.layers):
        row: dict[str, ChannelMap] = {}
        for grid, layers in grids.items():
            fit, rest = moments.pop((i, grid))
            _check_finite(fit + rest, source, layers)
            fitted = ridge_maps(fit, rest, [layer.channels for layer in layers])
            if not fitted:
                raise MeasureError(
                    f"layer '{source.name}' of the donor is constant over the images to fit on, so "
                    "that nothing can be mapped from it; give other layers or images"
                )
            row |= {layer.name: m for layer, m in zip(layers, fitted, strict=True)}
        maps.append([row[layer.name] for layer in receiver.layers])
    for layer, one in zip(receiver.layers, maps[0], strict=True):
        if not bool((one.deviation > 1e-6 * one.mean.abs()).any()):
            raise MeasureError(
                f"layer '{layer.name}' of {receiver.model.name} is constant over the images to fit "
                "on, so that there is nothing to map to; give other layers or images"
            )
    return maps


def _wide(values: Tensor) -> Tensor:
    # Metal has no float64.
    return (values.cpu() if values.device.type == "mps" else values).double()


def _check_finite(m: MapMoments, source: Layer, layers: Sequence[Layer]) -> None:
    columns = torch.split(torch.isfinite(m.yy), [layer.channels for layer in layers])
    for layer, finite in zip([source, *layers], [torch.isfinite(m.xx), *columns], strict=True):
        if not bool(finite.all()):
            raise MeasureError(
                f"the activations of layer '{layer.name}' are NaN or infinite for some of the "
                "images; check the weights and the images"
            )


class _Trained:
    """A map as it is trained: weights are for standardised inputs and outputs, so that one step
    size suits every layer."""

    def __init__(self, start: ChannelMap, like: Tensor, learning_rate: float) -> None:
        self._start = start
        scale = start.scaling.scale.to(like)
        self._mean, self._centre, self._deviation = (
            part.to(like) for part in (start.scaling.mean, start.mean, start.deviation)
        )
        self._deviation = torch.where(self._deviation > 0, self._deviation, 1)
        # A constant channel has an infinite scale and a weight of zero.
        finite = torch.where(torch.isfinite(scale), scale, 0)
        self._inverse = torch.where(finite > 0, 1 / scale, 0)
        self.weight = start.weight.to(like) * finite[:, None] / self._deviation
        self.bias = torch.zeros_like(self._deviation)
        for part in (self.weight, self.bias):
            part.requires_grad_()
        self.optimiser = torch.optim.Adam([self.weight, self.bias], lr=learning_rate)

    def map(self) -> ChannelMap:
        """The map for raw inputs, with the graph of its gradients."""
        weight = self._inverse[:, None] * self.weight * self._deviation
        bias = self._centre + self._deviation * self.bias - self._mean @ weight
        s = self._start
        return ChannelMap(weight, bias, s.scaling, s.mean, s.deviation, s.l2, s.r2)


def fit_task(
    receiver: Receiver,
    donor: Donor,
    images: Images,
    labels: np.ndarray,
    outputs: np.ndarray,
    start: Maps,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> tuple[Maps, np.ndarray]:
    """Maps that minimise the cross-entropy of the stitched network for `labels` [image], indices
    into its `outputs`, from those of `start`, and the mean loss [epoch, donor layer, receiver
    layer] over the batches of each epoch.

    Adam, a step per batch; batches are drawn with `seed`. The parameters of the receiver have no
    gradients."""
    rng = np.random.default_rng(seed)
    like = torch.empty(0, device=receiver.model.device, dtype=receiver.model.dtype)
    trained = [[_Trained(m, like, learning_rate) for m in row] for row in start]
    losses = np.zeros((epochs, len(start), len(start[0])))
    columns = torch.from_numpy(outputs).to(like.device)
    for epoch in range(epochs):
        rows = batched(rng.permutation(len(images)), batch_size)
        for index, own, given in together(receiver, donor, images, rows, True):
            target = torch.from_numpy(labels[index]).to(like.device)
            for i, source in enumerate(donor.layers):
                for j, layer in enumerate(receiver.layers):
                    one = trained[i][j]
                    assert layer.grid is not None
                    with torch.enable_grad():
                        x = on_grid(given[source.name].to(like), source, layer.grid)
                        logits = receiver.rest(own, layer, one.map()(x), gradients=True)
                        loss = torch.nn.functional.cross_entropy(logits[:, columns].float(), target)
                        one.optimiser.zero_grad()
                        loss.backward()  # type: ignore[no-untyped-call]
                    one.optimiser.step()
                    losses[epoch, i, j] += float(loss.detach()) * len(index) / len(images)
    with torch.no_grad():
        return [[one.map() for one in row] for row in trained], losses


def predictions(
    receiver: Receiver,
    donor: Donor,
    images: Images,
    rows: Rows,
    outputs: np.ndarray,
    fitted: Sequence[Maps],
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes [fit, donor layer, receiver layer, image] of the stitched networks, and
    [image] of the receiver itself, as indices into `outputs`.

    Raises MeasureError for logits that are NaN or infinite."""
    shape = len(fitted), len(donor.layers), len(receiver.layers), len(images)
    found, own_found = np.empty(shape, dtype=np.int16), np.empty(len(images), dtype=np.int16)
    for index, own, given in together(receiver, donor, images, rows, False):
        own_found[index] = _decided(own.logits, outputs, receiver.model)
        for i, source in enumerate(donor.layers):
            for j, layer in enumerate(receiver.layers):
                assert layer.grid is not None
                x = given[source.name].to(own.x.device, own.x.dtype)
                x = on_grid(x, source, layer.grid)
                for k, maps in enumerate(fitted):
                    logits = receiver.rest(own, layer, maps[i][j](x))
                    found[k, i, j, index] = _decided(logits, outputs, receiver.model)
    return found, own_found


def _decided(logits: Tensor, outputs: np.ndarray, model: Model) -> np.ndarray:
    chosen = logits.double().cpu().numpy()[:, outputs]
    if not np.isfinite(chosen).all():
        raise MeasureError(
            f"logits of {model.name} are NaN or infinite for some of the images; no class can be "
            "predicted"
        )
    return np.asarray(chosen.argmax(1))


def batched(order: np.ndarray, size: int) -> list[np.ndarray]:
    """`order` in parts of at most `size`."""
    return [order[start : start + size] for start in range(0, len(order), size)]
