"""Layer conductance (Dhamdhere et al. 2019): how much of a logit flows through each hidden unit.

cond_u = sum over the unit's values of the integral of dF/dh(alpha) * dh/dalpha along the straight way from baseline to image; by
captum's LayerConductance. The units of one cut through the network add up to the logit difference. A branch beside a skip
connection is no such cut: its sum is the share that flows through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerConductance as CaptumConductance
from torch import Tensor

from mixer_probe.attribution.attributions import batches_of, check_gradient
from mixer_probe.attribution.baselines import Baseline, make_baseline
from mixer_probe.attribution.network import Target, Targets, explaining, logits_of, patch_grid, target_logits
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.views import positions_and_prefix
from mixer_probe.core.validate import checked
from mixer_probe.errors import LayerError, MeasureError
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model
from mixer_probe.models.switches import copied, not_in_place
from mixer_probe.results import ImagesRecord, ModelRecord, Result
from mixer_probe.weights.token_matrices import token_matrices

# Units of every block whose maps are kept.
_MAPS = 6


@dataclass(frozen=True)
class Conductance(Result):
    """Conductance [image, unit] of every layer, in logits: token-mixing hidden units summed over channels, the channels of
    other layers over positions (prefix tokens included). `logit_difference` [image] is what all paths carry together.
    `unit_maps` has what the busiest token-mixing units of every layer read [unit, rows, columns], the busiest first; it is empty
    for other layers."""

    title: ClassVar[str] = "Layer conductance"

    model: ModelRecord
    images: ImagesRecord
    layers: tuple[Layer, ...]
    baseline: str
    n_steps: int
    ids: tuple[str, ...]
    targets: np.ndarray
    logit_difference: np.ndarray
    values: tuple[np.ndarray, ...]
    unit_maps: tuple[np.ndarray, ...] = ()

    def share(self, i: int) -> np.ndarray:
        """Share of layer i's conductance that flows through each unit [unit]: |value| over its sum, averaged over images.

        An image without any conductance is left out; where there is no other, shares are NaN."""
        size = np.abs(self.values[i].astype(np.float64))
        size = size[size.sum(1) > 0]
        share: np.ndarray = (size / size.sum(1, keepdims=True)).mean(0) if len(size) else np.full(self.values[i].shape[1], np.nan)
        return share

    @checked(MeasureError)
    def busiest(self, i: int, count: int) -> np.ndarray:
        """The units of layer i with the largest shares, the largest first [count]."""
        order: np.ndarray = np.argsort(-self.share(i), kind="stable")[:count]
        return order

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and unit: mean over images, mean magnitude, and share of images that it speaks for the class."""
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
    baseline: str | Tensor = "mean",
    n_steps: int = 64,
    batch_size: int = 16,
) -> Conductance:
    """Conductance of hidden units, by default of those of every token-mixing MLP (`mlp_tokens.act`).

    Raises MeasureError for layers=None on a network without token-mixing MLPs, LayerError for modules that run several times
    a pass, and as `attribute` does for targets and networks whose gradients are all zero."""
    source = as_source(images)
    selected = model.select(layers if layers is not None else _hidden_layers(model))
    _check_calls(selected)
    base = make_baseline(baseline, model.input)
    targets = Targets(model, source, target)
    found = list(_pieces(model, source, selected, targets, base, n_steps, batch_size))
    result = Conductance(
        model=model.record,
        images=source.record,
        layers=selected,
        baseline=base.text,
        n_steps=n_steps,
        ids=tuple(source.ids),
        targets=np.concatenate([piece[0] for piece in found]),
        logit_difference=np.concatenate([piece[1] for piece in found]),
        values=tuple(np.concatenate([piece[2][i] for piece in found]) for i in range(len(selected))),
    )
    return result if layers is not None else replace(result, unit_maps=_unit_maps(model, result))


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


def _pieces(
    model: Model, source: ImageSource, layers: Sequence[Layer], targets: Targets, base: Baseline, n_steps: int, chunk: int
) -> Any:
    for start, x in batches_of(model, source, chunk, "conductance"):
        with explaining(model), not_in_place(model.module):
            with torch.no_grad():
                logits = logits_of(model, x)
            wanted = targets.of(logits, start)
            if start == 0:
                check_gradient(model, x, wanted)
            before, after = (target_logits(model, images, wanted, chunk) for images in (base.of(x), x))
            # On a copy: captum's hooks see the forward passes of other threads too.
            own = replace(model, module=copied(model.module))
            values = [_units(own, layer, x, wanted, base, n_steps, chunk) for layer in layers]
        yield wanted.cpu().numpy(), (after - before).cpu().numpy(), values


def _units(model: Model, layer: Layer, x: Tensor, targets: Tensor, base: Baseline, n_steps: int, chunk: int) -> np.ndarray:
    method = CaptumConductance(lambda images: logits_of(model, images), model.module.get_submodule(layer.module))
    found: Tensor = method.attribute(
        x, baselines=base.of(x).contiguous(), target=targets, n_steps=n_steps, internal_batch_size=max(chunk, 2 * len(x))
    )
    positions, prefix = positions_and_prefix(found.detach().double(), layer)
    if layer.axes == Axes.BCU.name:
        summed = positions.sum(2)
    else:
        summed = positions.sum(1) if prefix is None else positions.sum(1) + prefix.sum(1)
    result: np.ndarray = summed.cpu().numpy()
    return result
