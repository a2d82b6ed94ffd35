"""How cost grows with the resolution of the image: counted, and measured.

A Mixer's token MLP has D_S hidden units whatever the number S of tokens is, so its multiply-accumulates are linear in S
(Tolstikhin et al. 2021, Section 2: "the computational complexity of the network is linear in the number of input patches,
unlike ViT whose complexity is quadratic"). ResMLP and gMLP mix tokens by one S x S matrix and are quadratic as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import nn

from mixer_probe.core.errors import MeasureError, MixerProbeError, ModelError
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.switches import copied
from mixer_probe.core.validate import checked
from mixer_probe.cost.counting import MacParts, count_parts
from mixer_probe.cost.memory import peak_activation_bytes
from mixer_probe.cost.timing import device_name, time_together
from mixer_probe.models.model import Model
from mixer_probe.stats import median_interval


@dataclass(frozen=True)
class CostGrowth(Result):
    """Cost of the same architecture for images of `sizes` [R], sides in px, which give `tokens` [R] positions after the stem.

    `macs` [R] are of one image, counted. For the first T sizes, `seconds` [T, run] are times of forward passes of one batch of
    `batch_size` images on `device`, and `peak_bytes` [T] the activations alive at once. The classifier, which costs the same at
    every resolution, is left out of everything that is said of growth in multiply-accumulates."""

    title: ClassVar[str] = "Growth of cost"

    model: ModelRecord
    sizes: tuple[int, ...]
    tokens: tuple[int, ...]
    macs: tuple[MacParts, ...]
    device: str
    batch_size: int
    seconds: np.ndarray
    peak_bytes: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """Multiply-accumulates [R] of one image without the classifier."""
        return np.array([part.without_head for part in self.macs], dtype=np.float64)

    @property
    def exponents(self) -> np.ndarray:
        """Exponent [R - 1] of counted growth between neighbouring sizes: slope of log MACs against log tokens."""
        return np.asarray(np.diff(np.log(self.counted)) / np.diff(np.log(self.tokens)))

    @property
    def exponent(self) -> float:
        """Exponent of counted growth over all sizes, by least squares on logarithms: 1 is linear, 2 quadratic."""
        return slope(np.array(self.tokens), self.counted)

    @property
    def quadratic_share(self) -> np.ndarray:
        """Share [R] of the multiply-accumulates that is quadratic in the tokens: c S^2 of a + b S + c S^2, fitted to all sizes.

        Exact where every layer is at the resolution of the tokens, a fixed share of it, or at none. NaN for two sizes, through
        which such a curve always goes."""
        tokens = np.array(self.tokens, dtype=np.float64)
        if len(tokens) < 3:
            return np.full(len(tokens), np.nan)
        # Scaled, so that the fit is well conditioned.
        scaled = tokens / tokens[-1]
        c = np.polyfit(scaled, self.counted / self.counted[-1], 2)[0]
        return np.asarray(c * scaled**2 * self.counted[-1] / self.counted)

    @property
    def measured_exponent(self) -> tuple[float, float, float]:
        """(exponent, low, high) of the growth of time: median over passes of the slope on logarithms, with its 95 % interval.

        NaN where fewer than two sizes were timed; the interval where there are fewer than six passes."""
        timed = len(self.seconds)
        if timed < 2:
            return (float("nan"),) * 3
        tokens = np.array(self.tokens[:timed])
        # A pass of each size is one round.
        found = np.array([slope(tokens, one) for one in self.seconds.T])
        return float(np.median(found)), *median_interval(found)

    def to_frame(self) -> pd.DataFrame:
        """One row a size; times and memory are NaN for the sizes that were counted only."""
        missing = len(self.sizes) - len(self.seconds)
        medians = np.median(self.seconds, axis=1) if len(self.seconds) else np.empty(0)
        return pd.DataFrame(
            {
                "model": self.model.name,
                "size_px": self.sizes,
                "tokens": self.tokens,
                "macs_without_head": self.counted,
                "spatial_macs": [part.spatial for part in self.macs],
                "channel_macs": [part.channel for part in self.macs],
                "exponent_from_last": [np.nan, *self.exponents],
                "quadratic_share": self.quadratic_share,
                "seconds_per_image": np.append(medians, np.full(missing, np.nan)) / self.batch_size,
                "peak_activation_bytes": np.append(self.peak_bytes.astype(float), np.full(missing, np.nan)),
                "batch_size": self.batch_size,
                "device": self.device,
            }
        )


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of log y against log x: the exponent of a power law."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@checked(MeasureError)
def cost_growth(
    model: Model,
    sizes: Sequence[int] | None = None,
    *,
    timed: int | None = None,
    batch_size: int = 4,
    runs: int = 7,
) -> CostGrowth:
    """Count, and for the first `timed` sizes (by default all) measure, the network rebuilt for images of each of the `sizes`.

    `sizes` are sides of square images in px, growing; by default one to four times that of the network. What has to fit the
    number of tokens (token-mixing weights, position embeddings) is made anew: costs do not depend on the weights. Raises
    MeasureError for sizes that do not grow or are fewer than two, and ModelError for a network that cannot be rebuilt."""
    sides = tuple(sizes or (model.input.size[1] * k for k in (1, 2, 3, 4)))
    if len(sides) < 2 or any(b <= a for a, b in pairwise(sides)) or sides[0] < 1:
        raise MeasureError(f"cost scaling needs two sizes or more, each larger than the last, not {', '.join(map(str, sides))}")
    counted = [_counted(at_resolution(model, side, meta=True)) for side in sides]
    last = len(sides) if timed is None else timed
    measured = [at_resolution(model, side) for side in sides[:last]]
    return CostGrowth(
        model=model.record,
        sizes=sides,
        tokens=tuple(tokens for tokens, _ in counted),
        macs=tuple(macs for _, macs in counted),
        device=device_name(model.device),
        batch_size=batch_size,
        # In turns, so that what else the machine does changes no exponent.
        seconds=time_together(measured, batch_size, runs) if measured else np.empty((0, runs)),
        peak_bytes=np.array([peak_activation_bytes(one, batch_size) for one in measured], dtype=np.int64),
    )


def _counted(model: Model) -> tuple[int, MacParts]:
    tokens = next((layer.positions for layer in model.layers if layer.positions), 0)
    if not tokens:
        raise ModelError(f"no layer of {model.name} has positions, so it has no number of tokens to scale")
    return tokens, count_parts(model)


def at_resolution(model: Model, size: int, *, meta: bool = False) -> Model:
    """The same architecture for images of `size` x `size` px; the model itself stays as it is.

    Convolutional networks are copied; of Mixers the token-mixing layers are drawn anew for the new number of tokens, with as
    many hidden units as before; ViTs are resized by timm (`set_input_size`), a Swin with the windows that it has. With `meta`
    the copy has shapes and no memory. Raises ModelError for networks that cannot be resized, and sizes that they do not take."""
    network = _shapes_of(model.module) if meta else copied(model.module)
    if size != model.input.size[1] or size != model.input.size[2]:
        _resize(network, model, size)
    channels = model.input.size[0]
    resized = Model(model.name, network, model.adapter, replace(model.input, size=(channels, size, size)), model.weights)
    # Whether it runs is known once it ran.
    _ = resized.structure
    return resized


def _shapes_of(network: nn.Module) -> nn.Module:
    """A copy on the meta device that never needs the memory of a second network."""
    tensors = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {id(t): _without_memory(t) for t in tensors}
    return copied(network, memo)


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    shape = torch.empty_like(tensor, device="meta")
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape


def _resize(network: Any, model: Model, size: int) -> None:
    try:
        if model.family == "mixer":
            _resize_mixer(network, model, size)
        elif model.family == "vit":
            network.set_input_size(img_size=(size, size), **_windows(network))
    except MixerProbeError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{model.name} cannot be rebuilt for images of {size} px ({reason})") from error


def _windows(network: nn.Module) -> dict[str, Any]:
    """The windows that a Swin has, which timm would let grow with the image."""
    sizes = [m.window_size for m in network.modules() if isinstance(m, (SwinTransformerBlock, SwinTransformerV2Block))]
    return {"window_size": tuple(max(sizes))} if sizes else {}


def _resize_mixer(network: Any, model: Model, size: int) -> None:
    patch = network.stem.patch_size
    if size % patch[0] or size % patch[1]:
        raise ModelError(f"{model.name} has patches of {patch[0]}×{patch[1]} px, which do not divide images of {size} px")
    network.stem.set_input_size((size, size))
    tokens = (size // patch[0]) * (size // patch[1])
    for block in network.blocks:
        _resize_block(block, tokens)


def _resize_block(block: nn.Module, tokens: int) -> None:
    # Any: torch's annotations say of a submodule only that it may be a tensor.
    parts: Any = block
    if isinstance(block, MixerBlock):
        parts.mlp_tokens.fc1 = _like(parts.mlp_tokens.fc1, inputs=tokens)
        parts.mlp_tokens.fc2 = _like(parts.mlp_tokens.fc2, outputs=tokens)
    elif isinstance(block, ResBlock):
        parts.linear_tokens = _like(parts.linear_tokens, tokens, tokens)
    elif isinstance(block, SpatialGatingBlock):
        parts.mlp_channels.gate.proj = _like(parts.mlp_channels.gate.proj, tokens, tokens)
    else:
        raise ModelError(f"a {type(block).__name__} is not a Mixer block with known token-mixing layers")


def _like(layer: nn.Linear, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    weight = layer.weight
    sizes = (inputs or layer.in_features, outputs or layer.out_features)
    return nn.Linear(*sizes, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype)
