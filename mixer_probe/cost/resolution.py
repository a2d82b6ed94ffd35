"""How cost grows with the resolution of the image: counted, and measured.

A Mixer's token MLP has D_S hidden units whatever the number S of tokens is, so its
multiply-accumulates are linear in S (Tolstikhin et al. 2021, Section 2: "the computational
complexity of the network is linear in the number of input patches, unlike ViT whose complexity is
quadratic"). ResMLP and gMLP mix tokens by one S x S matrix and are quadratic as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar

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
from mixer_probe.zoo.architectures import UntiedMlp


@dataclass(frozen=True)
class CostGrowth(Result):
    """Cost of the same architecture for images of `sizes` [R], sides in px, which give `tokens` [R]
    positions after the stem.

    `macs` [R] are of one image, counted. For the first T sizes, `seconds` [T, run] are times of
    forward passes of one batch of `batch_size` images on `device`, and `peak_bytes` [T] the
    activations alive at once. Growth of multiply-accumulates is without the classifier, which costs
    the same at every resolution."""

    title: ClassVar[str] = "Growth of cost"

    model: ModelRecord
    sizes: Annotated[tuple[int, ...], "size"]
    tokens: Annotated[tuple[int, ...], "size"]
    macs: Annotated[tuple[MacParts, ...], "size"]
    device: str
    batch_size: int
    seconds: Annotated[np.ndarray, "timed", "run"]
    peak_bytes: Annotated[np.ndarray, "timed"]

    @property
    def counted(self) -> np.ndarray:
        """Multiply-accumulates [R] of one image without the classifier."""
        return np.array([part.without_head for part in self.macs], dtype=np.float64)

    @property
    def exponents(self) -> np.ndarray:
        """Exponent [R - 1] of counted growth between neighbouring sizes: slope of log MACs against
        log tokens."""
        return np.asarray(np.diff(np.log(self.counted)) / np.diff(np.log(self.tokens)))

    @property
    def exponent(self) -> float:
        """Exponent of counted growth over all sizes, by least squares on logarithms: 1 is linear, 2
        quadratic."""
        return slope(np.array(self.tokens), self.counted)

    @property
    def quadratic_fraction(self) -> np.ndarray:
        """Fraction [R] of multiply-accumulates quadratic in the tokens: c S^2 of a + b S + c S^2,
        fitted to all sizes.

        Exact where the positions of every layer are a fixed multiple of the tokens, or constant.
        NaN for two sizes, which any such curve fits."""
        tokens = np.array(self.tokens, dtype=np.float64)
        if len(tokens) < 3:
            return np.full(len(tokens), np.nan)
        # Scaled, so that the fit is well conditioned.
        scaled = tokens / tokens[-1]
        c = np.polyfit(scaled, self.counted / self.counted[-1], 2)[0]
        return np.asarray(c * scaled**2 * self.counted[-1] / self.counted)

    @property
    def median_seconds(self) -> np.ndarray:
        """Median time [T] of a forward pass of one batch."""
        return np.median(self.seconds, axis=1) if len(self.seconds) else np.empty(0)

    @property
    def measured_exponent(self) -> tuple[float, float, float]:
        """(exponent, low, high) of the growth of time: median over passes of the slope on
        logarithms, with its 95 % interval.

        NaN where fewer than two sizes were timed; the interval where there are fewer than six
        passes."""
        timed = len(self.seconds)
        if timed < 2:
            return (float("nan"),) * 3
        tokens = np.array(self.tokens[:timed])
        # The passes of one round, one per size, give one slope.
        found = np.array([slope(tokens, one) for one in self.seconds.T])
        return float(np.median(found)), *median_interval(found)

    def to_frame(self) -> pd.DataFrame:
        """One row per size; times and memory are NaN for the sizes that were counted only."""
        missing = np.full(len(self.sizes) - len(self.seconds), np.nan)
        return pd.DataFrame(
            {
                "model": self.model.name,
                "size_px": self.sizes,
                "tokens": self.tokens,
                "macs_without_head": self.counted,
                "spatial_macs": [part.spatial for part in self.macs],
                "channel_macs": [part.channel for part in self.macs],
                "exponent_from_last": [np.nan, *self.exponents],
                "quadratic_fraction": self.quadratic_fraction,
                "seconds_per_image": np.append(self.median_seconds, missing) / self.batch_size,
                "peak_activation_bytes": np.append(self.peak_bytes.astype(float), missing),
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
    """Multiply-accumulates of the network rebuilt for images of each of the `sizes`, and time and
    memory for the first `timed`.

    `sizes` are sides of square images in px, increasing; by default one to four times that of the
    network, and all are timed. Token-mixing weights and position embeddings are re-initialised:
    costs do not depend on the weights. Raises MeasureError for sizes that do not grow or are fewer
    than two, and ModelError for a network that cannot be rebuilt."""
    sides = tuple(sizes or (model.input.size[1] * k for k in (1, 2, 3, 4)))
    if len(sides) < 2 or any(b <= a for a, b in pairwise(sides)) or sides[0] < 1:
        raise MeasureError(
            "cost scaling needs two sizes or more, each larger than the last, not "
            f"{', '.join(map(str, sides))}"
        )
    tokens, macs = [], []
    for shapes in (at_resolution(model, side, meta=True) for side in sides):
        tokens.append(next((layer.positions for layer in shapes.layers if layer.positions), 0))
        if not tokens[-1]:
            raise ModelError(
                f"no layer of {model.name} has positions, so it has no number of tokens to scale"
            )
        macs.append(count_parts(shapes))
    last = len(sides) if timed is None else timed
    measured = [at_resolution(model, side) for side in sides[:last]]
    return CostGrowth(
        model=model.record,
        sizes=sides,
        tokens=tuple(tokens),
        macs=tuple(macs),
        device=device_name(model.device),
        batch_size=batch_size,
        # Timed in turns, so that other load of the machine changes no exponent.
        seconds=time_together(measured, batch_size, runs) if measured else np.empty((0, runs)),
        peak_bytes=np.array(
            [peak_activation_bytes(one, batch_size) for one in measured], dtype=np.int64
        ),
    )


def at_resolution(model: Model, size: int, *, meta: bool = False) -> Model:
    """The same architecture for images of `size` x `size` px; the model itself is unchanged.

    Convolutional networks are copied; the token-mixing layers of Mixers are re-initialised for the
    new number of tokens, with as many hidden units as before; ViTs are resized by timm
    (`set_input_size`), a Swin with its own window size. With `meta` the copy is on the meta device.
    Raises ModelError for networks that cannot be resized and sizes that they do not support."""
    # Copies of tensors in this memo take no memory for a second network.
    memo: dict[int, Any] = {}
    if meta:
        for tensor in (*model.module.parameters(), *model.module.buffers()):
            shape = torch.empty_like(tensor, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if is_parameter else shape
    network: Any = copied(model.module, memo)
    channels = model.input.size[0]
    if model.input.size[1:] != (size, size):
        try:
            if model.family == "mixer":
                _resize_mixer(network, model.name, size)
            elif model.family == "vit":
                # timm would scale the windows of a Swin with the image.
                swin = (SwinTransformerBlock, SwinTransformerV2Block)
                windows = [m.window_size for m in network.modules() if isinstance(m, swin)]
                network.set_input_size(
                    img_size=(size, size),
                    **({"window_size": tuple(max(windows))} if windows else {}),
                )
        except MixerProbeError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ModelError(
                f"{model.name} cannot be rebuilt for images of {size} px ({reason})"
            ) from error
    resized = Model(
        model.name,
        network,
        model.adapter,
        replace(model.input, size=(channels, size, size)),
        model.weights,
    )
    # Its structure comes from a forward pass, which fails for a network that does not run.
    _ = resized.structure
    return resized


def _resize_mixer(network: Any, name: str, size: int) -> None:
    """Fit timm's Mixer, ResMLP or gMLP to images of `size` px: stem and token-mixing layers."""
    patch = network.stem.patch_size
    if size % patch[0] or size % patch[1]:
        raise ModelError(
            f"{name} has patches of {patch[0]}×{patch[1]} px, which do not divide images of {size} "
            "px"
        )
    network.stem.set_input_size((size, size))
    tokens = (size // patch[0]) * (size // patch[1])
    for block in network.blocks:
        # Any: torch's annotations say of a submodule only that it may be a tensor.
        part: Any = block
        if isinstance(block, MixerBlock) and isinstance(part.mlp_tokens, UntiedMlp):
            groups, hidden = part.mlp_tokens.fc1_bias.shape
            like = part.mlp_tokens.fc1_weight
            untied = UntiedMlp(groups, network.embed_dim, tokens, hidden)
            part.mlp_tokens = untied.to(like.device, like.dtype)
        elif isinstance(block, MixerBlock):
            part.mlp_tokens.fc1 = _like(part.mlp_tokens.fc1, inputs=tokens)
            part.mlp_tokens.fc2 = _like(part.mlp_tokens.fc2, outputs=tokens)
        elif isinstance(block, ResBlock):
            part.linear_tokens = _like(part.linear_tokens, tokens, tokens)
        elif isinstance(block, SpatialGatingBlock):
            part.mlp_channels.gate.proj = _like(part.mlp_channels.gate.proj, tokens, tokens)
        else:
            raise ModelError(
                f"a {type(block).__name__} is not a Mixer block with known token-mixing layers"
            )


def _like(layer: nn.Linear, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    """A re-initialised linear layer with the bias, device and type of `layer`, of other sizes where
    given."""
    weight = layer.weight
    sizes = (inputs or layer.in_features, outputs or layer.out_features)
    return nn.Linear(*sizes, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype)
