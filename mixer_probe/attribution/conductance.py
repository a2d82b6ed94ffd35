"""Layer conductance (Dhamdhere et al. 2019): how much of a logit flows through each hidden unit.

cond_u = sum over the unit's values of the integral of dF/dh dh along the straight way from baseline to image. The units of one
cut through the network add up to the logit difference. A branch beside a skip connection is no such cut: its sum is the share
that flows through it.

The integral is a sum over nodes of the mean gradient at two neighbours times the change of the activation between them, with
Simpson's weights, at the places alpha = s^2 for even steps of s: beside a blank baseline layer norms change fast. One pass over
the nodes serves all layers. What it misses is known twice: by a cut that holds the layer, the block around it or else the pixels,
whose sum must be the logit difference; and by the sum over every other node. Nodes are doubled until both are small."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.attribution.attributions import batches_of, check_gradient
from mixer_probe.attribution.baselines import Baseline, make_baseline
from mixer_probe.attribution.network import Target, Targets, chosen, explaining, logits_of, patch_grid, tapped, target_logits
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import IncompleteAttributionWarning, LayerError, MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.weights.token_matrices import token_matrices

# Units of every block whose maps are kept.
_MAPS = 6
Place = tuple[str, int]


@dataclass(frozen=True)
class Conductance(Result):
    """Conductance [image, unit] of every layer, in logits: token-mixing hidden units summed over channels, the channels of
    other layers over positions (prefix tokens included). `logit_difference` [image] is what all paths carry together. `steps`
    [image] counts the nodes of the integral; `gap` [layer, image] is what the sum over a cut that holds the layer misses of the
    logit difference, as a share of it, and `change` [layer, image] by how much of the layer's own conductance Simpson's weights
    moved the plain sum.
    `unit_maps` has what the busiest token-mixing units of every layer read [unit, rows, columns], the busiest first; it is empty
    for other layers."""

    title: ClassVar[str] = "Layer conductance"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    baseline: str
    ids: tuple[str, ...]
    targets: np.ndarray
    logit_difference: np.ndarray
    values: tuple[np.ndarray, ...]
    steps: np.ndarray
    gap: np.ndarray
    change: np.ndarray
    unit_maps: tuple[np.ndarray, ...] = ()

    def share(self, i: int) -> np.ndarray:
        """Share of layer i's conductance that flows through each unit [unit]: |value| over its sum, averaged over images.

        An image without any conductance is left out; where there is no other, shares are NaN."""
        share = self.share_by_image(i)
        mean: np.ndarray = share.mean(0) if len(share) else np.full(self.values[i].shape[1], np.nan)
        return mean

    def share_by_image(self, i: int) -> np.ndarray:
        """The same image by image [image, unit], images without any conductance left out."""
        size = np.abs(self.values[i].astype(np.float64))
        size = size[size.sum(1) > 0]
        share: np.ndarray = size / size.sum(1, keepdims=True)
        return share

    @checked(MeasureError)
    def busiest(self, i: int, count: int) -> np.ndarray:
        """The units of layer i with the largest shares, the largest first [count]."""
        order: np.ndarray = np.argsort(-self.share(i), kind="stable")[:count]
        return order

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and unit: mean over images, mean magnitude, fraction of images in which it supports the class."""
        return pd.concat([self._layer_frame(i) for i in range(len(self.layers))], ignore_index=True)

    def _layer_frame(self, i: int) -> pd.DataFrame:
        values = self.values[i]
        return pd.DataFrame(
            {
                "model": self.model.name,
                "layer": self.layers[i].name,
                "depth": self.layers[i].depth,
                "unit": np.arange(values.shape[1]),
                "mean": values.mean(0),
                "mean_magnitude": np.abs(values).mean(0),
                "share": self.share(i),
                "share_positive": (values > 0).mean(0),
                "gap": float(np.median(self.gap[i])),
                "change": float(np.median(self.change[i])),
                "n_images": len(values),
            }
        )


@checked(MeasureError)
def layer_conductance(
    model: Model,
    images: ImageSource | Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    target: Target = None,
    baseline: str | Tensor = "grey",
    n_steps: int = 32,
    max_steps: int = 512,
    tolerance: float = 0.02,
    batch_size: int = 16,
) -> Conductance:
    """Conductance of hidden units, by default of those of every token-mixing MLP (`mlp_tokens.act`).

    The nodes, `n_steps` at first, are doubled image by image until gap and change of every layer are within `tolerance`; where
    `max_steps` are too few IncompleteAttributionWarning says so, and the result holds what is missed.

    Raises MeasureError for layers=None on a network without token-mixing MLPs and for fewer than 2 nodes, LayerError for modules
    that run several times a pass, and as `attribute` does for targets and networks whose gradients are all zero."""
    if not (2 <= n_steps <= max_steps and tolerance > 0):
        raise MeasureError(
            f"conductance needs 2 <= n_steps <= max_steps and tolerance > 0, not {n_steps}, {max_steps}, {tolerance}"
        )
    source = as_source(images)
    selected = model.select(layers if layers is not None else _hidden_layers(model))
    _check_calls(selected)
    base = make_baseline(baseline, model.input)
    targets = Targets(model, source, target)
    way = _Way(model, selected, tuple(_cut(model, layer) for layer in selected), batch_size)
    rule = (2 * ((n_steps + 1) // 2), max_steps, tolerance)
    found = list(_pieces(way, source, targets, base, rule))
    wanted, difference, steps, gap, change, *values = (np.concatenate(part) for part in zip(*found, strict=True))
    result = Conductance(
        model=model.record,
        images=source.record,
        layers=selected,
        baseline=base.text,
        ids=tuple(source.ids),
        targets=wanted,
        logit_difference=difference,
        values=tuple(values),
        steps=steps,
        gap=gap.T,
        change=change.T,
    )
    _judge(result, tolerance)
    return result if layers is not None else replace(result, unit_maps=_unit_maps(model, result))


def _judge(result: Conductance, tolerance: float) -> None:
    worst = np.maximum(result.gap, result.change).max(0)
    off = int((worst > tolerance).sum())
    if off:
        warnings.warn(
            f"conductance of {result.model.name}: for {off} of {len(worst)} images the sum is off, or has not converged, by "
            "more than "
            f"{tolerance:.0%}, at most by {worst.max():.1%}; increase max_steps, or use another baseline",
            IncompleteAttributionWarning,
            stacklevel=3,
        )


def _unit_maps(model: Model, result: Conductance) -> tuple[np.ndarray, ...]:
    """What the busiest units of every block read, from the rows of the first token-mixing layer."""
    grid = patch_grid(model)
    read = {f"{one.block}.mlp_tokens.act": one.read for one in token_matrices(model)}
    return tuple(
        read[layer.name][result.busiest(i, _MAPS)].reshape(-1, *grid).astype(np.float32) for i, layer in enumerate(result.layers)
    )


def _hidden_layers(model: Model) -> list[str]:
    names = [name for name in model.structure.names() if name.partition("#")[0].endswith("mlp_tokens.act")]
    if not names:
        raise MeasureError(f"{model.name} has no token-mixing MLP with hidden units; name layers, such as those of channel MLPs")
    return names


def _check_calls(layers: Sequence[Layer]) -> None:
    several = [layer for layer in layers if "#" in layer.name]
    if several:
        raise LayerError(f"conductance needs modules that run once a pass, and '{several[0].module}' runs several times")


def _cut(model: Model, layer: Layer) -> Place | None:
    """The block around a layer, or that is the layer: its output is a cut. None where there is no such block: the pixels are."""
    blocks = [block.path for block in model.structure.blocks if f"{layer.module}.".startswith(f"{block.path}.")]
    return (blocks[0], 0) if blocks else None


def _pieces(
    way: _Way, source: ImageSource, targets: Targets, base: Baseline, rule: tuple[int, int, float]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each batch: targets, logit differences, nodes, gaps and changes [image, layer], and the values [image, unit] of every
    layer."""
    model, (first, most, tolerance) = way.model, rule
    for start, x in batches_of(model, source, way.chunk, "conductance"):
        with explaining(model):
            with torch.no_grad():
                logits = logits_of(model, x)
            wanted = targets.of(logits, start)
            if start == 0:
                check_gradient(model, x, wanted)
            blank = base.of(x)
            before, after = (target_logits(model, images, wanted, way.chunk) for images in (blank, x))
            difference = (after - before).cpu().numpy()
            found = []
            for i in range(len(x)):
                nodes = first
                one = way.integral(blank[i], x[i], wanted[i], nodes, difference[i])
                while max(one[1].max(), one[2].max()) > tolerance and 2 * nodes <= most:
                    nodes *= 2
                    one = way.integral(blank[i], x[i], wanted[i], nodes, difference[i])
                found.append((np.int64(nodes), one[1], one[2], *one[0]))
        yield wanted.cpu().numpy(), difference, *(np.stack(part) for part in zip(*found, strict=True))


@dataclass(frozen=True)
class _Way:
    """The ways from baselines to images, along which all `layers` and their `cuts` (None: the pixels) are seen at once."""

    model: Model
    layers: Sequence[Layer]
    cuts: Sequence[Place | None]
    chunk: int

    def integral(
        self, blank: Tensor, image: Tensor, target: Tensor, nodes: int, difference: float
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Values [unit] of every layer for one image, with gap and change [layer], from an even number of nodes."""
        places = [(layer.module, layer.call) for layer in self.layers]
        seen = list(dict.fromkeys([*places, *(cut for cut in self.cuts if cut)]))
        alphas = torch.linspace(0, 1, nodes + 1, dtype=torch.float64, device=image.device) ** 2
        # Parts of an even number of steps, each with both of its ends.
        width = max(2, self.chunk // 2 * 2)
        sums: list[list[Tensor]] = []
        for first in range(0, nodes, width):
            alpha = alphas[first : first + width + 1].to(image).view(-1, *[1] * image.ndim)
            path = torch.lerp(blank[None], image[None], alpha)
            pairs = self._seen(seen, path, target.expand(len(path)))
            sums.append([_step_sum(*pair, stride) for stride in (1, 2) for pair in pairs])
        both = [torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)]
        fine, coarse = both[: len(both) // 2], both[len(both) // 2 :]
        # Simpson's rule from the trapezoids of all nodes and of every other.
        best = [(4 * a - b) / 3 for a, b in zip(fine, coarse, strict=True)]
        where: dict[Place | None, int] = {None: 0, **{place: k + 1 for k, place in enumerate(seen)}}
        values, plain = (
            [_units(side[where[p]], layer) for p, layer in zip(places, self.layers, strict=True)] for side in (best, fine)
        )
        change = [np.abs(v - p).sum() / max(float(np.abs(v).sum()), 1e-12) for v, p in zip(values, plain, strict=True)]
        totals = np.array([float(best[where[cut]].sum()) for cut in self.cuts])
        return values, np.abs(totals - difference) / max(abs(difference), 1e-6), np.array(change)

    def _seen(self, places: Sequence[Place], x: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Values and gradients of the pixels and of every place."""
        x = x.detach().clone().requires_grad_()
        with tapped(self.model.module, places) as caught:
            total = chosen(logits_of(self.model, x), targets).sum()
        values = [x, *(caught[place] for place in places)]
        gradients = torch.autograd.grad(total, values, allow_unused=True)
        return [(v.detach(), torch.zeros_like(v) if g is None else g) for v, g in zip(values, gradients, strict=True)]


def _step_sum(value: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """Sum over steps of `stride` nodes of the mean gradient at both ends times the change of the value, in float64."""
    value, gradient = (t[::stride].double() for t in (value, gradient))
    return ((gradient[1:] + gradient[:-1]) / 2 * value.diff(dim=0)).sum(0)


def _units(found: Tensor, layer: Layer) -> np.ndarray:
    positions, prefix = positions_and_prefix(found[None], layer)
    if layer.axes == Axes.BCU.name:
        summed = positions.sum(2)
    else:
        summed = positions.sum(1) if prefix is None else positions.sum(1) + prefix.sum(1)
    result: np.ndarray = summed[0].cpu().numpy()
    return result
