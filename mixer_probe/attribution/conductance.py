"""Layer conductance (Dhamdhere et al. 2019): how much of a logit flows through each hidden unit.

cond_u = sum over the unit's values of the integral of dF/dh dh along the straight path from
baseline to image. The units of one cut through the network add up to the logit difference. A branch
beside a skip connection is no such cut: its sum is the fraction that flows through it.

The integral is a sum over nodes of the mean gradient at two neighbours times the change of the
activation between them, with Simpson's weights, at alpha = s^2 for even steps of s: beside a blank
baseline layer norms change fast. One pass over the nodes serves all layers. Its error is known in
two ways: by a cut that holds the layer, the block around it or else the pixels, whose sum must be
the logit difference; and by the sum over every other node. Nodes are doubled until both errors are
small."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.attribution.attributions import batches_of, logits_and_targets
from mixer_probe.attribution.baselines import make_baseline
from mixer_probe.attribution.network import (
    Place,
    Target,
    Targets,
    attribution_mode,
    patch_grid,
    target_logits,
    target_sum,
    values_and_gradients,
)
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.positions import positions_and_prefix
from mixer_probe.core.errors import IncompleteAttributionWarning, LayerError, MeasureError
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.stats import mean_interval
from mixer_probe.weights.token_matrices import token_matrices

# Units per block whose weight maps are stored.
_MAPS = 6


@dataclass(frozen=True)
class Conductance(Result):
    """Conductance [image, unit] per layer, in logits: token-mixing hidden units summed over
    channels, the channels of other layers over positions (prefix tokens included).

    `logit_difference` [image] is what all paths carry together. `steps` [image] counts the nodes of
    the integral; `gap` [layer, image] is the deviation of the sum over a cut that holds the layer
    from the logit difference, as a fraction of it, and `change` [layer, image] the fraction of the
    layer's own conductance by which Simpson's weights change the plain sum. `unit_maps` are the
    input weights [unit, rows, columns] of the token-mixing units with the highest conductance per
    layer, the highest first; it is empty for other layers."""

    title: ClassVar[str] = "Layer conductance"

    model: ModelRecord
    images: ImagesRecord
    layers: Annotated[tuple[Layer, ...], "layer"]
    baseline: str
    ids: Annotated[tuple[str, ...], "image"]
    targets: Annotated[np.ndarray, "image"]
    logit_difference: Annotated[np.ndarray, "image"]
    values: Annotated[tuple[np.ndarray, ...], "layer", "image", "unit"]
    steps: Annotated[np.ndarray, "image"]
    gap: Annotated[np.ndarray, "layer", "image"]
    change: Annotated[np.ndarray, "layer", "image"]
    unit_maps: Annotated[tuple[np.ndarray, ...], "layer?", "top", "row", "column"] = ()

    def fractions(self, i: int) -> np.ndarray:
        """Fraction of layer i's conductance that flows through each unit [unit]: |value| over its
        sum, averaged over images.

        Images without any conductance are left out; where there is no other, fractions are NaN."""
        fractions = self.fractions_by_image(i)
        mean: np.ndarray = (
            fractions.mean(0) if len(fractions) else np.full(self.values[i].shape[1], np.nan)
        )
        return mean

    def fractions_by_image(self, i: int) -> np.ndarray:
        """The fractions per image [image, unit], without images that have no conductance."""
        size = np.abs(self.values[i].astype(np.float64))
        size = size[size.sum(1) > 0]
        fractions: np.ndarray = size / size.sum(1, keepdims=True)
        return fractions

    @checked(MeasureError)
    def top_units(self, i: int, count: int) -> np.ndarray:
        """The units of layer i with the highest conductance, the highest first [count]."""
        order: np.ndarray = np.argsort(-self.fractions(i), kind="stable")[:count]
        return order

    def units_for_half(self, i: int) -> int:
        """The smallest number of units of layer i that carry half of its conductance; 0 where
        fractions are not known."""
        fractions = self.fractions(i)
        if not np.isfinite(fractions).all():
            return 0
        return int(np.searchsorted(np.cumsum(np.sort(fractions)[::-1]), 0.5 - 1e-12) + 1)

    def has_leading_unit(self, i: int, level: float) -> bool:
        """Whether one unit of layer i has a larger fraction than every other, by intervals of the
        differences over images."""
        fractions = self.fractions_by_image(i)
        if len(fractions) < 2 or fractions.shape[1] < 2:
            return False
        best = int(self.top_units(i, 1)[0])
        others = np.delete(fractions, best, axis=1)
        return bool((mean_interval(fractions[:, [best]] - others, 0, level)[1] > 0).all())

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and unit: mean over images, mean magnitude, fraction of images in which
        it supports the class."""
        frames = [
            pd.DataFrame(
                {
                    "model": self.model.name,
                    "layer": layer.name,
                    "depth": layer.depth,
                    "unit": np.arange(values.shape[1]),
                    "mean": values.mean(0),
                    "mean_magnitude": np.abs(values).mean(0),
                    "fraction": self.fractions(i),
                    "fraction_positive": (values > 0).mean(0),
                    "gap": float(np.median(self.gap[i])),
                    "change": float(np.median(self.change[i])),
                    "n_images": len(values),
                }
            )
            for i, (layer, values) in enumerate(zip(self.layers, self.values, strict=True))
        ]
        return pd.concat(frames, ignore_index=True)


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
    """Conductance of hidden units, by default of those of every token-mixing MLP
    (`mlp_tokens.act`).

    The nodes, `n_steps` at first, are doubled image by image until gap and change of every layer
    are within `tolerance`; where `max_steps` are too few IncompleteAttributionWarning says so, and
    the result has the remaining errors.

    Raises MeasureError for layers=None on a network without token-mixing MLPs and for fewer than 2
    nodes, LayerError for modules that run several times per pass, and as `attribute` does for
    targets and networks whose gradients are all zero."""
    if not (2 <= n_steps <= max_steps and tolerance > 0):
        raise MeasureError(
            f"conductance needs 2 <= n_steps <= max_steps and tolerance > 0, not {n_steps}, "
            f"{max_steps}, {tolerance}"
        )
    source = as_source(images)
    hidden = [
        name
        for name in model.structure.names()
        if name.partition("#")[0].endswith("mlp_tokens.act")
    ]
    if layers is None and not hidden:
        raise MeasureError(
            f"{model.name} has no token-mixing MLP with hidden units that all channels share; name "
            "layers, such as those of channel MLPs"
        )
    selected = model.select(hidden if layers is None else layers)
    repeated = [layer.module for layer in selected if "#" in layer.name]
    if repeated:
        raise LayerError(
            f"conductance needs modules that run once per pass, and '{repeated[0]}' runs several "
            "times"
        )
    base = make_baseline(baseline, model.input)
    targets = Targets(model, source, target)
    rows = []
    for start, x in batches_of(model, source, batch_size, "conductance"):
        with attribution_mode(model):
            _, wanted = logits_and_targets(model, x, targets, start)
            blank = base.of(x)
            before, after = (
                target_logits(model, images, wanted, batch_size) for images in (blank, x)
            )
            differences = (after - before).cpu().numpy()
            for i, difference in enumerate(differences):
                nodes = 2 * ((n_steps + 1) // 2)
                path = (model, selected, blank[i], x[i], wanted[i], float(difference), batch_size)
                values, gap, change = _integral(*path, nodes)
                while max(gap.max(), change.max()) > tolerance and 2 * nodes <= max_steps:
                    nodes *= 2
                    values, gap, change = _integral(*path, nodes)
                rows.append(
                    (wanted[i].cpu().numpy(), difference, np.int64(nodes), gap, change, *values)
                )
    chosen, difference, steps, gaps, changes, *values = (
        np.stack(column) for column in zip(*rows, strict=True)
    )
    result = Conductance(
        model=model.record,
        images=source.record,
        layers=selected,
        baseline=base.text,
        ids=tuple(source.ids),
        targets=chosen,
        logit_difference=difference,
        values=tuple(values),
        steps=steps,
        gap=gaps.T,
        change=changes.T,
    )
    worst = np.maximum(result.gap, result.change).max(0)
    off = int((worst > tolerance).sum())
    if off:
        warnings.warn(
            f"conductance of {model.name}: for {off} of {len(worst)} images the sum is off, or has "
            f"not converged, by more than {tolerance:.0%}, at most by {worst.max():.1%}; increase "
            "max_steps, or use another baseline",
            IncompleteAttributionWarning,
            stacklevel=3,
        )
    if layers is not None:
        return result
    weights = {f"{one.block}.mlp_tokens.act": one.read for one in token_matrices(model)}
    maps = (weights[layer.name][result.top_units(i, _MAPS)] for i, layer in enumerate(selected))
    return replace(
        result, unit_maps=tuple(m.reshape(-1, *patch_grid(model)).astype(np.float32) for m in maps)
    )


def _integral(
    model: Model,
    layers: Sequence[Layer],
    blank: Tensor,
    image: Tensor,
    target: Tensor,
    difference: float,
    chunk: int,
    nodes: int,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Conductance [unit] of every layer for one image, with gap and change [layer], from an even
    number of nodes."""
    places = [(layer.module, layer.call) for layer in layers]
    # The output of the block around a layer, or that is the layer, is a cut; outside the blocks the
    # pixels are.
    around = [
        [b.path for b in model.structure.blocks if f"{layer.module}.".startswith(f"{b.path}.")]
        for layer in layers
    ]
    cuts = [(paths[0], 0) if paths else None for paths in around]
    recorded = list(dict.fromkeys([*places, *(cut for cut in cuts if cut)]))
    alphas = torch.linspace(0, 1, nodes + 1, dtype=torch.float64, device=image.device) ** 2
    # Parts of an even number of steps, each with both of its ends.
    width = max(2, chunk // 2 * 2)
    sums: list[list[Tensor]] = []
    for first in range(0, nodes, width):
        alpha = alphas[first : first + width + 1].to(image).view(-1, *[1] * image.ndim)
        path = torch.lerp(blank[None], image[None], alpha)
        pairs = values_and_gradients(
            model, recorded, path, target_sum(target.expand(len(path))), pixels=True
        )
        # Trapezoids of all nodes and of every other: mean gradient at both ends times the change of
        # the value, in float64.
        strided = [
            (v[::stride].double(), g[::stride].double()) for stride in (1, 2) for v, g in pairs
        ]
        sums.append([((g[1:] + g[:-1]) / 2 * v.diff(dim=0)).sum(0) for v, g in strided])
    both = [torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)]
    fine, coarse = both[: len(both) // 2], both[len(both) // 2 :]
    # Simpson's rule from the trapezoids of all nodes and of every other.
    best = [(4 * a - b) / 3 for a, b in zip(fine, coarse, strict=True)]
    index: dict[Place | None, int] = {None: 0, **{place: k + 1 for k, place in enumerate(recorded)}}
    values = [_by_unit(best[index[p]], layer) for p, layer in zip(places, layers, strict=True)]
    plain = [_by_unit(fine[index[p]], layer) for p, layer in zip(places, layers, strict=True)]
    change = [
        np.abs(v - p).sum() / max(float(np.abs(v).sum()), 1e-12)
        for v, p in zip(values, plain, strict=True)
    ]
    totals = np.array([float(best[index[cut]].sum()) for cut in cuts])
    return values, np.abs(totals - difference) / max(abs(difference), 1e-6), np.array(change)


def _by_unit(values: Tensor, layer: Layer) -> np.ndarray:
    """Sums [unit] of one image's values in a layer's raw layout: hidden units over channels,
    channels over all tokens."""
    positions, prefix = positions_and_prefix(values[None], layer)
    if layer.axes == Axes.BCU.name:
        summed = positions.sum(2)
    else:
        summed = positions.sum(1) if prefix is None else positions.sum(1) + prefix.sum(1)
    result: np.ndarray = summed[0].cpu().numpy()
    return result
